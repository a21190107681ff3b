//! Steps that are keyed by their input, and steps whose results are cached.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::unit_arg,
    missing_docs,
    reason = "a test ends by a panic"
)]

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use stepwell::testing::{Harness, Process, worker_options};
use stepwell::*;

/// What a task reads that is not journaled, and what ran.
#[derive(Default)]
struct World {
    inputs: Mutex<Vec<u32>>,
    fails: Mutex<bool>,
    ran: Mutex<Vec<String>>,
}

impl World {
    fn set(&self, inputs: &[u32], fails: bool) {
        *self.inputs.lock().unwrap() = inputs.to_vec();
        *self.fails.lock().unwrap() = fails;
    }

    fn note(&self, what: String) {
        self.ran.lock().unwrap().push(what);
    }

    fn ran(&self) -> String {
        std::mem::take(&mut *self.ran.lock().unwrap()).join(" ")
    }
}

#[stepwell::task]
async fn digest(_nothing: (), ctx: TaskContext) -> TaskResult<Vec<u32>> {
    let world = ctx.state::<Arc<World>>()?;
    let inputs = world.inputs.lock().unwrap().clone();
    ctx.step("before", || async { Ok(world.note("before".into())) }).await?;
    // All at once: what has been asked for already finds its result as well.
    let parts = inputs.iter().map(|input| {
        ctx.step("part", move || async move {
            world.note(format!("part({input})"));
            Ok(input * 10)
        })
        .input(input)
    });
    let parts = futures_util::future::try_join_all(parts).await?;
    let sum: u32 = parts.iter().sum();
    ctx.step("sum", || async { Ok(world.note(format!("sum({sum})"))) }).input(&sum).await?;
    ctx.step("after", || async {
        world.note("after".into());
        anyhow::ensure!(!*world.fails.lock().unwrap(), "no");
        Ok(())
    })
    .await?;
    Ok(parts)
}

async fn start(harness: &Harness, world: &Arc<World>) -> Process {
    let process = harness.start_with(|builder| builder.state(world.clone())).await.unwrap();
    process.register::<digest>().await.unwrap();
    process.start_worker(worker_options()).await;
    process
}

#[tokio::test(start_paused = true)]
async fn a_retried_task_runs_the_steps_whose_input_has_changed_and_no_others() {
    let (harness, world) = (Harness::new(), Arc::new(World::default()));
    let process = start(&harness, &world).await;
    world.set(&[1, 2, 3], true);
    let task = process.spawn::<digest>(()).max_attempts(1).await.unwrap().task_id;
    process.wait::<Vec<u32>>(task).await.unwrap_err();
    assert_eq!(world.ran(), "before part(1) part(2) part(3) sum(60) after");

    let retry = async |inputs: &[u32], fails: bool| {
        world.set(inputs, fails);
        process.retry(task).await.unwrap();
        let output = process.wait::<Vec<u32>>(task).await;
        assert_eq!(output.is_err(), fails, "{output:?}");
        world.ran()
    };
    assert_eq!(retry(&[1, 2, 3], true).await, "after", "nothing has changed");
    assert_eq!(retry(&[1, 5, 3], true).await, "part(5) sum(90) after");
    assert_eq!(retry(&[1, 5, 3], true).await, "after", "the change is in the journal");
    assert_eq!(retry(&[7, 5, 4], true).await, "part(7) part(4) sum(160) after");
    assert_eq!(
        retry(&[1, 2, 3], false).await,
        "after",
        "what an input gave before, it gives again"
    );
    assert_eq!(process.wait::<Vec<u32>>(task).await.unwrap(), [10, 20, 30]);
    let journal = process.journal(task).await.unwrap();
    let labels: Vec<_> = journal.iter().rev().take(2).map(|entry| entry.key.label()).collect();
    assert_eq!(labels, ["after", "sum"], "a label is the name that the code gave");
}

