//! Who owns a task while the world misbehaves: stores that are away, answers that are lost, clocks that
//! jump, processes that die.

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
                ctx.step(("step", n), || async { Ok(steps.run(ctx.task_id, SECOND).await) }).await?;
            }
            Ok(ctx.attempt)
        }
    };
    process.register_fn("steps", code).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn no_outage_of_the_store_costs_a_task_or_an_attempt() {
    let options = || WorkerOptions::new().lease(30 * SECOND).claim_timeout(20 * SECOND).concurrency(10);
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
                tasks.push(process.spawn_named("steps", &(), options).await.unwrap().task_id);
            }
            tokio::time::sleep(Duration::from_millis(4_500)).await;
            away.store(true, Ordering::SeqCst);
            tokio::time::sleep(outage * SECOND).await;
            away.store(false, Ordering::SeqCst);
            for task in tasks {
                let ended = tokio::time::timeout(600 * SECOND, process.wait::<u32>(task)).await;
                let ended = ended.unwrap_or_else(|_| panic!("{how:?} for {outage} s: a task is stuck"));
                assert_eq!(ended.unwrap(), 1, "{how:?} for {outage} s");
            }
            assert!(!steps.doubled.load(Ordering::SeqCst), "{how:?} for {outage} s: two owners at once");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_away_at_any_moment_orphans_nothing() {
    // Ten minutes, with all defaults, from each second of the tasks' lives on.
    for moment in 0..12 {
        for how in [Away::Refuses, Away::LosesAnswers] {
            let harness = Harness::new();
            let away = Arc::new(AtomicBool::new(false));
            let process =
                harness.start_on(unreliable(&harness, &away, how), |builder| builder).await.unwrap();
            register_steps(&process, &Steps::default()).await;
            let family = |(): (), ctx: TaskContext| async move {
                ctx.sleep_for("a while", 2 * SECOND).await?;
                ctx.await_event::<()>("event", Some(3 * SECOND)).await.ok();
                let child: Child<u32> = ctx.spawn_named("child", "steps", &(), SpawnOptions::new()).await?;
                ctx.join(&child).await
            };
            process.register_fn("family", family).await.unwrap();
            process.start_worker(WorkerOptions::new()).await;
            let mut tasks = Vec::new();
            for n in 0..20 {
                let name = if n % 2 == 0 { "steps" } else { "family" };
                let start = SpawnOptions::new().start_after(n % 4 * SECOND);
                tasks.push(process.spawn_named(name, &(), start).await.unwrap().task_id);
            }
            tokio::time::sleep(moment * SECOND + Duration::from_millis(500)).await;
            away.store(true, Ordering::SeqCst);
            tokio::time::sleep(600 * SECOND).await;
            away.store(false, Ordering::SeqCst);
            tokio::time::sleep(600 * SECOND).await;
            for task in tasks {
                let info = process.task(task).await.unwrap().unwrap();
                assert_eq!(info.state, TaskState::Completed, "{how:?} from second {moment} on: {info:?}");
            }
        }
    }
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
            let task = spawner.spawn_named("steps", &(), SpawnOptions::new().max_attempts(1)).await.unwrap();
            tasks.push(task.task_id);
        }
        tokio::time::sleep(Duration::from_millis(2_500)).await;
        harness.jump(jump);
        tokio::time::sleep(3 * SECOND).await;
        assert_eq!(second.workers().await.unwrap().len(), 2, "both live");
        first.kill().await;
        let killed = tokio::time::Instant::now();
        harness.jump(jump);
        for task in tasks {
            // Its one attempt is replaced where the first process's death ended it.
            assert!(second.wait::<u32>(task).await.unwrap() <= 2);
        }
        // A lease, two heartbeats, and what was left to do.
        assert!(killed.elapsed() < 65 * SECOND, "after a jump of {jump} µs: {:?}", killed.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn timers_deadlines_and_delays_go_by_the_clock_that_jumped() {
    for (jump, early, late) in [(HOUR, 0, 5), (-HOUR, 3_600 + 5, 3_600 + 40)] {
        let harness = Harness::new();
        let process = harness.start().await;
        let sleeps = |(): (), ctx: TaskContext| async move { ctx.sleep_for("nap", 30 * SECOND).await };
        // The same beside a step, so that the run goes on and waits by itself.
        let busy = |(): (), ctx: TaskContext| async move {
            tokio::select! {
                nap = ctx.sleep_for("nap", 30 * SECOND) => nap,
                step = ctx.step("busy", || async { Ok(tokio::time::sleep(20_000 * SECOND).await) }) => step,
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
                options = options.start_after(SECOND);
            }
            tasks.push(process.spawn_named(name, &(), options).await.unwrap().task_id);
        }
        tokio::time::sleep(5 * SECOND).await;
        let jumped = tokio::time::Instant::now();
        harness.jump(jump);
        for task in tasks {
            process.wait::<()>(task).await.unwrap();
        }
        let took = jumped.elapsed().as_secs();
        assert!((early..=late).contains(&took), "after a jump of {jump} µs the timers took {took} s");
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
    for (poisons, step) in [(1, SECOND), (1, 3 * SECOND), (3, SECOND), (3, 3 * SECOND), (12, 3 * SECOND)] {
        let harness = Harness::new();
        let client = harness.start().await;
        let (mut tasks, mut guilty) = (Vec::new(), Vec::new());
        for n in 0..10 + poisons {
            let name = if n % 2 == 0 && guilty.len() < poisons || n >= 10 + guilty.len() {
                "poison"
            } else {
                "innocent"
            };
            // One attempt: a crash beside somebody else's task is none of it.
            let options = SpawnOptions::new().max_attempts(1);
            let task = client.spawn_named(name, &(), options).await.unwrap().task_id;
            tasks.push(task);
            if name == "poison" {
                guilty.push(task);
            }
        }
        let lives = live_through(&harness, step, &tasks).await;
        for task in &tasks {
            let info = client.task(*task).await.unwrap().unwrap();
            let expected = if guilty.contains(task) { TaskState::Failed } else { TaskState::Completed };
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
    let task = client.spawn_named("long", &(), options).await.unwrap().task_id;
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
            }
            process.kill().await;
        } else {
            // The last step and the task's end shared a commit, so that the eleventh life was its last.
            assert_eq!(process.wait::<u32>(task).await.unwrap(), 11);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn suspects_take_turns_and_keep_nobody_else_waiting() {
    let harness = Harness::new();
    let client = harness.start().await;
    let running = Arc::new(AtomicU32::new(0));
    let register = async |process: &Process| {
        let now = running.clone();
        let code = move |time: u32, ctx: TaskContext| {
            let now = now.clone();
            async move {
                ctx.step("work", || async {
                    now.fetch_add(1, Ordering::SeqCst);
                    let _left = scopeguard(|| _ = now.fetch_sub(1, Ordering::SeqCst));
                    Ok(tokio::time::sleep(time * SECOND).await)
                })
                .await
            }
        };
        process.register_fn("work", code).await.unwrap();
    };
    let mut tasks = Vec::new();
    for _ in 0..6 {
        tasks.push(client.spawn_named("work", &60, SpawnOptions::new()).await.unwrap().task_id);
    }
    // Two deaths in the middle of all of their steps make suspects of them.
    for _ in 0..2 {
        let process = harness.start().await;
        register(&process).await;
        process.start_worker(WorkerOptions::new().lease(5 * SECOND)).await;
        while running.load(Ordering::SeqCst) < 6 {
            tokio::time::sleep(SECOND).await;
        }
        process.kill().await;
    }
    let process = harness.start().await;
    register(&process).await;
    // Two workers of one process share its turn.
    for _ in 0..2 {
        process.start_worker(WorkerOptions::new().lease(5 * SECOND)).await;
    }
    while running.load(Ordering::SeqCst) == 0 {
        tokio::time::sleep(SECOND).await;
    }
    let begun = tokio::time::Instant::now();
    let mut fresh = Vec::new();
    for _ in 0..20 {
        fresh.push(client.spawn_named("work", &1, SpawnOptions::new()).await.unwrap().task_id);
    }
    for task in fresh {
        process.wait::<()>(task).await.unwrap();
    }
    assert!(begun.elapsed() < 10 * SECOND, "others need not wait: {:?}", begun.elapsed());
    assert_eq!(running.load(Ordering::SeqCst), 1, "one suspect at a time");
    for task in tasks {
        process.wait::<()>(task).await.unwrap();
        assert!(running.load(Ordering::SeqCst) <= 1);
    }
}
