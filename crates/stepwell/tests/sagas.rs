//! Compensations: what a task did is undone when it fails for good, or is cancelled.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::unit_arg,
    missing_docs,
    reason = "a test ends by a panic"
)]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use stepwell::testing::{Harness, Process, worker_options};
use stepwell::*;
use tokio::sync::Notify;

const SECOND: Duration = Duration::from_secs(1);

/// What ran, in its order.
#[derive(Clone, Default)]
struct Ledger(Arc<Mutex<Vec<String>>>);

impl Ledger {
    fn note(&self, what: impl Into<String>) {
        self.0.lock().unwrap().push(what.into());
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

/// A step that notes what it does and undoes.
async fn noted(ctx: &TaskContext, name: &'static str, fails: bool) -> TaskResult<u32> {
    let ledger = ctx.state::<Ledger>()?.clone();
    let undo = ledger.clone();
    ctx.step(name, || async {
        ledger.note(name);
        anyhow::ensure!(!fails, "{name} is impossible");
        Ok(u32::try_from(name.len())?)
    })
    .compensate(move |length| {
        let undo = undo.clone();
        async move { Ok(undo.note(format!("undo {name} of {length}"))) }
    })
    .await
}

/// A closure that undoes a step may hold the task's context.
#[tokio::test(start_paused = true)]
async fn what_undoes_a_step_is_freed_when_its_task_has_ended() {
    let held = Arc::new(());
    let weak = Arc::downgrade(&held);
    let harness = Harness::new();
    let process = harness.start().await;
    let saga = move |fails: bool, ctx: TaskContext| {
        let (held, undoing) = (held.clone(), ctx.clone());
        async move {
            let undo = move |()| {
                let (ctx, held) = (undoing.clone(), held.clone());
                async move { Ok(drop((ctx.task_id, held))) }
            };
            ctx.step("book", || async { Ok(()) }).compensate(undo).await?;
            if fails {
                return Err(TaskError::permanent(anyhow::anyhow!("it is impossible")));
            }
            ctx.await_event::<()>("go", None).await
        }
    };
    process.register_fn("saga", saga).await.unwrap();
    let worker = process.start_worker(worker_options()).await;
    let spawn = async |fails: bool| {
        let options = SpawnOptions::new().max_attempts(1);
        process.spawn_named("saga", &fails).options(options).await.unwrap().task_id
    };
    let tasks = [spawn(true).await, spawn(false).await, spawn(false).await];
    tokio::time::sleep(SECOND).await;
    process.cancel(tasks[1]).await.unwrap();
    process.emit_event("go", &()).await.unwrap();
    for task in tasks {
        drop(process.wait::<()>(task).await);
    }
    worker.shutdown().await;
    // The one that is registered.
    assert_eq!(weak.strong_count(), 1);
}

async fn start(harness: &Harness, ledger: &Ledger) -> Process {
    let process = harness.start_with(|builder| builder.state(ledger.clone())).await.unwrap();
    process.register::<order>().await.unwrap();
    process.register::<begun>().await.unwrap();
    process.register::<cleans>().await.unwrap();
    process.register::<waits>().await.unwrap();
    let note = ledger.clone();
    let delete = move |file: String| {
        let note = note.clone();
        async move { Ok(note.note(format!("delete {file}"))) }
    };
    process.register_cleanup("delete", delete).await.unwrap();
    process
}

#[stepwell::task]
async fn order(fails: bool, ctx: TaskContext) -> TaskResult<u32> {
    let goods = noted(&ctx, "reserve", false).await?;
    let (money, label) =
        futures_util::try_join!(noted(&ctx, "charge", false), noted(&ctx, "label", false))?;
    ctx.sleep_for("a while", SECOND).await?;
    let parcel = noted(&ctx, "ship", fails).await?;
    Ok(goods + money + label + parcel)
}

fn once() -> SpawnOptions {
    SpawnOptions::new().max_attempts(1)
}

#[tokio::test(start_paused = true)]
async fn a_failed_task_is_undone_in_reverse_order() {
    let (harness, ledger) = (Harness::new(), Ledger::default());
    let process = start(&harness, &ledger).await;
    let mut events = process.subscribe();
    process.start_worker(worker_options()).await;
    let task = process.spawn::<order>(true).options(once()).await.unwrap();
    let error = process.wait::<u32>(task.task_id).await.unwrap_err();
    assert!(error.to_string().ends_with("ship is impossible"), "{error}");
    let ran = ledger.take();
    assert_eq!(ran[..4], ["reserve", "charge", "label", "ship"]);
    assert_eq!(ran[4..], ["undo label of 5", "undo charge of 6", "undo reserve of 7"]);

    let mut seen = Vec::new();
    while seen.len() < 5 {
        seen.extend(match events.next().await.unwrap() {
            Lifecycle::TaskCompensating { failure, .. } => Some(failure.to_string()),
            Lifecycle::StepCompensated { step, failure: None, .. } => Some(step),
            Lifecycle::TaskFailed { failure, retry_at: None, .. } => Some(failure.to_string()),
            _ => None,
        });
    }
    let failure = r#"step "ship" failed: ship is impossible"#;
    assert_eq!(seen, [failure, "label", "charge", "reserve", failure]);

    let task = process.spawn::<order>(false).options(once()).await.unwrap();
    assert_eq!(process.wait::<u32>(task.task_id).await.unwrap(), 22);
    assert_eq!(ledger.take().len(), 4, "what succeeds is not undone");
}

#[tokio::test(start_paused = true)]
async fn it_is_undone_when_no_attempt_is_left_and_begins_anew_when_it_is_run_again() {
    let (harness, ledger) = (Harness::new(), Ledger::default());
    let process = start(&harness, &ledger).await;
    process.start_worker(worker_options()).await;
    let options = SpawnOptions::new().max_attempts(2).retry(RetryStrategy::fixed(SECOND));
    let task = process.spawn::<order>(true).options(options).await.unwrap();
    process.wait::<u32>(task.task_id).await.unwrap_err();
    let all = [
        "reserve",
        "charge",
        "label",
        "ship",
        "ship",
        "undo label of 5",
        "undo charge of 6",
        "undo reserve of 7",
    ];
    assert_eq!(ledger.take(), all);
    process.retry(task.task_id).await.unwrap();
    process.wait::<u32>(task.task_id).await.unwrap_err();
    assert_eq!(ledger.take(), all);
}

#[tokio::test(start_paused = true)]
async fn it_is_undone_when_it_is_cancelled_wherever_it_is() {
    let (harness, ledger) = (Harness::new(), Ledger::default());
    let process = start(&harness, &ledger).await;
    // Suspended, and in memory.
    let worker = process.start_worker(worker_options()).await;
    let task = process.spawn::<waits>(()).options(once()).await.unwrap();
    until_state(&process, task.task_id, TaskState::Suspended).await;
    process.cancel(task.task_id).await.unwrap();
    let error = process.wait::<()>(task.task_id).await.unwrap_err();
    assert!(matches!(error, Error::TaskCancelled(_)), "{error}");
    assert_eq!(ledger.take(), ["reserve", "undo reserve of 7"]);

    // Where no worker is, it waits for one.
    let task = process.spawn::<waits>(()).options(once()).await.unwrap();
    until_state(&process, task.task_id, TaskState::Suspended).await;
    worker.shutdown().await;
    process.cancel(task.task_id).await.unwrap();
    assert_eq!(process.task(task.task_id).await.unwrap().unwrap().state, TaskState::Compensating);
    let error = process.cancel(task.task_id).await.unwrap_err();
    assert!(error.to_string().ends_with("it is compensating"), "{error}");
    process.start_worker(worker_options()).await;
    process.wait::<()>(task.task_id).await.unwrap_err();
    assert_eq!(ledger.take(), ["reserve", "undo reserve of 7"]);

    // In the middle of a step, whose result is not waited for.
    let task = process.spawn::<begun>(100).options(once()).await.unwrap();
    tokio::time::sleep(SECOND).await;
    process.cancel(task.task_id).await.unwrap();
    process.wait::<()>(task.task_id).await.unwrap_err();
    assert_eq!(ledger.take(), ["began", "undo None"]);
}

async fn until_state(process: &Process, task_id: TaskId, state: TaskState) {
    while process.task(task_id).await.unwrap().unwrap().state != state {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[stepwell::task]
async fn waits(_nothing: (), ctx: TaskContext) -> TaskResult<()> {
    noted(&ctx, "reserve", false).await?;
    ctx.await_event("never", None).await
}

/// A step that takes its time, and has no result when the other branch fails.
#[stepwell::task]
async fn begun(seconds: u32, ctx: TaskContext) -> TaskResult<()> {
    let ledger = ctx.state::<Ledger>()?.clone();
    let undo = ledger.clone();
    let slow = ctx
        .step("slow", || async {
            ledger.note("began");
            tokio::time::sleep(seconds * SECOND).await;
            Ok(1_u32)
        })
        .compensate_begun(move |result| {
            let undo = undo.clone();
            async move { Ok(undo.note(format!("undo {result:?}"))) }
        });
    let other = async {
        ctx.step("other", || async { Ok(tokio::time::sleep(10 * SECOND).await) }).await?;
        Err::<(), _>(TaskError::permanent(anyhow::anyhow!("no")))
    };
    tokio::try_join!(slow, other).map(|_| ())
}

#[tokio::test(start_paused = true)]
async fn what_has_begun_is_undone_without_its_result() {
    let (harness, ledger) = (Harness::new(), Ledger::default());
    let process = start(&harness, &ledger).await;
    process.start_worker(worker_options()).await;
    for (seconds, undone) in [(100, "undo None"), (1, "undo Some(1)")] {
        let task = process.spawn::<begun>(seconds).options(once()).await.unwrap();
        process.wait::<()>(task.task_id).await.unwrap_err();
        assert_eq!(ledger.take(), ["began", undone]);
    }
}

/// The record is durable before the step begins: a process that dies in it leaves it to be undone,
/// even when the next one never comes to it.
#[tokio::test(start_paused = true)]
async fn what_has_begun_is_undone_when_its_process_has_died_too_often() {
    let (harness, ledger) = (Harness::new(), Ledger::default());
    let client = start(&harness, &ledger).await;
    let task = client.spawn::<begun>(100).options(once()).await.unwrap();
    for life in 1..=5 {
        let process = start(&harness, &ledger).await;
        process.start_worker(WorkerOptions::new().lease(5 * SECOND)).await;
        while ledger.0.lock().unwrap().len() < life {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        process.kill().await;
    }
    let process = start(&harness, &ledger).await;
    process.start_worker(WorkerOptions::new().lease(5 * SECOND)).await;
    let error = process.wait::<()>(task.task_id).await.unwrap_err();
    assert!(error.to_string().contains("died 5 times in a row"), "{error}");
    assert_eq!(ledger.take(), ["began", "began", "began", "began", "began", "undo None"]);
}

#[tokio::test(start_paused = true)]
async fn a_compensation_that_fails_is_tried_again_and_does_not_stop_the_others() {
    let (harness, ledger) = (Harness::new(), Ledger::default());
    let process = start(&harness, &ledger).await;
    let note = ledger.clone();
    let task = move |(): (), ctx: TaskContext| {
        let note = note.clone();
        async move {
            let undo = |what: &'static str| {
                let note = note.clone();
                move |(): ()| {
                    let note = note.clone();
                    async move {
                        note.note(what);
                        let tries =
                            note.0.lock().unwrap().iter().filter(|noted| *noted == what).count();
                        match what {
                            "b" => anyhow::bail!("b cannot be undone"),
                            "c" if tries < 3 => anyhow::bail!("not yet"),
                            "d" => panic!("ouch"),
                            _ => Ok(()),
                        }
                    }
                }
            };
            for what in ["a", "b", "c", "d"] {
                ctx.step(what, || async { Ok(()) }).compensate(undo(what)).await?;
            }
            Err::<(), _>(TaskError::permanent(anyhow::anyhow!("no")))
        }
    };
    process.register_fn("four", task).await.unwrap();
    process.start_worker(worker_options()).await;
    let task = process.spawn_named("four", &()).await.unwrap();
    let Error::TaskFailed { failure, .. } = process.wait::<()>(task.task_id).await.unwrap_err()
    else {
        panic!()
    };
    assert_eq!(ledger.take().concat(), "dddddcccbbbbba");
    assert_eq!(
        failure.to_string(),
        concat!(
            r#"no; and its compensation "d" failed: it panicked: ouch; "#,
            r#"and its compensation "b" failed: b cannot be undone"#,
        )
    );
    assert_eq!(failure.compensation_errors.len(), 2);
}

#[stepwell::task]
async fn cleans(discards: bool, ctx: TaskContext) -> TaskResult<()> {
    let ledger = ctx.state::<Ledger>()?.clone();
    let first = ctx.cleanup("delete", "first").await?;
    ctx.cleanup("delete", "second").await?;
    ctx.step("write", || async { Ok(ledger.note("write")) }).await?;
    if discards {
        ctx.discard(&first).await?;
    }
    Err(TaskError::permanent(anyhow::anyhow!("no")))
}

#[tokio::test(start_paused = true)]
async fn cleanups_run_by_their_names_unless_they_are_discarded() {
    let (harness, ledger) = (Harness::new(), Ledger::default());
    let process = start(&harness, &ledger).await;
    process.start_worker(worker_options()).await;
    for discards in [false, true] {
        let task = process.spawn::<cleans>(discards).options(once()).await.unwrap();
        process.wait::<()>(task.task_id).await.unwrap_err();
        let ran = ledger.take();
        let all = ["write", "delete second", "delete first"];
        assert_eq!(ran, all[..if discards { 2 } else { 3 }]);
    }
    let unknown = |(): (), ctx: TaskContext| async move {
        ctx.cleanup("forget", &()).await?;
        Ok(())
    };
    process.register_fn("unknown", unknown).await.unwrap();
    let task = process.spawn_named("unknown", &()).await.unwrap();
    let error = process.wait::<()>(task.task_id).await.unwrap_err().to_string();
    assert!(error.contains(r#"no cleanup is registered as "forget": add it with"#), "{error}");
}

/// What was kept of an earlier attempt, and not asked for again, has no closure any more: that is
/// said.
#[tokio::test(start_paused = true)]
async fn a_compensation_without_its_code_is_an_error_of_its_own() {
    let (harness, ledger) = (Harness::new(), Ledger::default());
    let process = start(&harness, &ledger).await;
    let task = |(): (), ctx: TaskContext| async move {
        if ctx.attempt == 1 {
            let failing = ctx.step("failing", || async { Err::<(), _>(anyhow::anyhow!("no")) });
            let beside = ctx.step("beside", || async { Ok(()) }).compensate(|()| async { Ok(()) });
            let (failed, beside) = tokio::join!(failing, beside);
            beside?;
            return failed;
        }
        Err(TaskError::permanent(anyhow::anyhow!("another way")))
    };
    process.register_fn("wavering", task).await.unwrap();
    process.start_worker(worker_options()).await;
    let task = process.spawn_named("wavering", &()).await.unwrap();
    let error = process.wait::<()>(task.task_id).await.unwrap_err().to_string();
    let expected =
        r#"another way; and its compensation "beside" failed: this program has no code for it"#;
    assert!(error.contains(expected), "{error}");
}

/// A shutdown in the middle of a compensation: it goes on elsewhere, and nothing is undone twice.
#[tokio::test(start_paused = true)]
async fn a_compensation_survives_the_shutdown_of_its_worker() {
    let (harness, ledger) = (Harness::new(), Ledger::default());
    let (entered, release) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let register = async |process: &Process| {
        let (note, entered, release) = (ledger.clone(), entered.clone(), release.clone());
        let task = move |(): (), ctx: TaskContext| {
            let (note, entered, release) = (note.clone(), entered.clone(), release.clone());
            async move {
                let slow = note.clone();
                ctx.step("slow", || async { Ok(()) })
                    .compensate(move |()| {
                        let (note, entered, release) =
                            (slow.clone(), entered.clone(), release.clone());
                        async move {
                            entered.notify_one();
                            release.notified().await;
                            Ok(note.note("slow"))
                        }
                    })
                    .await?;
                ctx.step("quick", || async { Ok(()) })
                    .compensate(move |()| {
                        let note = note.clone();
                        async move { Ok(note.note("quick")) }
                    })
                    .await?;
                Err::<(), _>(TaskError::permanent(anyhow::anyhow!("no")))
            }
        };
        process.register_fn("two", task).await.unwrap();
    };
    let process = start(&harness, &ledger).await;
    register(&process).await;
    let worker = process.start_worker(worker_options().shutdown_timeout(SECOND)).await;
    let task = process.spawn_named("two", &()).await.unwrap();
    entered.notified().await;
    worker.shutdown().await;
    assert_eq!(process.task(task.task_id).await.unwrap().unwrap().state, TaskState::Compensating);
    let second = start(&harness, &ledger).await;
    register(&second).await;
    second.start_worker(worker_options()).await;
    entered.notified().await;
    release.notify_one();
    second.wait::<()>(task.task_id).await.unwrap_err();
    assert_eq!(ledger.take(), ["quick", "slow"]);
}

/// Attempts that waited do not count, but the code that is replayed sees the number that it saw.
#[tokio::test(start_paused = true)]
async fn the_attempt_that_is_undone_is_replayed_with_its_number() {
    let (harness, ledger) = (Harness::new(), Ledger::default());
    let process = start(&harness, &ledger).await;
    let task = |(): (), ctx: TaskContext| async move {
        if ctx.attempt == 1 {
            return Err(TaskError::retry_after(SECOND, anyhow::anyhow!("not yet")));
        }
        noted(&ctx, "reserve", false).await?;
        ctx.await_event::<()>("never", None).await
    };
    process.register_fn("second", task).await.unwrap();
    process.start_worker(worker_options().poll_interval(SECOND)).await;
    let task = process.spawn_named("second", &()).await.unwrap();
    until_state(&process, task.task_id, TaskState::Suspended).await;
    process.cancel(task.task_id).await.unwrap();
    process.wait::<()>(task.task_id).await.unwrap_err();
    assert_eq!(ledger.take(), ["reserve", "undo reserve of 7"]);
}

#[tokio::test(start_paused = true)]
async fn a_step_may_be_keyed_by_its_input_and_be_undone_in_either_order() {
    let (harness, ledger) = (Harness::new(), Ledger::default());
    let process = start(&harness, &ledger).await;
    let note = ledger.clone();
    let task = move |(): (), ctx: TaskContext| {
        let note = note.clone();
        async move {
            let undo = move |n: u32| {
                note.note(format!("undo {n}"));
                async { Ok(()) }
            };
            for n in 1..=2 {
                ctx.step("pay", || async { Ok(n) }).input(&"same").compensate(undo.clone()).await?;
            }
            for n in 3..=4 {
                ctx.step("pay", || async { Ok(n) }).compensate(undo.clone()).input(&"same").await?;
            }
            Err::<(), _>(TaskError::permanent(anyhow::anyhow!("no")))
        }
    };
    process.register_fn("pays", task).await.unwrap();
    process.start_worker(worker_options()).await;
    let task = process.spawn_named("pays", &()).options(once()).await.unwrap();
    let error = process.wait::<()>(task.task_id).await.unwrap_err().to_string();
    assert!(error.ends_with("no"), "{error}");
    assert_eq!(ledger.take(), ["undo 4", "undo 3", "undo 2", "undo 1"]);
}
