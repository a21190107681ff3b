//! A step over a million items: how fast it is, and how much memory it takes. In a process of its
//! own, whose peak is that of nothing else.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};

use crate::memory::of_this_process;
use crate::setup::Setup;
use crate::tasks::{self, Probe};
use crate::workloads::{check, check_steps, rate};

/// The argument, hidden from people, that makes this program the measured process.
pub(crate) const CHILD: &str = "--items";
pub(crate) const ITEMS: u64 = 1_000_000;

/// Items a second, and the most memory in MiB that the process had.
pub(crate) async fn measure(setup: &Setup) -> Result<Vec<f64>> {
    let answer = setup.ask_child(CHILD, &ITEMS.to_string()).await?;
    let figures: Result<Vec<f64>, _> = answer.split_whitespace().map(str::parse).collect();
    figures.with_context(|| format!("the measured process answered {answer:?}"))
}

/// The measured process.
pub(crate) async fn child(setup: &Setup, items: u64) -> Result<()> {
    let (backend, probe) = (setup.backend()?, Arc::new(Probe::default()));
    let client = backend.open(&probe, setup.telemetry).await?;
    let worker = client.start_worker(setup.worker()).await;
    let start = Instant::now();
    let task_id = client.spawn::<tasks::items>(items).await?.task_id;
    let output: u64 = client.wait(task_id).await?;
    let took = start.elapsed();
    let peak = of_this_process("VmHWM:")?;
    ensure!(output == items, "{output} items have a result instead of {items}");
    worker.shutdown().await;
    check_steps(probe.steps(), items)?;
    check(&client, None, 1).await?;
    println!("{} {}", rate(items, took), peak >> 20);
    Ok(())
}
