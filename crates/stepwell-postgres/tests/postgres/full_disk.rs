//! A disk that is really full, under a server that is really stopped by it.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use stepwell::{Durable, TaskContext, TaskId, WorkerOptions};
use stepwell_postgres::{PostgresOptions, PostgresStore};

/// A disk of that many MiB, mounted until it is dropped.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// `None` where this user may not mount one.
    fn mount(megabytes: u32) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let size = format!("size={megabytes}m,mode=0777");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(folder.path());
        mount.output().is_ok_and(|done| done.status.success()).then_some(Self(folder))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.path()).output();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_accepted_before_the_disk_was_full_is_done_when_there_is_room() {
    let Some(disk) = SmallDisk::mount(160) else {
        eprintln!("this user may not mount a small disk: not run");
        return;
    };
    let reserve = disk.path().join("reserve");
    std::fs::write(&reserve, vec![0; 48 << 20]).unwrap();
    let postgres = throwaway::Postgres::start_in(disk.path(), &[("max_wal_size", "48MB")]).unwrap();
    let options = PostgresOptions::parse(&postgres.url()).unwrap();
    let store = PostgresStore::connect(options).await.unwrap();
    let client = Durable::builder().store(Arc::new(store)).build().await.unwrap();
    let measure = |text: String, ctx: TaskContext| async move {
        // Both are kept: there is no room for many of them.
        let again: String = ctx.step("copy", || async { Ok(text.clone()) }).await?;
        Ok(again.len())
    };
    client.register_fn("measure", measure).await.unwrap();
    client.start_worker(WorkerOptions::new()).await;

    let mut accepted: Vec<TaskId> = Vec::new();
    let full = loop {
        // What cannot be squeezed.
        let text: String = (0..20_000).map(|_| uuid::Uuid::new_v4().simple().to_string()).collect();
        let spawning = client.spawn_named("measure", &text);
        match tokio::time::timeout(Duration::from_secs(10), spawning).await {
            Ok(Ok(task)) => accepted.push(task.task_id),
            Ok(Err(error)) => break error.to_string(),
            // The server itself has stopped, and whether the task was accepted is not known before
            // it is back.
            Err(_) => break "the disk is full".into(),
        }
        assert!(accepted.len() < 10_000, "the disk never was full");
    };
    assert!(full.contains("the disk is full") || full.contains("cannot"), "{full}");
    assert!(accepted.len() > 5, "{} tasks fitted", accepted.len());

    std::fs::remove_file(&reserve).unwrap();
    if postgres.sql("SELECT 1").is_err() {
        // It could not even recover: it is started by hand.
        let _ = postgres.stop(throwaway::Stop::Immediate);
        let start = async {
            while postgres.start_again().is_err() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), start).await.unwrap();
    }
    for task_id in accepted {
        let wait = tokio::time::timeout(Duration::from_secs(120), client.wait::<usize>(task_id));
        assert_eq!(wait.await.unwrap().unwrap(), 20_000 * 32);
    }
}
