//! The work of tortured tasks. One task type does all of it, so each worker knows every task.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use anyhow::anyhow;
use serde::{Deserialize, Serialize};
use stepwell::{SpawnOptions, TaskContext, TaskError, TaskId, TaskResult};

use crate::ledger::Ledger;

/// The maximum time of a step's work.
const WORK: Duration = Duration::from_millis(6);
/// The length of a nap.
pub(crate) const NAP: Duration = Duration::from_millis(25);
/// The number of messages that a listener receives from each of its senders.
pub(crate) const TALK: u32 = 4;
/// The number of items of a step over many items.
pub(crate) const ITEMS: usize = 12;
/// The queue with a limit of running tasks.
pub(crate) const NARROW: &str = "narrow";
/// The limit of the narrow queue.
pub(crate) const WIDTH: u32 = 2;

/// The kind of a task, which decides what the task does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Kind {
    /// Steps in sequence and in parallel, and a nap.
    Plain,
    /// Two children in parallel with two steps.
    Family,
    /// A child with two steps.
    Errand,
    /// A step over many items.
    Sorted,
    /// Steps that are compensated: of three tasks, one completes, one fails, and one is cancelled.
    Saga,
    /// A task that shares a concurrency key with others.
    Turn,
    /// A task in the narrow queue.
    Narrow,
    /// A task that fails sometimes, and that a client retries.
    Flaky,
    /// A task that waits for an event, and for messages of a teller and of the host.
    Listener,
    /// A task that emits the event and sends the messages, between steps.
    Teller,
    /// A task that waits for an event and a message of a client that is killed.
    Heard,
    /// A task that would begin an hour later, and that a killed client cancels.
    Later,
    /// A task that a schedule spawns.
    Tick,
}

/// The parameters of a task.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Work {
    pub(crate) kind: Kind,
    /// The number of the task, which is unique within a kind except for the tasks of a schedule.
    pub(crate) number: u64,
    /// The task that receives the event and the messages.
    pub(crate) whom: Option<TaskId>,
}

/// The output of a task.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Seen {
    /// The results of its steps.
    pub(crate) steps: Vec<String>,
    /// The outputs of its children.
    pub(crate) children: Vec<Self>,
    /// The received messages: the sender of each, and its number among the sender's messages.
    pub(crate) heard: Vec<(String, u32)>,
}

impl Work {
    pub(crate) fn new(kind: Kind, number: u64) -> Self {
        Self { kind, number, whom: None }
    }

    pub(crate) fn options(&self) -> SpawnOptions {
        let options = SpawnOptions::new();
        match self.kind {
            Kind::Turn => options.concurrency_key(self.turn()),
            Kind::Narrow => options.queue(NARROW),
            Kind::Flaky => options
                .max_attempts(2)
                .retry(stepwell::RetryStrategy::fixed(Duration::from_millis(5))),
            Kind::Later => options.delay(Duration::from_secs(3600)),
            _ => options,
        }
    }

    /// Returns the concurrency key.
    pub(crate) fn turn(&self) -> String {
        format!("turn-{}", self.number % 3)
    }

    /// Returns whether a task of this kind naps between its last two steps.
    pub(crate) fn naps(&self) -> bool {
        self.kind == Kind::Plain && self.number.is_multiple_of(3)
    }

    /// Returns pairs of steps of which the second follows the first.
    pub(crate) fn follows(&self) -> &'static [(&'static str, &'static str)] {
        const CHAIN: &[(&str, &str)] = &[
            ("step:0", "step:1"),
            ("step:0", "step:2"),
            ("step:1", "step:2"),
            ("step:0", "step:3"),
            ("step:1", "step:3"),
            ("step:2", "step:3"),
        ];
        const DIAMOND: &[(&str, &str)] = &[
            ("step:0", "step:1"),
            ("step:0", "step:2"),
            ("step:0", "step:3"),
            ("step:1", "step:3"),
            ("step:2", "step:3"),
        ];
        if self.kind == Kind::Plain { DIAMOND } else { CHAIN }
    }
}

/// Works for a random time.
async fn toil() {
    tokio::time::sleep(WORK.mul_f64(rand::random())).await;
}

fn step(ctx: &TaskContext, number: u32) -> impl Future<Output = TaskResult<String>> {
    let ledger = ctx.state::<Arc<Ledger>>().cloned();
    let work = move || async move {
        let nonce = ledger?.begin(ctx, &format!("step:{number}"))?;
        toil().await;
        Ok(nonce)
    };
    ctx.step(("step", number), work)
}

/// Runs a step that is undone when the task fails or is cancelled.
async fn undone(ctx: &TaskContext, number: u32) -> TaskResult<String> {
    let ledger = ctx.state::<Arc<Ledger>>()?.clone();
    let (own, again) = (ctx.clone(), ledger.clone());
    let undo = move |nonce: String| {
        let (ctx, ledger) = (own.clone(), again.clone());
        async move {
            ledger.undo(&ctx, &format!("undo:{number}"), &nonce)?;
            toil().await;
            Ok(())
        }
    };
    let work = || async move {
        let nonce = ledger.begin(ctx, &format!("step:{number}"))?;
        toil().await;
        Ok(nonce)
    };
    ctx.step(("step", number), work).compensate(undo).await
}

