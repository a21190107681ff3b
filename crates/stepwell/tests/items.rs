//! Steps over many items.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::unit_arg,
    missing_docs,
    reason = "a test ends by a panic"
)]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use stepwell::testing::{Harness, Process, worker_options};
use stepwell::*;
use tokio::sync::Notify;

/// What a task's items do, and what they did.
#[derive(Default)]
struct World {
    ran: Mutex<BTreeMap<usize, usize>>,
    at_once: AtomicUsize,
    most_at_once: AtomicUsize,
    fails: AtomicBool,
    /// From this item on, they never end.
    stuck_from: AtomicUsize,
    reached: Notify,
    progress: Mutex<Vec<ItemCounts>>,
}

impl World {
    async fn work(&self, item: usize) -> anyhow::Result<Option<usize>> {
        *self.ran.lock().unwrap().entry(item).or_default() += 1;
        let now = self.at_once.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_at_once.fetch_max(now, Ordering::SeqCst);
        if item >= self.stuck_from.load(Ordering::SeqCst) {
            self.reached.notify_one();
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(Duration::from_millis(1 + item as u64 % 5)).await;
        self.at_once.fetch_sub(1, Ordering::SeqCst);
        anyhow::ensure!(!(self.fails.load(Ordering::SeqCst) && item % 10 == 3), "{item} is bad");
        Ok((item % 2 == 1).then_some(item * item))
    }

    fn times(&self) -> Vec<usize> {
        self.ran.lock().unwrap().values().copied().collect()
    }
}

#[stepwell::task]
async fn works(
    items: usize,
    policy: ErrorPolicy,
    ctx: TaskContext,
) -> TaskResult<(usize, Vec<usize>)> {
    let world = ctx.state::<Arc<World>>()?;
    let report = ctx
        .items("work", 0..items)
        .concurrency(4)
        .on_error(policy)
        .on_progress(|counts| world.progress.lock().unwrap().push(counts))
        .each(|item| world.work(item))
        .await?;
    assert_eq!(report.counts.succeeded + report.counts.failed, items);
    assert!(report.results.iter().all(|(n, result)| *result == (n % 2 == 1).then_some(n * n)));
    Ok((report.results.len(), report.failures.into_keys().collect()))
}

async fn start(harness: &Harness, world: &Arc<World>) -> Process {
    let process = harness.start_with(|builder| builder.state(world.clone())).await.unwrap();
    process.register::<works>().await.unwrap();
    process.start_worker(worker_options().claim_timeout(Duration::from_secs(3600))).await;
    process
}

fn world() -> Arc<World> {
    Arc::new(World { stuck_from: AtomicUsize::new(usize::MAX), ..World::default() })
}

#[tokio::test(start_paused = true)]
async fn each_item_is_done_once_so_many_at_a_time_and_tells_of_its_progress() {
    let (harness, world) = (Harness::new(), world());
    let process = start(&harness, &world).await;
    let task = process.spawn::<works>((2_000, ErrorPolicy::Stop)).await.unwrap().task_id;
    assert_eq!(process.wait::<(usize, Vec<usize>)>(task).await.unwrap(), (2_000, vec![]));
    assert_eq!(world.times(), vec![1; 2_000]);
    assert_eq!(world.most_at_once.load(Ordering::SeqCst), 4);
    let progress = world.progress.lock().unwrap().clone();
    assert!(progress.is_sorted_by_key(|counts| counts.succeeded));
    assert_eq!(progress.last().unwrap().succeeded, 2_000);
    let rows = process.journal(task).await.unwrap().len();
    assert!(rows < 40, "{rows} rows");
}

#[tokio::test(start_paused = true)]
async fn after_a_crash_it_goes_on_with_the_items_that_are_not_done() {
    let (harness, world) = (Harness::new(), world());
    world.stuck_from.store(700, Ordering::SeqCst);
    let process = start(&harness, &world).await;
    let task = process.spawn::<works>((1_000, ErrorPolicy::Stop)).await.unwrap().task_id;
    for _ in 0..4 {
        world.reached.notified().await;
    }
    // All that ended is durable by now.
    tokio::time::sleep(Duration::from_secs(1)).await;
    process.kill().await;
    world.stuck_from.store(usize::MAX, Ordering::SeqCst);
    let process = start(&harness, &world).await;
    assert_eq!(process.wait::<(usize, Vec<usize>)>(task).await.unwrap(), (1_000, vec![]));
    let times = world.times();
    assert_eq!(times[..700], vec![1; 700], "what was done is not done again");
    assert_eq!(times[700..704], [2; 4], "what was cut off is");
    assert_eq!(times[704..], vec![1; 296]);
    let resumed_at =
        world.progress.lock().unwrap().iter().filter(|counts| counts.succeeded == 700).count();
    assert_eq!(resumed_at, 2, "it says where it goes on");
}

#[tokio::test(start_paused = true)]
async fn a_failing_item_stops_the_others_or_does_not() {
    let (harness, world) = (Harness::new(), world());
    let process = start(&harness, &world).await;
    world.fails.store(true, Ordering::SeqCst);
    let spawn = async |policy| {
        let options = SpawnOptions::new().max_attempts(1);
        let task = process.spawn::<works>((30, policy)).options(options).await.unwrap().task_id;
        (task, process.wait::<(usize, Vec<usize>)>(task).await)
    };
    let (stopped, error) = spawn(ErrorPolicy::Stop).await;
    let error = error.unwrap_err().to_string();
    assert!(error.ends_with(r#"step "work" failed: item 3: 3 is bad"#), "{error}");
    assert!(world.times().len() < 10);
    for policy in [ErrorPolicy::Skip, ErrorPolicy::Collect] {
        assert_eq!(spawn(policy).await.1.unwrap(), (27, vec![3, 13, 23]));
    }
    // The items that were done stay done when the step is tried again.
    let done = world.ran.lock().unwrap().clone();
    world.ran.lock().unwrap().clear();
    world.fails.store(false, Ordering::SeqCst);
    process.retry(stopped).await.unwrap();
    assert_eq!(process.wait::<(usize, Vec<usize>)>(stopped).await.unwrap(), (30, vec![]));
    let first = *world.ran.lock().unwrap().keys().next().unwrap();
    assert_eq!(first, 3, "{done:?}");
}

#[tokio::test(start_paused = true)]
async fn batches_give_a_result_for_each_item() {
    let process = Harness::new().start().await;
    let sizes = Arc::new(Mutex::new(Vec::new()));
    let seen = sizes.clone();
    let task = move |short: bool, ctx: TaskContext| {
        let seen = seen.clone();
        async move {
            let report = ctx
                .items("rows", (0..10).collect::<Vec<u32>>())
                .on_error(ErrorPolicy::Collect)
                .each_batch(4, |batch: Vec<u32>| {
                    seen.lock().unwrap().push(batch.len());
                    let short = short && batch.len() == 2;
                    async move {
                        Ok(batch.into_iter().skip(usize::from(short)).map(|n| n + 1).collect())
                    }
                })
                .await?;
            let failures: Vec<_> = report.failures.values().map(ToString::to_string).collect();
            Ok((report.results.into_values().collect::<Vec<u32>>(), failures))
        }
    };
    process.register_fn("batches", task).await.unwrap();
    process.start_worker(worker_options()).await;
    type Output = (Vec<u32>, Vec<String>);
    let task = process.spawn_named("batches", &false).await.unwrap();
    assert_eq!(process.wait::<Output>(task.task_id).await.unwrap(), ((1..=10).collect(), vec![]));
    assert_eq!(*sizes.lock().unwrap(), [4, 4, 2]);
    let task = process.spawn_named("batches", &true).await.unwrap();
    let (results, failures) = process.wait::<Output>(task.task_id).await.unwrap();
    assert_eq!(results, (1..=8).collect::<Vec<_>>());
    assert_eq!(failures, ["a batch of 2 items gave 1 results"; 2]);
}

#[tokio::test(start_paused = true)]
async fn another_number_of_items_is_an_error_unless_the_input_says_that_they_are_others() {
    let (harness, world) = (Harness::new(), world());
    let process = start(&harness, &world).await;
    let count = Arc::new(AtomicUsize::new(3));
    let asked = count.clone();
    let task = move |by_input: bool, ctx: TaskContext| {
        let count = asked.load(Ordering::SeqCst);
        async move {
            let items = ctx.items("items", 0..count);
            let items = if by_input { items.input(&count) } else { items };
            let report = items
                .each(|n| async move {
                    anyhow::ensure!(n < 2, "no");
                    Ok(())
                })
                .await?;
            Ok(report.results.len())
        }
    };
    process.register_fn("changing", task).await.unwrap();
    let mut tasks = Vec::new();
    for by_input in [false, true] {
        count.store(3, Ordering::SeqCst);
        let options = SpawnOptions::new().max_attempts(1);
        let task =
            process.spawn_named("changing", &by_input).options(options).await.unwrap().task_id;
        process.wait::<usize>(task).await.unwrap_err();
        tasks.push(task);
    }
    count.store(2, Ordering::SeqCst);
    for task in &tasks {
        process.retry(*task).await.unwrap();
    }
    let error = process.wait::<usize>(tasks[0]).await.unwrap_err().to_string();
    assert!(error.contains("what was recorded is of 3 items, now there are 2"), "{error}");
    assert_eq!(process.wait::<usize>(tasks[1]).await.unwrap(), 2);
}

/// However the results are, a journal holds few rows of them, and they are all there after a
/// restart.
#[tokio::test(start_paused = true)]
async fn large_results_are_kept_in_few_rows() {
    let harness = Harness::new();
    let mut process = harness.start().await;
    let register = async |process: &Process| {
        let task = |(): (), ctx: TaskContext| async move {
            let report = ctx
                .items("large", 0..3_000_usize)
                .concurrency(3)
                .each(|n| async move {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    Ok(format!("{n:0>200}"))
                })
                .await?;
            ctx.await_event::<()>("go on", None).await?;
            assert!(report.results.iter().all(|(n, text)| text.parse::<usize>().unwrap() == *n));
            Ok(report.results.len())
        };
        process.register_fn("large", task).await.unwrap();
        process.start_worker(worker_options()).await;
    };
    register(&process).await;
    let task = process.spawn_named("large", &()).await.unwrap().task_id;
    while process.task(task).await.unwrap().unwrap().state != TaskState::Suspended {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let rows = process.journal(task).await.unwrap().len();
    assert!(rows < 60, "{rows} rows of 600 KB");
    process.kill().await;
    process = harness.start().await;
    register(&process).await;
    process.emit_event("go on", &()).await.unwrap();
    assert_eq!(process.wait::<usize>(task).await.unwrap(), 3_000);
}
