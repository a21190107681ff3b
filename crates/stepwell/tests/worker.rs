//! How workers keep what the engine promises: owners, leases, wake-ups, bad tasks.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::unit_arg,
    missing_docs,
    reason = "a test ends by a panic"
)]

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use stepwell::store::until;
use stepwell::testing::{Harness, Intercepted, Process, worker_options};
use stepwell::*;
use tokio::sync::Notify;

const SECOND: Duration = Duration::from_secs(1);

fn lease(seconds: u32) -> WorkerOptions {
    WorkerOptions::new().lease(seconds * SECOND)
}

#[stepwell::task]
async fn quick(n: u32, ctx: TaskContext) -> TaskResult<u32> {
    ctx.step("work", || async { Ok(n) }).await
}

#[tokio::test(start_paused = true)]
async fn a_dead_workers_tasks_are_claimed_when_its_lease_ends() {
    static RUNS: AtomicU32 = AtomicU32::new(0);
    let harness = Harness::new();
    let register = async |process: &Process| {
        let slow = |(): (), ctx: TaskContext| async move {
            RUNS.fetch_add(1, Ordering::SeqCst);
            ctx.step("slow", || async { Ok(tokio::time::sleep(100 * SECOND).await) }).await?;
            Ok(ctx.attempt)
        };
        process.register_fn("slow", slow).await.unwrap();
        process.start_worker(lease(10)).await;
    };
    let (first, second) = (harness.start().await, harness.start().await);
    register(&first).await;
    let task = first.spawn_named("slow", &()).await.unwrap();
    tokio::time::sleep(SECOND).await;
    register(&second).await;
    tokio::time::sleep(50 * SECOND).await;
    assert_eq!(RUNS.load(Ordering::SeqCst), 1, "the lease is renewed");
    let killed = harness.now();
    first.kill().await;
    while RUNS.load(Ordering::SeqCst) == 1 {
        tokio::time::sleep(SECOND).await;
    }
    // A lease, and the heartbeats at which its beginning and its end are seen.
    assert!(until(killed, harness.now()) <= 18 * SECOND);
    assert_eq!(second.wait::<u32>(task.task_id).await.unwrap(), 2, "a lost attempt counts");
}

#[tokio::test(start_paused = true)]
async fn a_task_that_kills_its_process_every_time_is_quarantined() {
    let harness = Harness::new();
    let mut task = None;
    for life in 1..=6 {
        let process = harness.start().await;
        let started = Arc::new(Notify::new());
        let tell = started.clone();
        let deadly = move |(): (), _ctx: TaskContext| {
            let tell = tell.clone();
            async move {
                tell.notify_one();
                std::future::pending::<TaskResult<()>>().await
            }
        };
        process.register_fn("deadly", deadly).await.unwrap();
        let options = SpawnOptions::new().max_attempts(3).idempotency_key("it");
        let spawned = process.spawn_named("deadly", &()).options(options).await.unwrap();
        task = Some(spawned.task_id);
        process.start_worker(lease(5)).await;
        if life <= 5 {
            started.notified().await;
            process.kill().await;
        } else {
            let error = process.wait::<()>(spawned.task_id).await.unwrap_err();
            assert!(
                error.to_string().contains("the worker's process died 5 times in a row"),
                "{error}"
            );
        }
    }
    let info = harness.start().await.task(task.unwrap()).await.unwrap().unwrap();
    assert_eq!((info.state, info.attempt), (TaskState::Failed, 5));
}

