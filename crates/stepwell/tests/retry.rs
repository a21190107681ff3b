//! `client.retry`: what runs again of a task that failed or was cancelled, and of its children.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::unit_arg,
    missing_docs,
    reason = "a test ends by a panic"
)]

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use stepwell::testing::{Harness, worker_options};
use stepwell::*;

const SECOND: Duration = Duration::from_secs(1);

/// What closures ran, and whether they may succeed.
#[derive(Clone, Default)]
struct World {
    ran: Arc<Mutex<Vec<String>>>,
    mended: Arc<AtomicBool>,
}

impl World {
    fn run(&self, what: &str) {
        self.ran.lock().unwrap().push(what.to_owned());
    }

    fn ran(&self) -> Vec<String> {
        let mut ran = self.ran.lock().unwrap().clone();
        ran.sort_unstable();
        ran
    }

    async fn until_ran(&self, what: &str) {
        while !self.ran().iter().any(|ran| ran == what) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn needs_mending(&self) -> anyhow::Result<()> {
        anyhow::ensure!(self.mended.load(Ordering::SeqCst), "not mended");
        Ok(())
    }
}

async fn until_state(client: &Durable, task_id: TaskId, state: TaskState) {
    while client.task(task_id).await.unwrap().unwrap().state != state {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn once() -> SpawnOptions {
    SpawnOptions::new().max_attempts(1)
}

/// Runs the scenario on every store that needs no server.
async fn on_stores<Fut: Future<Output = ()>>(scenario: impl Fn(Durable, World) -> Fut) {
    let harness = Harness::new();
    let process = harness.start().await;
    process.start_worker(worker_options()).await;
    scenario(process.client().clone(), World::default()).await;
    let client = Durable::builder().database_url("sqlite::memory:").build().await.unwrap();
    client.start_worker(worker_options()).await;
    scenario(client, World::default()).await;
}

/// A step that ends by an error because it was told to stop has not failed.
async fn what_was_told_to_stop(client: Durable, world: World) {
    let seen = world.clone();
    let task = move |kind: String, ctx: TaskContext| {
        let world = seen.clone();
        async move {
            let work = |what: &'static str| {
                let (world, ctx) = (world.clone(), ctx.clone());
                async move {
                    world.run(what);
                    if world.mended.load(Ordering::SeqCst) {
                        return Ok(());
                    }
                    ctx.cancelled().cancelled().await;
                    ctx.heartbeat(None).await?;
                    Ok(())
                }
            };
            match &*kind {
                "step" => ctx.step("work", || work("step")).await,
                "tries" => {
                    ctx.step("work", || work("tries")).retry(RetryStrategy::fixed(SECOND)).await
                }
                _ => {
                    let items =
                        ctx.items("work", [1, 2]).concurrency(2).on_error(ErrorPolicy::Skip);
                    let report = items.each(|_| work("items")).await?;
                    assert!(report.failures.is_empty());
                    Ok(())
                }
            }
        }
    };
    client.register_fn("task", task).await.unwrap();
    for (kind, times) in [("step", 1), ("tries", 1), ("items", 2)] {
        world.mended.store(false, Ordering::SeqCst);
        let task_id = client.spawn_named("task", kind).await.unwrap().task_id;
        let ran = || world.ran().iter().filter(|ran| *ran == kind).count();
        while ran() < times {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        client.cancel(task_id).await.unwrap();
        until_state(&client, task_id, TaskState::Cancelled).await;
        world.mended.store(true, Ordering::SeqCst);
        client.retry(task_id).await.unwrap();
        client.wait::<()>(task_id).await.unwrap();
        assert_eq!(ran(), 2 * times, "{kind}: {:?}", client.journal(task_id).await.unwrap());
    }
}

#[tokio::test]
async fn a_step_that_was_told_to_stop_runs_again() {
    on_stores(what_was_told_to_stop).await;
}

/// A parent with a child that completes, and one whose own child waits.
async fn a_cancelled_family(client: Durable, world: World) {
    let seen = world.clone();
    let leaf = move |name: String, ctx: TaskContext| {
        let world = seen.clone();
        async move {
            ctx.step("begin", || async { Ok(world.run(&name)) }).await?;
            if name == "waits" { ctx.await_event::<()>("go on", None).await } else { Ok(()) }
        }
    };
    let middle = |name: String, ctx: TaskContext| async move {
        let child = ctx.spawn_named("child", "leaf", &name).await?;
        ctx.join::<()>(&child).await
    };
    let root = |(): (), ctx: TaskContext| async move {
        let done = ctx.spawn_named("done", "leaf", "done").await?;
        ctx.join::<()>(&done).await?;
        // Nobody ever joins this one.
        let _: Child<()> = ctx.spawn_named("aside", "middle", "waits").await?;
        let waits = ctx.spawn_named("waits", "middle", "waits").await?;
        ctx.join::<()>(&waits).await
    };
    client.register_fn("leaf", leaf).await.unwrap();
    client.register_fn("middle", middle).await.unwrap();
    client.register_fn("root", root).await.unwrap();
    let task_id = client.spawn_named("root", &()).await.unwrap().task_id;
    world.until_ran("waits").await;
    until_state(&client, task_id, TaskState::Suspended).await;
    while world.ran().len() < 3 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    client.cancel(task_id).await.unwrap();
    let ended = async |state| {
        let filter = TaskFilter { state: Some(state), ..TaskFilter::default() };
        client.tasks(filter).await.unwrap().items.len()
    };
    while ended(TaskState::Cancelled).await < 5 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    client.retry(task_id).await.unwrap();
    client.emit_event("go on", &()).await.unwrap();
    client.wait::<()>(task_id).await.unwrap();
    while ended(TaskState::Completed).await < 6 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(world.ran(), ["done", "waits", "waits"], "no step ran again");
}

#[tokio::test]
async fn a_cancelled_parent_runs_again_with_its_children() {
    on_stores(a_cancelled_family).await;
}

/// A child that failed for good is run again with its parent; one whose failure was handled is not.
async fn failed_children(client: Durable, world: World) {
    let seen = world.clone();
    let child = move |name: String, ctx: TaskContext| {
        let world = seen.clone();
        async move {
            ctx.step("work", || async {
                world.run(&name);
                world.needs_mending()
            })
            .await
        }
    };
    let parent = |(): (), ctx: TaskContext| async move {
        let optional = ctx.spawn_named("optional", "child", "optional").options(once()).await?;
        if ctx.join::<()>(&optional).await.is_err() {
            ctx.step("instead", || async { Ok(()) }).await?;
        }
        let needed = ctx.spawn_named("needed", "child", "needed").options(once()).await?;
        ctx.join::<()>(&needed).await
    };
    client.register_fn("child", child).await.unwrap();
    client.register_fn("parent", parent).await.unwrap();
    let task_id = client.spawn_named("parent", &()).await.unwrap().task_id;
    for tries in 1..=2 {
        let error = client.wait::<()>(task_id).await.unwrap_err();
        assert!(error.to_string().contains("not mended"), "{error}");
        let info = client.task(task_id).await.unwrap().unwrap();
        assert_eq!(
            info.attempt, 1,
            "a child has attempts of its own: its parent is not tried again for it"
        );
        let needed = world.ran().iter().filter(|ran| *ran == "needed").count();
        assert_eq!(needed, tries);
        if tries == 2 {
            world.mended.store(true, Ordering::SeqCst);
        }
        client.retry(task_id).await.unwrap();
    }
    client.wait::<()>(task_id).await.unwrap();
    assert_eq!(world.ran(), ["needed", "needed", "needed", "optional"]);
}

#[tokio::test]
async fn a_parent_runs_again_with_its_child_that_failed_for_good() {
    on_stores(failed_children).await;
}

/// As long as a child is on its way to its end, its parent would only see that.
async fn a_child_that_is_still_ending(client: Durable, world: World) {
    let seen = world.clone();
    let child = move |(): (), ctx: TaskContext| {
        let world = seen.clone();
        async move {
            ctx.step("work", || async {
                world.run("child");
                while !world.mended.load(Ordering::SeqCst) {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                Ok(())
            })
            .await?;
            ctx.step("more", || async { Ok(()) }).await
        }
    };
    let parent = |(): (), ctx: TaskContext| async move {
        let child = ctx.spawn_named("child", "child", &()).options(once()).await?;
        ctx.join::<()>(&child).await
    };
    client.register_fn("child", child).await.unwrap();
    client.register_fn("parent", parent).await.unwrap();
    let task_id = client.spawn_named("parent", &()).await.unwrap().task_id;
    world.until_ran("child").await;
    until_state(&client, task_id, TaskState::Suspended).await;
    client.cancel(task_id).await.unwrap();
    until_state(&client, task_id, TaskState::Cancelled).await;
    let error = client.retry(task_id).await.unwrap_err();
    let Error::NotAllowed { task_id: child, state: TaskState::Running, .. } = error else {
        panic!("{error}")
    };
    world.mended.store(true, Ordering::SeqCst);
    until_state(&client, child, TaskState::Cancelled).await;
    client.retry(task_id).await.unwrap();
    client.wait::<()>(task_id).await.unwrap();
    assert_eq!(world.ran(), ["child"]);
}

#[tokio::test]
async fn a_parent_whose_child_is_still_being_cancelled_is_not_run_again_yet() {
    on_stores(a_child_that_is_still_ending).await;
}

/// A parent that fails before it has joined its child, which has completed.
async fn a_child_that_waits_to_be_joined(client: Durable, world: World) {
    let seen = world.clone();
    let child = move |n: u32, ctx: TaskContext| {
        let world = seen.clone();
        async move {
            ctx.step("work", || async {
                world.run("child");
                Ok(n)
            })
            .await
        }
    };
    let seen = world.clone();
    let parent = move |n: u32, ctx: TaskContext| {
        let world = seen.clone();
        async move {
            let child: Child<u32> = ctx.spawn_named("child", "child", &7).options(once()).await?;
            ctx.await_event::<()>(("go on", n), None).await?;
            ctx.step("check", || async { world.needs_mending() }).await?;
            ctx.join(&child).await
        }
    };
    client.register_fn("child", child).await.unwrap();
    client.register_fn("parent", parent).await.unwrap();
    let with_its_child = async |n: u32| {
        let parent = client.spawn_named("parent", &n).options(once()).await.unwrap().task_id;
        loop {
            let children = TaskFilter { parent: Some(parent), ..TaskFilter::default() };
            match &client.tasks(children).await.unwrap().items[..] {
                [child] if child.state == TaskState::Completed => return (parent, child.task_id),
                _ => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    };
    let (parent, child) = with_its_child(1).await;
    client.emit_event("go on:1", &()).await.unwrap();
    client.wait::<u32>(parent).await.unwrap_err();

    assert_eq!(client.purge(Duration::ZERO, Some(TaskState::Completed)).await.unwrap(), 0);
    let refused = client.delete(child).await.unwrap_err();
    assert!(matches!(refused, Error::Needed { by, .. } if by == parent), "{refused}");
    assert!(refused.to_string().contains("deleted first, or retried"), "{refused}");
    world.mended.store(true, Ordering::SeqCst);
    client.retry(parent).await.unwrap();
    assert_eq!(client.wait::<u32>(parent).await.unwrap(), 7);
    assert_eq!(world.ran().iter().filter(|ran| *ran == "child").count(), 1);
    client.delete(child).await.unwrap();

    // A family that was cancelled goes in one purge.
    client.delete(parent).await.unwrap();
    let (parent, child) = with_its_child(2).await;
    client.cancel(parent).await.unwrap();
    until_state(&client, parent, TaskState::Cancelled).await;
    client.delete(child).await.unwrap_err();
    // What ended in this very moment is not older than nothing.
    let purged = loop {
        match client.purge(Duration::ZERO, None).await.unwrap() {
            0 => tokio::time::sleep(Duration::from_millis(1)).await,
            purged => break purged,
        }
    };
    assert_eq!(purged, 2);
}

#[tokio::test]
async fn a_child_is_kept_for_a_parent_that_is_retried() {
    on_stores(a_child_that_waits_to_be_joined).await;
}

/// A task that fails, and one that is cancelled, with messages that they have not received.
async fn messages_that_were_not_received(client: Durable, world: World) {
    let seen = world.clone();
    let task = move |times: u32, ctx: TaskContext| {
        let world = seen.clone();
        async move {
            let first: u32 = ctx.recv("topic", None).await?;
            ctx.step("check", || async { world.needs_mending() }).await?;
            let mut received = vec![first];
            for _ in 1..times {
                received.push(ctx.recv("topic", 60 * SECOND).await?);
            }
            let nothing = ctx.recv::<u32>("topic", Duration::from_millis(1)).await;
            assert!(matches!(nothing, Err(TaskError::Timeout { .. })));
            Ok(received)
        }
    };
    client.register_fn("task", task).await.unwrap();
    let retried = async |task_id| {
        client.send(task_id, "topic", &0_u32).await.unwrap_err();
        client.retry(task_id).await.unwrap();
        client.send(task_id, "topic", &4_u32).await.unwrap();
        let received = client.wait::<Vec<u32>>(task_id).await.unwrap();
        assert_eq!(received, [1, 2, 3, 4]);
    };
    let send = async |task_id| {
        for message in 1..=3_u32 {
            client.send(task_id, "topic", &message).await.unwrap();
        }
    };
    let later = || once().delay(Duration::from_millis(50));
    let fails = client.spawn_named("task", &4_u32).options(later()).await.unwrap().task_id;
    send(fails).await;
    until_state(&client, fails, TaskState::Failed).await;
    world.mended.store(true, Ordering::SeqCst);
    retried(fails).await;

    let cancelled = client
        .spawn_named("task", &4_u32)
        .options(once().delay(1_000 * SECOND))
        .await
        .unwrap()
        .task_id;
    send(cancelled).await;
    client.cancel(cancelled).await.unwrap();
    until_state(&client, cancelled, TaskState::Cancelled).await;
    retried(cancelled).await;

    // They travel with a task that has failed.
    let moves = client
        .spawn_named("task", &4_u32)
        .options(once().delay(1_000 * SECOND))
        .await
        .unwrap()
        .task_id;
    send(moves).await;
    client.cancel(moves).await.unwrap();
    let export = client.export(moves).await.unwrap();
    client.delete(moves).await.unwrap();
    client.import(export).await.unwrap();
    retried(moves).await;
}

#[tokio::test]
async fn a_retry_receives_what_the_task_had_not() {
    on_stores(messages_that_were_not_received).await;
}
