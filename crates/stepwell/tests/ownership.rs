//! Who owns a task while the world misbehaves: stores that are away, answers that are lost, clocks
//! that jump, processes that die.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::unit_arg,
    missing_docs,
    reason = "a test ends by a panic"
)]

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use stepwell::store::{Batch, WorkerSignal};
use stepwell::testing::{Harness, Intercepted, Process};
use stepwell::*;
use tokio::sync::Notify;

const SECOND: Duration = Duration::from_secs(1);
const HOUR: i64 = 3_600_000_000;

/// How a store fails while it is away.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Away {
    /// It refuses at once.
    Refuses,
    /// It applies what it is given, and the answer is lost.
    LosesAnswers,
    /// It answers nothing until it is back.
    Hangs,
}

/// A store that is away while the flag is set.
fn unreliable(harness: &Harness, away: &Arc<AtomicBool>, how: Away) -> Arc<dyn Store> {
    let away = away.clone();
    Arc::new(Intercepted::new(Arc::new(harness.store()), move |store, batch| {
        let away = away.clone();
        Box::pin(async move {
            let refused = || Err(StoreError::Unavailable("the store is away".into()));
            match how {
                _ if !away.load(Ordering::SeqCst) => store.commit(batch.into()).await,
                Away::Refuses => refused(),
                Away::LosesAnswers => store.commit(batch.into()).await.and_then(|_| refused()),
                Away::Hangs => {
                    while away.load(Ordering::SeqCst) {
                        tokio::time::sleep(SECOND).await;
                    }
                    store.commit(batch.into()).await
                }
            }
        })
    }))
}

/// Counts the steps that run at the same time, by task.
#[derive(Clone, Default)]
struct Steps {
    running: Arc<Mutex<HashMap<TaskId, u32>>>,
    doubled: Arc<AtomicBool>,
}

impl Steps {
    async fn run(&self, task_id: TaskId, time: Duration) {
        if self.change(task_id, 1) > 1 {
            self.doubled.store(true, Ordering::SeqCst);
        }
        let _left = scopeguard(|| _ = self.change(task_id, -1));
        tokio::time::sleep(time).await;
    }

    fn change(&self, task_id: TaskId, by: i32) -> u32 {
        let mut running = self.running.lock().unwrap();
        let count = running.entry(task_id).or_default();
        *count = count.checked_add_signed(by).unwrap();
        *count
    }
}

fn scopeguard(f: impl FnMut()) -> impl Sized {
    struct Guard<F: FnMut()>(F);
    impl<F: FnMut()> Drop for Guard<F> {
        fn drop(&mut self) {
            (self.0)();
        }
    }
    Guard(f)
}

