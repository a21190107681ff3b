//! Whatever of the application's panics, wherever: it hurts its own task, and all others go on.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::unit_arg,
    missing_docs,
    reason = "a test ends by a panic"
)]

use std::future::poll_fn;
use std::panic::panic_any;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use stepwell::sqlite::TransactionExt as _;
use stepwell::testing::{Harness, Intercepted, worker_options};
use stepwell::*;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// Panics when it is dropped, with itself.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            panic_any(Self);
        }
    }
}

/// An error that panics when it is shown.
#[derive(Debug)]
struct Shy;

impl std::fmt::Display for Shy {
    fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        panic!("shy")
    }
}

impl std::error::Error for Shy {}

/// A waker that panics.
struct Grumpy;

impl Wake for Grumpy {
    fn wake(self: Arc<Self>) {
        panic!("grumpy")
    }
}

fn once() -> SpawnOptions {
    SpawnOptions::new().max_attempts(1)
}

/// Other tasks go on.
async fn goes_on(client: &Durable, after: &str) {
    let quick = async {
        let task = client.spawn_named("quick", &(), once()).await.unwrap();
        client.wait::<()>(task.task_id).await.unwrap();
    };
    tokio::time::timeout(Duration::from_secs(30), quick)
        .await
        .unwrap_or_else(|_| panic!("hangs after {after}"));
}

