//! One item that the store refuses for good: its caller is told, and no other caller is held up.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "a test ends by a panic")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use stepwell::store::{Batch, Command, WorkerSignal};
use stepwell::testing::{Harness, Intercepted, Process, worker_options};
use stepwell::*;

const SECOND: Duration = Duration::from_secs(1);

/// A store that refuses batches in which the word `poison` is, anywhere, or a command that is about
/// that task.
fn picky(inner: Arc<dyn Store>, refused: Arc<AtomicUsize>) -> Arc<dyn Store> {
    Arc::new(Intercepted::new(inner, move |store, batch| {
        let is_poisonous = poisonous(&batch);
        let refused = refused.clone();
        Box::pin(async move {
            // Others gather meanwhile.
            tokio::time::sleep(SECOND / 10).await;
            if is_poisonous {
                refused.fetch_add(1, Ordering::SeqCst);
                return Err(StoreError::Backend("it is poisonous".into()));
            }
            store.commit(batch.into()).await
        })
    }))
}

fn poisonous(batch: &Batch) -> bool {
    let of_nobody = |command: &Command| command.task_id().as_uuid().is_nil();
    format!("{batch:?}").contains("poison") || batch.commands.iter().any(of_nobody)
}

async fn start(harness: &Harness, refused: &Arc<AtomicUsize>) -> Process {
    let store = picky(Arc::new(harness.store()), refused.clone());
    let process = harness.start_on(store, |builder| builder).await.unwrap();
    let task = |text: String, ctx: TaskContext| async move {
        let said = ctx.step("say", || async { Ok(text.replace("bad", "poison")) }).await?;
        ctx.sleep_for("nap", SECOND).await?;
        Ok(said.replace("worse", "poison"))
    };
    process.register_fn("task", task).await.unwrap();
    process
}

