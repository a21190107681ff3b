//! The workloads of the design's section on speed. Each does its work on a store that it is given,
//! checks that everything was done once and came out right, and gives what it measured.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use stepwell::{Durable, SpawnResult, TaskFilter, TaskId, TaskState};
use tokio::task::JoinSet;

use crate::backend::Backend;
use crate::crew::Crew;
use crate::report::percentile;
use crate::setup::Setup;
use crate::tasks::{self, Probe};

/// How many tasks W1 spawns, and how many callers do it.
pub(crate) const W1_TASKS: u64 = 10_000;
const W1_CALLERS: u64 = 64;
/// How many tasks W2 runs at the same time, how many steps each has, and how often that is done in
/// one run: once is over too soon to be measured well.
pub(crate) const W2_TASKS: u64 = 100;
pub(crate) const W2_STEPS: u64 = 20;
pub(crate) const W2_ROUNDS: u64 = 100;
const W3_TASKS: u64 = 1_000;
pub(crate) const W4_TASKS: u64 = 100_000;
const W4_CHUNK: u64 = 5_000;
pub(crate) const W5_ENTRIES: u64 = 10_000;
/// Tasks that are run before the clock starts: the worker is known to the store then, and the
/// program warm.
const WARM_UP: u64 = 64;

/// 10,000 tasks of one step, spawned by 64 callers. Each caller waits for the durable answer of
/// every spawn, and in the end for all of its tasks. Tasks per second.
pub(crate) async fn w1(setup: &Setup, backend: &Backend) -> Result<f64> {
    let probe = Arc::new(Probe::default());
    let client = backend.open(&probe, setup.telemetry).await?;
    let before = latest(&client).await?;
    let crew = Crew::hire(setup, backend, &client, &probe).await?.start().await?;
    let warm_up = warm_up(setup, &client).await?;

    let start = Instant::now();
    let mut callers = JoinSet::new();
    for caller in 0..W1_CALLERS {
        let client = client.clone();
        callers.spawn(async move {
            let mut spawned = Vec::new();
            for n in (caller..W1_TASKS).step_by(usize::try_from(W1_CALLERS)?) {
                spawned.push((n, client.spawn::<tasks::one_step>(n).await?.task_id));
            }
            for (n, task_id) in spawned {
                expect(&client, task_id, n * 2).await?;
            }
            anyhow::Ok(())
        });
    }
    join(callers).await?;
    let took = start.elapsed();

    check_steps(crew.end().await?, warm_up + W1_TASKS)?;
    check(&client, before, warm_up + W1_TASKS).await?;
    Ok(rate(W1_TASKS, took))
}

/// 100 tasks of 20 sequential steps at the same time, a hundred times. Steps per second.
pub(crate) async fn w2(setup: &Setup, backend: &Backend) -> Result<f64> {
    let probe = Arc::new(Probe::default());
    let client = backend.open(&probe, setup.telemetry).await?;
    let before = latest(&client).await?;
    let crew = Crew::hire(setup, backend, &client, &probe).await?.start().await?;
    let warm_up = warm_up(setup, &client).await?;

    let caller = tokio::spawn({
        let client = client.clone();
        async move {
            let mut took = Duration::ZERO;
            for _ in 0..W2_ROUNDS {
                let start = Instant::now();
                let all = (0..W2_TASKS).map(|_| client.spawn::<tasks::steps>(W2_STEPS));
                for SpawnResult { task_id, .. } in client.spawn_many(all).await? {
                    expect(&client, task_id, W2_STEPS).await?;
                }
                took += start.elapsed();
            }
            anyhow::Ok(took)
        }
    });
    let took = caller.await??;

    let (tasks, steps) = (W2_TASKS * W2_ROUNDS, W2_TASKS * W2_STEPS * W2_ROUNDS);
    check_steps(crew.end().await?, warm_up + steps)?;
    check(&client, before, warm_up + tasks).await?;
    Ok(rate(steps, took))
}