#[tokio::test(start_paused = true)]
async fn a_run_that_lost_its_lease_has_every_write_refused_and_is_told() {
    let harness = Harness::new();
    let (cut, healed) =
        (Arc::new(std::sync::atomic::AtomicBool::new(false)), Arc::new(Notify::new()));
    // A store that one process can be cut off from, as by a network or a long pause.
    let (is_cut, until_healed) = (cut.clone(), healed.clone());
    let store = Intercepted::new(Arc::new(harness.store()), move |store, batch| {
        let (is_cut, until_healed) = (is_cut.clone(), until_healed.clone());
        Box::pin(async move {
            while is_cut.load(Ordering::SeqCst) {
                until_healed.notified().await;
            }
            store.commit(batch.into()).await
        })
    });
    let cut_off = harness.start_on(Arc::new(store), |builder| builder).await.unwrap();
    let told = Arc::new(std::sync::Mutex::new(Vec::new()));
    let register = async |process: &Process, name: &'static str| {
        let told = told.clone();
        let task = move |(): (), ctx: TaskContext| {
            let told = told.clone();
            async move {
                ctx.step("begin", || async { Ok(()) }).await?;
                ctx.step("slow", || async { Ok(tokio::time::sleep(20 * SECOND).await) }).await?;
                let last = ctx.step("last", || async { Ok(name.to_owned()) }).await;
                told.lock().unwrap().push(format!("{name}: {last:?}"));
                last
            }
        };
        process.register_fn("task", task).await.unwrap();
        process.start_worker(lease(10)).await;
    };
    register(&cut_off, "cut off").await;
    let task = cut_off.spawn_named("task", &()).await.unwrap();
    tokio::time::sleep(SECOND).await;
    cut.store(true, Ordering::SeqCst);
    let other = harness.start().await;
    register(&other, "other").await;
    // Beyond the lease: the other one has it now, and is in the midst of it when the first one
    // comes back.
    tokio::time::sleep(25 * SECOND).await;
    cut.store(false, Ordering::SeqCst);
    healed.notify_waiters();
    healed.notify_one();
    assert_eq!(other.wait::<String>(task.task_id).await.unwrap(), "other");
    tokio::time::sleep(60 * SECOND).await;
    let told = told.lock().unwrap().clone();
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told[0].starts_with("cut off: Err(Control(LeaseLost))"), "{told:?}");
    let journal = other.journal(task.task_id).await.unwrap();
    let labels: Vec<_> = journal.iter().map(|entry| entry.key.label()).collect();
    assert_eq!(labels, ["begin", "slow", "last"], "no write of the first owner came through");

    // The worker that lost its lease goes on under another id.
    other.kill().await;
    let next = cut_off.spawn_named("task", &()).await.unwrap();
    assert_eq!(cut_off.wait::<String>(next.task_id).await.unwrap(), "cut off");
}