/// Registers a task of ten steps of a second each, which answers with its attempt.
async fn register_steps(process: &Process, steps: &Steps) {
    let steps = steps.clone();
    let code = move |(): (), ctx: TaskContext| {
        let steps = steps.clone();
        async move {
            for n in 0..10_u32 {
                ctx.step(("step", n), || async { Ok(steps.run(ctx.task_id, SECOND).await) })
                    .await?;
            }
            Ok(ctx.attempt)
        }
    };
    process.register_fn("steps", code).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn no_outage_of_the_store_costs_a_task_or_an_attempt() {
    let options =
        || WorkerOptions::new().lease(30 * SECOND).claim_timeout(20 * SECOND).concurrency(10);
    for how in [Away::Refuses, Away::LosesAnswers, Away::Hangs] {
        // Seconds, from well below the timeouts to many leases.
        for outage in [3, 19, 27, 45, 100, 600, 3000] {
            let harness = Harness::new();
            let away = Arc::new(AtomicBool::new(false));
            let steps = Steps::default();
            let store = unreliable(&harness, &away, how);
            let process = harness.start_on(store.clone(), |builder| builder).await.unwrap();
            let other = harness.start_on(store, |builder| builder).await.unwrap();
            for process in [&process, &other] {
                register_steps(process, &steps).await;
                process.start_worker(options()).await;
            }
            let mut tasks = Vec::new();
            for _ in 0..30 {
                let options = SpawnOptions::new().max_attempts(1);
                tasks.push(
                    process.spawn_named("steps", &()).options(options).await.unwrap().task_id,
                );
            }
            tokio::time::sleep(Duration::from_millis(4_500)).await;
            away.store(true, Ordering::SeqCst);
            tokio::time::sleep(outage * SECOND).await;
            away.store(false, Ordering::SeqCst);
            for task in tasks {
                let ended = tokio::time::timeout(600 * SECOND, process.wait::<u32>(task)).await;
                let ended =
                    ended.unwrap_or_else(|_| panic!("{how:?} for {outage} s: a task is stuck"));
                assert_eq!(ended.unwrap(), 1, "{how:?} for {outage} s");
            }
            assert!(
                !steps.doubled.load(Ordering::SeqCst),
                "{how:?} for {outage} s: two owners at once"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn no_outage_kills_a_worker_that_is_watched_by_another_with_a_longer_lease() {
    for phase in [0, 2, 6, 9] {
        for end in [120_000, 145_000, 149_000, 149_450] {
            let harness = Harness::new();
            let away = Arc::new(AtomicBool::new(false));
            let steps = Steps::default();
            let store = unreliable(&harness, &away, Away::Refuses);
            let watching = harness.start_on(store.clone(), |builder| builder).await.unwrap();
            watching.start_worker(WorkerOptions::new().lease(300 * SECOND)).await;
            tokio::time::sleep(phase * SECOND).await;
            let watched = harness.start_on(store, |builder| builder).await.unwrap();
            register_steps(&watched, &steps).await;
            watched.start_worker(WorkerOptions::new().lease(30 * SECOND)).await;
            // Away from just after a heartbeat of the watching one until just before its next.
            tokio::time::sleep((70 - phase) * SECOND).await;
            let options = SpawnOptions::new().max_attempts(1);
            let task = watched.spawn_named("steps", &()).options(options).await.unwrap().task_id;
            tokio::time::sleep(Duration::from_millis(5_500)).await;
            away.store(true, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(end - 75_000)).await;
            away.store(false, Ordering::SeqCst);
            let case = format!("phase {phase} s, until {end} ms");
            assert_eq!(watched.wait::<u32>(task).await.unwrap(), 1, "{case}");
            tokio::time::sleep(300 * SECOND).await;
            assert_eq!(watched.workers().list().await.unwrap().len(), 2, "{case}");
            assert!(!steps.doubled.load(Ordering::SeqCst), "{case}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_answers_for_a_moment_now_and_then_lets_every_worker_be_heard() {
    for phase in [0, 3, 5, 8] {
        let harness = Harness::new();
        let away = Arc::new(AtomicBool::new(false));
        let store = unreliable(&harness, &away, Away::Refuses);
        let first = harness.start_on(store.clone(), |builder| builder).await.unwrap();
        first.start_worker(WorkerOptions::new().lease(30 * SECOND)).await;
        tokio::time::sleep(phase * SECOND).await;
        let second = harness.start_on(store, |builder| builder).await.unwrap();
        second.start_worker(WorkerOptions::new().lease(30 * SECOND)).await;
        tokio::time::sleep((20 - phase) * SECOND).await;
        for _ in 0..60 {
            tokio::time::sleep(SECOND).await;
            away.store(true, Ordering::SeqCst);
            tokio::time::sleep(9 * SECOND).await;
            away.store(false, Ordering::SeqCst);
            assert_eq!(second.workers().list().await.unwrap().len(), 2, "phase {phase} s");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_pause_at_whose_end_the_store_was_away_counts_against_nobody() {
    let harness = Harness::new();
    let away = Arc::new(AtomicBool::new(false));
    let watched = harness.start_on(unreliable(&harness, &away, Away::Refuses), |builder| builder);
    let watched = watched.await.unwrap();
    // To the other process it is back each time that a heartbeat is tried again.
    let (refuses, tries) = (away.clone(), AtomicU32::new(0));
    let store = Intercepted::new(Arc::new(harness.store()), move |store, batch| {
        let shows_life =
            batch.workers.iter().any(|signal| matches!(signal, WorkerSignal::Heartbeat { .. }));
        let refuses = shows_life && refuses.load(Ordering::SeqCst);
        if refuses && tries.fetch_add(1, Ordering::SeqCst).is_multiple_of(2) {
            return Box::pin(async { Err(StoreError::Unavailable("the store is away".into())) });
        }
        store.commit(batch.into())
    });
    let watching = harness.start_on(Arc::new(store), |builder| builder).await.unwrap();
    let worker = watched.start_worker(WorkerOptions::new().lease(30 * SECOND)).await;
    watching.start_worker(WorkerOptions::new().lease(30 * SECOND)).await;
    let id = worker.worker_id();
    tokio::time::sleep(5 * SECOND).await;
    away.store(true, Ordering::SeqCst);
    tokio::time::sleep(300 * SECOND).await;
    away.store(false, Ordering::SeqCst);
    tokio::time::sleep(60 * SECOND).await;
    assert_eq!(worker.worker_id(), id, "the worker was never declared dead");
    assert_eq!(watching.workers().list().await.unwrap().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn reads_that_hang_kill_nobody() {
    let harness = Harness::new();
    let commit = |store: Arc<dyn Store>, batch: Batch| store.commit(batch.into());
    let hanging = Intercepted::new(Arc::new(harness.store()), commit)
        .after_reads(|| Box::pin(std::future::pending::<Result<(), StoreError>>()));
    let steps = Steps::default();
    let process = harness.start_on(Arc::new(hanging), |builder| builder).await.unwrap();
    register_steps(&process, &steps).await;
    let stuck = |(): (), ctx: TaskContext| async move {
        ctx.step("stuck", || async { Ok(std::future::pending::<()>().await) }).await
    };
    process.register_fn("stuck", stuck).await.unwrap();
    let worker = process.start_worker(WorkerOptions::new().claim_timeout(60 * SECOND)).await;
    let (id, other) = (worker.worker_id(), harness.start().await);
    other.start_worker(WorkerOptions::new()).await;
    let once = SpawnOptions::new().max_attempts(1);
    let stuck = process.spawn_named("stuck", &()).options(once).await.unwrap().task_id;
    tokio::time::sleep(600 * SECOND).await;
    assert_eq!(worker.worker_id(), id, "the worker was never declared dead");
    assert_eq!(other.workers().list().await.unwrap().len(), 2);
    let info = other.task(stuck).await.unwrap().unwrap();
    assert_eq!(info.failure.unwrap().kind, FailureKind::Stuck);
}

#[tokio::test(start_paused = true)]
async fn a_spawn_that_nobody_polls_is_run_at_once_and_once() {
    let harness = Harness::new();
    let process = harness.start().await;
    let steps = Steps::default();
    register_steps(&process, &steps).await;
    process.start_worker(WorkerOptions::new().lease(3 * SECOND)).await;
    tokio::time::sleep(SECOND).await;
    let mut spawning = process.spawn_named("steps", &()).into_future();
    assert!(futures_util::poll!(&mut spawning).is_pending());
    // Its caller has other things to do.
    tokio::time::sleep(2 * SECOND).await;
    let task = process.tasks(TaskFilter::default()).await.unwrap().items[0].task_id;
    assert!(steps.running.lock().unwrap().contains_key(&task), "it has started");
    tokio::time::sleep(60 * SECOND).await;
    let spawned = spawning.await.unwrap();
    assert_eq!(process.wait::<u32>(spawned.task_id).await.unwrap(), 1);
    assert_eq!(
        process.task(task).await.unwrap().unwrap().run_id,
        spawned.run_id,
        "it kept its first run"
    );
    assert!(!steps.doubled.load(Ordering::SeqCst));
}

/// Counts how often a task has begun a step of a second, in one process. It waits before that
/// unless it is to go on.
async fn register_counted(process: &Process, goes_on: &Arc<AtomicBool>) -> Arc<AtomicU32> {
    let begun = Arc::new(AtomicU32::new(0));
    let (count, goes_on) = (begun.clone(), goes_on.clone());
    let code = move |(): (), ctx: TaskContext| {
        let (count, goes_on) = (count.clone(), goes_on.clone());
        async move {
            if !goes_on.load(Ordering::SeqCst) {
                ctx.await_event::<()>("go", None).await?;
            }
            ctx.step("counted", || async {
                count.fetch_add(1, Ordering::SeqCst);
                Ok(tokio::time::sleep(SECOND).await)
            })
            .await
        }
    };
    process.register_fn("counted", code).await.unwrap();
    begun
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_waits_for_spawns_on_their_way_and_starts_none_after_it() {
    for timeout in [0, 30] {
        let harness = Harness::new();
        // The answer comes a moment after the batch is durable.
        let slow = Intercepted::new(Arc::new(harness.store()), |store, batch| {
            Box::pin(async move {
                let committed = store.commit(batch.into()).await;
                tokio::time::sleep(Duration::from_millis(100)).await;
                committed
            })
        });
        let first = harness.start_on(Arc::new(slow), |builder| builder).await.unwrap();
        let goes_on = Arc::new(AtomicBool::new(true));
        let begun = register_counted(&first, &goes_on).await;
        let options = WorkerOptions::new().shutdown_timeout(timeout * SECOND);
        let worker = first.start_worker(options).await;
        tokio::time::sleep(SECOND).await;
        let spawning = first.spawn_named("counted", &());
        let shutdown = async {
            tokio::time::sleep(Duration::from_millis(10)).await;
            worker.shutdown().await;
        };
        let (spawned, ()) = tokio::join!(spawning, shutdown);
        let in_first = begun.load(Ordering::SeqCst);
        assert_eq!(in_first, u32::from(timeout > 0), "with {timeout} s");
        let second = harness.start().await;
        let begun_there = register_counted(&second, &goes_on).await;
        second.start_worker(WorkerOptions::new()).await;
        second.wait::<()>(spawned.unwrap().task_id).await.unwrap();
        tokio::time::sleep(60 * SECOND).await;
        assert_eq!(begun.load(Ordering::SeqCst), in_first, "with {timeout} s: after the shutdown");
        assert_eq!(in_first + begun_there.load(Ordering::SeqCst), 1, "with {timeout} s");
    }
}

#[tokio::test(start_paused = true)]
async fn a_journal_that_is_read_too_late_starts_nothing() {
    for dead in [false, true] {
        let harness = Harness::new();
        let commit = |store: Arc<dyn Store>, batch: Batch| store.commit(batch.into());
        let slow = Intercepted::new(Arc::new(harness.store()), commit).after_reads(|| {
            Box::pin(async {
                tokio::time::sleep(90 * SECOND).await;
                Ok(())
            })
        });
        let first = harness.start_on(Arc::new(slow), |builder| builder).await.unwrap();
        // Once it is replayed, its step comes first: there is no commit before it that could be
        // refused.
        let goes_on = Arc::new(AtomicBool::new(false));
        let begun = register_counted(&first, &goes_on).await;
        let worker = first.start_worker(WorkerOptions::new().max_in_memory(0)).await;
        let second = harness.start().await;
        let task = second.spawn_named("counted", &()).await.unwrap().task_id;
        while second.task(task).await.unwrap().unwrap().state != TaskState::Suspended {
            tokio::time::sleep(SECOND).await;
        }
        goes_on.store(true, Ordering::SeqCst);
        second.emit_event("go", &()).await.unwrap();
        while second.task(task).await.unwrap().unwrap().state != TaskState::Running {
            tokio::time::sleep(SECOND).await;
        }
        let begun_there = register_counted(&second, &goes_on).await;
        second.start_worker(WorkerOptions::new()).await;
        if dead {
            for heartbeats in 0..100 {
                let dead = WorkerSignal::DeclareDead { worker_id: worker.worker_id(), heartbeats };
                harness
                    .store()
                    .commit(Batch { workers: vec![dead], ..Batch::default() }.into())
                    .await
                    .unwrap();
            }
        } else {
            worker.shutdown().await;
        }
        second.wait::<()>(task).await.unwrap();
        tokio::time::sleep(300 * SECOND).await;
        assert_eq!(begun.load(Ordering::SeqCst), 0, "declared dead: {dead}");
        assert_eq!(begun_there.load(Ordering::SeqCst), 1, "declared dead: {dead}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_away_at_any_moment_orphans_nothing() {
    // Ten minutes, with all defaults, from each second of the tasks' lives on.
    for moment in 0..12 {
        for how in [Away::Refuses, Away::LosesAnswers] {
            let harness = Harness::new();
            let away = Arc::new(AtomicBool::new(false));
            let process = harness
                .start_on(unreliable(&harness, &away, how), |builder| builder)
                .await
                .unwrap();
            register_steps(&process, &Steps::default()).await;
            let family = |(): (), ctx: TaskContext| async move {
                ctx.sleep_for("a while", 2 * SECOND).await?;
                ctx.await_event::<()>("event", Some(3 * SECOND)).await.ok();
                let child: Child<u32> = ctx.spawn_named("child", "steps", &()).await?;
                ctx.join(&child).await
            };
            process.register_fn("family", family).await.unwrap();
            process.start_worker(WorkerOptions::new()).await;
            let mut tasks = Vec::new();
            for n in 0..20 {
                let name = if n % 2 == 0 { "steps" } else { "family" };
                let start = SpawnOptions::new().delay(n % 4 * SECOND);
                tasks.push(process.spawn_named(name, &()).options(start).await.unwrap().task_id);
            }
            tokio::time::sleep(moment * SECOND + Duration::from_millis(500)).await;
            away.store(true, Ordering::SeqCst);
            tokio::time::sleep(600 * SECOND).await;
            away.store(false, Ordering::SeqCst);
            tokio::time::sleep(600 * SECOND).await;
            for task in tasks {
                let info = process.task(task).await.unwrap().unwrap();
                assert_eq!(
                    info.state,
                    TaskState::Completed,
                    "{how:?} from second {moment} on: {info:?}"
                );
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_run_that_is_refused_is_told_and_begins_nothing_more() {
    static BEGUN: AtomicU32 = AtomicU32::new(0);
    static TOLD: AtomicU32 = AtomicU32::new(0);
    let harness = Harness::new();
    let process = harness.start().await;
    let steps = |(): (), ctx: TaskContext| async move {
        for n in 0..1_000_u32 {
            let step = ctx.step(("step", n), || async {
                BEGUN.fetch_add(1, Ordering::SeqCst);
                Ok(tokio::time::sleep(SECOND / 100).await)
            });
            step.await.inspect_err(|_| _ = TOLD.fetch_add(1, Ordering::SeqCst))?;
        }
        Ok(())
    };
    process.register_fn("steps", steps).await.unwrap();
    // It would learn of its death with its next heartbeat, after all of the steps.
    let worker = process.start_worker(WorkerOptions::new().lease(100 * SECOND)).await;
    process.spawn_named("steps", &()).await.unwrap();
    tokio::time::sleep(SECOND).await;
    let dead = WorkerSignal::DeclareDead { worker_id: worker.worker_id(), heartbeats: 0 };
    harness.store().commit(Batch { workers: vec![dead], ..Batch::default() }.into()).await.unwrap();
    let begun = BEGUN.load(Ordering::SeqCst);
    tokio::time::sleep(20 * SECOND).await;
    assert!(
        begun > 10 && BEGUN.load(Ordering::SeqCst) <= begun + 1,
        "the run is no longer the worker's"
    );
    assert_eq!(TOLD.load(Ordering::SeqCst), 1, "its code is told so");
}

/// A store that refuses the first few batches that are so.
fn refusing(harness: &Harness, is_so: fn(&Batch) -> bool) -> Arc<dyn Store> {
    let refused = AtomicU32::new(0);
    Arc::new(Intercepted::new(Arc::new(harness.store()), move |store, batch| {
        if is_so(&batch) && refused.fetch_add(1, Ordering::SeqCst) < 3 {
            return Box::pin(async { Err(StoreError::Unavailable("the store is away".into())) });
        }
        store.commit(batch.into())
    }))
}

#[tokio::test(start_paused = true)]
async fn a_stuck_run_fails_though_the_store_refuses_that_at_first() {
    static STARTS: AtomicU32 = AtomicU32::new(0);
    let harness = Harness::new();
    let fails =
        |batch: &Batch| batch.transitions.iter().any(|t| matches!(t.next, store::Next::Fail(_)));
    let process = harness.start_on(refusing(&harness, fails), |builder| builder).await.unwrap();
    let stuck = |(): (), ctx: TaskContext| async move {
        STARTS.fetch_add(1, Ordering::SeqCst);
        ctx.step("stuck", || async { Ok(std::future::pending::<()>().await) }).await
    };
    process.register_fn("stuck", stuck).await.unwrap();
    process.start_worker(WorkerOptions::new().claim_timeout(20 * SECOND)).await;
    let task = process.spawn_named("stuck", &()).max_attempts(1).await.unwrap().task_id;
    let Err(Error::TaskFailed { failure, .. }) = process.wait::<()>(task).await else {
        panic!("it ended")
    };
    assert_eq!(failure.kind, FailureKind::Stuck);
    assert_eq!(STARTS.load(Ordering::SeqCst), 1, "it has one attempt");
}

#[tokio::test(start_paused = true)]
async fn a_run_whose_own_commits_are_refused_is_not_stuck() {
    let harness = Harness::new();
    let away = Arc::new(AtomicBool::new(false));
    let refuses = away.clone();
    // Heartbeats come through, and so does all else that is no entry of a journal.
    let store = Intercepted::new(Arc::new(harness.store()), move |store, batch| {
        let journals = batch.transitions.iter().any(|transition| !transition.entries.is_empty());
        if journals && refuses.load(Ordering::SeqCst) {
            return Box::pin(async { Err(StoreError::Unavailable("a device failed".into())) });
        }
        store.commit(batch.into())
    });
    let process = harness.start_on(Arc::new(store), |builder| builder).await.unwrap();
    register_steps(&process, &Steps::default()).await;
    process.start_worker(WorkerOptions::new().claim_timeout(20 * SECOND)).await;
    let task = process.spawn_named("steps", &()).max_attempts(1).await.unwrap().task_id;
    tokio::time::sleep(Duration::from_millis(4_500)).await;
    away.store(true, Ordering::SeqCst);
    tokio::time::sleep(300 * SECOND).await;
    away.store(false, Ordering::SeqCst);
    assert_eq!(process.wait::<u32>(task).await.unwrap(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_task_that_waits_beside_its_context_is_woken_though_the_store_refuses_that_at_first() {
    let harness = Harness::new();
    let wakes = |batch: &Batch| batch.commands.iter().any(|c| matches!(c, store::Command::Wake(_)));
    let process = harness.start_on(refusing(&harness, wakes), |builder| builder).await.unwrap();
    let beside = |(): (), ctx: TaskContext| async move {
        tokio::select! {
            () = tokio::time::sleep(5 * SECOND) => Ok(()),
            never = ctx.await_event::<()>("never", None) => never,
        }
    };
    process.register_fn("beside", beside).await.unwrap();
    process.start_worker(WorkerOptions::new()).await;
    let task = process.spawn_named("beside", &()).await.unwrap().task_id;
    let woken = tokio::time::timeout(60 * SECOND, process.wait::<()>(task)).await;
    woken.expect("it sleeps for ever").unwrap();
}

#[tokio::test(start_paused = true)]
async fn clocks_that_jump_kill_nobody_and_keep_no_dead_worker_alive() {
    for jump in [-10 * HOUR, -HOUR, HOUR, 10 * HOUR] {
        let harness = Harness::new();
        let steps = Steps::default();
        let (first, second) = (harness.start().await, harness.start().await);
        for process in [&first, &second] {
            register_steps(process, &steps).await;
            process.start_worker(WorkerOptions::new().lease(30 * SECOND)).await;
        }
        let mut tasks = Vec::new();
        for n in 0..20 {
            let spawner = if n % 2 == 0 { &first } else { &second };
            let task = spawner.spawn_named("steps", &()).max_attempts(1).await.unwrap();
            tasks.push(task.task_id);
        }
        tokio::time::sleep(Duration::from_millis(2_500)).await;
        harness.jump(jump);
        tokio::time::sleep(3 * SECOND).await;
        assert_eq!(second.workers().list().await.unwrap().len(), 2, "both live");
        first.kill().await;
        let killed = tokio::time::Instant::now();
        harness.jump(jump);
        for task in tasks {
            // Its one attempt is replaced where the first process's death ended it.
            assert!(second.wait::<u32>(task).await.unwrap() <= 2);
        }
        // A lease, two heartbeats, and what was left to do.
        assert!(
            killed.elapsed() < 65 * SECOND,
            "after a jump of {jump} µs: {:?}",
            killed.elapsed()
        );
    }
}

#[tokio::test(start_paused = true)]
async fn timers_deadlines_and_delays_go_by_the_clock_that_jumped() {
    for (jump, early, late) in [(HOUR, 0, 5), (-HOUR, 3_600 + 5, 3_600 + 40)] {
        let harness = Harness::new();
        let process = harness.start().await;
        let sleeps =
            |(): (), ctx: TaskContext| async move { ctx.sleep_for("nap", 30 * SECOND).await };
        // The same beside a step, so that the run goes on and waits by itself.
        let busy = |(): (), ctx: TaskContext| async move {
            tokio::select! {
                nap = ctx.sleep_for("nap", 30 * SECOND) => nap,
                step = ctx.step("busy", || async {
                    Ok(tokio::time::sleep(20_000 * SECOND).await)
                }) => step,
            }
        };
        process.register_fn("sleeps", sleeps).await.unwrap();
        process.register_fn("busy", busy).await.unwrap();
        process.start_worker(WorkerOptions::new().claim_timeout(30_000 * SECOND)).await;
        let mut tasks = Vec::new();
        for (name, start) in [("sleeps", false), ("busy", false), ("sleeps", true)] {
            let mut options = SpawnOptions::new();
            if start {
                // Due as the others are, and then it naps.
                options = options.delay(SECOND);
            }
            tasks.push(process.spawn_named(name, &()).options(options).await.unwrap().task_id);
        }
        tokio::time::sleep(5 * SECOND).await;
        let jumped = tokio::time::Instant::now();
        harness.jump(jump);
        for task in tasks {
            process.wait::<()>(task).await.unwrap();
        }
        let took = jumped.elapsed().as_secs();
        assert!(
            (early..=late).contains(&took),
            "after a jump of {jump} µs the timers took {took} s"
        );
    }
}

/// A process whose poisonous tasks end it, again and again, until all tasks have ended.
async fn live_through(harness: &Harness, step: Duration, tasks: &[TaskId]) -> u32 {
    for life in 1..100 {
        let process = harness.start().await;
        let deadly = Arc::new(Notify::new());
        let kill = deadly.clone();
        let poison = move |(): (), ctx: TaskContext| {
            let kill = kill.clone();
            async move {
                ctx.log(LogLevel::Info, "about to die", []);
                ctx.step("die", || async {
                    // A while later than it started, as a leak of memory would.
                    tokio::time::sleep(Duration::from_millis(1_500)).await;
                    kill.notify_one();
                    Ok(std::future::pending::<()>().await)
                })
                .await
            }
        };
        process.register_fn("poison", poison).await.unwrap();
        let innocent = move |(): (), ctx: TaskContext| async move {
            for n in 0..5_u32 {
                ctx.step(("step", n), || async { Ok(tokio::time::sleep(step).await) }).await?;
            }
            Ok(())
        };
        process.register_fn("innocent", innocent).await.unwrap();
        process.start_worker(WorkerOptions::new().lease(5 * SECOND).concurrency(50)).await;
        let all_ended = async {
            for task in tasks {
                _ = process.wait::<()>(*task).await;
            }
        };
        let died = tokio::select! {
            () = all_ended => false,
            () = deadly.notified() => true,
        };
        if !died {
            return life;
        }
        process.kill().await;
    }
    panic!("the poison is never found");
}

#[tokio::test(start_paused = true)]
async fn only_those_who_kill_their_process_are_convicted() {
    for (poisons, step) in
        [(1, SECOND), (1, 3 * SECOND), (3, SECOND), (3, 3 * SECOND), (12, 3 * SECOND)]
    {
        let harness = Harness::new();
        let client = harness.start().await;
        let (mut tasks, mut guilty) = (Vec::new(), Vec::new());
        for n in 0..10 + poisons {
            let name = if n % 2 == 0 && guilty.len() < poisons || n >= 10 + guilty.len() {
                "poison"
            } else {
                "innocent"
            };
            // One attempt: a crash beside another task is none of it.
            let options = SpawnOptions::new().max_attempts(1);
            let task = client.spawn_named(name, &()).options(options).await.unwrap().task_id;
            tasks.push(task);
            if name == "poison" {
                guilty.push(task);
            }
        }
        let lives = live_through(&harness, step, &tasks).await;
        for task in &tasks {
            let info = client.task(*task).await.unwrap().unwrap();
            let expected =
                if guilty.contains(task) { TaskState::Failed } else { TaskState::Completed };
            assert_eq!(info.state, expected, "{poisons} poisonous tasks, {step:?}: {info:?}");
            if guilty.contains(task) {
                assert_eq!(info.failure.unwrap().kind, FailureKind::Crashed);
            }
        }
        assert!(lives <= 2 + 3 * poisons as u32 + 1, "{poisons} took {lives} lives");
    }
}

#[tokio::test(start_paused = true)]
async fn a_task_that_gets_further_outlives_any_number_of_deaths() {
    static STARTS: AtomicU32 = AtomicU32::new(0);
    let harness = Harness::new();
    let client = harness.start().await;
    let options = SpawnOptions::new().max_attempts(1);
    let task = client.spawn_named("long", &()).options(options).await.unwrap().task_id;
    for life in 0..12 {
        let process = harness.start().await;
        let long = |(): (), ctx: TaskContext| async move {
            for n in 0..11_u32 {
                ctx.step(("hour", n), || async {
                    STARTS.fetch_add(1, Ordering::SeqCst);
                    Ok(tokio::time::sleep(3600 * SECOND).await)
                })
                .await?;
            }
            Ok(ctx.attempt)
        };
        process.register_fn("long", long).await.unwrap();
        process.start_worker(WorkerOptions::new().claim_timeout(7200 * SECOND)).await;
        if life < 11 {
            // Each life sees the end of one step.
            while process.journal(task).await.unwrap().len() <= life {
                tokio::time::sleep(10 * SECOND).await;
                let state = process.task(task).await.unwrap().unwrap().state;
                assert_ne!(state, TaskState::Failed, "after {life} deaths");
            }
            process.kill().await;
        } else {
            // The last step and the task's end shared a commit, so that the eleventh life was its
            // last.
            assert_eq!(process.wait::<u32>(task).await.unwrap(), 11);
        }
    }
}

/// Tasks of one step that takes so many seconds, of which those that run are counted.
#[derive(Clone, Default)]
struct Working {
    now: Arc<AtomicU32>,
}

impl Working {
    async fn register(&self, process: &Process) {
        let now = self.now.clone();
        let code = move |time: u32, ctx: TaskContext| {
            let now = now.clone();
            async move {
                ctx.step("work", || async {
                    now.fetch_add(1, Ordering::SeqCst);
                    let _left = scopeguard(|| _ = now.fetch_sub(1, Ordering::SeqCst));
                    for _ in 0..time {
                        tokio::time::sleep(SECOND).await;
                        ctx.heartbeat(SECOND).await?;
                    }
                    Ok(())
                })
                .await
            }
        };
        process.register_fn("work", code).await.unwrap();
    }

    fn now(&self) -> u32 {
        self.now.load(Ordering::SeqCst)
    }

    async fn reach(&self, tasks: u32) {
        while self.now() < tasks {
            tokio::time::sleep(SECOND).await;
        }
    }

    /// Spawns such tasks, and kills processes in the midst of all of their steps.
    async fn caught(&self, harness: &Harness, tasks: u32, time: u32, kills: u32) -> Vec<TaskId> {
        let client = harness.start().await;
        let mut spawned = Vec::new();
        for _ in 0..tasks {
            let task = client.spawn_named("work", &time).max_attempts(1).await.unwrap();
            spawned.push(task.task_id);
        }
        for _ in 0..kills {
            let process = harness.start().await;
            self.register(&process).await;
            process.start_worker(WorkerOptions::new().lease(5 * SECOND)).await;
            self.reach(tasks).await;
            process.kill().await;
        }
        spawned
    }
}

#[tokio::test(start_paused = true)]
async fn tasks_that_were_caught_in_two_deaths_go_on_in_groups_and_keep_nobody_else_waiting() {
    let (harness, working) = (Harness::new(), Working::default());
    let tasks = working.caught(&harness, 64, 60, 2).await;
    let process = harness.start().await;
    working.register(&process).await;
    process.start_worker(WorkerOptions::new().lease(5 * SECOND)).await;
    working.reach(32).await;
    let begun = tokio::time::Instant::now();
    tokio::time::sleep(5 * SECOND).await;
    assert_eq!(working.now(), 32, "an eighth of the slots");
    let mut fresh = Vec::new();
    for _ in 0..20 {
        fresh.push(process.spawn_named("work", &1).await.unwrap().task_id);
    }
    for task in fresh {
        process.wait::<()>(task).await.unwrap();
    }
    assert!(begun.elapsed() < 10 * SECOND, "others need not wait: {:?}", begun.elapsed());
    for task in tasks {
        process.wait::<()>(task).await.unwrap();
    }
    assert!(begun.elapsed() < 130 * SECOND, "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn tasks_that_were_caught_in_three_deaths_take_turns() {
    let (harness, working) = (Harness::new(), Working::default());
    let tasks = working.caught(&harness, 6, 60, 3).await;
    let process = harness.start().await;
    working.register(&process).await;
    // Two workers of one process share its turn.
    for _ in 0..2 {
        process.start_worker(WorkerOptions::new().lease(5 * SECOND)).await;
    }
    working.reach(1).await;
    for task in tasks {
        let mut ended = std::pin::pin!(process.wait::<()>(task));
        while tokio::time::timeout(SECOND, &mut ended).await.is_err() {
            assert!(working.now() <= 1);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn tasks_that_never_end_do_not_wait_for_each_other_for_ever() {
    for kills in [2, 3] {
        let (harness, working) = (Harness::new(), Working::default());
        working.caught(&harness, 3, 1_000_000, kills).await;
        let process = harness.start().await;
        working.register(&process).await;
        let options = WorkerOptions::new().lease(5 * SECOND).claim_timeout(60 * SECOND);
        process.start_worker(options).await;
        let all = tokio::time::timeout(200 * SECOND, working.reach(3)).await;
        all.unwrap_or_else(|_| panic!("after {kills} deaths, {} of 3 run", working.now()));
    }
}

#[tokio::test(start_paused = true)]
async fn a_worker_without_suspects_keeps_no_other_of_its_process_from_them() {
    let (harness, working) = (Harness::new(), Working::default());
    let tasks = working.caught(&harness, 2, 10, 3).await;
    let process = harness.start().await;
    working.register(&process).await;
    // The first one asks first, whenever both are woken.
    for queue in ["other", "default"] {
        let options = WorkerOptions::new().lease(5 * SECOND).queues([queue]).unwrap();
        process.start_worker(options).await;
    }
    for task in tasks {
        tokio::time::timeout(60 * SECOND, process.wait::<()>(task)).await.unwrap().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn grace_is_a_duration_whatever_the_clock_says() {
    for jump in [HOUR, -HOUR] {
        let harness = Harness::new();
        let process = harness.start().await;
        let outside = |(): (), ctx: TaskContext| async move {
            ctx.step("first", || async { Ok(()) }).await?;
            tokio::time::sleep(5 * SECOND).await;
            ctx.step("second", || async { Ok(()) }).await?;
            ctx.await_event::<()>("go", None).await
        };
        process.register_fn("outside", outside).await.unwrap();
        let endless = |(): (), ctx: TaskContext| async move {
            ctx.step("endless", || async { Ok(std::future::pending::<()>().await) }).await
        };
        process.register_fn("endless", endless).await.unwrap();
        process.start_worker(WorkerOptions::new().max_in_memory(0)).await;
        let replayed = process.spawn_named("outside", &()).await.unwrap().task_id;
        let cancelled = process.spawn_named("endless", &()).await.unwrap().task_id;
        while process.task(replayed).await.unwrap().unwrap().state != TaskState::Suspended {
            tokio::time::sleep(SECOND).await;
        }
        process.emit_event("go", &()).await.unwrap();
        process.cancel(cancelled).await.unwrap();
        tokio::time::sleep(2 * SECOND).await;
        harness.jump(jump);
        tokio::time::sleep(3 * SECOND).await;
        assert_eq!(
            process.task(cancelled).await.unwrap().unwrap().state,
            TaskState::Running,
            "{jump} µs"
        );
        process.wait::<()>(replayed).await.unwrap();
        tokio::time::sleep(10 * SECOND).await;
        assert_eq!(
            process.task(cancelled).await.unwrap().unwrap().state,
            TaskState::Cancelled,
            "{jump} µs"
        );
    }
}

/// A cancelled task may use its grace, but not beside the task's next run, nor when its worker has
/// to go.
#[tokio::test(start_paused = true)]
async fn grace_ends_with_the_lease_and_with_the_worker() {
    for lost in [true, false] {
        let harness = Harness::new();
        let process = harness.start().await;
        let alive = Arc::new(AtomicU32::new(0));
        let counted = alive.clone();
        let stubborn = move |(): (), ctx: TaskContext| {
            let alive = counted.clone();
            async move {
                let endless = async move || -> anyhow::Result<()> {
                    loop {
                        alive.fetch_add(1, Ordering::SeqCst);
                        tokio::time::sleep(SECOND / 10).await;
                    }
                };
                ctx.step("endless", endless).await
            }
        };
        process.register_fn("stubborn", stubborn).await.unwrap();
        let options =
            WorkerOptions::new().grace(1_000 * SECOND).lease(3 * SECOND).shutdown_timeout(SECOND);
        let worker = process.start_worker(options).await;
        let task = process.spawn_named("stubborn", &()).await.unwrap().task_id;
        process.cancel(task).await.unwrap();
        tokio::time::sleep(5 * SECOND).await;
        let cancelled = alive.load(Ordering::SeqCst);
        tokio::time::sleep(5 * SECOND).await;
        assert!(alive.load(Ordering::SeqCst) > cancelled + 40, "it has its grace");
        if lost {
            let dead = |heartbeats| WorkerSignal::DeclareDead {
                worker_id: worker.worker_id(),
                heartbeats,
            };
            let batch = Batch { workers: (0..100).map(dead).collect(), ..Batch::default() };
            harness.store().commit(batch.into()).await.unwrap();
            tokio::time::sleep(2 * SECOND).await;
        } else {
            worker.shutdown().await;
        }
        let ended = alive.load(Ordering::SeqCst);
        tokio::time::sleep(20 * SECOND).await;
        assert_eq!(alive.load(Ordering::SeqCst), ended, "lost: {lost}");
        assert_eq!(
            process.task(task).await.unwrap().unwrap().state,
            TaskState::Cancelled,
            "lost: {lost}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_rate_goes_on_when_the_clock_is_set_back() {
    let harness = Harness::new();
    let process = harness.start().await;
    process.register_fn("short", |(): (), _: TaskContext| async { Ok(()) }).await.unwrap();
    let rate = Some(RateLimit { starts: 10, per: SECOND });
    process
        .queues()
        .limit("default", QueueLimits { rate, ..QueueLimits::default() })
        .await
        .unwrap();
    process.start_worker(WorkerOptions::new()).await;
    let mut tasks = Vec::new();
    for _ in 0..100 {
        tasks.push(process.spawn_named("short", &()).await.unwrap().task_id);
    }
    tokio::time::sleep(3 * SECOND).await;
    harness.jump(-HOUR);
    let jumped = tokio::time::Instant::now();
    for task in tasks {
        process.wait::<()>(task).await.unwrap();
    }
    assert!(jumped.elapsed() < 60 * SECOND, "{:?}", jumped.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_ends_whatever_the_store_does() {
    for how in [Away::Refuses, Away::LosesAnswers, Away::Hangs] {
        // Until code is told to stop, until the worker signs off, and for ever.
        for outage in [32, 37, 10_000] {
            let harness = Harness::new();
            let away = Arc::new(AtomicBool::new(false));
            let store = unreliable(&harness, &away, how);
            let process = harness.start_on(store, |builder| builder).await.unwrap();
            let working = Working::default();
            working.register(&process).await;
            let worker = process.start_worker(WorkerOptions::new()).await;
            let task = process.spawn_named("work", &1000).await.unwrap().task_id;
            working.reach(1).await;
            away.store(true, Ordering::SeqCst);
            let back = away.clone();
            tokio::spawn(async move {
                tokio::time::sleep(outage * SECOND).await;
                back.store(false, Ordering::SeqCst);
            });
            let shutdown = tokio::time::timeout(60 * SECOND, worker.shutdown()).await;
            shutdown.unwrap_or_else(|_| panic!("{how:?} for {outage} s"));
            assert_eq!(working.now(), 0);
            if outage < 60 {
                assert_eq!(
                    process.workers().list().await.unwrap(),
                    [],
                    "{how:?}: it has signed off"
                );
                let info = process.task(task).await.unwrap().unwrap();
                assert_eq!(
                    (info.state, info.attempt),
                    (TaskState::Pending, 0),
                    "{how:?}: it was released"
                );
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_lane_that_hangs_fails_nobody_and_stops_no_heartbeat() {
    let harness = Harness::new();
    let hangs = Arc::new(AtomicBool::new(false));
    let hanging = hangs.clone();
    let lanes = std::num::NonZeroUsize::new(2).unwrap();
    let store = Intercepted::new(Arc::new(harness.store()), move |store, batch| {
        let light =
            |t: &store::Transition| matches!(t.next, store::Next::Continue { collect: false });
        let is_light = batch.transitions.iter().all(light) && !batch.transitions.is_empty();
        let hangs = is_light
            && batch.workers.is_empty()
            && batch.claims.is_empty()
            && hanging.swap(false, Ordering::SeqCst);
        Box::pin(async move {
            if hangs {
                tokio::time::sleep(60 * SECOND).await;
            }
            store.commit(batch.into()).await
        })
    });
    let process = harness.start_on(Arc::new(store.lanes(lanes)), |builder| builder).await.unwrap();
    let steps = Steps::default();
    register_steps(&process, &steps).await;
    let stuck = |(): (), ctx: TaskContext| async move {
        ctx.step("stuck", || async { Ok(std::future::pending::<()>().await) }).await
    };
    process.register_fn("stuck", stuck).await.unwrap();
    let options = || {
        // Its claims do not come with the entries.
        let options = WorkerOptions::new().poll_interval(7 * SECOND);
        options.lease(30 * SECOND).claim_timeout(20 * SECOND)
    };
    process.start_worker(options()).await;
    let other = harness.start().await;
    other.start_worker(options()).await;
    tokio::time::sleep(SECOND).await;
    let once = || SpawnOptions::new().max_attempts(1);
    let stuck = process.spawn_named("stuck", &()).options(once()).await.unwrap().task_id;
    let mut tasks = Vec::new();
    for _ in 0..10 {
        tasks.push(process.spawn_named("steps", &()).options(once()).await.unwrap().task_id);
    }
    tokio::time::sleep(Duration::from_millis(3_500)).await;
    hangs.store(true, Ordering::SeqCst);
    for task in tasks {
        assert_eq!(process.wait::<u32>(task).await.unwrap(), 1);
        assert_eq!(other.workers().list().await.unwrap().len(), 2);
    }
    assert!(!hangs.load(Ordering::SeqCst), "a batch has hung");
    let failure = process.wait::<()>(stuck).await.unwrap_err().to_string();
    assert!(failure.contains("claim_timeout"), "{failure}");
    assert!(!steps.doubled.load(Ordering::SeqCst));
}
