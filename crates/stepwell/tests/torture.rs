//! Torture: real worker processes on one SQLite file, killed with `kill -9` at random moments while
//! 2,000 tasks run. A ledger that they append to, outside of the database, shows what really ran.
//!
//! `TORTURE_TASKS` and `TORTURE_KILLS` make it longer.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::unit_arg,
    missing_docs,
    reason = "a test ends by a panic"
)]

use std::collections::{BTreeMap, HashMap};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use stepwell::*;

/// How long a step's work takes.
const WORK: Duration = Duration::from_millis(4);

struct Ledger(File);

impl Ledger {
    fn open(folder: &Path) -> Self {
        Self(OpenOptions::new().create(true).append(true).open(folder.join("ledger")).unwrap())
    }

    /// Notes that a step's closure starts. What it gives is unique, so that the journal shows which
    /// of the lines became its result.
    fn note(&self, task: u32, step: u32) -> String {
        let nonce = uuid::Uuid::from_u128(rand_u128()).simple().to_string();
        // One write to a file opened for appending: lines of several processes do not mix. Their
        // length divides that of a page: a process that is killed as it writes leaves a
        // part of a line only where one page ends.
        let line = format!("{task} {step} {nonce}");
        (&self.0).write_all(format!("{line:<127}\n").as_bytes()).unwrap();
        nonce
    }
}

fn rand_u128() -> u128 {
    use std::hash::{BuildHasher, RandomState};
    let half = || u128::from(RandomState::new().hash_one(std::time::Instant::now()));
    half() << 64 | half()
}

/// Steps one after the other and side by side, with a nap between; gives what its steps gave, in
/// their order.
#[stepwell::task]
async fn tortured(task: u32, ctx: TaskContext) -> TaskResult<Vec<String>> {
    let ledger = ctx.state::<Arc<Ledger>>()?;
    let step = |number: u32| {
        ctx.step(("step", number), move || async move {
            let nonce = ledger.note(task, number);
            tokio::time::sleep(WORK).await;
            Ok(nonce)
        })
    };
    let first = step(0).await?;
    let (second, third) = tokio::try_join!(step(1), step(2))?;
    if task.is_multiple_of(3) {
        ctx.sleep_for("nap", WORK).await?;
    }
    Ok(vec![first, second, third, step(3).await?])
}

async fn connect(folder: &Path) -> Durable {
    let url = format!("sqlite://{}", folder.join("tasks.db").display());
    let builder = Durable::builder().database_url(url).state(Arc::new(Ledger::open(folder)));
    builder.max_attempts(10_000).build().await.unwrap()
}

/// The worker program: this test's own binary, started with the folder in its environment.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "started by the tests that kill it"]
async fn worker_program() {
    let Some(folder) = std::env::var_os("TORTURE_FOLDER").map(PathBuf::from) else { return };
    let client = connect(&folder).await;
    client.register::<tortured>().await.unwrap();
    let concurrency = std::env::var("TORTURE_CONCURRENCY").unwrap().parse().unwrap();
    client.start_worker(WorkerOptions::new().concurrency(concurrency)).await;
    println!("ready");
    std::future::pending::<()>().await;
}

fn start_worker(folder: &Path, concurrency: usize) -> Child {
    let mut worker = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "worker_program", "--ignored", "--nocapture"])
        .env("TORTURE_FOLDER", folder)
        .env("TORTURE_CONCURRENCY", concurrency.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(worker.stdout.take().unwrap()).lines();
    assert!(
        lines.any(|line| line.unwrap().contains("ready")),
        "the worker ended before it was ready"
    );
    worker
}

