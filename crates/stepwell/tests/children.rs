//! Children that exist already: a spawn with a key that is taken, or one that is coalesced.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "a test ends by a panic")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use stepwell::testing::{Harness, Intercepted, Process, worker_options};
use stepwell::*;

const SECOND: Duration = Duration::from_secs(1);

static RUNS: AtomicU32 = AtomicU32::new(0);

#[stepwell::task]
async fn print(n: u32, ctx: TaskContext) -> TaskResult<u32> {
    ctx.await_event::<()>("paper", None).await?;
    ctx.step("print", || async { Ok(RUNS.fetch_add(1, Ordering::SeqCst)) }).await?;
    Ok(n)
}

fn keyed() -> SpawnOptions {
    SpawnOptions::new().idempotency_key("the print").concurrency_key("printer")
}

/// Starts a process with a parent that spawns with these options and joins, and a child.
async fn start(harness: &Harness, options: fn() -> SpawnOptions) -> Process {
    let process = harness.start().await;
    process.register::<print>().await.unwrap();
    let parent = move |n: u32, ctx: TaskContext| async move {
        let child = ctx.spawn::<print>("print", n).options(options()).await?;
        ctx.emit_event(format!("spawned {n}"), &(child.task_id(), child.disposition())).await?;
        ctx.join(&child).await
    };
    process.register_fn("parent", parent).await.unwrap();
    process
}

async fn spawn_parent(process: &Process, n: u32) -> TaskId {
    process.spawn_named("parent", &n).max_attempts(1).await.unwrap().task_id
}

/// What the parent was told of its child.
async fn told(process: &Process, parent: TaskId) -> (TaskId, Disposition) {
    loop {
        for entry in process.journal(parent).await.unwrap() {
            if let (Kind::Spawn, Outcome::Done(payload)) = (entry.key.kind, entry.outcome) {
                let text = payload.decode::<serde_json::Value>().unwrap();
                return match text.get("disposition") {
                    Some(disposition) => (
                        serde_json::from_value(text["task_id"].clone()).unwrap(),
                        serde_json::from_value(disposition.clone()).unwrap(),
                    ),
                    None => (serde_json::from_value(text).unwrap(), Disposition::Created),
                };
            }
        }
        tokio::time::sleep(SECOND).await;
    }
}

