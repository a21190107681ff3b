//! The task types that the workloads run.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use anyhow::{Context as _, Result};
use stepwell::{Durable, TaskContext, TaskResult};

/// What the tasks' code tells the workload.
#[derive(Default)]
pub(crate) struct Probe {
    /// How many closures of steps have run.
    pub(crate) steps: AtomicU64,
    /// How often a task's code was started from its beginning: once more for each replay.
    pub(crate) starts: AtomicU64,
    /// When the first step after the event of `long` began.
    pub(crate) first_new_step: OnceLock<Instant>,
}

impl Probe {
    pub(crate) fn steps(&self) -> u64 {
        self.steps.load(Ordering::Relaxed)
    }

    pub(crate) fn starts(&self) -> u64 {
        self.starts.load(Ordering::Relaxed)
    }

    fn step(&self) {
        self.steps.fetch_add(1, Ordering::Relaxed);
    }

    fn start(&self) {
        self.starts.fetch_add(1, Ordering::Relaxed);
    }
}

/// The event that `long` and `waiting` wait for.
pub(crate) const EVENT: &str = "go";

pub(crate) async fn register(client: &Durable) -> Result<()> {
    client.register::<one_step>().await?;
    client.register::<steps>().await?;
    client.register::<long>().await?;
    client.register::<waiting>().await?;
    client.register::<items>().await?;
    Ok(())
}

/// One step.
#[stepwell::task(name = "one-step")]
pub(crate) async fn one_step(n: u64, ctx: TaskContext) -> TaskResult<u64> {
    let probe = ctx.state::<Arc<Probe>>()?;
    ctx.step("double", || async {
        probe.step();
        Ok(n * 2)
    })
    .await
}

/// Steps one after another. Its output is `count`.
#[stepwell::task]
pub(crate) async fn steps(count: u64, ctx: TaskContext) -> TaskResult<u64> {
    take_steps(count, &ctx).await
}

async fn take_steps(count: u64, ctx: &TaskContext) -> TaskResult<u64> {
    let probe = ctx.state::<Arc<Probe>>()?;
    let mut sum = 0;
    for i in 0..count {
        let next = ctx.step(("add", i), || async move {
            probe.step();
            Ok(sum + 1)
        });
        sum = next.await?;
    }
    Ok(sum)
}

/// Steps one after another, then an event, then one step more. Its output is `count` and what the
/// event brought.
#[stepwell::task]
pub(crate) async fn long(count: u64, ctx: TaskContext) -> TaskResult<u64> {
    let probe = ctx.state::<Arc<Probe>>()?;
    probe.start();
    let sum = take_steps(count, &ctx).await?;
    let more: u64 = ctx.await_event(EVENT, None).await?;
    ctx.step("first new step", || async move {
        let _ = probe.first_new_step.set(Instant::now());
        probe.step();
        Ok(sum + more)
    })
    .await
}

/// An event. Its output is the task's number and what the event brought.
#[stepwell::task]
pub(crate) async fn waiting(n: u64, ctx: TaskContext) -> TaskResult<u64> {
    ctx.state::<Arc<Probe>>()?.start();
    let more: u64 = ctx.await_event(EVENT, None).await?;
    Ok(n + more)
}

/// When the first step after the event began.
pub(crate) fn first_new_step(probe: &Probe) -> Result<Instant> {
    probe.first_new_step.get().copied().context("the step after the event did not run")
}

/// A step over so many items. Each gives its number; the output is how many did.
#[stepwell::task]
pub(crate) async fn items(count: u64, ctx: TaskContext) -> TaskResult<usize> {
    let probe = ctx.state::<Arc<Probe>>()?;
    let numbers = 0..usize::try_from(count).map_err(anyhow::Error::from)?;
    let report = ctx.items("item", numbers).concurrency(64).each(|item| async move {
        probe.step();
        Ok(item)
    });
    Ok(report.await?.results.len())
}
