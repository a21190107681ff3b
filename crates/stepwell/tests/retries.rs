//! What the next attempt of a task tries again: the failure that ended the last one, and nothing
//! that the code has handled.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::unit_arg,
    missing_docs,
    reason = "a test ends by a panic"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context as _;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, join_all};
use stepwell::store::until;
use stepwell::testing::{Harness, worker_options};
use stepwell::*;

const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// What a task's closures did, in order.
#[derive(Clone, Default)]
struct Ran(Arc<Mutex<Vec<String>>>);

impl Ran {
    /// A step's closure that fails the first so many times.
    async fn work(&self, name: &str, failures: usize) -> anyhow::Result<()> {
        let mut ran = self.0.lock().unwrap();
        ran.push(name.to_owned());
        let times = ran.iter().filter(|ran| *ran == name).count();
        anyhow::ensure!(times > failures, "{name} is down");
        Ok(())
    }

    fn all(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

fn options() -> SpawnOptions {
    SpawnOptions::new().retry(RetryStrategy::fixed(SECOND))
}

/// Runs one function as a task, and gives its result and what its closures did.
async fn run<F, Fut, O>(function: F) -> (Result<O, Error>, Vec<String>)
where
    F: Fn(Ran, TaskContext) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = TaskResult<O>> + Send + 'static,
    O: serde::Serialize + serde::de::DeserializeOwned + Send,
{
    let ran = Ran::default();
    let harness = Harness::new();
    let process = harness.start().await;
    let seen = ran.clone();
    process.register_fn("task", move |(): (), ctx| function(seen.clone(), ctx)).await.unwrap();
    process.start_worker(worker_options()).await;
    let task = process.spawn_named("task", &()).options(options()).await.unwrap();
    (process.wait(task.task_id).await, ran.all())
}

#[tokio::test(start_paused = true)]
async fn a_failure_that_was_handled_is_not_tried_again() {
    let (result, ran) = run(|ran, ctx| async move {
        let paid_by = match ctx.step("card", || ran.work("card", 1)).await {
            Ok(()) => "card",
            Err(TaskError::Control(control)) => return Err(control.into()),
            Err(_) => {
                ctx.step("account", || ran.work("account", 0)).await?;
                "account"
            }
        };
        ctx.step("mail", || ran.work("mail", 1)).await?;
        Ok(paid_by.to_owned())
    })
    .await;
    assert_eq!(result.unwrap(), "account");
    assert_eq!(ran, ["card", "account", "mail", "mail"]);
}

/// Whatever it was that took too long, and also when what was waited for comes after all.
#[tokio::test(start_paused = true)]
async fn a_timeout_that_was_handled_is_not_waited_for_again() {
    for kind in ["message", "event", "limit", "approval"] {
        let ran = Ran::default();
        let harness = Harness::new();
        let process = harness.start().await;
        let seen = ran.clone();
        let task = move |(): (), ctx: TaskContext| {
            let ran = seen.clone();
            async move {
                let arrived = match kind {
                    "message" => ctx.recv::<()>("goods", DAY).await,
                    "event" => ctx.await_event::<()>("goods", DAY).await,
                    "limit" => {
                        ctx.timeout("limit", DAY, ctx.recv::<()>("goods", None)).await.flatten()
                    }
                    _ => ctx.await_approval::<()>("goods", &()).timeout(DAY).await.map(drop),
                };
                match arrived {
                    Ok(()) => ctx.step("ship", || ran.work("ship", 0)).await?,
                    Err(TaskError::Timeout { .. }) => {
                        ctx.step("refund", || ran.work("refund", 0)).await?;
                    }
                    Err(error) => return Err(error),
                }
                ctx.step("mail", || ran.work("mail", 2)).await
            }
        };
        process.register_fn("task", task).await.unwrap();
        process.start_worker(worker_options()).await;
        let began = harness.now();
        let options = options().retry(RetryStrategy::fixed(60 * SECOND));
        let task = process.spawn_named("task", &()).options(options).await.unwrap();
        tokio::time::sleep(DAY + 30 * SECOND).await;
        assert_eq!(ran.all(), ["refund", "mail"], "{kind}");
        process.send(task.task_id, "goods", &()).await.unwrap();
        process.emit_event("goods", &()).await.unwrap();
        process.wait::<()>(task.task_id).await.unwrap();
        assert_eq!(ran.all(), ["refund", "mail", "mail", "mail"], "{kind}");
        assert!(until(began, harness.now()) < DAY + 600 * SECOND, "{kind}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_timeout_that_ended_the_attempt_is_waited_for_again() {
    for kind in ["message", "event", "limit"] {
        let harness = Harness::new();
        let process = harness.start().await;
        let task = move |(): (), ctx: TaskContext| async move {
            match kind {
                "message" => ctx.recv::<()>("never", DAY).await,
                "event" => ctx.await_event::<()>("never", DAY).await,
                _ => ctx.timeout("limit", DAY, ctx.recv::<()>("never", None)).await.flatten(),
            }
        };
        process.register_fn("task", task).await.unwrap();
        process.start_worker(worker_options()).await;
        let began = harness.now();
        let task = process.spawn_named("task", &()).options(options()).await.unwrap();
        process.wait::<()>(task.task_id).await.unwrap_err();
        assert!(
            until(began, harness.now()) >= 5 * DAY,
            "{kind}: each of five attempts waits a day"
        );
    }
}

#[derive(Debug, thiserror::Error)]
enum Own {
    #[error(transparent)]
    Transparent(TaskError),
    #[error("it did not work")]
    Source(#[source] TaskError),
}

/// How code hands a failure on.
type Way = fn(TaskError) -> TaskError;

/// Every way in which code hands a failure on, after it has handled another one, and has done
/// something since.
#[tokio::test(start_paused = true)]
async fn the_failure_that_ended_the_attempt_is_found_however_it_is_handed_on() {
    let ways: [(&str, Way); 9] = [
        ("as it is", |error| error),
        ("with context", |error| Err::<(), _>(error).context("while working").unwrap_err().into()),
        ("twice", |error| {
            let inner = TaskError::from(Err::<(), _>(error).context("inner").unwrap_err());
            Err::<(), _>(inner).context("outer").unwrap_err().into()
        }),
        ("permanent", |error| {
            TaskError::retry_after(SECOND, anyhow::Error::from(error).context("later"))
        }),
        ("its failure", |error| match error {
            TaskError::Step { failure, .. } => anyhow::Error::new(*failure).into(),
            error => error,
        }),
        ("its text", |error| anyhow::anyhow!("it did not work: {error}").into()),
        ("transparent", |error| anyhow::Error::new(Own::Transparent(error)).into()),
        ("source", |error| anyhow::Error::new(Own::Source(error)).into()),
        ("a panic", |error| panic!("{error}")),
    ];
    for (name, way) in ways {
        let (result, ran) = run(move |ran, ctx| async move {
            if ctx.step("optional", || ran.work("optional", 9)).await.is_err() {
                ctx.step("instead", || ran.work("instead", 0)).await?;
            }
            if let Err(error) = ctx.step("work", || ran.work("work", 1)).await {
                // The code goes on after the failure, so that this alone does not tell which one it
                // was.
                ctx.step("notify", || ran.work("notify", 0)).await?;
                return Err(way(error));
            }
            Ok(())
        })
        .await;
        result.unwrap();
        assert_eq!(ran, ["optional", "instead", "work", "notify", "work"], "{name}");
    }
}

/// Neither the error's chain nor its text says where it comes from.
#[tokio::test(start_paused = true)]
async fn without_a_word_of_its_source_an_error_rewinds_what_nothing_was_done_about() {
    for panics in [false, true] {
        let (result, ran) = run(move |ran, ctx| async move {
            let handled = ctx.step("handled", || ran.work("handled", 9)).await;
            ctx.step("instead", || ran.work("instead", 0)).await?;
            let (a, b) = tokio::join!(
                ctx.step("a", || ran.work("a", 1)),
                ctx.step("b", || ran.work("b", 1)),
            );
            assert!(!panics || a.is_ok(), "a panic of its own");
            if handled.is_err() && (a.is_err() || b.is_err()) {
                return Err(anyhow::anyhow!("an error of its own").into());
            }
            Ok(ctx.attempt)
        })
        .await;
        assert_eq!(result.unwrap(), 2, "both were tried again at once");
        // `join!` begins with one or the other.
        assert_eq!(ran.iter().filter(|ran| *ran == "handled").count(), 1);
        assert_eq!(ran.iter().filter(|ran| *ran == "a" || *ran == "b").count(), 4);
    }

    let (result, ran) = run(|ran, ctx| async move {
        let handled = ctx.step("handled", || ran.work("handled", 1)).await;
        ctx.step("instead", || ran.work("instead", 0)).await?;
        if handled.is_err() {
            return Err(anyhow::anyhow!("an error of its own").into());
        }
        Ok(())
    })
    .await;
    assert!(result.is_err(), "what was done about a failure stands");
    assert_eq!(ran, ["handled", "instead"]);
}

#[tokio::test(start_paused = true)]
async fn of_several_that_failed_those_that_ended_the_attempt_are_tried_again() {
    let (result, ran) = run(|ran, ctx| async move {
        let fallback = async {
            if ctx.step("first", || ran.work("first", 9)).await.is_err() {
                ctx.step("second", || ran.work("second", 0)).await?;
            }
            ctx.step("third", || ran.work("third", 0)).await
        };
        let failing = async {
            ctx.sleep_for("a moment", SECOND).await?;
            ctx.step("failing", || ran.work("failing", 2)).await
        };
        let late = async {
            ctx.sleep_for("another moment", SECOND / 2).await?;
            ctx.step("late", || ran.work("late", 0)).await
        };
        let all = tokio::join!(failing, fallback, late);
        all.0.and(all.1).and(all.2)
    })
    .await;
    result.unwrap();
    assert_eq!(ran, ["first", "second", "third", "late", "failing", "failing", "failing"]);
}

#[tokio::test(start_paused = true)]
async fn a_step_that_is_tried_again_has_all_of_its_tries_again() {
    let (result, ran) = run(|ran, ctx| async move {
        let work = || {
            let ran = ran.clone();
            async move { ran.work("work", 4).await }
        };
        let slow = || async { Ok(tokio::time::sleep(3 * SECOND).await) };
        let tries = ctx.step("work", work).retry(RetryStrategy::fixed(SECOND)).max_attempts(3);
        tokio::try_join!(tries, ctx.step("slow", slow))?;
        Ok(ctx.attempt)
    })
    .await;
    assert_eq!(result.unwrap(), 2);
    assert_eq!(ran.len(), 5);
}

/// A small random number generator, so that a seed is a whole test case.
#[derive(Clone)]
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

#[derive(Default)]
struct World {
    dice: Mutex<Option<Dice>>,
    /// Steps whose results the journal held when the attempt began.
    journaled: Mutex<BTreeSet<String>>,
    /// Which failures were handled, by the place in the code.
    handled: Mutex<BTreeMap<String, String>>,
    wrong: Mutex<Vec<String>>,
}

impl World {
    async fn work(&self, path: String) -> anyhow::Result<()> {
        if self.journaled.lock().unwrap().contains(&format!("step:{path}")) {
            self.wrong.lock().unwrap().push(format!("{path} has a result and runs again"));
        }
        let (pause, fails) = {
            let mut dice = self.dice.lock().unwrap();
            let dice = dice.as_mut().unwrap();
            (dice.roll(40), dice.roll(4) == 0)
        };
        tokio::time::sleep(Duration::from_millis(pause)).await;
        anyhow::ensure!(!fails, "{path} failed");
        Ok(())
    }
}

/// A tree of steps that handle the failures of some branches.
fn grow(
    ctx: TaskContext,
    world: Arc<World>,
    mut dice: Dice,
    depth: u32,
    path: String,
) -> BoxFuture<'static, TaskResult<()>> {
    let mut branch = |name: &str| {
        let seed = dice.roll(u64::MAX >> 33);
        grow(
            ctx.clone(),
            world.clone(),
            Dice(seed),
            depth.saturating_sub(1),
            format!("{path}/{name}"),
        )
    };
    if depth == 0 {
        let key = ("step", path.clone());
        return async move { ctx.step(key, || world.work(path.clone())).await }.boxed();
    }
    let (a, b) = (branch("a"), branch("b"));
    let choice = dice.roll(5);
    async move {
        match choice {
            0 => tokio::try_join!(a, b).map(drop),
            1 => join_all([a, b]).await.into_iter().collect(),
            2 => {
                a.await?;
                b.await
            }
            _ => {
                let before = world.handled.lock().unwrap().get(&path).cloned();
                let error = match (a.await, before) {
                    (Ok(()), None) => return Ok(()),
                    (Ok(()), Some(error)) => format!("nothing instead of {error}"),
                    (Err(TaskError::Control(control)), _) => return Err(control.into()),
                    (Err(error), _) => error.to_string(),
                };
                let instead = ctx.step(("instead", &path), || async { Ok(()) }).await;
                if let Some(before) =
                    world.handled.lock().unwrap().insert(path.clone(), error.clone())
                    && before != error
                {
                    world
                        .wrong
                        .lock()
                        .unwrap()
                        .push(format!("{path} handles {error} instead of {before}"));
                }
                instead?;
                b.await
            }
        }
    }
    .boxed()
}

async fn attempts_of_a_tree(seed: u64) {
    let harness = Harness::new();
    let process = harness.start().await;
    let world =
        Arc::new(World { dice: Mutex::new(Some(Dice(seed.rotate_left(17)))), ..World::default() });
    let (client, seen) = (process.client().clone(), world.clone());
    let tree = move |depth: u32, ctx: TaskContext| {
        let (client, world) = (client.clone(), seen.clone());
        async move {
            let journal = client.journal(ctx.task_id).await.map_err(anyhow::Error::from)?;
            let done = journal.iter().filter(|entry| matches!(entry.outcome, Outcome::Done(_)));
            *world.journaled.lock().unwrap() = done.map(|entry| entry.key.label()).collect();
            grow(ctx, world, Dice(seed), depth, String::new()).await
        }
    };
    process.register_fn("tree", tree).await.unwrap();
    process.start_worker(worker_options()).await;
    let depth = 1 + Dice(seed).roll(4) as u32;
    let task =
        process.spawn_named("tree", &depth).options(options().max_attempts(1000)).await.unwrap();
    process.wait::<()>(task.task_id).await.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    let wrong = world.wrong.lock().unwrap().clone();
    let journal = process.journal(task.task_id).await.unwrap();
    assert!(wrong.is_empty(), "seed {seed}: {wrong:?}; journal {journal:#?}");
}

/// No step that has a result runs again, and what was done about a failure is not decided once
/// more.
#[tokio::test(start_paused = true)]
async fn over_all_attempts_results_and_handled_failures_stay_as_they_were() {
    let number = |name| std::env::var(name).ok().and_then(|seed: String| seed.parse().ok());
    let seeds: Box<dyn Iterator<Item = u64>> = match number("STEPWELL_SEED") {
        Some(seed) => Box::new(std::iter::once(seed)),
        None => Box::new(0..number("STEPWELL_SEEDS").unwrap_or(500)),
    };
    for seed in seeds {
        attempts_of_a_tree(seed).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_further_try_of_another_step_handles_no_failure() {
    let (result, ran) = run(|ran, ctx| async move {
        let other = ctx.step("b", || ran.work("b", 1)).retry(RetryStrategy::fixed(SECOND));
        let (a, b) = tokio::join!(ctx.step("a", || ran.work("a", 1)), other);
        b?;
        // In words of its own, which do not say where it comes from.
        a.map_err(|_| anyhow::anyhow!("the order cannot be shipped"))?;
        Ok(())
    })
    .await;
    result.unwrap();
    let mut ran = ran;
    ran.sort_unstable();
    assert_eq!(ran, ["a", "a", "b", "b"]);
}