fn is_refused<T: std::fmt::Debug>(result: Result<T, Error>) {
    match result {
        Err(Error::Store(StoreError::Backend(text))) => assert_eq!(text, "it is poisonous"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn each_kind_of_item_is_refused_alone() {
    let harness = Harness::new();
    let refused = Arc::new(AtomicUsize::new(0));
    let process = start(&harness, &refused).await;
    let there = process.spawn_named("task", &"there").await.unwrap().task_id;
    let spawn = |n: u32| {
        let text = if n == 13 { "poison".to_owned() } else { n.to_string() };
        let process = &process;
        async move { process.spawn_named("task", &text).await }
    };
    let spawns = join_all((0..30).map(spawn));
    let many = |text: &'static str| {
        let tasks = ["a", text, "b"].map(|text| process.spawn::<Typed>(text.to_owned()));
        process.spawn_many(tasks)
    };
    let schedule = async |text: &'static str| {
        let every = Schedule::every(format!("schedule {text}"), SECOND);
        process.schedules().put_named(every, "task", &text).await
    };
    let all = tokio::join!(
        // The first is sent at once; all others gather behind it.
        process.emit_event("first", &()).into_future(),
        spawns,
        async { (process.emit_event("good", &1).await, process.emit_event("poison", &1).await,) },
        process.emit_event("also good", &2).into_future(),
        process.send(there, "topic", &"poison"),
        process.send(there, "topic", &"good"),
        process.cancel(uuid::Uuid::nil().into()),
        process.pause(there),
        process.queues().pause("poison"),
        process.queues().pause("good"),
        many("poison"),
        many("fine"),
        schedule("poison"),
        schedule("good"),
    );
    let (
        first,
        spawned,
        events,
        event,
        sent_bad,
        sent,
        cancelled,
        paused,
        queue_bad,
        queue,
        many_bad,
        many,
        s_bad,
        s,
    ) = all;
    assert!(first.unwrap() && events.0.unwrap() && event.unwrap());
    is_refused(events.1);
    for (n, spawned) in spawned.into_iter().enumerate() {
        match n {
            13 => is_refused(spawned),
            _ => assert!(process.task(spawned.unwrap().task_id).await.unwrap().is_some()),
        }
    }
    is_refused(sent_bad);
    sent.unwrap();
    is_refused(cancelled);
    paused.unwrap();
    is_refused(queue_bad);
    queue.unwrap();
    is_refused(many_bad);
    assert_eq!(many.unwrap().len(), 3);
    is_refused(s_bad);
    s.unwrap();
    let tasks = process.tasks(TaskFilter { limit: 100, ..TaskFilter::default() }).await.unwrap();
    assert_eq!(
        tasks.items.len(),
        1 + 29 + 3,
        "those that are spawned together are all there or none"
    );
    let tries = refused.load(Ordering::SeqCst);
    assert!(tries < 60, "{tries} batches were refused for seven items");
}

struct Typed;

#[async_trait]
impl Task for Typed {
    const NAME: &'static str = "task";
    type Params = String;
    type Output = String;

    async fn run(_params: String, _ctx: TaskContext) -> TaskResult<String> {
        std::future::pending().await
    }
}

#[tokio::test(start_paused = true)]
async fn a_result_that_the_store_refuses_fails_its_attempt_and_no_other_task() {
    let harness = Harness::new();
    let refused = Arc::new(AtomicUsize::new(0));
    let process = start(&harness, &refused).await;
    process.start_worker(worker_options()).await;
    let options = || SpawnOptions::new().max_attempts(2).retry(RetryStrategy::fixed(SECOND));
    let texts = (0..20).map(|n| match n {
        5 => "bad".to_owned(),
        11 => "worse".to_owned(),
        n => format!("good {n}"),
    });
    let tasks =
        join_all(
            texts.clone().map(|text| {
                let process = &process;
                async move {
                    process.spawn_named("task", &text).options(options()).await.unwrap().task_id
                }
            }),
        )
        .await;
    for (text, task_id) in texts.zip(&tasks) {
        let end =
            tokio::time::timeout(100 * SECOND, process.wait::<String>(*task_id)).await.unwrap();
        if text.starts_with("good") {
            assert_eq!(end.unwrap(), text);
            continue;
        }
        let error = end.unwrap_err().to_string();
        // The error holds the word as well.
        assert!(
            error.contains("the store refuses what this attempt did, and the error as well"),
            "{error}"
        );
        assert_eq!(process.task(*task_id).await.unwrap().unwrap().attempt, 2);
    }
    // The worker lives, and takes more.
    let later = process.spawn_named("task", &"later").options(options()).await.unwrap().task_id;
    assert_eq!(process.wait::<String>(later).await.unwrap(), "later");
    let journal = process.journal(tasks[11]).await.unwrap();
    assert!(journal.windows(2).all(|pair| pair[0].seq + 1 == pair[1].seq), "{journal:#?}");
}

/// As above, where only what the task did is refused.
#[tokio::test(start_paused = true)]
async fn an_attempt_that_the_store_refuses_tells_its_error() {
    let harness = Harness::new();
    let store = Intercepted::new(Arc::new(harness.store()), |store, batch| {
        if batch.transitions.iter().any(|transition| !transition.entries.is_empty()) {
            return Box::pin(async { Err(StoreError::Backend("no entries here".into())) });
        }
        store.commit(batch.into())
    });
    let process = harness.start_on(Arc::new(store), |builder| builder).await.unwrap();
    let task = |(): (), ctx: TaskContext| async move {
        ctx.step("one", || async { Ok(()) }).await?;
        ctx.step("two", || async { Ok(()) }).await
    };
    process.register_fn("task", task).await.unwrap();
    process.start_worker(worker_options()).await;
    let options = SpawnOptions::new().max_attempts(3).retry(RetryStrategy::fixed(SECOND));
    let task = process.spawn_named("task", &()).options(options).await.unwrap().task_id;
    let ended = tokio::time::timeout(1_000 * SECOND, process.wait::<()>(task)).await;
    let error = ended.expect("it is sent for ever").unwrap_err().to_string();
    assert!(
        error
            .contains("the store refuses what this attempt did: the store failed: no entries here"),
        "{error}"
    );
    assert_eq!(process.task(task).await.unwrap().unwrap().attempt, 3);
}

#[tokio::test(start_paused = true)]
async fn a_worker_whose_sign_on_stands_beside_poison_is_registered() {
    let harness = Harness::new();
    let refused = Arc::new(AtomicUsize::new(0));
    let store = picky(Arc::new(harness.store()), refused.clone());
    let signals = Arc::new(AtomicUsize::new(0));
    let counted = signals.clone();
    let counting = Intercepted::new(store, move |store, batch| {
        let beats =
            batch.workers.iter().filter(|signal| matches!(signal, WorkerSignal::Heartbeat { .. }));
        counted.fetch_add(beats.count(), Ordering::SeqCst);
        store.commit(batch.into())
    });
    let process = harness.start_on(Arc::new(counting), |builder| builder).await.unwrap();
    process.register_fn("task", |text: String, _ctx| async move { Ok(text) }).await.unwrap();
    process.start_worker(worker_options().lease(10 * SECOND)).await;
    // Poison all the time, for many leases.
    let poison = async {
        loop {
            let spawned = process.spawn_named("task", &"poison").await;
            is_refused(spawned);
        }
    };
    let good = async {
        for n in 0..100 {
            let task = process.spawn_named("task", &n.to_string()).await.unwrap();
            assert_eq!(process.wait::<String>(task.task_id).await.unwrap(), n.to_string());
            tokio::time::sleep(SECOND).await;
        }
    };
    tokio::select! {
        () = good => {}
        () = poison => {}
    }
    assert!(process.workers().list().await.unwrap().iter().all(|worker| worker.alive));
    assert!(refused.load(Ordering::SeqCst) > 100 && signals.load(Ordering::SeqCst) > 10);
}

/// What the store would accept later is sent again until it does, and fails nobody.
#[tokio::test(start_paused = true)]
async fn a_store_that_cannot_work_just_now_fails_no_attempt() {
    let harness = Harness::new();
    let fails = Arc::new(AtomicUsize::new(0));
    let store = Intercepted::new(Arc::new(harness.store()), {
        let fails = fails.clone();
        move |store, batch| {
            let journals =
                batch.transitions.iter().any(|transition| !transition.entries.is_empty());
            if journals && fails.fetch_add(1, Ordering::SeqCst) < 5 {
                return Box::pin(async { Err(StoreError::Unavailable("a device failed".into())) });
            }
            store.commit(batch.into())
        }
    });
    let process = harness.start_on(Arc::new(store), |builder| builder).await.unwrap();
    let task = |(): (), ctx: TaskContext| async move {
        ctx.step("one", || async { Ok(ctx.attempt) }).await
    };
    process.register_fn("task", task).await.unwrap();
    process.start_worker(worker_options()).await;
    let task = process.spawn_named("task", &()).max_attempts(1).await.unwrap().task_id;
    assert_eq!(process.wait::<u32>(task).await.unwrap(), 1);
}

/// A codec that does not take what is poisonous.
#[derive(Debug)]
struct Taster;

impl Codec for Taster {
    fn name(&self) -> &'static str {
        "taster"
    }

    fn encode(&self, bytes: &[u8], _: &Place<'_>) -> Result<Option<Vec<u8>>, CodecError> {
        let text = String::from_utf8_lossy(bytes);
        assert!(!text.contains("strong poison"), "dead");
        if text.contains("poison") { Err(CodecError::Other("it smells".into())) } else { Ok(None) }
    }

    fn decode(&self, bytes: &[u8], _: Option<&str>, _: &Place<'_>) -> Result<Vec<u8>, CodecError> {
        Ok(bytes.to_vec())
    }
}