#[tokio::test(start_paused = true)]
async fn a_crash_after_a_changed_input_finds_the_journal_as_it_was_left() {
    let (harness, world) = (Harness::new(), Arc::new(World::default()));
    let process = start(&harness, &world).await;
    let waits = |(): (), ctx: TaskContext| async move {
        let world = ctx.state::<Arc<World>>()?;
        let inputs = world.inputs.lock().unwrap().clone();
        for input in inputs {
            ctx.step("part", || async { Ok(world.note(format!("part({input})"))) })
                .input(&input)
                .await?;
        }
        ctx.await_event::<()>("go on", None).await
    };
    process.register_fn("waits", waits).await.unwrap();
    world.set(&[1, 2], false);
    let task = process.spawn_named("waits", &()).await.unwrap().task_id;
    let mut process = process;
    for (inputs, ran) in
        [([1, 2], "part(1) part(2)"), ([3, 2], "part(3)"), ([3, 2], ""), ([3, 4], "part(4)")]
    {
        world.set(&inputs, false);
        if ran != "part(1) part(2)" {
            process.kill().await;
            process = start(&harness, &world).await;
            process.register_fn("waits", waits).await.unwrap();
            harness.jump(48 * 3600 * 1_000_000);
            process.start_worker(worker_options()).await;
            let wake = store::Batch {
                commands: vec![store::Command::Wake(task)],
                ..store::Batch::default()
            };
            harness.store().commit(wake.into()).await.unwrap();
        }
        let suspended = async |process: &Process| {
            let info = process.task(task).await.unwrap().unwrap();
            info.state == TaskState::Suspended && world.ran.lock().unwrap().join(" ") == ran
        };
        while !suspended(&process).await {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        assert_eq!(world.ran(), ran);
    }
    process.emit_event("go on", &()).await.unwrap();
    process.wait::<()>(task).await.unwrap();
    assert_eq!(world.ran(), "");
}

/// A cache that may be broken.
#[derive(Default)]
struct Cache {
    values: Mutex<HashMap<String, Payload>>,
    broken: Mutex<bool>,
}

impl Cache {
    fn check(&self) -> Result<(), StepCacheError> {
        if *self.broken.lock().unwrap() { Err(StepCacheError::new("broken")) } else { Ok(()) }
    }
}

impl StepCache for Cache {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Payload>, StepCacheError>> {
        Box::pin(async move {
            self.check()?;
            Ok(self.values.lock().unwrap().get(key).cloned())
        })
    }

    fn set<'a>(
        &'a self,
        key: &'a str,
        value: Payload,
    ) -> BoxFuture<'a, Result<(), StepCacheError>> {
        Box::pin(async move {
            self.check()?;
            self.values.lock().unwrap().insert(key.to_owned(), value);
            Ok(())
        })
    }

    fn has<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<bool, StepCacheError>> {
        Box::pin(async move { Ok(self.values.lock().unwrap().contains_key(key)) })
    }

    fn delete<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<bool, StepCacheError>> {
        Box::pin(async move { Ok(self.values.lock().unwrap().remove(key).is_some()) })
    }

    fn clear(&self) -> BoxFuture<'_, Result<(), StepCacheError>> {
        Box::pin(async move { Ok(self.values.lock().unwrap().clear()) })
    }
}

#[tokio::test(start_paused = true)]
async fn tasks_share_results_by_a_cache_and_do_without_a_broken_one() {
    let (harness, world) = (Harness::new(), Arc::new(World::default()));
    let process = start(&harness, &world).await;
    let cache = Arc::new(Cache::default());
    let shared: Arc<dyn StepCache> = cache.clone();
    let task = move |n: u32, ctx: TaskContext| {
        let shared = shared.clone();
        async move {
            let world = ctx.state::<Arc<World>>()?;
            let mut tries = 0;
            let tried = Mutex::new(&mut tries);
            ctx.step("square", || async {
                world.note(format!("square({n})"));
                **tried.lock().unwrap() += 1;
                anyhow::ensure!(n != 7 || **tried.lock().unwrap() > 1, "not yet");
                Ok(n * n)
            })
            .cached(&shared, format!("square:{n}"))
            .retry(RetryStrategy::fixed(std::time::Duration::from_secs(1)))
            .await
        }
    };
    process.register_fn("square", task).await.unwrap();
    let run = async |n: u32| {
        let task = process.spawn_named("square", &n).await.unwrap();
        (process.wait::<u32>(task.task_id).await.unwrap(), world.ran())
    };
    assert_eq!(run(3).await, (9, "square(3)".into()));
    assert_eq!(run(3).await, (9, String::new()));
    assert_eq!(run(7).await, (49, "square(7) square(7)".into()), "a failure is not cached");
    assert_eq!(run(7).await, (49, String::new()));
    cache.values.lock().unwrap().insert("square:4".into(), Payload::from_json("\"sixteen\""));
    assert_eq!(
        run(4).await,
        (16, "square(4)".into()),
        "what is no result of the step is not taken for one"
    );
    assert_eq!(run(4).await, (16, String::new()));
    *cache.broken.lock().unwrap() = true;
    assert_eq!(run(3).await, (9, "square(3)".into()));
}
