//! How much memory suspended tasks take: measured in a process of its own, where nothing else has
//! left its traces.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use stepwell::TaskState;

use crate::setup::Setup;
use crate::tasks::{self, Probe};
use crate::workloads::{check, check_steps, settle};

/// The argument, hidden from people, that makes this program the measured process.
pub(crate) const CHILD: &str = "--suspend";
const CHUNK: u64 = 1_000;
/// So many that no task is dropped from memory.
const MAX_IN_MEMORY: usize = 200_000;

/// Runs this program once more, and gives by how many bytes its memory grew with that many
/// suspended tasks.
pub(crate) async fn measure(setup: &Setup, tasks: u64) -> Result<f64> {
    let bytes = setup.ask_child(CHILD, &tasks.to_string()).await?;
    bytes.parse().with_context(|| format!("the measured process answered {bytes:?}"))
}

/// The measured process: suspends that many tasks, prints the bytes, and checks that every task
/// then went on in place.
pub(crate) async fn child(setup: &Setup, tasks: u64) -> Result<()> {
    let (backend, probe) = (setup.backend()?, Arc::new(Probe::default()));
    let client = backend.open(&probe, setup.telemetry).await?;
    let worker = client.start_worker(setup.worker().max_in_memory(MAX_IN_MEMORY)).await;
    // One task before, so that everything is there that is needed once.
    client.spawn::<tasks::waiting>(0).await?;
    all_suspended(&client, &probe, 1).await?;

    let before = of_this_process("VmRSS:")?;
    for from in (0..tasks).step_by(usize::try_from(CHUNK)?) {
        let chunk = (from..tasks.min(from + CHUNK)).map(|n| client.spawn::<tasks::waiting>(n));
        client.spawn_many(chunk).await?;
    }
    all_suspended(&client, &probe, tasks + 1).await?;
    let after = of_this_process("VmRSS:")?;

    client.emit_event(tasks::EVENT, &1_u64).await?;
    let unfinished = [TaskState::Suspended, TaskState::Pending, TaskState::Running];
    settle(&client, &unfinished, Duration::from_millis(20)).await?;
    worker.shutdown().await;
    // A task that had been dropped from memory would have been started again.
    let starts = probe.starts();
    ensure!(starts == tasks + 1, "the tasks were started {starts} times: not all were in memory");
    check_steps(probe.steps(), 0)?;
    check(&client, None, tasks + 1).await?;
    println!("{}", after.saturating_sub(before));
    Ok(())
}

async fn all_suspended(client: &stepwell::Durable, probe: &Probe, tasks: u64) -> Result<()> {
    while probe.starts() < tasks {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    settle(client, &[TaskState::Running, TaskState::Pending], Duration::from_millis(20)).await
}

/// What Linux says of this process's memory under that heading, in bytes.
pub(crate) fn of_this_process(heading: &str) -> Result<u64> {
    let status =
        std::fs::read_to_string("/proc/self/status").context("memory is measured on Linux only")?;
    let line = status.lines().find_map(|line| line.strip_prefix(heading));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    let kib = kib.with_context(|| format!("no {heading} in /proc/self/status"))?;
    Ok(kib.trim().parse::<u64>()? * 1024)
}