#[tokio::test(start_paused = true)]
async fn a_payload_that_a_codec_does_not_take_fails_its_own_attempt() {
    let harness = Harness::new();
    let process = harness.start_with(|builder| builder.codec(Taster).keep_history()).await.unwrap();
    let task = |text: String, ctx: TaskContext| async move {
        ctx.step("say", || async { Ok(text.replace("bad", "poison")) }).await?;
        ctx.sleep_for("nap", SECOND).await
    };
    process.register_fn("task", task).await.unwrap();
    process.start_worker(worker_options()).await;
    let spawn = async |text: &str| {
        let options = SpawnOptions::new().max_attempts(1);
        process.spawn_named("task", text).options(options).await.map(|spawned| spawned.task_id)
    };
    for (text, said) in [("bad", "it smells"), ("strong bad", "the codec `taster` panicked: dead")]
    {
        let (bad, good) = tokio::join!(spawn(text), spawn("good"));
        let ended = tokio::time::timeout(100 * SECOND, process.wait::<()>(bad.unwrap())).await;
        let error = ended.expect("it is tried for ever").unwrap_err().to_string();
        assert!(error.contains("(step \"say\")") && error.contains(said), "{error}");
        process.wait::<()>(good.unwrap()).await.unwrap();
    }
    for (text, said) in [("poison", "it smells"), ("strong poison", "panicked: dead")] {
        let Err(Error::Store(error)) = spawn(text).await else { panic!("{text} was spawned") };
        assert!(!error.is_transient() && error.to_string().contains(said), "{error}");
    }
    let waits = process.spawn_named("unknown", &()).await.unwrap().task_id;
    process.cancel(waits).await.unwrap();
    process.shutdown(Duration::ZERO).await;
}
