//! Tasks that wait for each other: the one that would close the circle gets an error, and none
//! waits for ever.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "a test ends by a panic")]

use std::time::Duration;

use stepwell::testing::{Harness, worker_options};
use stepwell::*;

const MINUTE: Duration = Duration::from_secs(60);

/// What a task is to do: which children it spawns and joins, and how.
#[derive(Clone, serde::Serialize, serde::Deserialize)]
struct Plan {
    /// It waits for this event first.
    after: Option<String>,
    child: Option<Box<Self>>,
    /// The child's keys.
    concurrency_key: Option<String>,
    idempotency_key: Option<String>,
    /// Whether it handles the join's error.
    handles: bool,
    /// Whether it goes on by itself after a while.
    gives_up: bool,
}

fn leaf() -> Plan {
    Plan {
        after: None,
        child: None,
        concurrency_key: None,
        idempotency_key: None,
        handles: false,
        gives_up: false,
    }
}

fn joining(child: Plan) -> Plan {
    Plan { child: Some(Box::new(child)), ..leaf() }
}

fn joining_with_key(key: &str, child: Plan) -> Plan {
    Plan { concurrency_key: Some(key.into()), ..joining(child) }
}

/// Returns `ok` where it joins nobody, and otherwise what its child returns, or the error that it
/// has handled.
#[stepwell::task]
async fn chain(plan: Plan, ctx: TaskContext) -> TaskResult<String> {
    if let Some(event) = plan.after {
        ctx.await_event::<()>(event, None).await?;
    }
    let Some(child) = plan.child else { return Ok("ok".into()) };
    let mut options = SpawnOptions::new().max_attempts(3);
    if let Some(key) = plan.concurrency_key {
        options = options.concurrency_key(key);
    }
    if let Some(key) = plan.idempotency_key {
        options = options.idempotency_key(key);
    }
    let child = ctx.spawn::<chain>("next", *child).options(options).await?;
    let joined = ctx.join(&child);
    let joined = if plan.gives_up {
        tokio::select! {
            joined = joined => joined,
            _ = ctx.sleep_for("patience", Duration::from_millis(50)) => return Ok("gave up".into()),
        }
    } else {
        joined.await
    };
    match joined {
        Err(error @ TaskError::JoinsBlocked { .. }) if plan.handles => Ok(error.to_string()),
        joined => joined,
    }
}

async fn ended(client: &Durable, task: TaskId) -> Result<String, Error> {
    let ended = tokio::time::timeout(MINUTE, client.wait(task)).await;
    ended.unwrap_or_else(|_| panic!("task {task} waits for ever"))
}

fn said(ended: Result<String, Error>) -> String {
    match ended {
        Ok(output) => output,
        Err(Error::TaskFailed { failure, .. }) => failure.to_string(),
        Err(error) => panic!("{error}"),
    }
}

async fn spawn(client: &Durable, plan: Plan, options: SpawnOptions) -> TaskId {
    client.spawn::<chain>(plan).options(options.max_attempts(3)).await.unwrap().task_id
}

async fn all_end(client: &Durable) {
    for task in client.tasks(TaskFilter::default()).await.unwrap() {
        _ = ended(client, task.task_id).await;
    }
}

const FOR_EVER: &str = "the task would wait for ever: the child \"next\" (task ";

