//! Tests of several handles on one file, as several processes have them.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::Instant;

use stepwell_core::store::Changed;

use super::*;

fn lock_files(folder: &Path) -> usize {
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
    names.filter(|name| name.to_string_lossy().contains("-worker-")).count()
}

/// Claims until there is a task, while no time passes for leases.
fn claim_soon(store: &SqliteStore, n: u128) -> ClaimedTask {
    let begin = Instant::now();
    loop {
        if let Some(task) = claimed(commit(store, claim(n, 1))).pop() {
            return task;
        }
        assert!(begin.elapsed() < Duration::from_secs(20), "nothing to claim");
        std::thread::yield_now();
    }
}

async fn is_ready(future: impl Future<Output = Changed>) -> bool {
    tokio::time::timeout(Duration::from_millis(100), future).await.is_ok()
}

#[test]
fn a_handle_learns_of_the_commits_of_others() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stepwell.db");
    let (a, b) = (open(&path), open(&path));
    commit(&a, spawns(vec![new_task(1)]));
    assert!(!wait(is_ready(a.changed())), "its own commits are no news");
    wait(b.changed());

    commit(&b, spawns(vec![new_task(2)]));
    wait(a.changed());
    wait(async {
        let begin = Instant::now();
        let (_, changed) = tokio::join!(b.commit(spawns(vec![new_task(3)]).into()), async {
            a.changed().await;
            begin.elapsed()
        });
        assert!(changed < Duration::from_secs(5), "{changed:?}");
    });
    assert!(!wait(is_ready(a.changed())), "each change is told once");
}

#[test]
fn in_memory_nobody_else_commits() {
    let store = wait(SqliteStore::open(Location::Memory, Manual::new())).unwrap();
    commit(&store, spawns(vec![new_task(1)]));
    assert!(!wait(is_ready(store.changed())));
}

#[test]
fn tasks_of_a_dropped_handle_are_taken_over_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stepwell.db");
    let (a, b) = (open(&path), open(&path));
    commit(&a, register(1));
    commit(&a, spawns(vec![new_task(1)]));
    let first = claim_soon(&a, 1);
    commit(&b, register(2));
    assert!(claimed(commit(&b, claim(2, 1))).is_empty());
    assert_eq!(lock_files(folder.path()), 2);
    drop(a);
    let second = claim_soon(&b, 2);
    assert_eq!(
        (second.task_id, second.crashes, second.attempt),
        (first.task_id, 1, first.attempt + 1)
    );
    assert_eq!(lock_files(folder.path()), 1);
    commit(&b, deregister(2));
    assert_eq!(lock_files(folder.path()), 0);
}

#[test]
fn a_lock_file_that_is_gone_kills_nobody_and_is_made_anew() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stepwell.db");
    let (a, b) = (open(&path), open(&path));
    commit(&a, register(1));
    commit(&a, spawns(vec![new_task(1)]));
    let first = claim_soon(&a, 1);
    for file in std::fs::read_dir(folder.path()).unwrap().map(|file| file.unwrap().path()) {
        if file.to_string_lossy().contains("-worker-") {
            std::fs::remove_file(file).unwrap();
        }
    }
    commit(&b, register(2));
    // The time is longer than the interval between two looks for dead processes.
    let begun = std::time::Instant::now();
    while begun.elapsed() < Duration::from_millis(1_200) {
        assert!(claimed(commit(&b, claim(2, 1))).is_empty());
    }
    let alive = WorkerSignal::Heartbeat { worker_id: worker_id(1) };
    commit(&a, Batch { workers: vec![alive], ..Batch::default() });
    assert_eq!(lock_files(folder.path()), 2);
    drop(a);
    assert_eq!(claim_soon(&b, 2).task_id, first.task_id);
}

#[test]
fn a_living_handle_keeps_its_tasks_until_it_is_declared_dead() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stepwell.db");
    let clock = Manual::new();
    let a = open(&path);
    let b = wait(SqliteStore::open(Location::File(path), clock.clone())).unwrap();
    commit(&a, register(1));
    commit(&a, spawns(vec![new_task(1)]));
    let first = claim_soon(&a, 1);
    commit(&b, register(2));
    clock.advance(Duration::from_secs(24 * 3600));
    assert!(claimed(commit(&b, claim(2, 1))).is_empty());
    let dead = WorkerSignal::DeclareDead { worker_id: worker_id(1), heartbeats: 0 };
    commit(&b, Batch { workers: vec![dead], ..Batch::default() });
    assert_eq!(claim_soon(&b, 2).task_id, first.task_id);
    let late = transition(first.task_id, first.run_id, Next::Complete(json("1")));
    assert!(commit(&a, transitions(vec![late])).transitions[0].is_err());
}

/// The environment variable of the process that is killed, with the database's path.
const VICTIM: &str = "STEPWELL_TEST_VICTIM";

#[test]
fn tasks_of_a_killed_process_are_taken_over_at_once() {
    if let Some(path) = std::env::var_os(VICTIM) {
        let store = open(Path::new(&path));
        commit(&store, register(1));
        claim_soon(&store, 1);
        println!("\nclaimed");
        loop {
            std::thread::park();
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stepwell.db");
    let store = open(&path);
    commit(&store, spawns(vec![new_task(1)]));
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "tests::sharing::tasks_of_a_killed_process_are_taken_over_at_once",
            "--nocapture",
        ])
        .env(VICTIM, &path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(victim.stdout.take().unwrap()).lines();
    assert!(lines.map_while(Result::ok).any(|line| line == "claimed"));
    commit(&store, register(2));
    assert!(claimed(commit(&store, claim(2, 1))).is_empty());
    victim.kill().unwrap();
    victim.wait().unwrap();
    assert_eq!(claim_soon(&store, 2).crashes, 1);
    assert_eq!(lock_files(folder.path()), 1);
}

#[test]
fn dropping_a_store_finishes_what_was_begun() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stepwell.db");
    let store = open(&path);
    let commits: Vec<_> =
        (1..=20).map(|n| store.commit(spawns(vec![new_task(n)]).into())).collect();
    drop(store);
    for commit in commits {
        wait(commit).unwrap();
    }
    assert_eq!(wait(open(&path).tasks(Default::default())).unwrap().items.len(), 20);
}

#[test]
fn a_journal_that_another_handle_has_set_back_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stepwell.db");
    let (a, b) = (open(&path), open(&path));
    commit(&a, register(1));
    commit(&a, spawns(vec![new_task(1)]));
    let run_id = claimed(commit(&a, claim(1, 1)))[0].run_id;
    let writes = |seq: u64| {
        let mut transition = transition(task_id(1), run_id, Next::Continue { collect: false });
        transition.after = Some(seq - 1);
        transition.entries.push(step(seq, json("1")));
        commit(&a, Batch { transitions: vec![transition], ..Batch::default() })
            .transitions
            .remove(0)
    };
    assert!(writes(1).is_ok());
    assert!(writes(2).is_ok());
    on_writer(&b, |conn| conn.execute("DELETE FROM stepwell_journal WHERE seq = 2", [])).unwrap();
    assert!(writes(3).is_err(), "the run is refused, since its second entry is gone");
    let again = claim_soon(&a, 1);
    assert_eq!(again.journal.unwrap().len(), 1, "the task goes on from what is there");
}
