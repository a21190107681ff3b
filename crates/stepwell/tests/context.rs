//! What a task's code has in hand, call by call, in virtual time.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::unit_arg,
    missing_docs,
    reason = "a test ends by a panic"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use stepwell::store::{after, until};
use stepwell::testing::{Harness, Process, worker_options};
use stepwell::*;

const SECOND: Duration = Duration::from_secs(1);
const WEEK: Duration = Duration::from_secs(7 * 24 * 3600);

/// Runs one function as a task, in a process of its own, with the options.
async fn run_with<F, Fut, O>(options: SpawnOptions, function: F) -> Result<O, Error>
where
    F: Fn((), TaskContext) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = TaskResult<O>> + Send,
    O: serde::Serialize + serde::de::DeserializeOwned + Send,
{
    let harness = Harness::new();
    let process = harness.start().await;
    process.register_fn("task", function).await?;
    process.start_worker(worker_options()).await;
    let task = process.spawn_named("task", &()).options(options).await?;
    process.wait(task.task_id).await
}

async fn run<F, Fut, O>(function: F) -> Result<O, Error>
where
    F: Fn((), TaskContext) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = TaskResult<O>> + Send,
    O: serde::Serialize + serde::de::DeserializeOwned + Send,
{
    run_with(SpawnOptions::new().max_attempts(1), function).await
}