async fn circles(client: Durable) {
    client.register::<chain>().await.unwrap();
    let holding = |key: &str| SpawnOptions::new().concurrency_key(key);

    // A key that comes twice in a chain, with tasks in between.
    for between in 1..4 {
        let mut plan = joining_with_key("k", leaf());
        for _ in 1..between {
            plan = joining(plan);
        }
        let task = spawn(&client, joining(plan), holding("k")).await;
        let said = said(ended(&client, task).await);
        assert!(said.contains(FOR_EVER), "{between}: {said}");
        all_end(&client).await;
        let info = client.task(task).await.unwrap().unwrap();
        assert_eq!(info.attempt, 1, "{between}: another attempt would find the same");
    }

    // The same, and the task that gets the error handles it: all of them complete.
    let handles = |plan| Plan { handles: true, ..plan };
    let plan = handles(joining(handles(joining_with_key("k", leaf()))));
    let task = spawn(&client, plan, holding("k")).await;
    let output = ended(&client, task).await.unwrap();
    assert!(output.contains(FOR_EVER), "{output}");
    all_end(&client).await;

    // Two tasks that hold a key each, and join a child that has the other's.
    let after = |event: &str, plan| Plan { after: Some(event.into()), ..plan };
    let one = spawn(&client, after("both", joining_with_key("b", leaf())), holding("a")).await;
    let two = spawn(&client, after("both", joining_with_key("a", leaf())), holding("b")).await;
    while client
        .tasks(TaskFilter { state: Some(TaskState::Suspended), ..TaskFilter::default() })
        .await
        .unwrap()
        .items
        .len()
        < 2
    {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    client.emit_event("both", &()).await.unwrap();
    let ends = [ended(&client, one).await, ended(&client, two).await];
    assert_eq!(ends.iter().filter(|end| end.is_ok()).count(), 1, "{ends:?}");
    let said_so = ends.into_iter().map(said).filter(|said| said.starts_with(FOR_EVER)).count();
    assert_eq!(said_so, 1);
    all_end(&client).await;

    // Two tasks that join each other, without any key that makes them wait for a turn.
    let named = |key: &str| SpawnOptions::new().idempotency_key(key);
    let joins = |key: &str, event: &str| {
        after(event, Plan { idempotency_key: Some(key.into()), ..joining(leaf()) })
    };
    let one = spawn(&client, joins("two", "each other"), named("one")).await;
    let two = spawn(&client, joins("one", "each other"), named("two")).await;
    client.emit_event("each other", &()).await.unwrap();
    let ends = [said(ended(&client, one).await), said(ended(&client, two).await)];
    assert!(ends.iter().all(|said| said.contains(FOR_EVER)), "{ends:?}");
    let own = ends.iter().filter(|said| said.starts_with(FOR_EVER)).count();
    assert_eq!(own, 1, "the other one is told that its child has failed: {ends:?}");

    // One of them gives up waiting after a while: it is no circle.
    let plan = joining(Plan { gives_up: true, ..joining_with_key("k", leaf()) });
    let task = spawn(&client, plan, holding("k")).await;
    assert_eq!(ended(&client, task).await.unwrap(), "gave up");
    all_end(&client).await;

    // A task that only waits takes no room in its queue.
    let limits = QueueLimits { max_running: Some(1), ..QueueLimits::default() };
    client.queues().limit("default", limits).await.unwrap();
    let task = spawn(&client, joining(joining(leaf())), SpawnOptions::new()).await;
    assert_eq!(ended(&client, task).await.unwrap(), "ok");
}

#[tokio::test(start_paused = true)]
async fn a_task_that_closes_a_circle_gets_an_error() {
    let process = Harness::new().start().await;
    process.start_worker(worker_options()).await;
    circles(process.client().clone()).await;
}

/// Each task goes on from its journal each time.
#[tokio::test(start_paused = true)]
async fn a_task_that_closes_a_circle_gets_an_error_again_from_its_journal() {
    let process = Harness::new().start().await;
    process.start_worker(worker_options().max_in_memory(0)).await;
    circles(process.client().clone()).await;
}

#[tokio::test]
async fn a_task_that_closes_a_circle_gets_an_error_on_sqlite() {
    let client = Durable::builder().database_url("sqlite::memory:").build().await.unwrap();
    client.start_worker(worker_options().max_in_memory(0)).await;
    circles(client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_closes_a_circle_gets_an_error_on_postgres() {
    let server = throwaway::Postgres::start().unwrap();
    let client = Durable::builder().database_url(server.url()).build().await.unwrap();
    client.start_worker(worker_options().max_in_memory(0)).await;
    circles(client).await;
}