#[tokio::test(start_paused = true)]
async fn a_stuck_run_is_stopped_unless_it_sends_heartbeats() {
    let harness = Harness::new();
    let process = harness.start().await;
    let hang = |heartbeats: bool, ctx: TaskContext| async move {
        ctx.step("long", || async {
            for _ in 0..10 {
                tokio::time::sleep(20 * SECOND).await;
                if heartbeats {
                    ctx.heartbeat(None).await?;
                }
            }
            ctx.heartbeat(500 * SECOND).await?;
            Ok(tokio::time::sleep(400 * SECOND).await)
        })
        .await
    };
    process.register_fn("hang", hang).await.unwrap();
    process.start_worker(WorkerOptions::new().claim_timeout(60 * SECOND)).await;
    let options = SpawnOptions::new().max_attempts(1);
    let alive = process.spawn_named("hang", &true).options(options.clone()).await.unwrap();
    let stuck = process.spawn_named("hang", &false).options(options).await.unwrap();
    let start = harness.now();
    let error = process.wait::<()>(stuck.task_id).await.unwrap_err();
    assert!(
        error.to_string().contains(
            "nothing was journaled for 60s (the worker's `claim_timeout`): call `ctx.heartbeat(..)`"
        ),
        "{error}"
    );
    assert!(until(start, harness.now()) < 90 * SECOND);
    process.wait::<()>(alive.task_id).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_panic_fails_its_own_attempt_only() {
    let harness = Harness::new();
    let process = harness.start().await;
    let panicking = |in_step: bool, ctx: TaskContext| async move {
        if ctx.attempt == 3 {
            return Ok(());
        }
        ctx.step("step", || async { if in_step { panic!("in a step") } else { Ok(()) } }).await?;
        panic!("in the body, attempt {}", ctx.attempt)
    };
    process.register_fn("panicking", panicking).await.unwrap();
    process.register::<quick>().await.unwrap();
    process.start_worker(worker_options()).await;
    let retried = process.spawn_named("panicking", &true).await.unwrap();
    process.wait::<()>(retried.task_id).await.unwrap();
    let failed = process.spawn_named("panicking", &false).max_attempts(2).await.unwrap();
    let error = process.wait::<()>(failed.task_id).await.unwrap_err();
    assert!(error.to_string().ends_with("the task panicked: in the body, attempt 2"), "{error}");
    let fine = process.spawn::<quick>(7).await.unwrap();
    assert_eq!(process.wait::<u32>(fine.task_id).await.unwrap(), 7);
}

/// A task that blocks its thread until all others have ended, among many that were claimed with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_task_that_blocks_its_thread_hurts_itself_only() {
    const TASKS: usize = 40;
    let client = Durable::builder().database_url("sqlite::memory:").build().await.unwrap();
    let (tell, ended) = mpsc::channel();
    let ended = Arc::new(Mutex::new(ended));
    let task = move |blocks: bool, ctx: TaskContext| {
        let ended = ended.clone();
        async move {
            ctx.step("before", || async { Ok(()) }).await?;
            let block = || async { Ok(ended.lock().unwrap().recv_timeout(60 * SECOND)?) };
            if blocks {
                ctx.step("block", block).await
            } else {
                ctx.step("after", || async { Ok(()) }).await
            }
        }
    };
    client.register_fn("task", task).await.unwrap();
    let worker = client.start_worker(WorkerOptions::new()).await;
    for round in 0..20 {
        let mut others = Vec::new();
        let mut blocked = None;
        for n in 0..TASKS {
            let blocks = n == round * 2;
            let client = client.clone();
            let task = tokio::spawn(async move {
                let task = client.spawn_named("task", &blocks).await.unwrap();
                client.wait::<()>(task.task_id).await
            });
            if blocks { blocked = Some(task) } else { others.push(task) }
        }
        for other in others {
            other.await.unwrap().unwrap();
        }
        tell.send(()).unwrap();
        blocked.unwrap().await.unwrap().unwrap();
    }
    worker.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_worker_leaves_types_it_does_not_know_to_others() {
    let harness = Harness::new();
    let (one, other) = (harness.start().await, harness.start().await);
    one.register::<quick>().await.unwrap();
    one.start_worker(worker_options()).await;
    let unknown = one.spawn_named("unknown here", &()).await.unwrap();
    let known = one.spawn::<quick>(1).await.unwrap();
    assert_eq!(one.wait::<u32>(known.task_id).await.unwrap(), 1);
    assert_eq!(one.task(unknown.task_id).await.unwrap().unwrap().state, TaskState::Pending);
    other.register_fn("unknown here", |(): (), _ctx: TaskContext| async { Ok(2) }).await.unwrap();
    other.start_worker(worker_options()).await;
    assert_eq!(one.wait::<u32>(unknown.task_id).await.unwrap(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_worker_runs_no_more_than_it_can_and_suspended_tasks_do_not_count() {
    static RUNNING: AtomicU32 = AtomicU32::new(0);
    static MOST: AtomicU32 = AtomicU32::new(0);
    let harness = Harness::new();
    let process = harness.start().await;
    let busy = |_n: u32, ctx: TaskContext| async move {
        ctx.sleep_for("nap", SECOND).await?;
        ctx.step("busy", || async {
            MOST.fetch_max(RUNNING.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::time::sleep(SECOND).await;
            RUNNING.fetch_sub(1, Ordering::SeqCst);
            Ok(())
        })
        .await
    };
    process.register_fn("busy", busy).await.unwrap();
    process.start_worker(worker_options().concurrency(4)).await;
    let start = harness.now();
    let spawns = (0..40).map(|n| async move { (n, SpawnOptions::new()) });
    let mut tasks = Vec::new();
    for spawn in spawns {
        let (n, options) = spawn.await;
        tasks.push(process.spawn_named("busy", &n).options(options).await.unwrap());
    }
    for task in tasks {
        process.wait::<()>(task.task_id).await.unwrap();
    }
    assert_eq!(MOST.load(Ordering::SeqCst), 4);
    // All sleep at the same time, and then four at a time work.
    let took = until(start, harness.now());
    assert!(took >= 11 * SECOND && took < 13 * SECOND, "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_spawn_is_claimed_in_the_commit_that_inserts_it_when_a_worker_is_free() {
    let harness = Harness::new();
    let process = harness.start().await;
    process.register::<quick>().await.unwrap();
    process.start_worker(worker_options()).await;
    tokio::time::sleep(SECOND).await;
    let task = process.spawn::<quick>(1).await.unwrap();
    let info = process.task(task.task_id).await.unwrap().unwrap();
    assert_ne!(info.state, TaskState::Pending);
    assert_eq!((info.attempt, info.run_id), (1, task.run_id));
    process.wait::<u32>(task.task_id).await.unwrap();

    // Also when its caller gives up the moment it has asked.
    let abandoned = process.spawn::<quick>(2).idempotency_key("abandoned");
    let _ = tokio::time::timeout(Duration::ZERO, abandoned).await;
    let found = process.spawn::<quick>(2).idempotency_key("abandoned").await.unwrap();
    assert_eq!(process.wait::<u32>(found.task_id).await.unwrap(), 2);
}

#[tokio::test(start_paused = true)]
async fn suspended_tasks_go_on_in_place_or_by_a_replay_when_there_are_too_many() {
    static STARTS: AtomicU32 = AtomicU32::new(0);
    let harness = Harness::new();
    let process = harness.start().await;
    let sleeper = |_n: u32, ctx: TaskContext| async move {
        STARTS.fetch_add(1, Ordering::SeqCst);
        for nap in 0..3 {
            ctx.sleep_for(("nap", nap), SECOND).await?;
        }
        Ok(ctx.attempt)
    };
    process.register_fn("sleeper", sleeper).await.unwrap();
    process.start_worker(worker_options().max_in_memory(5)).await;
    let mut tasks = Vec::new();
    for n in 0..5 {
        tasks.push(process.spawn_named("sleeper", &n).await.unwrap().task_id);
    }
    for task in &tasks {
        assert_eq!(process.wait::<u32>(*task).await.unwrap(), 1, "a suspension is no attempt");
    }
    assert_eq!(STARTS.swap(0, Ordering::SeqCst), 5);
    tasks.clear();
    for n in 0..20 {
        tasks.push(process.spawn_named("sleeper", &n).await.unwrap().task_id);
    }
    for task in tasks {
        assert_eq!(process.wait::<u32>(task).await.unwrap(), 1);
    }
    assert!(STARTS.load(Ordering::SeqCst) > 20, "some were replayed");
}

#[tokio::test(start_paused = true)]
async fn a_suspended_task_that_others_ran_meanwhile_does_not_go_on_from_what_is_in_memory() {
    let harness = Harness::new();
    let (one, other) = (harness.start().await, harness.start().await);
    for (process, name, busy) in [(&one, "one", "one is busy"), (&other, "other", "other is busy")]
    {
        let chain = move |(): (), ctx: TaskContext| async move {
            let mut seen = Vec::new();
            for link in 0..6 {
                let event = ctx.await_event::<u32>(("link", link), None).await?;
                seen.push((event, ctx.step("think", || async { Ok(name.to_owned()) }).await?));
            }
            Ok(seen)
        };
        process.register_fn("chain", chain).await.unwrap();
        let work = |(): (), ctx: TaskContext| async move {
            ctx.step("work", || async { Ok(tokio::time::sleep(2 * SECOND).await) }).await
        };
        process.register_fn(busy, work).await.unwrap();
        process.start_worker(worker_options().concurrency(1)).await;
    }
    let task = one.spawn_named("chain", &()).await.unwrap().task_id;
    let mut expected = Vec::new();
    for link in 0..6_u32 {
        // One of the workers has no room for it now, and keeps what it has of it in memory.
        let (busy, free) =
            if link % 2 == 0 { ("other is busy", "one") } else { ("one is busy", "other") };
        one.spawn_named(busy, &()).await.unwrap();
        tokio::time::sleep(SECOND).await;
        assert_eq!(
            one.task(task).await.unwrap().unwrap().state,
            TaskState::Suspended,
            "before link {link}"
        );
        one.emit_event(format!("link:{link}"), &link).await.unwrap();
        expected.push((link, free.to_owned()));
        tokio::time::sleep(2 * SECOND).await;
    }
    assert_eq!(one.wait::<Vec<(u32, String)>>(task).await.unwrap(), expected);
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_jumps_neither_loses_timers_nor_ends_runs() {
    let harness = Harness::new();
    let process = harness.start().await;
    let napping = |(): (), ctx: TaskContext| async move {
        ctx.sleep_for("nap", 10 * SECOND).await?;
        ctx.step("busy", || async { Ok(tokio::time::sleep(10 * SECOND).await) }).await
    };
    process.register_fn("napping", napping).await.unwrap();
    process.start_worker(WorkerOptions::new()).await;
    let back = process.spawn_named("napping", &()).max_attempts(1).await.unwrap();
    tokio::time::sleep(5 * SECOND).await;
    harness.jump(-3_600_000_000);
    let before = harness.now();
    // By the store's clock: an hour later than it would have been.
    process.wait::<()>(back.task_id).await.unwrap();
    let took = until(before, harness.now());
    assert!(took >= 3600 * SECOND && took < 3630 * SECOND, "{took:?}");

    let forward = process.spawn_named("napping", &()).max_attempts(1).await.unwrap();
    tokio::time::sleep(12 * SECOND).await;
    harness.jump(20 * 1_000_000);
    process.wait::<()>(forward.task_id).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn code_that_diverges_from_its_journal_is_reported_with_both_sides() {
    let mut reports = Vec::new();
    for changed in ["other step", "less", "other kind"] {
        let harness = Harness::new();
        let before = |(): (), ctx: TaskContext| async move {
            ctx.step("reserve", || async { Ok(()) }).await?;
            ctx.step("charge", || async { Ok(()) }).await?;
            ctx.await_event::<()>("never", None).await
        };
        let process = harness.start().await;
        process.register_fn("order", before).await.unwrap();
        process.start_worker(lease(5)).await;
        let task = process.spawn_named("order", &()).await.unwrap();
        while process.task(task.task_id).await.unwrap().unwrap().state != TaskState::Suspended {
            tokio::time::sleep(SECOND).await;
        }
        process.kill().await;

        let after = move |(): (), ctx: TaskContext| async move {
            ctx.step("reserve", || async { Ok(()) }).await?;
            match changed {
                "other step" => {
                    let () =
                        ctx.step("refund", || async { panic!("its closure must not run") }).await?;
                }
                "other kind" => ctx.sleep_for("charge", SECOND).await?,
                _ => return Ok(()),
            }
            ctx.await_event::<()>("never", None).await
        };
        let process = harness.start().await;
        process.register_fn("order", after).await.unwrap();
        process.start_worker(lease(5)).await;
        process.emit_event("never", &()).await.unwrap();
        reports.push(process.wait::<()>(task.task_id).await.unwrap_err().to_string());
        process.kill().await;
    }
    for (report, asked) in reports.iter().zip([
        "asked for step \"refund\"",
        "came to its end",
        "asked for timer \"charge\"",
    ]) {
        assert!(
            report.contains(&format!("expected step \"charge\" at 2, the code {asked}")),
            "{report}"
        );
    }
}

/// A store whose commits take a while, before they are applied and after.
fn slow(harness: &Harness) -> Arc<dyn Store> {
    Arc::new(Intercepted::new(Arc::new(harness.store()), |store, batch| {
        Box::pin(async move {
            tokio::time::sleep(Duration::from_millis(3)).await;
            let committed = store.commit(batch.into()).await;
            tokio::time::sleep(Duration::from_millis(3)).await;
            committed
        })
    }))
}

#[tokio::test(start_paused = true)]
async fn no_wake_up_is_lost_at_any_moment() {
    // Each millisecond of a task's way into its wait, while every commit on that way takes six. The
    // worker polls only once an hour: a wake-up that is lost would take that long.
    for busy in [false, true] {
        for moment in 0..40 {
            let harness = Harness::new();
            let sender = harness.start_on(slow(&harness), |builder| builder).await.unwrap();
            let process = harness.start_on(slow(&harness), |builder| builder).await.unwrap();
            process.register::<quick>().await.unwrap();
            let waits = move |(): (), ctx: TaskContext| async move {
                let busily = ctx.step("busy", || async move {
                    // Runs on beside the waits, so that the task is not suspended.
                    Ok(tokio::time::sleep(if busy { 20 * SECOND } else { Duration::ZERO }).await)
                });
                let waits = async {
                    let child = ctx.spawn::<quick>("child", 3).await?;
                    let waits = tokio::try_join!(
                        ctx.await_event::<u32>("event", None),
                        ctx.recv::<u32>("topic", None)
                    );
                    let (event, message) = waits?;
                    Ok((event, message, ctx.join(&child).await?, ctx.now().await?))
                };
                let (busily, waits) = tokio::join!(busily, waits);
                busily?;
                waits
            };
            process.register_fn("waits", waits).await.unwrap();
            process.start_worker(worker_options()).await;
            let start = harness.now();
            let task = process.spawn_named("waits", &()).await.unwrap().task_id;
            let (process_id, client) = (moment % 2, process.client());
            let client = if process_id == 0 { client } else { sender.client() };
            tokio::time::sleep(Duration::from_millis(moment)).await;
            let (event, message) =
                tokio::join!(client.emit_event("event", &1), client.send(task, "topic", &2));
            event.unwrap();
            message.unwrap();
            let woken = process.wait::<(u32, u32, u32, Timestamp)>(task);
            let woken = tokio::time::timeout(100 * SECOND, woken).await;
            let woken =
                woken.unwrap_or_else(|_| panic!("moment {moment}, busy {busy}: it is not woken"));
            let (event, message, child, when) = woken.unwrap();
            assert_eq!((event, message, child), (1, 2, 3));
            assert!(
                until(start, when) < SECOND,
                "moment {moment}, busy {busy}: {:?}",
                until(start, when)
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_is_told_to_stop_ends_what_it_runs_and_claims_nothing_more() {
    let harness = Harness::new();
    let code = |seconds: u32, ctx: TaskContext| async move {
        ctx.step("work", || async { Ok(tokio::time::sleep(seconds * SECOND).await) }).await
    };
    let (process, client) = (harness.start().await, harness.start().await);
    process.register_fn("work", code).await.unwrap();
    let worker = process.start_worker(lease(30).name("one").shutdown_timeout(1_000 * SECOND)).await;
    let running = client.spawn_named("work", &100).await.unwrap();
    while client.task(running.task_id).await.unwrap().unwrap().state != TaskState::Running {
        tokio::time::sleep(SECOND).await;
    }
    let workers = client.workers().list().await.unwrap();
    let [info] = workers.as_slice() else { panic!("{workers:?}") };
    assert_eq!((info.worker_id, info.name.as_str(), info.running), (worker.worker_id(), "one", 1));

    client.workers().drain(info.worker_id).await.unwrap();
    assert_eq!(client.workers().list().await.unwrap()[0].state, WorkerState::Draining);
    tokio::time::sleep(15 * SECOND).await;
    let left = client.spawn_named("work", &1).await.unwrap();
    let told = harness.now();
    worker.stopped().await;
    assert!(until(told, harness.now()) > 50 * SECOND, "it ends what it runs");
    client.wait::<()>(running.task_id).await.unwrap();
    assert_eq!(client.task(left.task_id).await.unwrap().unwrap().state, TaskState::Pending);
    assert_eq!(client.workers().list().await.unwrap(), []);
    let error = client.workers().drain(worker.worker_id()).await.unwrap_err().to_string();
    assert!(error.contains("there is no worker"), "{error}");

    process.start_worker(worker_options()).await;
    client.wait::<()>(left.task_id).await.unwrap();
}

/// What is logged on this thread from now on.
fn logged() -> (Arc<Mutex<Vec<u8>>>, impl Sized) {
    struct Log(Arc<Mutex<Vec<u8>>>);
    impl std::io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let log = Arc::new(Mutex::new(Vec::new()));
    let written = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(move || Log(written.clone()))
        .finish();
    (log, tracing_subscriber::util::SubscriberInitExt::set_default(subscriber))
}

#[tokio::test(start_paused = true)]
async fn a_type_that_a_worker_does_not_know_is_left_alone_and_said_once() {
    let (log, _guard) = logged();
    let said = || {
        let log = String::from_utf8(log.lock().unwrap().clone()).unwrap();
        log.lines()
            .filter(|line| line.contains("does not know") && line.contains("stranger"))
            .count()
    };
    let harness = Harness::new();
    let old = harness.start().await;
    old.register::<quick>().await.unwrap();
    old.start_worker(lease(6)).await;
    let strangers = [
        old.spawn_named("stranger", &1).await.unwrap(),
        old.spawn_named("stranger", &2).await.unwrap(),
    ];
    while said() == 0 {
        tokio::time::sleep(SECOND).await;
    }
    let known = old.spawn::<quick>(3).await.unwrap();
    assert_eq!(old.wait::<u32>(known.task_id).await.unwrap(), 3, "others go past it");
    tokio::time::sleep(60 * SECOND).await;
    assert_eq!(said(), 1);

    let new = harness.start().await;
    new.register_fn("stranger", |n: u32, _: TaskContext| async move { Ok(n) }).await.unwrap();
    new.start_worker(lease(6)).await;
    for (n, task) in (1..).zip(strangers) {
        assert_eq!(new.wait::<u32>(task.task_id).await.unwrap(), n);
    }
    assert_eq!(said(), 1);
}