fn failure<T: std::fmt::Debug>(result: Result<T, Error>) -> Failure {
    match result {
        Err(Error::TaskFailed { failure, .. }) => *failure,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_step_gives_its_closures_result_and_closures_borrow_and_move() {
    let result = run(|(), ctx| async move {
        let borrowed = "text".to_owned();
        let moved = vec![1, 2, 3];
        let length = ctx.step("borrow", || async { Ok(borrowed.len()) }).await?;
        let sum: i32 = ctx.step("move", || async move { Ok(moved.into_iter().sum()) }).await?;
        Ok((length, sum))
    });
    assert_eq!(result.await.unwrap(), (4, 6));
}

#[tokio::test(start_paused = true)]
async fn a_name_used_again_is_another_step() {
    let harness = Harness::new();
    let process = harness.start().await;
    process
        .register_fn("task", |(): (), ctx: TaskContext| async move {
            for _ in 0..3 {
                ctx.step("again", || async { Ok(()) }).await?;
            }
            ctx.step(("fetch", 7), || async { Ok(()) }).await
        })
        .await
        .unwrap();
    process.start_worker(worker_options()).await;
    let task = process.spawn_named("task", &()).await.unwrap();
    process.wait::<()>(task.task_id).await.unwrap();
    let journal = process.journal(task.task_id).await.unwrap();
    let labels: Vec<_> = journal.iter().map(|entry| entry.key.label()).collect();
    assert_eq!(labels, ["again", "again#2", "again#3", "fetch:7"]);
}

#[tokio::test(start_paused = true)]
async fn a_failing_step_is_retried_with_durable_pauses() {
    static TRIES: AtomicU32 = AtomicU32::new(0);
    let harness = Harness::new();
    let process = harness.start().await;
    process
        .register_fn("task", |(): (), ctx: TaskContext| async move {
            ctx.step("flaky", || async {
                match TRIES.fetch_add(1, Ordering::SeqCst) {
                    0..3 => anyhow::bail!("not yet"),
                    tries => Ok(tries),
                }
            })
            .retry(RetryStrategy::fixed(WEEK))
            .await
        })
        .await
        .unwrap();
    process.start_worker(worker_options()).await;
    let start = harness.now();
    let task = process.spawn_named("task", &()).await.unwrap();
    assert_eq!(process.wait::<u32>(task.task_id).await.unwrap(), 3);
    assert!(until(start, harness.now()) >= 3 * WEEK);
    assert_eq!(
        process.task(task.task_id).await.unwrap().unwrap().attempt,
        1,
        "the task itself never failed"
    );
}

#[tokio::test(start_paused = true)]
async fn a_step_has_as_many_tries_as_it_is_given_and_a_permanent_error_has_none() {
    static TRIES: AtomicU32 = AtomicU32::new(0);
    let result = run(|(), ctx| async move {
        ctx.step("flaky", || async {
            TRIES.fetch_add(1, Ordering::SeqCst);
            Err::<(), _>(anyhow::anyhow!("connection refused").context("charging"))
        })
        .retry(RetryStrategy::exponential())
        .max_attempts(3)
        .await
    });
    assert_eq!(
        failure(result.await).message,
        "step \"flaky\" failed: charging: connection refused"
    );
    assert_eq!(TRIES.load(Ordering::SeqCst), 3);

    static PERMANENT: AtomicU32 = AtomicU32::new(0);
    let options = SpawnOptions::new().max_attempts(5);
    let result = run_with(options, |(), ctx| async move {
        ctx.step("charge", || async {
            PERMANENT.fetch_add(1, Ordering::SeqCst);
            Err::<(), _>(TaskError::permanent(anyhow::anyhow!("no card")).into())
        })
        .retry(RetryStrategy::exponential())
        .await
    });
    assert_eq!(failure(result.await).message, "step \"charge\" failed: no card");
    assert_eq!(PERMANENT.load(Ordering::SeqCst), 1, "neither the step nor the task is tried again");
}

#[tokio::test(start_paused = true)]
async fn a_steps_timeout_drops_the_try() {
    let result = run(|(), ctx| async move {
        ctx.step("hang", std::future::pending::<anyhow::Result<()>>).timeout(SECOND).await
    });
    let failure = failure(result.await);
    assert_eq!(failure.kind, FailureKind::Timeout);
    assert_eq!(failure.message, "step \"hang\" failed: no result within 1s");
}

#[tokio::test(start_paused = true)]
async fn the_error_of_a_try_step_is_an_answer() {
    static CALLS: AtomicU32 = AtomicU32::new(0);
    let options = SpawnOptions::new().max_attempts(3).retry(RetryStrategy::fixed(SECOND));
    let result = run_with(options, |(), ctx| async move {
        let answer = ctx
            .try_step("reserve", || async {
                CALLS.fetch_add(1, Ordering::SeqCst);
                Err::<u32, String>("sold out".into())
            })
            .await?;
        if ctx.attempt < 3 {
            return Err(anyhow::anyhow!("later").into());
        }
        Ok(answer)
    });
    assert_eq!(result.await.unwrap(), Err("sold out".to_owned()));
    assert_eq!(CALLS.load(Ordering::SeqCst), 1, "an answer is journaled");
}

#[tokio::test(start_paused = true)]
async fn a_retried_task_runs_the_failed_step_again_and_no_other() {
    static A: AtomicU32 = AtomicU32::new(0);
    static B: AtomicU32 = AtomicU32::new(0);
    static C: AtomicU32 = AtomicU32::new(0);
    let result =
        run_with(SpawnOptions::new().retry(RetryStrategy::fixed(SECOND)), |(), ctx| async move {
            let a = ctx.step("a", || async { Ok(A.fetch_add(1, Ordering::SeqCst)) }).await?;
            let b = ctx.step("b", || async {
                match B.fetch_add(1, Ordering::SeqCst) {
                    0 | 1 => anyhow::bail!("not yet"),
                    n => Ok(n),
                }
            });
            let c = ctx.step("c", || async { Ok(C.fetch_add(1, Ordering::SeqCst)) });
            // The failure is seen late, wrapped by hand, and after a success.
            let (b, c) = tokio::join!(b, c);
            let b = b.map_err(|error| anyhow::anyhow!("custom: {error}"))?;
            Ok((a, b, c?, ctx.attempt))
        });
    assert_eq!(result.await.unwrap(), (0, 2, 0, 3));
    assert_eq!((A.load(Ordering::SeqCst), C.load(Ordering::SeqCst)), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_task_says_after_how_long_it_is_retried_or_never() {
    let harness = Harness::new();
    let process = harness.start().await;
    process
        .register_fn("task", |(): (), ctx: TaskContext| async move {
            match ctx.attempt {
                1 => Err(TaskError::retry_after(WEEK, anyhow::anyhow!("rate limited"))),
                2 => Err(TaskError::permanent(anyhow::anyhow!("gone"))),
                _ => Ok(()),
            }
        })
        .await
        .unwrap();
    process.start_worker(worker_options()).await;
    let start = harness.now();
    let task = process.spawn_named("task", &()).await.unwrap();
    assert_eq!(failure(process.wait::<()>(task.task_id).await).message, "gone");
    let waited = until(start, harness.now());
    assert!(waited >= WEEK && waited < WEEK + 2 * SECOND, "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn sleeps_last_as_long_as_they_say_also_none_at_all_and_a_thousand_years() {
    let harness = Harness::new();
    let process = harness.start().await;
    process
        .register_fn("task", |(): (), ctx: TaskContext| async move {
            let start = ctx.now().await?;
            ctx.sleep_for("nothing", Duration::ZERO).await?;
            ctx.sleep_until("the past", Timestamp::UNIX_EPOCH).await?;
            let none = until(start, ctx.now().await?);
            ctx.sleep_for("a week", WEEK).await?;
            ctx.sleep_until("a moment", after(start, 2 * WEEK)).await?;
            let long = until(start, ctx.now().await?);
            let years =
                ctx.sleep_for("a thousand years", Duration::from_secs(1000 * 365 * 24 * 3600));
            let ages = ctx.sleep_for("ages", Duration::MAX);
            let first = tokio::select! {
                _ = years => "years",
                _ = ages => "ages",
                _ = ctx.sleep_for("short", SECOND) => "short",
            };
            // Beside a closure, whose end makes the executor look at its timers.
            let start = ctx.now().await?;
            let busy = ctx.step("busy", || async { Ok(tokio::time::sleep(3 * SECOND / 2).await) });
            let beside = async {
                ctx.sleep_for("beside", 2 * SECOND).await?;
                ctx.now().await
            };
            let (_, beside) = tokio::try_join!(busy, beside)?;
            assert_eq!(until(start, beside), 2 * SECOND);
            Ok((none, long, first.to_owned()))
        })
        .await
        .unwrap();
    process.start_worker(worker_options()).await;
    let task = process.spawn_named("task", &()).await.unwrap();
    let (none, long, first) =
        process.wait::<(Duration, Duration, String)>(task.task_id).await.unwrap();
    assert!(none < SECOND, "{none:?}");
    assert!(long >= 2 * WEEK && long < 2 * WEEK + SECOND, "{long:?}");
    assert_eq!(first, "short");
}

#[tokio::test(start_paused = true)]
async fn a_sleep_goes_on_while_no_process_is_alive_and_does_not_start_anew() {
    let harness = Harness::new();
    let register = async |process: &Process| {
        let sleepy = |(): (), ctx: TaskContext| async move {
            // A closure runs beside the sleep, so that the task is not even suspended when it dies.
            let hang = ctx.step("hang", std::future::pending::<anyhow::Result<()>>);
            tokio::select! { _ = hang => Ok(0), _ = ctx.sleep_for("a week", WEEK) => Ok(1) }
        };
        process.register_fn("sleepy", sleepy).await.unwrap();
        process.start_worker(worker_options()).await;
    };
    let process = harness.start().await;
    register(&process).await;
    let start = harness.now();
    let task = process.spawn_named("sleepy", &()).await.unwrap();
    tokio::time::sleep(WEEK / 2).await;
    process.kill().await;
    tokio::time::sleep(WEEK / 4).await;
    let process = harness.start().await;
    register(&process).await;
    assert_eq!(process.wait::<u32>(task.task_id).await.unwrap(), 1);
    let slept = until(start, harness.now());
    assert!(slept >= WEEK && slept < WEEK + 2 * SECOND, "{slept:?}");
}

#[tokio::test(start_paused = true)]
async fn an_event_reaches_those_who_wait_and_those_who_come_late_and_each_await_once() {
    let harness = Harness::new();
    let process = harness.start().await;
    process
        .register_fn("waiter", |(): (), ctx: TaskContext| async move {
            let first: String = ctx.await_event("news", None).await?;
            let second: String = ctx.await_event("news", WEEK).await?;
            Ok(format!("{first} {second}"))
        })
        .await
        .unwrap();
    process
        .register_fn("waiters", |(): (), ctx: TaskContext| async move {
            let await_it = |_| ctx.await_event::<String>("news", None);
            let all =
                join_all((0..3).map(await_it)).await.into_iter().collect::<TaskResult<Vec<_>>>()?;
            Ok(all.join(" "))
        })
        .await
        .unwrap();
    process.start_worker(worker_options()).await;
    let spawn = async |name: &str| process.spawn_named(name, &()).await.unwrap().task_id;
    let early = [spawn("waiter").await, spawn("waiters").await];
    tokio::time::sleep(SECOND).await;
    assert!(process.emit_event("news", "first").await.unwrap());
    assert!(!process.emit_event("news", "second").await.unwrap(), "the first event stands");
    let late = [spawn("waiter").await, spawn("waiters").await];
    for [one, side_by_side] in [early, late] {
        assert_eq!(process.wait::<String>(one).await.unwrap(), "first first");
        let all = tokio::time::timeout(WEEK, process.wait::<String>(side_by_side)).await;
        assert_eq!(all.expect("one of them waits for ever").unwrap(), "first first first");
    }
}

#[tokio::test(start_paused = true)]
async fn an_event_of_one_queue_is_not_seen_in_another() {
    let harness = Harness::new();
    let process = harness.start().await;
    process
        .register_fn("waiter", |(): (), ctx: TaskContext| async move {
            ctx.await_event::<String>("news", WEEK).await
        })
        .await
        .unwrap();
    process.start_worker(worker_options().queues(["a", "b"]).unwrap()).await;
    process.emit_event("news", "of a").queue("a").await.unwrap();
    let [a, b] = ["a", "b"].map(|queue| SpawnOptions::new().queue(queue).max_attempts(1));
    let a = process.spawn_named("waiter", &()).options(a).await.unwrap();
    let b = process.spawn_named("waiter", &()).options(b).await.unwrap();
    assert_eq!(process.wait::<String>(a.task_id).await.unwrap(), "of a");
    let failure = failure(process.wait::<String>(b.task_id).await);
    assert_eq!(
        (failure.kind, failure.message.as_str()),
        (FailureKind::Timeout, "\"news\" timed out")
    );
}

#[tokio::test(start_paused = true)]
async fn a_message_for_a_branch_that_is_gone_goes_to_the_next_who_waits() {
    let harness = Harness::new();
    let process = harness.start().await;
    process
        .register_fn("receiver", |(): (), ctx: TaskContext| async move {
            let recv = || ctx.recv::<u32>("numbers", None);
            let race = async {
                let (one, other) = (recv(), recv());
                tokio::select! { biased; first = one => first, first = other => first }
            };
            // Asked for behind the others.
            let third = async { recv().await };
            let (raced, third) = tokio::try_join!(race, third)?;
            Ok(vec![raced, third, recv().await?])
        })
        .await
        .unwrap();
    let task = process.spawn_named("receiver", &()).await.unwrap().task_id;
    for number in 1..=3_u32 {
        process.send(task, "numbers", &number).await.unwrap();
    }
    // All three are there when three wait for them, and one of these no longer does when the first
    // has come.
    process.start_worker(worker_options()).await;
    assert_eq!(process.wait::<Vec<u32>>(task).await.unwrap(), [1, 2, 3]);
}

#[tokio::test(start_paused = true)]
async fn tasks_emit_events_and_send_messages_to_each_other() {
    let harness = Harness::new();
    let process = harness.start().await;
    process
        .register_fn("receiver", |(): (), ctx: TaskContext| async move {
            let mut received = Vec::new();
            for _ in 0..3 {
                received.push(ctx.recv::<u32>("numbers", None).await?);
            }
            let nothing = ctx.recv::<u32>("numbers", SECOND).await;
            assert!(matches!(nothing, Err(TaskError::Timeout { .. })), "{nothing:?}");
            ctx.emit_event("received", &received).await?;
            Ok(())
        })
        .await
        .unwrap();
    process
        .register_fn("sender", |to: TaskId, ctx: TaskContext| async move {
            for number in 2..=3 {
                ctx.send(to, "numbers", &number).await?;
            }
            ctx.await_event::<Vec<u32>>("received", None).await
        })
        .await
        .unwrap();
    process.start_worker(worker_options()).await;
    let receiver = process.spawn_named("receiver", &()).await.unwrap().task_id;
    process.send(receiver, "other", "never read").await.unwrap();
    process.send(receiver, "numbers", &1).await.unwrap();
    let sender = process.spawn_named("sender", &receiver).await.unwrap();
    assert_eq!(process.wait::<Vec<u32>>(sender.task_id).await.unwrap(), [1, 2, 3]);
    process.wait::<()>(receiver).await.unwrap();
    let error = process.send(receiver, "numbers", &4).await.unwrap_err();
    assert!(
        error.to_string().contains("cannot send to task")
            && error.to_string().contains("it is completed")
    );
}

#[stepwell::task]
async fn double(n: u32, ctx: TaskContext) -> TaskResult<u32> {
    if n == 13 {
        return Err(TaskError::permanent(anyhow::anyhow!("unlucky")));
    }
    ctx.sleep_for("think", SECOND).await?;
    Ok(n * 2)
}

#[tokio::test(start_paused = true)]
async fn a_parent_joins_its_children_and_a_failed_child_is_an_error_value() {
    let harness = Harness::new();
    let process = harness.start().await;
    process.register::<double>().await.unwrap();
    process
        .register_fn("parent", |(): (), ctx: TaskContext| async move {
            let spawned = join_all((0..20).map(|n| ctx.spawn::<double>(("child", n), n))).await;
            let children: Vec<_> = spawned.into_iter().collect::<TaskResult<_>>()?;
            let joined = join_all(children.iter().map(|child| ctx.join(child))).await;
            match &joined[13] {
                Err(TaskError::Child { task_id, failure })
                    if *task_id == children[13].task_id() =>
                {
                    assert_eq!(failure.message, "unlucky");
                }
                other => panic!("{other:?}"),
            }
            Ok(joined.into_iter().filter_map(Result::ok).sum::<u32>())
        })
        .await
        .unwrap();
    process.start_worker(WorkerOptions::new().concurrency(3)).await;
    let parent = process.spawn_named("parent", &()).await.unwrap();
    assert_eq!(process.wait::<u32>(parent.task_id).await.unwrap(), (0..20).sum::<u32>() * 2 - 26);
    let children = TaskFilter { parent: Some(parent.task_id), ..TaskFilter::default() };
    assert_eq!(process.tasks(children).await.unwrap().items.len(), 20);
}

#[tokio::test(start_paused = true)]
async fn values_of_the_context_are_the_same_in_a_replay() {
    static SEEN: std::sync::Mutex<Vec<String>> = std::sync::Mutex::new(Vec::new());
    let options = SpawnOptions::new().max_attempts(3).retry(RetryStrategy::fixed(SECOND));
    run_with(options, |(), ctx| async move {
        let values =
            (ctx.now().await?, ctx.uuid().await?, ctx.random().await?, ctx.random().await?);
        SEEN.lock().unwrap().push(format!("{values:?}"));
        if ctx.attempt < 3 { Err(anyhow::anyhow!("again").into()) } else { Ok(()) }
    })
    .await
    .unwrap();
    let seen = SEEN.lock().unwrap();
    assert!(seen.len() == 3 && seen.iter().all(|values| *values == seen[0]), "{seen:?}");
}

#[tokio::test(start_paused = true)]
async fn a_durable_timeout_is_not_started_anew_by_a_crash() {
    let harness = Harness::new();
    let start = async |process: &Process| {
        let limited = |(): (), ctx: TaskContext| async move {
            let hang = ctx.step("hang", std::future::pending::<anyhow::Result<()>>);
            match ctx.timeout("limit", 10 * SECOND, hang).await {
                Err(TaskError::Timeout { name, .. }) => Ok(name),
                other => panic!("{other:?}"),
            }
        };
        process.register_fn("limited", limited).await.unwrap();
        process.start_worker(WorkerOptions::new().lease(SECOND)).await;
    };
    let begin = harness.now();
    let process = harness.start().await;
    start(&process).await;
    let task = process.spawn_named("limited", &()).await.unwrap();
    tokio::time::sleep(7 * SECOND).await;
    process.kill().await;
    let process = harness.start().await;
    start(&process).await;
    assert_eq!(process.wait::<String>(task.task_id).await.unwrap(), "limit");
    assert!(until(begin, harness.now()) < 11 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn a_context_out_of_place_says_what_to_do_instead() {
    let result: Vec<String> = run(|(), ctx| async move {
        let inner = ctx.clone();
        let spawned = tokio::spawn(async move {
            inner.step("a", || async { Ok(()) }).await.unwrap_err().to_string()
        });
        let spawned = ctx.step("spawn", || async { Ok(spawned.await?) }).await?;
        let inner = ctx.clone();
        let nested: String = ctx
            .step("outer", || async move {
                Ok(inner.sleep_for("b", SECOND).await.unwrap_err().to_string())
            })
            .await?;
        // Begun in its place, but awaited elsewhere.
        let begun = ctx.sleep_for("c", SECOND);
        let moved = tokio::spawn(async move { begun.await.unwrap_err().to_string() });
        let moved = ctx.step("move", || async { Ok(moved.await?) }).await?;
        Ok(vec![spawned, nested, moved])
    })
    .await
    .unwrap();
    for (message, call) in result.iter().zip(["step \"a\"", "timer \"b\"", "timer \"c\""]) {
        assert!(
            message.starts_with(&format!("{call} was used outside of its task's own future")),
            "{message}"
        );
        assert!(message.contains(
            "call it in the task's body, and run things at the same time with `tokio::join!`"
        ));
    }
}

#[tokio::test(start_paused = true)]
async fn a_task_that_waits_for_something_else_still_works() {
    let result = run(|(), ctx| async move {
        tokio::time::sleep(SECOND).await;
        let a = ctx.step("a", || async { Ok(1) }).await?;
        // Beside a wait of the context: the task is suspended, and woken by the sleep.
        let b = tokio::select! {
            () = tokio::time::sleep(SECOND) => 2,
            _ = ctx.await_event::<()>("never", None) => 3,
        };
        let c = ctx.step("c", || async { Ok(4) }).await?;
        Ok(a + b + c)
    });
    assert_eq!(result.await.unwrap(), 7);
}

#[tokio::test(start_paused = true)]
async fn a_step_that_lost_is_not_begun_again_while_a_replay_waits_for_something_else() {
    static BEGUN: AtomicU32 = AtomicU32::new(0);
    let harness = Harness::new();
    let process = harness.start().await;
    let task = |(): (), ctx: TaskContext| async move {
        let slow = ctx.step("slow", || async {
            BEGUN.fetch_add(1, Ordering::SeqCst);
            Ok(std::future::pending::<u32>().await)
        });
        let quick = async {
            // The replay has to wait for this before it comes to the step.
            tokio::time::sleep(SECOND).await;
            ctx.step("quick", || async { Ok(1) }).await
        };
        let first = tokio::select! {
            slow = slow => slow?,
            quick = quick => quick?,
        };
        ctx.await_event::<()>("go", None).await?;
        Ok(first)
    };
    process.register_fn("task", task).await.unwrap();
    process.start_worker(worker_options().max_in_memory(0)).await;
    let task = process.spawn_named("task", &()).await.unwrap().task_id;
    while process.task(task).await.unwrap().unwrap().state != TaskState::Suspended {
        tokio::time::sleep(SECOND).await;
    }
    process.emit_event("go", &()).await.unwrap();
    assert_eq!(process.wait::<u32>(task).await.unwrap(), 1);
    assert_eq!(BEGUN.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn state_headers_and_ids_are_at_hand() {
    struct Pool(&'static str);
    let harness = Harness::new();
    let process =
        harness.start_with(|builder| builder.state(Pool("db")).state(7_u64)).await.unwrap();
    process
        .register_fn("task", |(): (), ctx: TaskContext| async move {
            let pool = ctx.state::<Pool>()?.0;
            let number = *ctx.state::<u64>()?;
            let error = ctx.state::<String>().unwrap_err().to_string();
            assert_eq!(
                error,
                "no state of type `alloc::string::String` was given to the client: \
                               add it with `Durable::builder().state(..)`"
            );
            Ok(format!("{pool} {number} {} {} {}", ctx.headers["tenant"], ctx.attempt, ctx.task_id))
        })
        .await
        .unwrap();
    process.start_worker(worker_options()).await;
    let task = process.spawn_named("task", &()).header("tenant", "acme").await.unwrap();
    assert_eq!(
        process.wait::<String>(task.task_id).await.unwrap(),
        format!("db 7 \"acme\" 1 {}", task.task_id)
    );
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_tasks_closure_is_told_and_what_it_finishes_is_journaled() {
    let harness = Harness::new();
    let process = harness.start().await;
    let started = Arc::new(tokio::sync::Notify::new());
    let after_cancel = Arc::new(AtomicBool::new(false));
    let (tell, seen) = (started.clone(), after_cancel.clone());
    process
        .register_fn("task", move |(): (), ctx: TaskContext| {
            let (tell, seen) = (tell.clone(), seen.clone());
            async move {
                let saved = ctx
                    .step("long", || async {
                        tell.notify_one();
                        ctx.cancelled().cancelled().await;
                        Ok("half of it".to_owned())
                    })
                    .await
                    .map(|text| text.len())?;
                let next = ctx.step("next", || async { Ok(()) }).await;
                seen.store(
                    matches!(next, Err(TaskError::Control(ControlFlow::Cancelled))),
                    Ordering::SeqCst,
                );
                next?;
                Ok(saved)
            }
        })
        .await
        .unwrap();
    process.start_worker(worker_options()).await;
    let task = process.spawn_named("task", &()).await.unwrap();
    started.notified().await;
    process.cancel(task.task_id).await.unwrap();
    assert!(matches!(process.wait::<usize>(task.task_id).await, Err(Error::TaskCancelled(_))));
    assert!(after_cancel.load(Ordering::SeqCst), "the code was told");
    let journal = process.journal(task.task_id).await.unwrap();
    assert_eq!(journal.len(), 1, "{journal:?}");

    // A retry goes on from there.
    process.retry(task.task_id).await.unwrap();
    assert_eq!(process.wait::<usize>(task.task_id).await.unwrap(), 10);
}

/// The code of a task in its three versions: before a change, with both ways, and with the new way
/// alone.
async fn deploy(harness: &Harness, version: u32) -> Process {
    let process = harness.start().await;
    let code = move |(), ctx: TaskContext| async move {
        ctx.step("first", || async { Ok(()) }).await?;
        let new = match version {
            1 => false,
            2 => ctx.patched("change")?,
            _ => true,
        };
        let way: String = if new {
            ctx.step("new way", || async { Ok("new".into()) }).await?
        } else {
            ctx.step("old way", || async { Ok("old".into()) }).await?
        };
        let () = ctx.await_event("go", None).await?;
        Ok(if version == 2 { (way, ctx.patched("change")?) } else { (way, new) })
    };
    process.register_fn("task", code).await.unwrap();
    process.start_worker(worker_options()).await;
    process
}

async fn spawn_and_suspend(process: &Process) -> TaskId {
    let task = process.spawn_named("task", &()).max_attempts(1).await.unwrap();
    while process.task(task.task_id).await.unwrap().unwrap().state != TaskState::Suspended {
        tokio::time::sleep(SECOND).await;
    }
    task.task_id
}

#[tokio::test(start_paused = true)]
async fn changed_code_takes_the_old_way_with_old_tasks_and_the_new_way_with_new_ones() {
    let harness = Harness::new();
    let process = deploy(&harness, 1).await;
    let old = spawn_and_suspend(&process).await;
    process.kill().await;

    let process = deploy(&harness, 2).await;
    let new = spawn_and_suspend(&process).await;
    let newer = spawn_and_suspend(&process).await;
    process.kill().await;

    // Both are replayed by the code that knows both ways.
    let process = deploy(&harness, 2).await;
    process.emit_event("go", &()).await.unwrap();
    assert_eq!(process.wait::<(String, bool)>(old).await.unwrap(), ("old".into(), false));
    assert_eq!(process.wait::<(String, bool)>(new).await.unwrap(), ("new".into(), true));
    let journal = process.journal(new).await.unwrap();
    let patches: Vec<_> = journal.iter().filter(|entry| entry.key.kind == Kind::Patch).collect();
    assert_eq!(patches.len(), 1, "{journal:?}");
    assert!(journal.iter().zip(1..).all(|(entry, seq)| entry.seq == seq), "{journal:?}");
    assert_eq!(process.wait::<(String, bool)>(newer).await.unwrap(), ("new".into(), true));
}

#[tokio::test(start_paused = true)]
async fn the_old_way_can_be_deleted_when_no_old_task_is_left() {
    let harness = Harness::new();
    let process = deploy(&harness, 2).await;
    let task = spawn_and_suspend(&process).await;
    process.kill().await;

    let process = deploy(&harness, 3).await;
    process.emit_event("go", &()).await.unwrap();
    assert_eq!(process.wait::<(String, bool)>(task).await.unwrap(), ("new".into(), true));
}

#[tokio::test(start_paused = true)]
async fn a_patch_is_asked_for_in_the_tasks_body() {
    let result = run(|(), ctx| async move {
        let inner = ctx.clone();
        ctx.step("step", || async move { Ok(inner.patched("change")?) }).await
    });
    assert!(failure(result.await).message.contains("patch \"change\" was used outside"));
}
