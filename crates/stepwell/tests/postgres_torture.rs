//! Torture: real worker processes on one PostgreSQL server, while all of it is maltreated at
//! random: workers are killed with `kill -9`, or stopped until others have their tasks, connections
//! are cut, and the server crashes. A ledger that the workers append to, outside of the database,
//! shows what really ran.
//!
//! `TORTURE_TASKS` and `TORTURE_KILLS` make it longer.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::unit_arg,
    missing_docs,
    unreachable_pub,
    reason = "a test ends by a panic"
)]

mod ledger;

use std::collections::HashSet;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use stepwell::*;
use throwaway::{Postgres, Stop};
use tokio::sync::mpsc;

use crate::ledger::{WORK, answered, connect, prove, random, random_u128, step};

const WORKERS: usize = 4;
/// How many tasks a worker runs at a time: so few that the work outlasts what is done to it.
const CONCURRENCY: usize = 4;
const LEASE: Duration = Duration::from_secs(2);
/// How many tasks are spawned before the first of them has ended.
const AHEAD: usize = 200;
/// The server crashes whenever that many more tasks have ended, so often at least.
const TASKS_PER_CRASH: usize = 350;
const CRASHES: usize = 5;
/// How long nothing may end before something is stuck.
const PATIENCE: Duration = Duration::from_secs(60);

/// Has the database itself note who owns a task when something is journaled: what a ledger beside
/// it cannot know.
const NOTE_OWNERS: &str = "
    CREATE TABLE stepwell.owners (task_id uuid, seq bigint, run_id uuid);
    CREATE FUNCTION stepwell.note_owner() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO stepwell.owners
            SELECT task_id, NEW.seq, run_id FROM stepwell.live_tasks WHERE task_id = NEW.task_id;
        RETURN NULL;
    END $$;
    CREATE TRIGGER note_owner AFTER INSERT ON stepwell.journal
        FOR EACH ROW EXECUTE FUNCTION stepwell.note_owner()";

/// What a tortured task has seen.
#[derive(Serialize, Deserialize)]
struct Seen {
    steps: Vec<String>,
    errand: Option<(TaskId, Vec<String>)>,
    told: Option<String>,
}

/// Steps one after the other and side by side, a nap, a child, and of each four tasks one that
/// tells another something: so the processes touch each other's tasks.
#[stepwell::task]
async fn tortured(task: u32, ctx: TaskContext) -> TaskResult<Seen> {
    let first = step(&ctx, 0).await?;
    let mut child = None;
    if has_errand(task) {
        child = Some(ctx.spawn::<errand>("errand", ()).await?);
    }
    let (second, third) = tokio::try_join!(step(&ctx, 1), step(&ctx, 2))?;
    let mut told = None;
    match task % 4 {
        0 => told = Some(ctx.await_event(("told", task), None).await?),
        1 => ctx.emit_event(("told", task - 1), &third).await?,
        2 => ctx.sleep_for("nap", WORK).await?,
        _ => {}
    }
    let errand = match &child {
        Some(child) => Some(ctx.join(child).await?),
        None => None,
    };
    Ok(Seen { steps: vec![first, second, third, step(&ctx, 3).await?], errand, told })
}

fn has_errand(task: u32) -> bool {
    task.is_multiple_of(3)
}

#[stepwell::task]
async fn errand(_: (), ctx: TaskContext) -> TaskResult<(TaskId, Vec<String>)> {
    Ok((ctx.task_id, vec![step(&ctx, 0).await?, step(&ctx, 1).await?]))
}

/// The worker program: this test's own binary, started with the server and the folder in its
/// environment.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "started by the test that kills it"]
async fn worker_program() {
    let Some(folder) = std::env::var_os("TORTURE_FOLDER").map(PathBuf::from) else { return };
    let client = connect(&std::env::var("TORTURE_DATABASE").unwrap(), &folder).await;
    client.register::<tortured>().await.unwrap();
    client.register::<errand>().await.unwrap();
    let options = WorkerOptions::new().concurrency(CONCURRENCY).lease(LEASE);
    client.start_worker(options.name(std::env::var("TORTURE_NAME").unwrap())).await;
    println!("ready");
    std::future::pending::<()>().await;
}

struct WorkerProcess {
    child: Child,
    name: String,
    /// Set while it is stopped: ends when it has been continued.
    stopped: Option<JoinHandle<()>>,
}

