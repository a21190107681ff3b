//! Deliveries: whichever way a task combines its futures, a replay takes the same way.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::unit_arg,
    missing_docs,
    reason = "a test ends by a panic"
)]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, join_all};
use futures_util::stream::{FuturesUnordered, StreamExt, iter};
use stepwell::store::{Applied, Claimed, ClaimedTask, Committed, Facts, Next};
use stepwell::testing::{Harness, Intercepted, Process};
use stepwell::{
    Entry, Payload, RetryStrategy, SpawnOptions, Store, TaskContext, TaskError, TaskId, TaskResult,
    WorkerOptions,
};
use tokio::sync::oneshot;

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

/// What a task did, beside its output: the order in which its code saw things.
type Trace = Arc<Mutex<Vec<String>>>;

/// How long closures take, differently in every run of a task, so that a replay cannot follow by
/// luck.
struct World {
    dice: Mutex<Dice>,
    executed: Mutex<BTreeMap<String, u32>>,
    path: Mutex<Trace>,
    events: AtomicU64,
}

impl World {
    fn see(&self, what: impl Into<String>) {
        self.path.lock().unwrap().lock().unwrap().push(what.into());
    }

    async fn work(&self, name: String) -> anyhow::Result<u64> {
        *self.executed.lock().unwrap().entry(name.clone()).or_default() += 1;
        let (pause, fails) = {
            let mut dice = self.dice.lock().unwrap();
            (dice.roll(4) * dice.roll(50), dice.roll(8) == 0)
        };
        if pause > 0 {
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
        if fails {
            anyhow::bail!("{name} failed");
        }
        Ok(name.len() as u64)
    }
}

/// A tree of combinators, grown from the dice: every run of one task grows the same tree.
fn grow<'a>(
    ctx: &'a TaskContext,
    world: &'a World,
    dice: Dice,
    depth: u32,
    path: String,
) -> BoxFuture<'a, TaskResult<u64>> {
    let mut dice = dice;
    let mut branch = |name: &str| {
        let seed = dice.roll(u64::MAX >> 33);
        grow(ctx, world, Dice(seed), depth - 1, format!("{path}/{name}"))
    };
    if depth == 0 {
        return leaf(ctx, world, dice, path);
    }
    let (a, b, c) = (branch("a"), branch("b"), branch("c"));
    let choice = dice.roll(8);
    async move {
        let result = match choice {
            0 => {
                let (a, b) = tokio::try_join!(a, b)?;
                a + b + c.await?
            }
            1 => {
                let won = tokio::select! {
                    a = a => format!("a {}", a.is_ok()),
                    b = b => format!("b {}", b.is_ok()),
                    c = c => format!("c {}", c.is_ok()),
                };
                world.see(format!("{path} select {won}"));
                won.len() as u64
            }
            2 => {
                let all = join_all([a, b, c]).await;
                world.see(format!(
                    "{path} join_all {:?}",
                    all.iter().map(Result::is_ok).collect::<Vec<_>>()
                ));
                all.into_iter().filter_map(Result::ok).sum()
            }
            3 => {
                let mut set: FuturesUnordered<_> = [("a", a), ("b", b), ("c", c)]
                    .into_iter()
                    .map(|(name, f)| f.map(move |r| (name, r)))
                    .collect();
                let mut sum = 0;
                while let Some((name, result)) = set.next().await {
                    world.see(format!("{path} unordered {name} {}", result.is_ok()));
                    sum = sum * 3 + result.unwrap_or(1);
                }
                sum
            }
            4 => {
                let results: Vec<_> = iter([a, b, c]).buffer_unordered(2).collect().await;
                world.see(format!(
                    "{path} buffered {:?}",
                    results.iter().map(Result::is_ok).collect::<Vec<_>>()
                ));
                results.len() as u64
            }
            5 => {
                let limited = ctx.timeout(("limit", &path), Duration::from_millis(40), a).await;
                world.see(format!("{path} timeout {}", limited.is_ok()));
                match limited {
                    Ok(a) => a?,
                    Err(TaskError::Timeout { .. }) => b.await?,
                    Err(error) => return Err(error),
                }
            }
            6 => {
                // A loser that is kept and awaited later.
                let mut kept = b;
                let first = tokio::select! { a = a => Some(a.is_ok()), _ = &mut kept => None };
                world.see(format!("{path} kept {first:?}"));
                if first.is_some() { kept.await? } else { c.await? }
            }
            _ => {
                let first = futures_util::future::select_ok([a, b]).await;
                world.see(format!("{path} select_ok {}", first.is_ok()));
                match first {
                    Ok((value, rest)) => value + rest.len() as u64,
                    Err(_) => c.await?,
                }
            }
        };
        world.see(format!("{path} = {result}"));
        Ok(result)
    }
    .boxed()
}

