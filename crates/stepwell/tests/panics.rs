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
use stepwell::store::{
    ArrivedMessage, Batch, Changed, Committed, Ends, Happening, MessageId, Purge, ScheduleFilter,
    Scheduled, TaskRecord, TaskWaits, Transacting, Transition, Wait,
};
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

/// A waker that says that it was woken, and panics.
struct GrumpyOnce(Mutex<Option<tokio::sync::oneshot::Sender<()>>>);

impl Wake for GrumpyOnce {
    fn wake(self: Arc<Self>) {
        self.0.lock().unwrap().take().map(|woken| woken.send(()));
        panic!("grumpy")
    }
}

fn once() -> SpawnOptions {
    SpawnOptions::new().max_attempts(1)
}

/// Other tasks go on.
async fn goes_on(client: &Durable, after: &str) {
    let quick = async {
        let task = client.spawn_named("quick", &()).options(once()).await.unwrap();
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
                ctx.step("step", || -> std::future::Ready<anyhow::Result<()>> { panic!("ouch") })
                    .await
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
        let task = client.spawn_named("hostile", door).options(once()).await.unwrap();
        let ended =
            tokio::time::timeout(Duration::from_secs(30), client.wait::<()>(task.task_id)).await;
        let error = ended.unwrap_or_else(|_| panic!("{door} hangs")).unwrap_err();
        assert!(matches!(error, Error::TaskFailed { .. }), "{door}: {error}");
        goes_on(client, door).await;
    }
    // Three that are suspended: two of them are dropped for want of room, and the last one when it
    // is cancelled.
    let mut suspended = Vec::new();
    for _ in 0..3 {
        let task = client.spawn_named("hostile", "suspended").options(once()).await.unwrap();
        until_state(client, task.task_id, TaskState::Suspended).await;
        goes_on(client, "a suspended task that was dropped").await;
        suspended.push(task.task_id);
    }
    let task = client.spawn_named("hostile", "suspended").options(once()).await.unwrap();
    until_state(client, task.task_id, TaskState::Suspended).await;
    client.cancel(task.task_id).await.unwrap();
    goes_on(client, "a suspended task that was cancelled").await;
    // One is in memory when the worker ends.
    let task = client.spawn_named("hostile", "suspended").options(once()).await.unwrap();
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

/// A database in a file, where queries have a thread of their own.
async fn in_a_file() -> (tempfile::TempDir, Durable) {
    let directory = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}/stepwell.db", directory.path().display());
    let client = Durable::builder().database_url(url).build().await.unwrap();
    (directory, client)
}

#[tokio::test]
async fn a_panic_hurts_its_own_task_only_in_a_file() {
    let (_directory, client) = in_a_file().await;
    every_door(&client).await;
}