impl WorkerProcess {
    fn start(postgres: &Postgres, folder: &Path) -> Self {
        let name = format!("{:x}", random_u128());
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "worker_program", "--ignored", "--nocapture"])
            .env("TORTURE_FOLDER", folder)
            .env("TORTURE_DATABASE", postgres.url())
            .env("TORTURE_NAME", &name)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(
            lines.any(|line| line.unwrap().contains("ready")),
            "the worker ended before it was ready"
        );
        // The test harness writes a line when a test takes long, and ends when nobody reads it.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, name, stopped: None }
    }

    fn kill(&mut self) {
        assert!(self.child.try_wait().unwrap().is_none(), "a worker ended by itself");
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn wait_until_it_goes_on(&mut self) {
        self.stopped.take().into_iter().for_each(|stopped| stopped.join().unwrap());
    }

    fn is_stopped(&self) -> bool {
        self.stopped.as_ref().is_some_and(|stopped| !stopped.is_finished())
    }

    /// Stops the process until its lease is gone and another process runs a task of its own. Then
    /// it goes on with what it was about to do, most often while the new owner is at work.
    fn stop(&mut self, postgres: &Arc<Postgres>) {
        let (postgres, name, id) = (postgres.clone(), self.name.clone(), self.child.id());
        signal(id, "-STOP");
        self.stopped = Some(std::thread::spawn(move || {
            // The server may be away for a moment.
            while postgres.sql(&until_replaced(&name)).is_err() {}
            signal(id, "-CONT");
        }));
    }
}