/// Runs a step that fails half of the time.
async fn fickle(ctx: &TaskContext, number: u32) -> TaskResult<String> {
    let ledger = ctx.state::<Arc<Ledger>>()?;
    let work = || async move {
        let nonce = ledger.begin(ctx, &format!("step:{number}"))?;
        toil().await;
        anyhow::ensure!(rand::random::<bool>(), "out of luck");
        Ok(nonce)
    };
    ctx.step(("step", number), work).await
}

/// Runs a step over many items, and returns their results.
async fn sort(ctx: &TaskContext) -> TaskResult<Vec<String>> {
    let ledger = ctx.state::<Arc<Ledger>>()?;
    let sort = |item: usize| async move {
        let nonce = ledger.begin(ctx, &format!("item:{item}"))?;
        toil().await;
        Ok(nonce)
    };
    let report = ctx.items("items", 0..ITEMS).concurrency(3).each(sort).await?;
    Ok(report.results.into_values().collect())
}

/// Emits the event and sends the messages of a teller, between steps whose results it returns.
async fn tell(ctx: &TaskContext, work: &Work) -> TaskResult<Vec<String>> {
    let whom = work.whom.unwrap_or(ctx.task_id);
    let mut steps = vec![step(ctx, 0).await?];
    ctx.emit_event(("told", work.number), &work.number).await?;
    for number in 0..TALK {
        ctx.send(whom, "talk", &("teller", number)).await?;
        if number == TALK / 2 {
            steps.push(step(ctx, 1).await?);
        }
    }
    steps.push(step(ctx, 2).await?);
    Ok(steps)
}

/// Waits for the event of a teller or of a client, and returns it as a received message.
async fn told(ctx: &TaskContext, number: u64) -> TaskResult<(String, u32)> {
    let event: u64 = ctx.await_event(("told", number), None).await?;
    Ok(("event".to_owned(), u32::try_from(event).unwrap_or(u32::MAX)))
}

/// Runs the work of a tortured task.
#[allow(clippy::unit_arg, reason = "the macro's code for a task without an output")]
#[stepwell::task]
pub(crate) async fn tortured(work: Work, ctx: TaskContext) -> TaskResult<Seen> {
    let mut seen = Seen::default();
    match work.kind {
        Kind::Plain => {
            let first = step(&ctx, 0).await?;
            let (second, third) = tokio::try_join!(step(&ctx, 1), step(&ctx, 2))?;
            if work.naps() {
                ctx.sleep_for("nap", NAP).await?;
            }
            seen.steps = vec![first, second, third, step(&ctx, 3).await?];
        }
        Kind::Family => {
            let errand = |number| Work::new(Kind::Errand, work.number * 2 + number);
            seen.steps.push(step(&ctx, 0).await?);
            let first = ctx.spawn::<tortured>("first", errand(0)).await?;
            let second = ctx.spawn::<tortured>("second", errand(1)).await?;
            seen.steps.push(step(&ctx, 1).await?);
            let (first, second) = tokio::try_join!(ctx.join(&first), ctx.join(&second))?;
            seen.children = vec![first, second];
            seen.steps.push(step(&ctx, 2).await?);
        }
        Kind::Sorted => seen.steps = sort(&ctx).await?,
        Kind::Saga => {
            for number in 0..3 {
                seen.steps.push(undone(&ctx, number).await?);
            }
            match work.number % 3 {
                0 => {}
                1 => return Err(TaskError::permanent(anyhow!("the end of a saga"))),
                _ => ctx.await_event("what never comes", None).await?,
            }
        }
        Kind::Flaky => {
            seen.steps.push(step(&ctx, 0).await?);
            seen.steps.push(fickle(&ctx, 1).await?);
            seen.steps.push(step(&ctx, 2).await?);
        }
        Kind::Listener => {
            seen.steps.push(step(&ctx, 0).await?);
            seen.heard.push(told(&ctx, work.number).await?);
            for _ in 0..2 * TALK {
                seen.heard.push(ctx.recv("talk", None).await?);
            }
            seen.steps.push(step(&ctx, 1).await?);
        }
        Kind::Teller => seen.steps = tell(&ctx, &work).await?,
        Kind::Heard => {
            seen.steps.push(step(&ctx, 0).await?);
            seen.heard.push(told(&ctx, work.number).await?);
            seen.heard.push(ctx.recv("talk", None).await?);
        }
        Kind::Errand | Kind::Turn | Kind::Narrow => {
            seen.steps.push(step(&ctx, 0).await?);
            seen.steps.push(step(&ctx, 1).await?);
        }
        Kind::Later | Kind::Tick => seen.steps.push(step(&ctx, 0).await?),
    }
    Ok(seen)
}
