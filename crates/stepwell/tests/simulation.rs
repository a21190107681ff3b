//! Simulation: several processes with workers, in virtual time, on a store that is slow, fails, and loses contact for
//! longer than a lease, while processes die and clocks jump. A seed is a whole case, and reproduces its failure.
//!
//! `STEPWELL_SEED=7` runs one case, `STEPWELL_SEEDS=10000` more of them.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::unit_arg,
    missing_docs,
    reason = "a test ends by a panic"
)]

mod undone;

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::join_all;
use stepwell::testing::{Harness, Intercepted, Process};
use stepwell::*;

const MS: Duration = Duration::from_millis(1);
const LEASE: Duration = Duration::from_millis(400);

struct Dice(AtomicU64);

impl Dice {
    fn roll(&self, sides: u64) -> u64 {
        let mut z = self.0.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::SeqCst);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % sides
    }
}

/// What ran, and what the tasks' owners thought.
struct World {
    dice: Dice,
    /// The runs that have executed each step: `task/step` and its nonces, in order.
    ran: Mutex<BTreeMap<String, Vec<u64>>>,
    /// What was undone: of which step, and with which of its nonces.
    undone: Mutex<BTreeMap<String, Vec<u64>>>,
    /// The store itself, without faults.
    store: MemoryStore,
    faults: AtomicBool,
}

/// The way of one process to the store.
fn faulty(harness: &Harness, world: &Arc<World>) -> Arc<dyn Store> {
    let world = world.clone();
    let lanes = NonZeroUsize::MIN.saturating_add(world.dice.roll(3) as usize);
    let slow = Intercepted::new(Arc::new(harness.store()), move |store, batch| {
        let world = world.clone();
        Box::pin(async move {
            let pause = match world.dice.roll(100) {
                _ if !world.faults.load(Ordering::SeqCst) => 0,
                // Longer than a lease: whoever sent this has lost its tasks meanwhile.
                0 => 500 + world.dice.roll(500),
                1..20 => world.dice.roll(50),
                _ => 0,
            };
            tokio::time::sleep(pause as u32 * MS).await;
            if world.faults.load(Ordering::SeqCst) && world.dice.roll(20) == 0 {
                return Err(StoreError::Full("simulated".into()));
            }
            let committed = store.commit(batch.into()).await;
            tokio::time::sleep(world.dice.roll(3) as u32 * MS).await;
            committed
        })
    });
    Arc::new(slow.lanes(lanes))
}

/// A step that takes a while, may fail, and gives a number that no other run of it gives.
async fn work(ctx: &TaskContext, task: u32, step: &'static str) -> TaskResult<u64> {
    let world = ctx.state::<Arc<World>>()?;
    ctx.step(step, || async {
        let nonce = world.dice.roll(u64::MAX);
        world.ran.lock().unwrap().entry(format!("{task}/{step}")).or_default().push(nonce);
        tokio::time::sleep(world.dice.roll(30) as u32 * MS).await;
        if world.faults.load(Ordering::SeqCst) && world.dice.roll(10) == 0 {
            anyhow::bail!("simulated");
        }
        Ok(nonce)
    })
    .await
}

#[stepwell::task]
async fn leaf(task: u32, ctx: TaskContext) -> TaskResult<Vec<(String, u64)>> {
    let nap = ctx.sleep_for("nap", 20 * MS);
    let a = work(&ctx, task, "a").await?;
    nap.await?;
    let signal: u32 = ctx.await_event(("signal", task % 3), None).await?;
    assert_eq!(signal, task % 3);
    let (b, c) = tokio::try_join!(work(&ctx, task, "b"), work(&ctx, task, "c"))?;
    let d = work(&ctx, task, "d").await?;
    Ok([("a", a), ("b", b), ("c", c), ("d", d)].map(|(step, nonce)| (format!("{task}/{step}"), nonce)).into())
}

/// Children, and a conversation by messages with the test.
#[stepwell::task]
async fn root(first: u32, ctx: TaskContext) -> TaskResult<Vec<(String, u64)>> {
    let spawned = join_all((first..first + 3).map(|n| ctx.spawn::<leaf>(("leaf", n), n))).await;
    let children: Vec<_> = spawned.into_iter().collect::<TaskResult<_>>()?;
    let mut order = Vec::new();
    for _ in 0..3 {
        order.push(ctx.recv::<u32>("count", None).await?);
    }
    assert_eq!(order, [1, 2, 3], "messages come in their order, each once");
    ctx.emit_event(("signal", first % 3), &(first % 3)).await?;
    let all = join_all(children.iter().map(|child| ctx.join(child))).await;
    Ok(all.into_iter().collect::<TaskResult<Vec<_>>>()?.concat())
}