async fn torture(workers: usize) {
    let number =
        |name, default| std::env::var(name).map_or(default, |value| value.parse().unwrap());
    let (tasks, least_kills): (u32, usize) =
        (number("TORTURE_TASKS", 2_000), number("TORTURE_KILLS", 50) as usize);
    let folder = tempfile::tempdir().unwrap();
    let client = connect(folder.path()).await;
    let all = (0..tasks).map(|task| client.spawn::<tortured>(task));
    let spawned = client.spawn_many(all).await.unwrap();

    // So few at a time that the work outlasts the kills.
    let concurrency = 8 / workers;
    let mut running: Vec<Child> =
        (0..workers).map(|_| start_worker(folder.path(), concurrency)).collect();
    let mut kills = 0;
    let last = spawned.last().unwrap().task_id;
    loop {
        let left = unfinished(&client).await;
        if left == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10 + (rand_u128() % 120) as u64)).await;
        let victim = (rand_u128() % workers as u128) as usize;
        running[victim].kill().unwrap();
        running[victim].wait().unwrap();
        kills += 1;
        running[victim] = start_worker(folder.path(), concurrency);
    }
    for worker in &mut running {
        worker.kill().unwrap();
        worker.wait().unwrap();
    }
    assert!(kills >= least_kills, "all was done after {kills} kills: give it more tasks");
    client.wait::<Vec<String>>(last).await.unwrap();

    // Every start of a step, in the order in which they happened.
    let ledger = std::fs::read_to_string(folder.path().join("ledger")).unwrap();
    let mut starts: BTreeMap<u32, Vec<(u32, &str)>> = BTreeMap::new();
    for line in ledger.lines() {
        let words: Vec<_> = line.split_whitespace().collect();
        let [task, step, nonce] = words.as_slice() else { panic!("a broken line: {line:?}") };
        starts.entry(task.parse().unwrap()).or_default().push((step.parse().unwrap(), nonce));
    }
    let mut again = 0;
    for (task, spawned) in (0..tasks).zip(&spawned) {
        let results: Vec<String> = client.wait(spawned.task_id).await.unwrap();
        let starts = &starts[&task];
        again += starts.len() - 4;
        let mut last_start = HashMap::new();
        for (place, (step, nonce)) in starts.iter().enumerate() {
            last_start.insert(*step, (place, *nonce));
        }
        for (step, result) in (0..).zip(&results) {
            assert_eq!(
                last_start[&step].1, result,
                "task {task}: step {step} ran again after its result was journaled"
            );
        }
        let first_start = |step| starts.iter().position(|(started, _)| *started == step).unwrap();
        for (before, after) in [(0, 1), (0, 2), (1, 3), (2, 3)] {
            let (before_ended, after_began) = (last_start[&before].0, first_start(after));
            assert!(
                before_ended < after_began,
                "task {task}: step {after} began before the result of {before} was durable"
            );
        }
    }
    println!(
        "{tasks} tasks, {workers} worker processes, {kills} kills, {again} steps ran again before \
         they were journaled"
    );
}

async fn unfinished(client: &Durable) -> usize {
    let mut left = 0;
    for state in [TaskState::Pending, TaskState::Running, TaskState::Suspended] {
        left += client
            .tasks(TaskFilter { state: Some(state), limit: 1, ..TaskFilter::default() })
            .await
            .unwrap()
            .items
            .len();
    }
    left
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_task_is_lost_and_no_journaled_step_runs_again_when_the_worker_is_killed() {
    torture(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nor_when_two_worker_processes_share_the_file_and_are_killed() {
    torture(2).await;
}

/// The program that accepts one of each, says so at once, and would go on for ever.
#[tokio::test]
#[ignore = "it is started by what_was_accepted_survives_kill_9"]
async fn accepting_program() {
    let Some(folder) = std::env::var_os("TORTURE_FOLDER").map(PathBuf::from) else { return };
    let client = connect(&folder).await;
    let task = client.spawn_named("waits", &()).await.unwrap().task_id;
    client.emit_event("event", &1).await.unwrap();
    client.send(task, "topic", &2).await.unwrap();
    let cancelled = client.spawn_named("waits", &()).await.unwrap().task_id;
    client.cancel(cancelled).await.unwrap();
    println!("accepted {task} {cancelled}");
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn what_was_accepted_survives_kill_9() {
    let folder = tempfile::tempdir().unwrap();
    let mut program = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "accepting_program", "--ignored", "--nocapture"])
        .env("TORTURE_FOLDER", folder.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(program.stdout.take().unwrap()).lines().map(Result::unwrap);
    let accepted = lines.find_map(|line| Some(line.split_once("accepted ")?.1.to_owned())).unwrap();
    program.kill().unwrap();
    program.wait().unwrap();

    let (task, cancelled) = accepted.split_once(' ').unwrap();
    let client = connect(folder.path()).await;
    let waits = |(): (), ctx: TaskContext| async move {
        let event: u32 = ctx.await_event("event", None).await?;
        let message: u32 = ctx.recv("topic", None).await?;
        Ok((event, message))
    };
    client.register_fn("waits", waits).await.unwrap();
    let worker = client.start_worker(WorkerOptions::new()).await;
    assert_eq!(client.wait::<(u32, u32)>(task.parse().unwrap()).await.unwrap(), (1, 2));
    let cancelled = client.wait::<(u32, u32)>(cancelled.parse().unwrap()).await;
    assert!(matches!(cancelled, Err(Error::TaskCancelled(_))));
    worker.shutdown().await;
}