impl Drop for WorkerProcess {
    fn drop(&mut self) {
        // Most often it has been killed already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits within the server, which notices sooner. The name of a run changes when another process
/// claims the task.
fn until_replaced(worker: &str) -> String {
    format!(
        "DO $$ DECLARE
            its_worker uuid := (SELECT worker_id FROM stepwell.workers WHERE name = '{worker}');
            its_run uuid := (SELECT run_id FROM stepwell.live_tasks
                WHERE worker_id = its_worker AND state = 'running' LIMIT 1);
        BEGIN
            WHILE EXISTS (SELECT FROM stepwell.workers WHERE worker_id = its_worker)
                OR EXISTS (SELECT FROM stepwell.live_tasks WHERE run_id = its_run)
            LOOP
                PERFORM pg_sleep(0.002);
            END LOOP;
        END $$"
    )
}

fn signal(process: u32, signal: &str) {
    assert!(Command::new("kill").args([signal, &process.to_string()]).status().unwrap().success());
}

/// The tasks: a number of them, and as many more as it takes until enough was done to the workers.
#[derive(Default)]
struct Load {
    tasks: u32,
    ended: AtomicUsize,
    enough: AtomicBool,
}

impl Load {
    async fn spawn(&self, client: &Durable, spawned: mpsc::Sender<TaskId>) {
        for task in 0.. {
            // One that waits to be told something needs the one after it.
            let complete = task >= self.tasks && task.is_multiple_of(4);
            if complete && self.enough.load(Ordering::Relaxed) {
                return;
            }
            // When there was no answer, there may be a task.
            let options = SpawnOptions::new().idempotency_key(task.to_string());
            let spawn = || client.spawn::<tortured>(task).options(options.clone());
            spawned.send(answered(spawn).await.task_id).await.unwrap();
        }
    }

    /// Spawns all, some ahead of those that have ended, and waits for each.
    async fn run(self: Arc<Self>, client: Durable) -> Vec<(TaskId, Seen)> {
        let (sender, mut spawned) = mpsc::channel(AHEAD);
        let (load, spawner) = (self.clone(), client.clone());
        let spawning = tokio::spawn(async move { load.spawn(&spawner, sender).await });
        let mut all = Vec::new();
        while let Some(task_id) = spawned.recv().await {
            all.push((task_id, answered(|| client.wait(task_id)).await));
            self.ended.store(all.len(), Ordering::Relaxed);
        }
        spawning.await.unwrap();
        all
    }
}

/// What was done to the processes and the server, how often.
#[derive(Debug, Default)]
struct Deeds {
    kills: usize,
    stops: usize,
    terminated: usize,
    crashes: usize,
}

impl Deeds {
    fn do_one(&mut self, postgres: &Arc<Postgres>, folder: &Path, workers: &mut [WorkerProcess]) {
        let stopped = workers.iter().filter(|worker| worker.is_stopped()).count();
        let mut at_work: Vec<_> =
            workers.iter_mut().filter(|worker| !worker.is_stopped()).collect();
        let victim = random(at_work.len() as u64) as usize;
        let victim = &mut *at_work[victim];
        match random(8) {
            0..3 => {
                victim.kill();
                *victim = WorkerProcess::start(postgres, folder);
                self.kills += 1;
            }
            // Others are needed, to take its tasks.
            3..5 if stopped < WORKERS / 2 => {
                victim.stop(postgres);
                self.stops += 1;
            }
            _ => {
                let two = "SELECT count(pg_terminate_backend(pid)) FROM (\
                    SELECT pid FROM pg_stat_activity \
                    WHERE application_name = 'stepwell' ORDER BY random() LIMIT 2) AS two";
                self.terminated += postgres.sql(two).unwrap().parse::<usize>().unwrap();
            }
        }
    }

    fn crash(&mut self, postgres: &Postgres) {
        postgres.stop(Stop::Immediate).unwrap();
        std::thread::sleep(Duration::from_millis(random(300)));
        postgres.start_again().unwrap();
        self.crashes += 1;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_and_nobody_writes_for_another_whatever_dies() {
    let number =
        |name, default: u32| std::env::var(name).map_or(default, |value| value.parse().unwrap());
    let (tasks, kills): (_, usize) =
        (number("TORTURE_TASKS", 2_000), number("TORTURE_KILLS", 25) as usize);
    let postgres = Arc::new(Postgres::start().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let client = connect(&postgres.url(), folder.path()).await;
    postgres.sql(NOTE_OWNERS).unwrap();
    let mut workers: Vec<_> =
        (0..WORKERS).map(|_| WorkerProcess::start(&postgres, folder.path())).collect();

    let load = Arc::new(Load { tasks, ..Load::default() });
    let running = tokio::spawn(load.clone().run(client.clone()));
    let mut deeds = Deeds::default();
    let mut progress = (0, Instant::now());
    while !running.is_finished() {
        tokio::time::sleep(Duration::from_millis(random(500))).await;
        let ended = load.ended.load(Ordering::Relaxed);
        if ended > progress.0 {
            progress = (ended, Instant::now());
        }
        assert!(
            progress.1.elapsed() < PATIENCE,
            "{ended} tasks have ended, and no more do; {deeds:?}"
        );
        if ended / TASKS_PER_CRASH > deeds.crashes {
            deeds.crash(&postgres);
        } else {
            deeds.do_one(&postgres, folder.path(), &mut workers);
        }
        let enough = deeds.kills >= kills && deeds.stops >= kills / 5 && deeds.crashes >= CRASHES;
        load.enough.store(enough, Ordering::Relaxed);
    }
    workers.iter_mut().for_each(WorkerProcess::wait_until_it_goes_on);
    for worker in &mut workers {
        worker.kill();
    }
    let all = running.await.unwrap();

    let proof = prove(&client, folder.path()).await;
    let ids: HashSet<_> = all.iter().map(|(task_id, _)| *task_id).collect();
    assert_eq!(ids.len(), all.len(), "two spawns were answered with one task");
    let results = |task_id| proof.results[task_id].values().collect::<Vec<_>>();
    let mut ran = all.len();
    for (task, (task_id, seen)) in (0..).zip(&all) {
        assert_eq!(results(task_id), seen.steps.iter().collect::<Vec<_>>());
        assert_eq!(seen.errand.is_some(), has_errand(task));
        if let Some((errand, steps)) = &seen.errand {
            assert_eq!(results(errand), steps.iter().collect::<Vec<_>>());
            ran += 1;
        }
        let teller = task.is_multiple_of(4).then(|| &all[task as usize + 1].1.steps[2]);
        assert_eq!(seen.told.as_ref(), teller);
    }
    let owners = postgres.sql("SELECT task_id, seq, run_id FROM stepwell.owners").unwrap();
    let owners: HashSet<_> = owners.lines().map(str::to_owned).collect();
    for (task_id, seq, run) in &proof.writers {
        assert!(
            owners.contains(&format!("{task_id}|{seq}|{run}")),
            "task {task_id}: entry {seq} was journaled by a run that did not own the task"
        );
    }
    assert_eq!(
        proof.results.len(),
        ran,
        "a task ran that nobody has spawned, or one was spawned twice"
    );
    for state in [TaskState::Pending, TaskState::Running, TaskState::Suspended, TaskState::Failed] {
        let filter = TaskFilter { state: Some(state), limit: 1, ..TaskFilter::default() };
        assert!(client.tasks(filter).await.unwrap().items.is_empty(), "a task is left {state}");
    }
    println!(
        "{} tasks, {} kills, {} stops, {} terminated backends, {} restarts, {} steps ran again \
         before they were journaled, {} were started by runs that had lost their tasks",
        all.len(),
        deeds.kills,
        deeds.stops,
        deeds.terminated,
        deeds.crashes,
        proof.again,
        proof.late
    );
}