fn leaf<'a>(
    ctx: &'a TaskContext,
    world: &'a World,
    mut dice: Dice,
    path: String,
) -> BoxFuture<'a, TaskResult<u64>> {
    match dice.roll(8) {
        0 => {
            let sleep = ctx.sleep_for(("sleep", &path), Duration::from_millis(dice.roll(60)));
            async move { sleep.await.map(|()| 1) }.boxed()
        }
        1 => {
            let name = format!("event {}", dice.roll(world.events.load(Ordering::Relaxed)));
            let event = ctx.await_event::<u64>(&name, Duration::from_millis(dice.roll(90)));
            async move {
                match event.await {
                    Err(TaskError::Timeout { .. }) => Ok(7),
                    other => other,
                }
            }
            .boxed()
        }
        2 => {
            let random = ctx.random();
            async move { Ok(random.await? % 1000) }.boxed()
        }
        // The same name in every leaf of this kind: ordinals tell them apart.
        3 => ctx.step("shared", move || world.work(format!("shared {path}"))).boxed(),
        _ => ctx.step(("step", path.clone()), move || world.work(path.clone())).boxed(),
    }
}

async fn register(process: &Process, world: &Arc<World>, seed: u64, retries: bool) {
    let world = world.clone();
    process
        .register_fn("tree", move |depth: u32, ctx: TaskContext| {
            let world = world.clone();
            async move {
                *world.path.lock().unwrap() = Trace::default();
                let result = grow(&ctx, &world, Dice(seed), depth, String::new()).await;
                match result {
                    Err(error) if retries || matches!(error, TaskError::Control(_)) => Err(error),
                    // A failure is a way like any other.
                    result => Ok(format!("{:?}", result.map_err(|error| error.to_string()))),
                }
            }
        })
        .await
        .unwrap();
}

/// Runs one tree to its end, killing the process at random; then replays the whole journal, and
/// compares.
async fn interleaving(seed: u64, kills: bool, retries: bool) {
    let harness = Harness::new();
    let mut dice = Dice(seed ^ 0x5EED);
    let world = Arc::new(World {
        dice: Mutex::new(Dice(seed.rotate_left(17))),
        executed: Mutex::default(),
        path: Mutex::default(),
        events: AtomicU64::new(4),
    });
    let options = || WorkerOptions::new().lease(Duration::from_millis(200));
    let spawner = harness.start().await;
    let depth = 1 + dice.roll(3) as u32;
    let attempts = SpawnOptions::new()
        .max_attempts(1000)
        .retry(RetryStrategy::fixed(Duration::from_millis(10)));
    let task_id = spawner.spawn_named("tree", &depth).options(attempts).await.unwrap().task_id;
    let emit = spawner.client().clone();
    let emitter = tokio::spawn(async move {
        for event in 0..3 {
            tokio::time::sleep(Duration::from_millis(25)).await;
            emit.emit_event(format!("event {event}"), &event).await.unwrap();
        }
    });
    for _ in 0..if kills { dice.roll(4) } else { 0 } {
        let process = harness.start().await;
        register(&process, &world, seed, retries).await;
        process.start_worker(options()).await;
        tokio::time::sleep(Duration::from_millis(dice.roll(120))).await;
        process.kill().await;
    }
    let process = harness.start().await;
    register(&process, &world, seed, retries).await;
    process.start_worker(options().max_in_memory(dice.roll(2) as usize)).await;
    let result: String =
        process.wait(task_id).await.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    let way = world.path.lock().unwrap().lock().unwrap().clone();
    emitter.await.unwrap();
    process.kill().await;

    let journal = spawner.journal(task_id).await.unwrap();
    let executed = world.executed.lock().unwrap().clone();
    let (replayed, output) = replay_store(&harness, task_id, journal.clone());
    let process = harness.start_on(replayed, |builder| builder).await.unwrap();
    register(&process, &world, seed, retries).await;
    process.start_worker(WorkerOptions::new()).await;
    let output = tokio::time::timeout(Duration::from_secs(60), output).await;
    let output = output
        .unwrap_or_else(|_| panic!("seed {seed}: the replay got stuck; journal {journal:#?}"));
    process.kill().await;
    let again = world.path.lock().unwrap().lock().unwrap().clone();
    assert_eq!(again, way, "seed {seed}: another way; journal {journal:#?}");
    let output =
        output.unwrap().unwrap_or_else(|next| panic!("seed {seed}: the replay ended with {next}"));
    assert_eq!(
        output.decode::<String>().unwrap(),
        result,
        "seed {seed}: another result; journal {journal:#?}"
    );
    assert_eq!(
        *world.executed.lock().unwrap(),
        executed,
        "seed {seed}: a journaled step ran again"
    );
}