fn failure<T: std::fmt::Debug>(result: Result<T, Error>) -> String {
    match result {
        Err(Error::TaskFailed { failure, .. }) => failure.to_string(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_child_whose_key_is_taken_is_the_task_that_has_it() {
    let harness = Harness::new();
    let process = start(&harness, keyed).await;
    let there = process.spawn::<print>(7).options(keyed()).await.unwrap();
    process.start_worker(worker_options()).await;
    let parents = [spawn_parent(&process, 1).await, spawn_parent(&process, 2).await];
    for parent in parents {
        assert_eq!(told(&process, parent).await, (there.task_id, Disposition::Existing));
    }
    process.emit_event("paper", &()).await.unwrap();
    for parent in parents {
        assert_eq!(process.wait::<u32>(parent).await.unwrap(), 7);
        assert!(
            process
                .tasks(TaskFilter { parent: Some(parent), ..TaskFilter::default() })
                .await
                .unwrap()
                .items
                .is_empty()
        );
    }
    // One that ended long ago, also in another process, which has to replay.
    tokio::time::sleep(100_000 * SECOND).await;
    let late = spawn_parent(&process, 3).await;
    assert_eq!(process.wait::<u32>(late).await.unwrap(), 7);
}

#[tokio::test(start_paused = true)]
async fn a_parent_that_is_cancelled_leaves_a_task_that_it_did_not_create() {
    let harness = Harness::new();
    let process = start(&harness, keyed).await;
    process.start_worker(worker_options()).await;
    let creator = spawn_parent(&process, 1).await;
    let (child, created) = told(&process, creator).await;
    let parent = spawn_parent(&process, 2).await;
    assert_eq!(
        (told(&process, parent).await, created),
        ((child, Disposition::Existing), Disposition::Created)
    );
    process.cancel(parent).await.unwrap();
    assert!(matches!(process.wait::<u32>(parent).await, Err(Error::TaskCancelled(_))));
    assert!(!process.task(child).await.unwrap().unwrap().state.is_finished());
    process.cancel(creator).await.unwrap();
    assert!(matches!(process.wait::<u32>(child).await, Err(Error::TaskCancelled(_))));
}

#[tokio::test(start_paused = true)]
async fn a_task_that_another_was_answered_with_is_kept_until_that_one_has_joined_it() {
    let harness = Harness::new();
    let process = start(&harness, keyed).await;
    let there = process.spawn::<print>(7).options(keyed()).await.unwrap();
    let late = |(): (), ctx: TaskContext| async move {
        let child = ctx.spawn::<print>("print", 1).options(keyed()).await?;
        ctx.sleep_for("a while", 100 * SECOND).await?;
        ctx.join(&child).await
    };
    process.register_fn("late", late).await.unwrap();
    process.start_worker(worker_options()).await;
    let parent = process.spawn_named("late", &()).max_attempts(1).await.unwrap().task_id;
    assert_eq!(told(&process, parent).await.0, there.task_id);
    process.cancel(there.task_id).await.unwrap();
    let refused = process.delete(there.task_id).await.unwrap_err();
    assert!(matches!(refused, Error::Needed { by, .. } if by == parent), "{refused}");
    let error = failure(process.wait::<u32>(parent).await);
    assert!(error.contains("cancelled"), "{error}");
    // It has failed, and joins the other one again when it is retried.
    let refused = process.delete(there.task_id).await.unwrap_err();
    assert!(matches!(refused, Error::Needed { by, .. } if by == parent), "{refused}");
    process.delete(parent).await.unwrap();
    process.delete(there.task_id).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_child_is_coalesced_with_a_task_that_waits_to_start() {
    fn coalesced(how: Coalesce) -> SpawnOptions {
        SpawnOptions::new().coalesced("printer", how)
    }
    let harness = Harness::new();
    let process = start(&harness, || coalesced(Coalesce::Reuse)).await;
    let rejecting = |(): (), ctx: TaskContext| async move {
        ctx.spawn::<print>("print", 1).options(coalesced(Coalesce::Reject)).await?;
        Ok(())
    };
    process.register_fn("rejecting", rejecting).await.unwrap();
    let later = || coalesced(Coalesce::Reuse).delay(100 * SECOND);
    let there = process.spawn::<print>(7).options(later()).await.unwrap();
    process.start_worker(worker_options()).await;
    let parent = spawn_parent(&process, 1).await;
    assert_eq!(told(&process, parent).await, (there.task_id, Disposition::Coalesced));
    let rejected = process.spawn_named("rejecting", &()).max_attempts(1).await.unwrap().task_id;
    let error = failure(process.wait::<()>(rejected).await);
    let expected = format!("not spawned: task {}, of the same type", there.task_id);
    assert!(error.contains(&expected), "{error}");
    process.emit_event("paper", &()).await.unwrap();
    assert_eq!(process.wait::<u32>(parent).await.unwrap(), 7);
    let spawns = [(1, keyed()), (2, keyed()), (3, later()), (4, later())];
    let answers = process.spawn_many(
        spawns.map(|(copies, options)| process.spawn::<print>(copies).options(options)),
    );
    let answers: Vec<_> =
        answers.await.unwrap().into_iter().map(|spawned| spawned.disposition).collect();
    use Disposition::{Coalesced, Created, Existing};
    assert_eq!(answers, [Created, Existing, Coalesced, Coalesced]);
}

#[tokio::test(start_paused = true)]
async fn a_task_that_would_join_itself_is_told_so() {
    let harness = Harness::new();
    let process = harness.start().await;
    let narcissus = |(): (), ctx: TaskContext| async move {
        let own = SpawnOptions::new().idempotency_key("own");
        let child: Child<()> = ctx.spawn_named("mirror", "narcissus", &()).options(own).await?;
        ctx.join(&child).await
    };
    process.register_fn("narcissus", narcissus).await.unwrap();
    process.start_worker(worker_options()).await;
    let own = SpawnOptions::new().idempotency_key("own");
    let task = process.spawn_named("narcissus", &()).options(own).await.unwrap().task_id;
    let error = failure(process.wait::<()>(task).await);
    assert!(error.contains("the task would wait for itself"), "{error}");
}

/// A child that ended long ago is kept for a parent that has yet to join it, whatever would remove
/// it.
#[tokio::test(start_paused = true)]
async fn a_finished_child_is_kept_until_its_parent_has_ended() {
    let harness = Harness::new();
    let process = harness.start_with(|builder| builder.retention(10 * SECOND)).await.unwrap();
    process.register_fn("quick", |n: u32, _ctx| async move { Ok(n) }).await.unwrap();
    let parent = |(): (), ctx: TaskContext| async move {
        let child: Child<u32> = ctx.spawn_named("child", "quick", &7).await?;
        ctx.sleep_for("long", 1_000_000 * SECOND).await?;
        ctx.join(&child).await
    };
    process.register_fn("parent", parent).await.unwrap();
    process.start_worker(worker_options()).await;
    let parent = process.spawn_named("parent", &()).max_attempts(1).await.unwrap().task_id;
    tokio::time::sleep(500_000 * SECOND).await;
    assert_eq!(process.purge(Duration::ZERO, None).await.unwrap(), 0);
    let child = told(&process, parent).await.0;
    match process.delete(child).await {
        Err(Error::Needed { task_id, by }) => assert_eq!((task_id, by), (child, parent)),
        other => panic!("{other:?}"),
    }
    assert_eq!(process.wait::<u32>(parent).await.unwrap(), 7);
    tokio::time::sleep(SECOND).await;
    assert_eq!(process.purge(Duration::ZERO, None).await.unwrap(), 2);
}

/// The store fails some times: the child is there once, and known under its true id.
#[tokio::test(start_paused = true)]
async fn a_keyed_child_is_spawned_once_though_the_store_fails() {
    let harness = Harness::new();
    let fails = Arc::new(AtomicU32::new(0));
    let store = Intercepted::new(Arc::new(harness.store()), {
        let fails = fails.clone();
        move |store, batch| {
            let spawns = batch.transitions.iter().any(|transition| transition.keyed.is_some());
            if spawns && fails.fetch_add(1, Ordering::SeqCst) < 3 {
                return Box::pin(async { Err(StoreError::Locked("by a test".into())) });
            }
            store.commit(batch.into())
        }
    });
    let process = harness.start_on(Arc::new(store), |builder| builder).await.unwrap();
    process.register::<print>().await.unwrap();
    let parent = |(): (), ctx: TaskContext| async move {
        let child = ctx.spawn::<print>("print", 5).options(keyed()).await?;
        ctx.join(&child).await
    };
    process.register_fn("parent", parent).await.unwrap();
    process.start_worker(worker_options()).await;
    process.emit_event("paper", &()).await.unwrap();
    let parent = process.spawn_named("parent", &()).await.unwrap().task_id;
    assert_eq!(process.wait::<u32>(parent).await.unwrap(), 5);
    assert!(fails.load(Ordering::SeqCst) > 3);
    let children = TaskFilter { parent: Some(parent), ..TaskFilter::default() };
    assert_eq!(process.tasks(children).await.unwrap().items.len(), 1);
}

/// A spawn that loses a `select!` while an earlier commit is on its way leaves nothing that a
/// replay would miss.
#[tokio::test(start_paused = true)]
async fn a_keyed_spawn_that_is_dropped_before_its_commit_is_not_journaled() {
    let harness = Harness::new();
    let held = Arc::new(AtomicBool::new(false));
    let store = Intercepted::new(Arc::new(harness.store()), {
        let held = held.clone();
        move |store, batch| {
            let held = held.clone();
            Box::pin(async move {
                let journals =
                    batch.transitions.iter().any(|transition| !transition.entries.is_empty());
                if journals && !held.swap(true, Ordering::SeqCst) {
                    // The first entry is long on its way.
                    tokio::time::sleep(10 * SECOND).await;
                }
                store.commit(batch.into()).await
            })
        }
    });
    let process = harness.start_on(Arc::new(store), |builder| builder).await.unwrap();
    process.register::<print>().await.unwrap();
    let parent = |(): (), ctx: TaskContext| async move {
        ctx.now().await?;
        // Long enough for the first commit to leave.
        tokio::time::sleep(SECOND).await;
        let branch = tokio::select! {
            child = ctx.spawn::<print>("print", 5).options(keyed()) => child.map(|_| "spawned")?,
            () = async { tokio::time::sleep(SECOND).await } => "dropped",
        };
        let kept = ctx.step("branch", || async move { Ok(branch.to_owned()) }).await?;
        ctx.sleep_for("nap", 100_000 * SECOND).await?;
        ctx.step("after", || async { Ok(()) }).await?;
        Ok(kept)
    };
    process.register_fn("parent", parent).await.unwrap();
    process.start_worker(worker_options()).await;
    let parent = process.spawn_named("parent", &()).await.unwrap().task_id;
    tokio::time::sleep(100 * SECOND).await;
    let spawned = process.journal(parent).await.unwrap();
    assert!(held.load(Ordering::SeqCst));
    assert!(spawned.iter().all(|entry| entry.key.kind != Kind::Spawn), "{spawned:#?}");
    assert_eq!(
        process.tasks(TaskFilter::default()).await.unwrap().items.len(),
        1,
        "and the child is not spawned"
    );
}

/// It would wait for a child that waits for its turn behind it.
async fn joins_behind_itself(client: Durable) {
    let leaf = |(): (), _ctx: TaskContext| async { Ok(7_u32) };
    client.register_fn("leaf", leaf).await.unwrap();
    let parent = |how: String, ctx: TaskContext| async move {
        let own = SpawnOptions::new().concurrency_key("acme");
        let options = match how.as_str() {
            "coalesced" => SpawnOptions::new().coalesced("acme", Coalesce::Reuse),
            "keyed" => own.idempotency_key(ctx.task_id.to_string()),
            "another scope" => own.scope(Scope::default().label("tenant", "b")),
            "another key" => SpawnOptions::new().concurrency_key("emca"),
            _ => own,
        };
        let child = ctx.spawn_named::<_, u32>("child", "leaf", &()).options(options).await?;
        if how == "not joined" {
            return Ok(0);
        }
        // Also when it goes on from its journal.
        ctx.sleep_for("nap", Duration::from_millis(1)).await?;
        ctx.join(&child).await
    };
    client.register_fn("parent", parent).await.unwrap();
    let options = || SpawnOptions::new().concurrency_key("acme");
    for (how, expected) in [
        ("plain", None),
        ("keyed", None),
        ("coalesced", None),
        ("another scope", Some(7)),
        ("another key", Some(7)),
        ("not joined", Some(0)),
    ] {
        let task = client.spawn_named("parent", how).options(options()).await.unwrap().task_id;
        let ended = tokio::time::timeout(60 * SECOND, client.wait::<u32>(task)).await;
        let ended = ended.unwrap_or_else(|_| panic!("{how} waits for ever"));
        match expected {
            Some(output) => assert_eq!(ended.unwrap(), output, "{how}"),
            None => {
                let said = failure(ended);
                assert!(
                    said.contains("the child \"child\" (task ") && said.contains("key \"acme\""),
                    "{how}: {said}"
                );
                assert_eq!(client.task(task).await.unwrap().unwrap().attempt, 1, "{how}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_task_that_joins_a_child_of_its_own_key_is_told_so() {
    let process = Harness::new().start().await;
    process.start_worker(worker_options().max_in_memory(0)).await;
    joins_behind_itself(process.client().clone()).await;
}

#[tokio::test]
async fn a_task_that_joins_a_child_of_its_own_key_is_told_so_on_sqlite() {
    let client = Durable::builder().database_url("sqlite::memory:").build().await.unwrap();
    client.start_worker(worker_options().max_in_memory(0)).await;
    joins_behind_itself(client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_joins_a_child_of_its_own_key_is_told_so_on_postgres() {
    let server = throwaway::Postgres::start().unwrap();
    let client = Durable::builder().database_url(server.url()).build().await.unwrap();
    client.start_worker(worker_options().max_in_memory(0)).await;
    joins_behind_itself(client).await;
}