/// One task at a time, from spawn to result. Milliseconds: the median and the 99th percentile.
pub(crate) async fn w3(setup: &Setup, backend: &Backend) -> Result<(f64, f64)> {
    let probe = Arc::new(Probe::default());
    let client = backend.open(&probe, setup.telemetry).await?;
    let before = latest(&client).await?;
    let crew = Crew::hire(setup, backend, &client, &probe).await?.start().await?;
    let warm_up = warm_up(setup, &client).await?;

    let caller = tokio::spawn({
        let client = client.clone();
        async move {
            let mut times = Vec::new();
            for n in 0..W3_TASKS {
                let start = Instant::now();
                let task = client.spawn::<tasks::one_step>(n).await?;
                expect(&client, task.task_id, n * 2).await?;
                times.push(millis(start.elapsed()));
            }
            anyhow::Ok(times)
        }
    });
    let mut times = caller.await??;

    check_steps(crew.end().await?, warm_up + W3_TASKS)?;
    check(&client, before, warm_up + W3_TASKS).await?;
    Ok((percentile(&mut times, 0.5), percentile(&mut times, 0.99)))
}

/// Drains a backlog of 100,000 tasks of one step, from the workers' start to the last task's end.
/// Tasks per second.
pub(crate) async fn w4(setup: &Setup, backend: &Backend) -> Result<f64> {
    let probe = Arc::new(Probe::default());
    let client = backend.open(&probe, setup.telemetry).await?;
    let before = latest(&client).await?;
    let mut last = None;
    for from in (0..W4_TASKS).step_by(usize::try_from(W4_CHUNK)?) {
        let chunk = from..W4_TASKS.min(from + W4_CHUNK);
        let chunk = chunk.map(|n| client.spawn::<tasks::one_step>(n));
        last = client.spawn_many(chunk).await?.last().map(|spawned| spawned.task_id);
    }
    let last = last.context("there is no backlog")?;
    let crew = Crew::hire(setup, backend, &client, &probe).await?;

    let start = Instant::now();
    let crew = crew.start().await?;
    // Looks into the store rarely, which has work to do, before nearly every step has run.
    if setup.processes.is_some() {
        expect(&client, last, (W4_TASKS - 1) * 2).await?;
    } else {
        while probe.steps() < W4_TASKS {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
    settle(&client, &[TaskState::Running, TaskState::Pending], Duration::from_millis(2)).await?;
    let took = start.elapsed();

    check_steps(crew.end().await?, W4_TASKS)?;
    check(&client, before, W4_TASKS).await?;
    Ok(rate(W4_TASKS, took))
}

/// What W5 measures, in milliseconds.
pub(crate) struct Resumed {
    /// From the start of the worker, which then registers and claims, to the first new step's
    /// closure.
    pub(crate) to_first_step: f64,
    /// From the start of the worker to the task's end.
    pub(crate) to_end: f64,
    /// Opening the store.
    pub(crate) open: f64,
}

/// Resumes a task with 10,000 journal entries that waits for an event, with a new client and a new
/// worker.
pub(crate) async fn w5(setup: &Setup, backend: &Backend) -> Result<Resumed> {
    let task_id = build_journal(setup, backend).await?;

    let probe = Arc::new(Probe::default());
    let start = Instant::now();
    let client = backend.open(&probe, setup.telemetry).await?;
    let open = millis(start.elapsed());
    client.emit_event(tasks::EVENT, &1_u64).await?;
    let start = Instant::now();
    let worker = client.start_worker(setup.worker()).await;
    let caller = tokio::spawn({
        let client = client.clone();
        async move { expect(&client, task_id, W5_ENTRIES + 1).await }
    });
    caller.await??;
    let to_end = millis(start.elapsed());
    let first_step = tasks::first_new_step(&probe)?;

    worker.shutdown().await;
    check_steps(probe.steps(), 1)?;
    check(&client, None, 1).await?;
    ensure!(probe.starts() == 1, "the task was replayed {} times", probe.starts());
    Ok(Resumed { to_first_step: millis(first_step.duration_since(start)), to_end, open })
}

/// Runs the task until it waits, and ends the client. Also used to measure the bare reading of its
/// journal.
pub(crate) async fn build_journal(setup: &Setup, backend: &Backend) -> Result<TaskId> {
    let probe = Arc::new(Probe::default());
    let client = backend.open(&probe, setup.telemetry).await?;
    let worker = client.start_worker(setup.worker()).await;
    let task_id = client.spawn::<tasks::long>(W5_ENTRIES).await?.task_id;
    while state(&client, task_id).await? != TaskState::Suspended {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    worker.shutdown().await;
    let entries = client.journal(task_id).await?.len();
    ensure!(
        entries as u64 == W5_ENTRIES,
        "the journal has {entries} entries instead of {W5_ENTRIES}"
    );
    Ok(task_id)
}

async fn state(client: &Durable, task_id: TaskId) -> Result<TaskState> {
    let info = client.task(task_id).await?;
    Ok(info.with_context(|| format!("the task {task_id} is gone"))?.state)
}

/// As many rounds as there are workers: in one alone, the first of them could take all. Says how
/// many tasks it ran.
async fn warm_up(setup: &Setup, client: &Durable) -> Result<u64> {
    let rounds = setup.processes.map_or(1, u64::from);
    for _ in 0..rounds {
        let mut callers = JoinSet::new();
        for n in 0..WARM_UP {
            let client = client.clone();
            callers.spawn(async move {
                let task = client.spawn::<tasks::one_step>(n).await?;
                expect(&client, task.task_id, n * 2).await
            });
        }
        join(callers).await?;
    }
    Ok(rounds * WARM_UP)
}

async fn join(mut callers: JoinSet<Result<()>>) -> Result<()> {
    while let Some(caller) = callers.join_next().await {
        caller??;
    }
    Ok(())
}

/// Waits for a task, and checks its output.
pub(crate) async fn expect(client: &Durable, task_id: TaskId, output: u64) -> Result<()> {
    let actual: u64 = client.wait(task_id).await?;
    ensure!(actual == output, "the task {task_id} gave {actual} instead of {output}");
    Ok(())
}

/// Waits until no task is in any of the states.
pub(crate) async fn settle(client: &Durable, states: &[TaskState], pause: Duration) -> Result<()> {
    for state in states {
        let filter = TaskFilter { state: Some(*state), limit: 1, ..TaskFilter::default() };
        while !client.tasks(filter.clone()).await?.items.is_empty() {
            tokio::time::sleep(pause).await;
        }
    }
    Ok(())
}

/// The task that was spawned last; none when the store is empty.
async fn latest(client: &Durable) -> Result<Option<TaskId>> {
    let filter = TaskFilter { limit: 1, ..TaskFilter::default() };
    Ok(client.tasks(filter).await?.items.first().map(|task| task.task_id))
}

/// Checks that after that task so many were spawned, and all are completed in their first attempt.
pub(crate) async fn check(client: &Durable, before: Option<TaskId>, tasks: u64) -> Result<()> {
    let mut filter = TaskFilter { limit: 1_000, ..TaskFilter::default() };
    let mut completed = 0;
    // Their ids are in the order of time, and the latest come first.
    'pages: loop {
        let page = client.tasks(filter.clone()).await?;
        for task in &page.items {
            let (id, state, attempt) = (task.task_id, task.state, task.attempt);
            if before == Some(id) {
                break 'pages;
            }
            ensure!(state == TaskState::Completed, "the task {id} is {state}: {:?}", task.failure);
            ensure!(attempt == 1, "the task {id} took {attempt} attempts");
            completed += 1;
        }
        let Some(last) = page.items.last() else { break };
        filter.before = Some(last.task_id);
    }
    ensure!(completed == tasks, "{completed} tasks completed instead of {tasks}");
    Ok(())
}

/// Checks that so many steps ran.
pub(crate) fn check_steps(ran: u64, steps: u64) -> Result<()> {
    ensure!(ran == steps, "{ran} steps ran instead of {steps}");
    Ok(())
}

pub(crate) fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

#[allow(clippy::cast_precision_loss)]
pub(crate) fn rate(count: u64, time: Duration) -> f64 {
    count as f64 / time.as_secs_f64()
}