/// A store that hands out one task with the whole of its journal, once more, and takes its end.
fn replay_store(
    harness: &Harness,
    task_id: TaskId,
    journal: Vec<Entry>,
) -> (Arc<dyn Store>, oneshot::Receiver<Result<Payload, String>>) {
    let (sender, receiver) = oneshot::channel();
    let (output, journal) = (Mutex::new(Some(sender)), Mutex::new(Some(journal)));
    let store = Intercepted::new(Arc::new(harness.store()), move |store, batch| {
        let mut committed = Committed::default();
        for transition in batch.transitions {
            let end = match transition.next {
                Next::Complete(output) if transition.entries.is_empty() => Ok(output),
                next => Err(format!("{next:?} with {:?}", transition.entries)),
            };
            if let Some(sender) = output.lock().unwrap().take() {
                sender.send(end).unwrap();
            }
            committed.transitions.push(Ok(Applied::default()));
        }
        committed.workers =
            batch.workers.iter().map(|_| stepwell::WorkerState::Active.into()).collect();
        let mut journals: Vec<_> =
            batch.claims.iter().map(|_| journal.lock().unwrap().take()).collect();
        Box::pin(async move {
            let info = store.task(task_id).await?.unwrap();
            for journal in journals.drain(..) {
                let task = journal.map(|journal| ClaimedTask {
                    task_id: info.task_id,
                    run_id: info.run_id,
                    attempt: 1,
                    max_attempts: 1,
                    crashes: 0,
                    task_type: info.task_type.clone(),
                    queue: info.queue.clone(),
                    params: info.params.clone(),
                    headers: info.headers.clone(),
                    scope: info.scope.clone(),
                    concurrency_key: None,
                    retry: RetryStrategy::None,
                    journal: Some(journal),
                    waits: Vec::new(),
                    facts: Facts::default(),
                    unreadable: None,
                });
                committed
                    .claims
                    .push(Claimed { tasks: task.into_iter().collect(), ..Claimed::default() });
            }
            Ok(committed)
        })
    });
    (Arc::new(store), receiver)
}

#[tokio::test(start_paused = true)]
async fn a_replay_takes_the_same_way_through_every_combinator() {
    for seed in seeds(1000) {
        interleaving(seed, false, false).await;
    }
}

#[tokio::test(start_paused = true)]
async fn so_does_one_after_crashes_at_random_moments() {
    for seed in seeds(1000) {
        interleaving(seed, true, false).await;
    }
}

#[tokio::test(start_paused = true)]
async fn so_does_one_after_attempts_that_failed() {
    for seed in seeds(1000) {
        interleaving(seed, seed % 2 == 0, true).await;
    }
}

/// `STEPWELL_SEED=7` runs one case, `STEPWELL_SEEDS=100000` more of them.
fn seeds(count: u64) -> Box<dyn Iterator<Item = u64>> {
    let number = |name| std::env::var(name).ok().and_then(|seed: String| seed.parse().ok());
    match number("STEPWELL_SEED") {
        Some(seed) => Box::new(std::iter::once(seed)),
        None => Box::new(0..number("STEPWELL_SEEDS").unwrap_or(count)),
    }
}