async fn until_state(client: &Durable, task_id: TaskId, state: TaskState) {
    while client.task(task_id).await.unwrap().unwrap().state != state {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn register(client: &Durable) {
    let quick = |(): (), ctx: TaskContext| async move {
        ctx.step("one", || async { Ok(()) }).await?;
        ctx.sleep_for("nap", Duration::from_millis(1)).await
    };
    client.register_fn("quick", quick).await.unwrap();
    let hostile = |door: String, ctx: TaskContext| async move {
        match &*door {
            "body" => panic!("ouch"),
            "payload" => panic_any(Bomb),
            "closure" => {
                ctx.step("step", || -> std::future::Ready<anyhow::Result<()>> { panic!("ouch") }).await
            }
            "closure's future" => ctx.step("step", || async { panic!("ouch") }).await,
            "closure's drop" => {
                let bomb = Bomb;
                ctx.step("step", move || async move { Ok(drop(bomb)) }).await
            }
            "drop at the end" => {
                let _bomb = Bomb;
                ctx.step("step", || async { Ok(()) }).await
            }
            "error" => Err(anyhow::Error::new(Shy).into()),
            "step's error" => ctx.step("step", || async { Err(Shy.into()) }).await,
            "waker" => {
                let mut nap = pin!(ctx.sleep_for("nap", Duration::from_millis(1)));
                let waker = Waker::from(Arc::new(Grumpy));
                poll_fn(|_| nap.as_mut().poll(&mut Context::from_waker(&waker))).await
            }
            _ => {
                let _bomb = Bomb;
                ctx.sleep_for("a day", DAY).await
            }
        }
    };
    client.register_fn("hostile", hostile).await.unwrap();
}

async fn every_door(client: &Durable) {
    register(client).await;
    let worker = client.start_worker(worker_options().max_in_memory(1)).await;
    let doors = [
        "body",
        "payload",
        "closure",
        "closure's future",
        "closure's drop",
        "drop at the end",
        "error",
        "step's error",
        "waker",
    ];
    for door in doors {
        let task = client.spawn_named("hostile", door, once()).await.unwrap();
        let ended = tokio::time::timeout(Duration::from_secs(30), client.wait::<()>(task.task_id)).await;
        let error = ended.unwrap_or_else(|_| panic!("{door} hangs")).unwrap_err();
        assert!(matches!(error, Error::TaskFailed { .. }), "{door}: {error}");
        goes_on(client, door).await;
    }
    // Three that are suspended: two of them are dropped for want of room, and the last one when it is cancelled.
    let mut suspended = Vec::new();
    for _ in 0..3 {
        let task = client.spawn_named("hostile", "suspended", once()).await.unwrap();
        until_state(client, task.task_id, TaskState::Suspended).await;
        goes_on(client, "a suspended task that was dropped").await;
        suspended.push(task.task_id);
    }
    let task = client.spawn_named("hostile", "suspended", once()).await.unwrap();
    until_state(client, task.task_id, TaskState::Suspended).await;
    client.cancel(task.task_id).await.unwrap();
    goes_on(client, "a suspended task that was cancelled").await;
    // One is in memory when the worker ends.
    let task = client.spawn_named("hostile", "suspended", once()).await.unwrap();
    until_state(client, task.task_id, TaskState::Suspended).await;
    worker.shutdown().await;
    client.start_worker(worker_options()).await;
    goes_on(client, "a shutdown").await;
}

#[tokio::test(start_paused = true)]
async fn a_panic_hurts_its_own_task_only() {
    let harness = Harness::new();
    let process = harness.start().await;
    every_door(process.client()).await;
}

#[tokio::test]
async fn a_panic_hurts_its_own_task_only_on_sqlite() {
    let client = Durable::builder().database_url("sqlite::memory:").build().await.unwrap();
    every_door(&client).await;
}

/// A transaction's closure runs on the thread that everybody's commits need, or is dropped there.
#[tokio::test]
async fn a_transaction_that_panics_leaves_sqlites_writer_alive() {
    let client = Durable::builder().database_url("sqlite::memory:").build().await.unwrap();
    register(&client).await;
    let transactions = |door: String, ctx: TaskContext| async move {
        let bomb = Bomb;
        match &*door {
            "panics" => {
                std::mem::forget(bomb);
                ctx.transaction("write", |_| -> anyhow::Result<()> { panic_any(Bomb) }).await
            }
            "error" => {
                std::mem::forget(bomb);
                ctx.transaction("write", |_| -> anyhow::Result<()> { Err(Shy.into()) }).await
            }
            "drop" => ctx.transaction("write", move |_| Ok(drop(bomb))).await,
            _ => {
                // Never awaited to its end.
                let write = ctx.transaction("write", move |_| Ok(drop(bomb)));
                tokio::select! { biased; _ = std::future::ready(()) => {}, _ = write => {} }
                Ok(())
            }
        }
    };
    client.register_fn("transactions", transactions).await.unwrap();
    client.start_worker(worker_options()).await;
    for (door, fails) in [("panics", true), ("error", true), ("drop", true), ("never", false)] {
        let task = client.spawn_named("transactions", door, once()).await.unwrap();
        let ended = tokio::time::timeout(Duration::from_secs(30), client.wait::<()>(task.task_id)).await;
        assert_eq!(ended.unwrap_or_else(|_| panic!("{door} hangs")).is_err(), fails, "{door}");
        goes_on(&client, door).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_compensation_that_panics_before_it_gives_a_future_stops_no_other() {
    let undone = Arc::new(Mutex::new(Vec::new()));
    let harness = Harness::new();
    let process = harness.start().await;
    let seen = undone.clone();
    let saga = move |(): (), ctx: TaskContext| {
        let undone = seen.clone();
        async move {
            for name in ["a", "b", "c", "d"] {
                let undone = undone.clone();
                let undo = move |()| -> futures_util::future::BoxFuture<'static, anyhow::Result<()>> {
                    assert!(name != "b", "before there is a future");
                    undone.lock().unwrap().push(name);
                    Box::pin(async move {
                        let _bomb = (name == "c").then(|| Bomb);
                        Ok(())
                    })
                };
                ctx.step(name, || async { Ok(()) }).compensate(undo).await?;
            }
            Err::<(), _>(TaskError::permanent(anyhow::anyhow!("all for nothing")))
        }
    };
    process.register_fn("saga", saga).await.unwrap();
    process.start_worker(worker_options()).await;
    let task = process.spawn_named("saga", &(), once()).await.unwrap();
    let Err(Error::TaskFailed { failure, .. }) = process.wait::<()>(task.task_id).await else { panic!() };
    let failed: Vec<_> = failure.compensation_errors.iter().map(|error| &*error.name).collect();
    assert_eq!(failed, ["c", "b"]);
    let mut undone = undone.lock().unwrap().clone();
    undone.dedup();
    assert_eq!(undone, ["d", "c", "a"]);
}

/// The store may be the application's own.
#[tokio::test(start_paused = true)]
async fn a_store_that_panics_answers_with_an_error_and_is_asked_again() {
    for at_once in [true, false] {
        let harness = Harness::new();
        let panics = Arc::new(AtomicBool::new(false));
        let seen = panics.clone();
        let store = Intercepted::new(Arc::new(harness.store()), move |store, batch| {
            let panics = seen.load(Ordering::SeqCst);
            assert!(!(panics && at_once), "the store panics");
            Box::pin(async move {
                assert!(!panics, "the store panics");
                store.commit(batch.into()).await
            })
        });
        let process = harness.start_on(Arc::new(store), |builder| builder).await.unwrap();
        register(process.client()).await;
        process.start_worker(worker_options()).await;
        goes_on(process.client(), "its start").await;
        panics.store(true, Ordering::SeqCst);
        let error = process.spawn_named("quick", &(), once()).await.unwrap_err();
        assert!(error.to_string().contains("the store panicked: the store panics"), "{error}");
        panics.store(false, Ordering::SeqCst);
        goes_on(process.client(), "a panic of the store").await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_caller_whose_waker_panics_keeps_no_other_from_its_answer() {
    let harness = Harness::new();
    let process = harness.start().await;
    register(process.client()).await;
    process.start_worker(worker_options()).await;
    let waker = Waker::from(Arc::new(Grumpy));
    let mut grumpy = pin!(process.spawn_named("quick", &(), once()));
    assert!(grumpy.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    goes_on(process.client(), "a caller whose waker panics").await;
    let spawned = grumpy.await.unwrap();
    let mut waits = pin!(process.wait::<()>(spawned.task_id));
    if let Poll::Ready(ended) = waits.as_mut().poll(&mut Context::from_waker(&waker)) {
        ended.unwrap();
    }
    goes_on(process.client(), "a waiter whose waker panics").await;
}

#[derive(Debug)]
struct Fragile(Arc<AtomicBool>);

impl Codec for Fragile {
    fn name(&self) -> &'static str {
        "fragile"
    }

    fn encode(&self, bytes: &[u8], _: &Place<'_>) -> Result<Option<Vec<u8>>, CodecError> {
        Ok(Some(bytes.to_vec()))
    }

    fn decode(&self, bytes: &[u8], _: Option<&str>, place: &Place<'_>) -> Result<Vec<u8>, CodecError> {
        assert!(!(self.0.load(Ordering::SeqCst) && matches!(place, Place::Params(_))), "broken");
        Ok(bytes.to_vec())
    }
}

#[tokio::test(start_paused = true)]
async fn a_codec_and_a_state_that_panic_stop_nothing() {
    let harness = Harness::new();
    let broken = Arc::new(AtomicBool::new(false));
    let codec = Fragile(broken.clone());
    let process = harness.start_with(|builder| builder.codec(codec).state(Bomb)).await.unwrap();
    register(process.client()).await;
    let task = process.spawn_named("quick", &(), once()).await.unwrap();
    broken.store(true, Ordering::SeqCst);
    process.start_worker(worker_options()).await;
    let Err(Error::TaskFailed { failure, .. }) = process.wait::<()>(task.task_id).await else { panic!() };
    assert!(failure.to_string().contains("the codec `fragile` panicked: broken"), "{failure}");
    broken.store(false, Ordering::SeqCst);
    goes_on(process.client(), "a codec that panics").await;
    process.kill().await;
}