async fn start(harness: &Harness, world: &Arc<World>) -> Process {
    // Also for children, which are spawned as the client of their parent's process was built.
    let retry = RetryStrategy::fixed(10 * MS);
    let build = |builder: DurableBuilder| builder.state(world.clone()).max_attempts(1000).retry(retry);
    let process = harness.start_on(faulty(harness, world), build).await.unwrap();
    process.register::<leaf>().await.unwrap();
    process.register::<root>().await.unwrap();
    undone::register(&process, world).await;
    let options = WorkerOptions::new().lease(LEASE).poll_interval(200 * MS).concurrency(3);
    process.start_worker(options.max_in_memory(world.dice.roll(4) as usize)).await;
    process
}

async fn simulate(seed: u64) {
    let harness = Harness::new();
    let world = Arc::new(World {
        dice: Dice(AtomicU64::new(seed.wrapping_mul(0xD134_2543_DE82_EF95))),
        ran: Mutex::default(),
        undone: Mutex::default(),
        store: harness.store(),
        faults: AtomicBool::new(true),
    });
    let client = harness.start().await;
    let mut roots = Vec::new();
    let retry = RetryStrategy::fixed(10 * MS);
    let options = || SpawnOptions::new().max_attempts(1000).retry(retry.clone());
    for first in [0, 10, 20] {
        roots.push(client.spawn_with::<root>(first, options()).await.unwrap().task_id);
    }
    let mut sagas = Vec::new();
    for number in 100..106 {
        let options = options().max_attempts(1 + world.dice.roll(3) as u32);
        sagas.push(client.spawn_with::<undone::saga>(number, options).await.unwrap().task_id);
    }
    let mut processes = Vec::new();
    for _ in 0..3 {
        processes.push(start(&harness, &world).await);
    }
    for count in 1..=3 {
        tokio::time::sleep(world.dice.roll(300) as u32 * MS).await;
        for root in &roots {
            client.send(*root, "count", &count).await.unwrap();
        }
        for saga in &sagas {
            // Refused where it has ended, or has not.
            match world.dice.roll(6) {
                0 => drop(client.cancel(*saga).await),
                1 => drop(client.retry(*saga).await),
                _ => {}
            }
        }
        if world.dice.roll(2) == 0 {
            processes.swap_remove(world.dice.roll(3) as usize).kill().await;
            processes.push(start(&harness, &world).await);
        }
        if world.dice.roll(3) == 0 {
            harness.jump(world.dice.roll(600_000) as i64 - 300_000);
        }
    }
    tokio::time::sleep(world.dice.roll(2_000) as u32 * MS).await;
    world.faults.store(false, Ordering::SeqCst);
    for root in roots {
        let wait =
            tokio::time::timeout(Duration::from_secs(120), client.wait::<Vec<(String, u64)>>(root)).await;
        let result = wait.unwrap_or_else(|_| panic!("seed {seed}: a task is stuck"));
        let steps = result.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        assert_eq!(steps.len(), 12, "seed {seed}");
        let ran = world.ran.lock().unwrap();
        for (step, nonce) in steps {
            assert!(ran[&step].contains(&nonce), "seed {seed}: {step} has a result that it never gave");
        }
    }
    for saga in sagas {
        // One in three waits for this.
        drop(client.cancel(saga).await);
        let end = tokio::time::timeout(Duration::from_secs(600), client.wait::<()>(saga)).await;
        drop(end.unwrap_or_else(|_| panic!("seed {seed}: a saga is stuck")));
        undone::check(seed, &world, saga).await;
    }
    // Nobody journaled anything twice, and every journal is in order.
    let store = harness.store();
    for task in store.tasks(TaskFilter { limit: 100, ..TaskFilter::default() }).await.unwrap() {
        let is_saga = task.task_type.as_str() == "saga";
        assert!(is_saga || task.state == TaskState::Completed, "seed {seed}: {task:?}");
        let journal = store.journal(task.task_id).await.unwrap();
        assert!(journal.iter().zip(1..).all(|(entry, seq)| entry.seq == seq), "seed {seed}: {journal:#?}");
    }
    for process in processes {
        process.kill().await;
    }
}

#[tokio::test(start_paused = true)]
async fn whatever_happens_every_task_comes_to_its_end() {
    let number = |name| std::env::var(name).ok().and_then(|value: String| value.parse().ok());
    let seeds = match number("STEPWELL_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("STEPWELL_SEEDS").unwrap_or(300),
    };
    for seed in seeds {
        simulate(seed).await;
    }
}
