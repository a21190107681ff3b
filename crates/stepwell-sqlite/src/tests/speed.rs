//! Measurements, which are run by hand: `STEPWELL_BENCH_DIR=/disk cargo test --release -p
//! stepwell-sqlite -- --ignored --nocapture speed`.

use std::time::Instant;

use super::*;

fn eager(first: u128, count: u128) -> Vec<NewTask> {
    let claim_by = Some(worker_id(1));
    (first..first + count).map(|n| NewTask { claim_by, ..new_task(n) }).collect()
}

fn done(tasks: &[(TaskId, RunId)]) -> Batch {
    let complete = |&(task_id, run_id): &(TaskId, RunId)| Transition {
        entries: vec![step(1, json("{\"receipt\":\"r-123456\"}"))],
        ..transition(task_id, run_id, Next::Complete(json("{\"ok\":true}")))
    };
    transitions(tasks.iter().map(complete).collect())
}

#[test]
#[ignore = "measures, asserts nothing"]
fn speed() {
    let folder = match std::env::var_os("STEPWELL_BENCH_DIR") {
        Some(folder) => tempfile::tempdir_in(folder),
        None => tempfile::tempdir(),
    };
    let folder = folder.unwrap();
    for location in [Location::File(folder.path().join("speed.db")), Location::Memory] {
        let store = wait(SqliteStore::open(location.clone(), Manual::new())).unwrap();
        commit(&store, register(1));
        let mut next = 1;
        for size in [64_u128, 256, 1] {
            let rounds = if size == 1 { 2_000 } else { 50_000 / size };
            let (mut spawning, mut completing) = (Vec::new(), Vec::new());
            let begin = Instant::now();
            for _ in 0..rounds {
                let tasks = eager(next, size);
                let runs: Vec<_> = tasks.iter().map(|task| (task.task_id, task.run_id)).collect();
                next += size;
                let start = Instant::now();
                commit(&store, spawns(tasks));
                spawning.push(start.elapsed());
                let start = Instant::now();
                commit(&store, done(&runs));
                completing.push(start.elapsed());
            }
            let rate = (rounds * size) as f64 / begin.elapsed().as_secs_f64();
            spawning.sort_unstable();
            completing.sort_unstable();
            println!(
                "{location}: {size} a batch: {rate:.0} tasks/s; p50, p99 of spawn {:?}, {:?}; of \
                 complete {:?}, {:?}",
                spawning[spawning.len() / 2],
                spawning[spawning.len() * 99 / 100],
                completing[completing.len() / 2],
                completing[completing.len() * 99 / 100],
            );
        }
    }
}

#[test]
#[ignore = "measures, asserts nothing"]
fn speed_of_steps() {
    let store = wait(SqliteStore::open(Location::Memory, Manual::new())).unwrap();
    commit(&store, register(1));
    let tasks = eager(1, 64);
    commit(&store, spawns(tasks.clone()));
    let rounds = 1_000;
    let begin = Instant::now();
    for seq in 1..=rounds {
        let next = |task: &NewTask| Transition {
            entries: vec![step(seq, json("{\"receipt\":\"r-123456\"}"))],
            after: Some(seq - 1),
            ..transition(task.task_id, task.run_id, Next::Continue { collect: false })
        };
        commit(&store, transitions(tasks.iter().map(next).collect()));
    }
    let rate = (rounds * 64) as f64 / begin.elapsed().as_secs_f64();
    println!("64 a batch: {rate:.0} steps/s");
}
