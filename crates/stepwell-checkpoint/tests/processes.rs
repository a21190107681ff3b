//! Two processes and one checkpoint: the first is paused, loses its lease, and wakes.
#![cfg(unix)]
#![allow(clippy::panic, clippy::unwrap_used, missing_docs, reason = "a test ends by a panic")]

use std::collections::BTreeMap;
use std::future::IntoFuture as _;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use stepwell_checkpoint::key_value::{Files, KeyValueStore as _};
use stepwell_checkpoint::{Checkpoint, CheckpointError, Timestamp};

const FOLDER: &str = "STEPWELL_TEST_FOLDER";
const LEASE: Duration = Duration::from_secs(2);

/// Not a test: what the other process does.
#[tokio::test]
async fn the_other_process() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let store = Files::open(Path::new(&folder)).await.unwrap();
    let cp = Checkpoint::load(&store, "file").lease(LEASE).await.unwrap();
    cp.step("first", || async { Ok(1) }).await.unwrap();
    println!("ready");
    tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new()))
        .await
        .unwrap()
        .unwrap();
    let mut ran = false;
    let result = cp
        .step("second", || async {
            ran = true;
            Ok("from the first process".to_owned())
        })
        .await;
    println!("ran: {ran}, {}", result.unwrap_err());
    println!("{}", cp.complete().await.unwrap_err());
}

fn signal(child: &Child, signal: &str) {
    assert!(
        Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success()
    );
}

#[tokio::test]
async fn a_paused_process_that_lost_its_checkpoint_writes_nothing_more_and_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let store = Files::open(folder.path()).await.unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "the_other_process", "--nocapture"])
        .env(FOLDER, folder.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    lines.find(|line| line.ends_with("ready")).unwrap();
    let load = || Checkpoint::load(&store, "file").lease(LEASE).into_future();

    let until = async || match load().await.unwrap_err() {
        CheckpointError::InUse { by, until, .. } => {
            assert!(by.starts_with(&format!("process {}", child.id())), "{by}");
            until
        }
        error => panic!("{error}"),
    };
    // It renews its lease while it lives: beyond the end of the first one, nobody else gets hold of
    // it.
    let first = until().await;
    while Timestamp::now() < first || until().await <= first {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    signal(&child, "-STOP");
    let cp = loop {
        match load().await {
            Ok(cp) => break cp,
            Err(CheckpointError::InUse { .. }) => {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            // It was paused in the middle of a write, and is to end that first.
            Err(CheckpointError::Store(_)) => {
                signal(&child, "-CONT");
                match load().await {
                    // It was paused for longer than its lease.
                    Ok(cp) => break cp,
                    Err(CheckpointError::InUse { .. }) => signal(&child, "-STOP"),
                    Err(error) => panic!("{error}"),
                }
            }
            Err(error) => panic!("{error}"),
        }
    };
    assert_eq!(cp.step("first", || async { Ok(2) }).await.unwrap(), 1);
    cp.step("second", || async { Ok("from the second process".to_owned()) }).await.unwrap();
    cp.release().await.unwrap();
    let stored = async || {
        let mut stored = BTreeMap::new();
        for key in store.keys("*").await.unwrap() {
            stored.insert(key.clone(), store.get(&key).await.unwrap().unwrap());
        }
        stored
    };
    let before = stored().await;

    signal(&child, "-CONT");
    child.stdin.take().unwrap().write_all(b"\n").unwrap();
    let told = lines.find(|line| line.contains("ran:")).unwrap();
    let expected = "ran: false, checkpoint \"file\" was taken over by another process, which has \
                    let go of it again: stop, and leave the rest to that one";
    assert_eq!(told, expected);
    assert!(lines.next().unwrap().contains("was taken over"));
    assert!(child.wait().unwrap().success());
    assert_eq!(stored().await, before);
}