#[tokio::test]
async fn whoever_reads_and_panics_keeps_no_other_from_reading() {
    let (_directory, client) = in_a_file().await;
    register(&client).await;
    client.start_worker(worker_options()).await;
    let task = client.spawn_named("quick", &()).options(once()).await.unwrap().task_id;
    client.wait::<()>(task).await.unwrap();
    let (woken, was_woken) = tokio::sync::oneshot::channel();
    let waker = Waker::from(Arc::new(GrumpyOnce(Mutex::new(Some(woken)))));
    // Often the answer is there before it is looked for.
    let _grumpy = loop {
        let mut asked = Box::pin(client.task(task));
        if asked.as_mut().poll(&mut Context::from_waker(&waker)).is_pending() {
            break asked;
        }
    };
    was_woken.await.unwrap();
    assert!(client.task(task).await.unwrap().is_some());
    goes_on(&client, "a reader whose waker panics").await;
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
        let task = client.spawn_named("transactions", door).options(once()).await.unwrap();
        let ended =
            tokio::time::timeout(Duration::from_secs(30), client.wait::<()>(task.task_id)).await;
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
                let undo =
                    move |()| -> futures_util::future::BoxFuture<'static, anyhow::Result<()>> {
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
    let task = process.spawn_named("saga", &()).options(once()).await.unwrap();
    let Err(Error::TaskFailed { failure, .. }) = process.wait::<()>(task.task_id).await else {
        panic!()
    };
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
        let error = process.spawn_named("quick", &()).options(once()).await.unwrap_err();
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
    let mut grumpy = process.spawn_named("quick", &()).options(once()).into_future();
    assert!(grumpy.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    goes_on(process.client(), "a caller whose waker panics").await;
    let spawned = grumpy.await.unwrap();
    let mut waits = pin!(process.wait::<()>(spawned.task_id));
    if let Poll::Ready(ended) = waits.as_mut().poll(&mut Context::from_waker(&waker)) {
        ended.unwrap();
    }
    goes_on(process.client(), "a waiter whose waker panics").await;
    let mut events = process.subscribe();
    let mut grumpy = pin!(events.next());
    assert!(grumpy.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    goes_on(process.client(), "a subscriber whose waker panics").await;
}

/// One that is stopped from elsewhere, by the worker's own loop.
#[tokio::test(start_paused = true)]
async fn a_task_whose_waker_panics_when_it_is_stopped_ends_no_worker() {
    let harness = Harness::new();
    let process = harness.start().await;
    register(process.client()).await;
    let neighbour = |(): (), ctx: TaskContext| async move {
        for n in 0..100_u32 {
            ctx.step(("work", n), || async {
                Ok(tokio::time::sleep(Duration::from_millis(100)).await)
            })
            .await?;
        }
        Ok(ctx.attempt)
    };
    process.register_fn("neighbour", neighbour).await.unwrap();
    let stuck = |(): (), ctx: TaskContext| async move {
        let mut long = pin!(ctx.step("long", std::future::pending::<anyhow::Result<()>>));
        let waker = Waker::from(Arc::new(Grumpy));
        let mut nap = pin!(ctx.sleep_for("nap", DAY));
        let cancelled = ctx.cancelled();
        let mut told = pin!(cancelled.cancelled());
        poll_fn(|cx| {
            let mut grumpy = Context::from_waker(&waker);
            assert!(
                nap.as_mut().poll(&mut grumpy).is_pending()
                    && told.as_mut().poll(&mut grumpy).is_pending()
            );
            long.as_mut().poll(cx)
        })
        .await
    };
    process.register_fn("stuck", stuck).await.unwrap();
    let options =
        worker_options().lease(Duration::from_secs(3)).claim_timeout(Duration::from_secs(2));
    process.start_worker(options).await;
    let stuck = process.spawn_named("stuck", &()).options(once()).await.unwrap().task_id;
    let neighbour = process.spawn_named("neighbour", &()).await.unwrap().task_id;
    let Err(Error::TaskFailed { failure, .. }) = process.wait::<()>(stuck).await else { panic!() };
    assert_eq!(failure.kind, FailureKind::Stuck);
    assert_eq!(process.wait::<u32>(neighbour).await.unwrap(), 1);
    let info = process.task(neighbour).await.unwrap().unwrap();
    assert_eq!((info.state, info.attempt), (TaskState::Completed, 1));
    goes_on(process.client(), "a task whose waker panics when it is stopped").await;
}

/// A store that panics once in the method of that name.
struct Faulty(MemoryStore, Mutex<&'static str>);

impl Faulty {
    fn asked(&self, method: &'static str) -> &MemoryStore {
        let mut faulty = self.1.lock().unwrap();
        if *faulty == method {
            *faulty = "";
            drop(faulty);
            panic!("{method} panics");
        }
        &self.0
    }
}

type Answer<T> = BoxFuture<'static, Result<T, StoreError>>;

macro_rules! asked {
    ($($method:ident($($name:ident: $given:ty),*) -> $answer:ty;)*) => {
        $(fn $method(&self, $($name: $given),*) -> $answer {
            self.asked(stringify!($method)).$method($($name),*)
        })*
    };
}

impl Store for Faulty {
    asked! {
        now() -> Timestamp;
        commit(batch: Arc<Batch>) -> Answer<Committed>;
        transact(transition: Transition) -> Result<Transacting, Transition>;
        task(task_id: TaskId) -> Answer<Option<TaskInfo>>;
        tasks(filter: TaskFilter) -> Answer<Page<TaskInfo>>;
        ends(tasks: Vec<TaskId>) -> Answer<Ends>;
        journal(task_id: TaskId) -> Answer<Vec<Entry>>;
        waits(scope: Scope, prefix: String, behind: Option<TaskId>, limit: usize)
            -> Answer<Page<TaskWaits>>;
        waits_of(task_id: TaskId) -> Answer<Vec<Wait>>;
        messages(task_id: TaskId, behind: Option<MessageId>) -> Answer<Page<ArrivedMessage>>;
        import(record: TaskRecord) -> Answer<bool>;
        queues() -> Answer<Vec<QueueInfo>>;
        workers() -> Answer<Vec<WorkerInfo>>;
        schedules(which: ScheduleFilter) -> Answer<Page<Scheduled>>;
        waiting_types(queues: Vec<Name>) -> Answer<Vec<Name>>;
        describe(info: TaskTypeInfo) -> Answer<()>;
        task_types() -> Answer<Vec<TaskTypeInfo>>;
        record(happenings: Vec<Happening>) -> Answer<()>;
        history(which: HistoryFilter) -> Answer<Page<(u64, Happening)>>;
        purge(purge: Purge) -> Answer<usize>;
    }

    fn changed(&self) -> BoxFuture<'_, Changed> {
        self.asked("changed").changed()
    }
}

/// Each method of a store is asked again when it has panicked, or fails what it was asked for.
#[tokio::test(start_paused = true)]
async fn a_store_that_panics_when_it_is_read_keeps_no_task() {
    for method in ["journal", "ends", "changed", "waiting_types", "schedules", "record"] {
        let harness = Harness::new();
        let store = Arc::new(Faulty(harness.store(), Mutex::new(method)));
        let process = harness.start_on(store.clone(), DurableBuilder::keep_history).await.unwrap();
        register(process.client()).await;
        let naps = |(): (), ctx: TaskContext| async move {
            ctx.step("one", || async { Ok(()) }).await?;
            ctx.sleep_for("nap", Duration::from_secs(60)).await
        };
        process.register_fn("naps", naps).await.unwrap();
        let options = worker_options().lease(Duration::from_secs(3)).max_in_memory(0);
        process.start_worker(options.poll_interval(Duration::from_secs(1))).await;
        let task = process.spawn_named("naps", &()).options(once()).await.unwrap().task_id;
        // Of another process, so that it asks the store.
        let other = harness.start().await;
        let waits = async {
            while other.task(task).await.unwrap().unwrap().state != TaskState::Completed {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            process.wait::<()>(task).await
        };
        let ended = tokio::time::timeout(DAY, waits).await;
        ended.unwrap_or_else(|_| panic!("{method} hangs")).unwrap();
        let there = other.spawn_named("nobody's", &()).options(once()).await.unwrap().task_id;
        let cancel = async {
            tokio::time::sleep(Duration::from_secs(5)).await;
            other.cancel(there).await.unwrap();
        };
        let (ended, ()) =
            tokio::join!(tokio::time::timeout(DAY, process.wait::<()>(there)), cancel);
        let ended = ended.unwrap_or_else(|_| panic!("{method}: it does not hear of others"));
        let is_panic =
            |error: &Error| error.to_string().contains("the store panicked: ends panics");
        let error = ended.unwrap_err();
        assert!(
            matches!(error, Error::TaskCancelled { .. }) || is_panic(&error),
            "{method}: {error}"
        );
        assert_eq!(*store.1.lock().unwrap(), "", "{method} was asked");
        goes_on(process.client(), method).await;
        process.shutdown(Duration::ZERO).await;
        let history = other
            .history(HistoryFilter { task_id: Some(task), ..Default::default() })
            .await
            .unwrap();
        let names: Vec<_> =
            history.items.iter().map(|entry| entry.event.as_ref().unwrap().name()).collect();
        assert!(method == "record" || names.contains(&"task:complete"), "{method}: {names:?}");
    }
}

/// What the application's values do when they are dropped may need the context, wherever that is.
#[tokio::test(flavor = "multi_thread")]
async fn a_value_that_uses_the_context_when_it_is_dropped_blocks_nothing() {
    struct Logs(TaskContext);

    impl Drop for Logs {
        fn drop(&mut self) {
            self.0.log(LogLevel::Info, "dropped", [("by", "a value".into())]);
        }
    }

    let client = Durable::builder().database_url("sqlite::memory:").build().await.unwrap();
    register(&client).await;
    let logs = |(): (), ctx: TaskContext| async move {
        let value = Logs(ctx.clone());
        let lost = ctx.transaction("lost", move |_| Ok(drop(value)));
        tokio::select! { biased; _ = std::future::ready(()) => {}, _ = lost => {} }
        let value = Logs(ctx.clone());
        let mut lost = pin!(ctx.transaction("lost too", move |_| Ok(drop(value))));
        assert!(futures_util::poll!(lost.as_mut()).is_pending());
        ctx.sleep_for("nap", Duration::from_millis(1)).await?;
        let value = Logs(ctx.clone());
        ctx.transaction("write", move |_| Ok(drop(value))).await?;
        // The next attempt replays that.
        if ctx.attempt == 1 { Err(anyhow::anyhow!("once more").into()) } else { Ok(ctx.attempt) }
    };
    client.register_fn("logs", logs).await.unwrap();
    client.start_worker(worker_options()).await;
    let options = SpawnOptions::new().retry(RetryStrategy::fixed(Duration::ZERO));
    let task = client.spawn_named("logs", &()).options(options).await.unwrap().task_id;
    let ended = tokio::time::timeout(Duration::from_secs(30), client.wait::<u32>(task)).await;
    assert_eq!(ended.expect("it hangs").unwrap(), 2);
    goes_on(&client, "values that log when they are dropped").await;
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

    fn decode(
        &self,
        bytes: &[u8],
        _: Option<&str>,
        place: &Place<'_>,
    ) -> Result<Vec<u8>, CodecError> {
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
    let bomb = Bomb;
    let workflow = Workflow::new("explosive").step("step", move |_| {
        let _bomb = &bomb;
        async { Ok(()) }
    });
    process.register_workflow(workflow).await.unwrap();
    let task = process.spawn_named("quick", &()).options(once()).await.unwrap();
    broken.store(true, Ordering::SeqCst);
    process.start_worker(worker_options()).await;
    let Err(Error::TaskFailed { failure, .. }) = process.wait::<()>(task.task_id).await else {
        panic!()
    };
    assert!(failure.to_string().contains("the codec `fragile` panicked: broken"), "{failure}");
    broken.store(false, Ordering::SeqCst);
    goes_on(process.client(), "a codec that panics").await;
    process.kill().await;
}
