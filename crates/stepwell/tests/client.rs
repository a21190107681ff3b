//! What a client can ask, call by call, in virtual time.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::unit_arg,
    missing_docs,
    reason = "a test ends by a panic"
)]

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use stepwell::store::{after, until};
use stepwell::testing::{Harness, Process, worker_options};
use stepwell::*;

const SECOND: Duration = Duration::from_secs(1);

#[stepwell::task]
async fn echo(text: String, ctx: TaskContext) -> TaskResult<String> {
    ctx.step("echo", || async { Ok(text.clone()) }).await
}

#[stepwell::task]
async fn wait_for_go(_ctx_is_last: (), ctx: TaskContext) -> TaskResult<String> {
    ctx.await_event("go", None).await
}

async fn process(harness: &Harness) -> Process {
    let process = harness.start().await;
    process.register::<echo>().await.unwrap();
    process.register::<wait_for_go>().await.unwrap();
    process
}

#[tokio::test(start_paused = true)]
async fn two_task_types_of_one_name_are_an_error() {
    #[stepwell::task(name = "echo")]
    async fn other(_n: u32) -> TaskResult<()> {
        Ok(())
    }
    let process = process(&Harness::new()).await;
    process.register::<echo>().await.unwrap();
    let error = process.register::<other>().await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "two task types are named \"echo\": a task finds its code by that name, so give one of \
         them another `NAME`"
    );
    let function = |(): (), _ctx: TaskContext| async { Ok(()) };
    assert!(matches!(
        process.register_fn("echo", function).await,
        Err(Error::DuplicateTaskType(_))
    ));
    process.register_fn("function", function).await.unwrap();
    assert!(matches!(
        process.register_fn("function", function).await,
        Err(Error::DuplicateTaskType(_))
    ));
    assert!(matches!(
        process.register_fn("", function).await,
        Err(Error::Name(InvalidName::Empty))
    ));
}

#[tokio::test(start_paused = true)]
async fn an_idempotency_key_makes_one_task_also_under_concurrent_spawns() {
    let harness = Harness::new();
    let process = process(&harness).await;
    let options = SpawnOptions::new().idempotency_key("order 7");
    let spawns = (0..20)
        .map(|n| process.spawn::<echo>(n.to_string()).options(options.clone()).into_future());
    let spawned = futures_util::future::try_join_all(spawns).await.unwrap();
    assert_eq!(spawned.iter().filter(|spawned| spawned.created()).count(), 1);
    assert!(spawned.iter().all(|other| other.task_id == spawned[0].task_id));
    let other = harness.start().await;
    let again = other.spawn::<echo>("again".into()).options(options.clone()).await.unwrap();
    assert_eq!(
        (again.task_id, again.run_id, again.disposition),
        (spawned[0].task_id, spawned[0].run_id, Disposition::Existing)
    );
    // The key is of the task type, and free again when its task is deleted.
    let of_another_type = process.spawn::<wait_for_go>(()).options(options.clone()).await.unwrap();
    assert!(of_another_type.created());
    process.cancel(again.task_id).await.unwrap();
    process.delete(again.task_id).await.unwrap();
    assert!(process.spawn::<echo>("new".into()).options(options).await.unwrap().created());
}

#[tokio::test(start_paused = true)]
async fn a_type_is_registered_when_the_call_returns_and_a_spawn_outlives_its_caller() {
    let harness = Harness::new();
    let process = harness.start().await;
    process.register::<echo>().into_inner().unwrap();
    let function = async |(): (), _: TaskContext| Ok(());
    let taken = process.register_fn("echo", function).into_inner();
    assert!(matches!(taken, Err(Error::DuplicateTaskType(name)) if name == "echo"));
    let unnamed = process.register_fn("", function).into_inner();
    assert!(matches!(unnamed, Err(Error::Name(InvalidName::Empty))));
    process.start_worker(worker_options()).await;
    let spawn = process.spawn::<echo>("later".into()).priority(3).delay(Duration::from_secs(60));
    let spawned = tokio::spawn(spawn.into_future()).await.unwrap().unwrap();
    assert_eq!(process.wait::<String>(spawned.task_id).await.unwrap(), "later");
    let info = process.task(spawned.task_id).await.unwrap().unwrap();
    assert_eq!(info.priority, 3);
    // What is wrong with a spawn is said when it is awaited.
    let wrong = process.spawn_named("", &1).queue("fine").await.unwrap_err();
    assert!(matches!(wrong, Error::Name(InvalidName::Empty)), "{wrong}");
    let unknown = process.spawn_workflow("nowhere", &()).await.unwrap_err();
    assert!(matches!(unknown, Error::Workflow(WorkflowError::NotRegistered { .. })), "{unknown}");
}

#[tokio::test(start_paused = true)]
async fn many_tasks_are_spawned_in_one_commit_or_none() {
    let harness = Harness::new();
    let process = process(&harness).await;
    let tasks = (0..500).map(|n| process.spawn::<echo>(n.to_string()));
    let spawned = process.spawn_many(tasks).await.unwrap();
    process.start_worker(worker_options()).await;
    for (n, spawned) in spawned.iter().enumerate() {
        assert_eq!(process.wait::<String>(spawned.task_id).await.unwrap(), n.to_string());
    }
    let bad = [
        process.spawn::<echo>("fine".to_owned()),
        process.spawn::<echo>("bad".to_owned()).queue(""),
    ];
    assert!(matches!(process.spawn_many(bad).await, Err(Error::Name(InvalidName::Empty))));
    let filter = TaskFilter { limit: 1000, ..TaskFilter::default() };
    assert_eq!(process.tasks(filter).await.unwrap().items.len(), 500);
}

#[tokio::test(start_paused = true)]
async fn tasks_of_a_higher_priority_go_first_and_then_the_older_ones() {
    let harness = Harness::new();
    let process = process(&harness).await;
    let order = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let seen = order.clone();
    let noting = move |name: String, ctx: TaskContext| {
        let seen = seen.clone();
        async move { ctx.step("note", || async move { Ok(seen.lock().unwrap().push(name)) }).await }
    };
    process.register_fn("note", noting).await.unwrap();
    let mut last = None;
    for (name, priority) in [("a", 0), ("b", 5), ("c", 0), ("d", 5), ("e", -1)] {
        let options = SpawnOptions::new().priority(priority);
        last = Some(process.spawn_named("note", name).options(options).await.unwrap());
        tokio::time::sleep(SECOND).await;
    }
    process.start_worker(worker_options().concurrency(1)).await;
    process.wait::<()>(last.unwrap().task_id).await.unwrap();
    assert_eq!(*order.lock().unwrap(), ["b", "d", "a", "c", "e"]);
}

#[tokio::test(start_paused = true)]
async fn a_task_starts_no_earlier_than_it_is_told() {
    let harness = Harness::new();
    let process = process(&harness).await;
    process.start_worker(worker_options()).await;
    let start = harness.now();
    let delayed = SpawnOptions::new().delay(100 * SECOND);
    let task = process.spawn::<echo>("later".into()).options(delayed).await.unwrap();
    let info = process.task(task.task_id).await.unwrap().unwrap();
    assert_eq!((info.state, info.due_at), (TaskState::Pending, Some(after(start, 100 * SECOND))));
    process.wait::<String>(task.task_id).await.unwrap();
    let waited = until(start, harness.now());
    assert!(waited >= 100 * SECOND && waited < 101 * SECOND, "{waited:?}");
    let at = SpawnOptions::new().start_at(after(harness.now(), 50 * SECOND));
    let task = process.spawn::<echo>("at".into()).options(at).await.unwrap();
    process.wait::<String>(task.task_id).await.unwrap();
    assert!(until(start, harness.now()) >= 150 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn cancelling_ends_a_task_in_every_state_and_its_children() {
    let harness = Harness::new();
    let process = process(&harness).await;
    let pending = process.spawn::<echo>("x".into()).await.unwrap().task_id;
    process.cancel(pending).await.unwrap();
    assert!(matches!(process.wait::<String>(pending).await, Err(Error::TaskCancelled(_))));

    let parent = |(): (), ctx: TaskContext| async move {
        let child = ctx.spawn::<wait_for_go>("child", ()).await?;
        ctx.join(&child).await
    };
    process.register_fn("parent", parent).await.unwrap();
    process.start_worker(worker_options()).await;
    let suspended = process.spawn_named("parent", &()).await.unwrap().task_id;
    let children = TaskFilter {
        parent: Some(suspended),
        state: Some(TaskState::Suspended),
        ..TaskFilter::default()
    };
    let child = loop {
        tokio::time::sleep(SECOND).await;
        if let [child] = process.tasks(children.clone()).await.unwrap().items.as_slice() {
            break child.task_id;
        }
    };
    process.cancel(suspended).await.unwrap();
    for task_id in [suspended, child] {
        let ended = tokio::time::timeout(60 * SECOND, process.wait::<String>(task_id)).await;
        assert!(matches!(ended.expect("it goes on"), Err(Error::TaskCancelled(_))));
    }
    let error = process.cancel(suspended).await.unwrap_err();
    assert_eq!(error.to_string(), format!("cannot cancel task {suspended}: it is cancelled"));
    let nobody = TaskId::from(uuid::Uuid::nil());
    assert!(matches!(process.cancel(nobody).await, Err(Error::NotFound(_))));
    assert!(matches!(process.wait::<()>(nobody).await, Err(Error::NotFound(_))));
}

#[tokio::test(start_paused = true)]
async fn a_paused_task_goes_on_when_it_is_resumed_whatever_comes_and_whoever_dies_meanwhile() {
    let harness = Harness::new();
    let first = process(&harness).await;
    first.start_worker(worker_options()).await;
    let waiting = first.spawn::<wait_for_go>(()).await.unwrap().task_id;
    while first.task(waiting).await.unwrap().unwrap().state != TaskState::Suspended {
        tokio::time::sleep(SECOND / 1_000).await;
    }
    first.pause(waiting).await.unwrap();
    first.emit_event("go", "gone").await.unwrap();
    // Others go on, so the worker has looked since.
    let other = first.spawn::<echo>("other".into()).await.unwrap().task_id;
    first.wait::<String>(other).await.unwrap();
    let info = first.task(waiting).await.unwrap().unwrap();
    assert!(info.paused && info.state == TaskState::Pending, "{info:?}");
    first.kill().await;

    let second = process(&harness).await;
    second.start_worker(worker_options()).await;
    let late = second.spawn::<echo>("late".into()).await.unwrap().task_id;
    second.wait::<String>(late).await.unwrap();
    tokio::time::sleep(60 * SECOND).await;
    assert!(second.task(waiting).await.unwrap().unwrap().paused);
    second.resume(waiting).await.unwrap();
    assert_eq!(second.wait::<String>(waiting).await.unwrap(), "gone");
    let error = second.pause(waiting).await.unwrap_err();
    assert_eq!(error.to_string(), format!("cannot pause task {waiting}: it is completed"));
    second.shutdown(Duration::ZERO).await;
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_child_is_an_error_value_for_its_parent() {
    let harness = Harness::new();
    let process = process(&harness).await;
    let parent = |(): (), ctx: TaskContext| async move {
        let child = ctx.spawn::<wait_for_go>("child", ()).await?;
        ctx.emit_event("child is there", &child.task_id()).await?;
        match ctx.join(&child).await {
            Err(TaskError::Child { failure, .. }) => Ok(failure.message),
            other => panic!("{other:?}"),
        }
    };
    process.register_fn("parent", parent).await.unwrap();
    process
        .register_fn("canceller", |(): (), ctx: TaskContext| async move {
            ctx.await_event::<TaskId>("child is there", None).await
        })
        .await
        .unwrap();
    process.start_worker(worker_options()).await;
    let parent = process.spawn_named("parent", &()).await.unwrap();
    let canceller = process.spawn_named("canceller", &()).await.unwrap();
    let child: TaskId = process.wait(canceller.task_id).await.unwrap();
    process.cancel(child).await.unwrap();
    assert_eq!(
        process.wait::<String>(parent.task_id).await.unwrap(),
        "the child task was cancelled"
    );
}

#[tokio::test(start_paused = true)]
async fn a_failed_task_is_retried_from_its_journal_and_a_finished_one_deleted() {
    static FIRST: AtomicU32 = AtomicU32::new(0);
    static MENDED: AtomicU32 = AtomicU32::new(0);
    let harness = Harness::new();
    let process = process(&harness).await;
    let broken = |(): (), ctx: TaskContext| async move {
        ctx.step("first", || async { Ok(FIRST.fetch_add(1, Ordering::SeqCst)) }).await?;
        ctx.step("second", || async {
            if MENDED.load(Ordering::SeqCst) == 0 {
                anyhow::bail!("broken")
            }
            Ok(())
        })
        .await
    };
    process.register_fn("broken", broken).await.unwrap();
    process.start_worker(worker_options()).await;
    let options = SpawnOptions::new().max_attempts(2).retry(RetryStrategy::fixed(SECOND));
    let task_id = process.spawn_named("broken", &()).options(options).await.unwrap().task_id;
    let error = process.wait::<()>(task_id).await.unwrap_err();
    assert_eq!(error.to_string(), format!("task {task_id} failed: step \"second\" failed: broken"));
    let error = process.delete(pending(&process).await).await.unwrap_err();
    assert!(error.to_string().contains("cannot delete task"), "{error}");

    MENDED.store(1, Ordering::SeqCst);
    process.retry(task_id).await.unwrap();
    process.wait::<()>(task_id).await.unwrap();
    assert_eq!(FIRST.load(Ordering::SeqCst), 1);
    assert!(matches!(process.retry(task_id).await, Err(Error::NotAllowed { action: "retry", .. })));
    process.delete(task_id).await.unwrap();
    assert!(process.task(task_id).await.unwrap().is_none());
    assert!(process.journal(task_id).await.unwrap().is_empty());
    assert!(matches!(process.retry(task_id).await, Err(Error::NotFound(_))));
}

async fn pending(process: &Process) -> TaskId {
    let later = SpawnOptions::new().delay(1000 * SECOND);
    process.spawn::<echo>("later".into()).options(later).await.unwrap().task_id
}

#[tokio::test(start_paused = true)]
async fn tasks_are_listed_by_filter_and_page() {
    let harness = Harness::new();
    let process = process(&harness).await;
    for n in 0..25 {
        let queue = if n % 2 == 0 { "even" } else { "odd" };
        process.spawn::<echo>(n.to_string()).queue(queue).await.unwrap();
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    process.spawn::<wait_for_go>(()).await.unwrap();
    let name = |name| Some(Name::new(name).unwrap());
    let mut filter = TaskFilter { queue: name("even"), limit: 5, ..TaskFilter::default() };
    let mut seen = Vec::new();
    loop {
        let page = process.tasks(filter.clone()).await.unwrap();
        let Some(last) = page.items.last() else { break };
        filter.before = Some(last.task_id);
        seen.extend(page.items.iter().map(|task| task.params.decode::<String>().unwrap()));
    }
    assert_eq!(
        seen,
        (0..25).rev().filter(|n| n % 2 == 0).map(|n| n.to_string()).collect::<Vec<_>>()
    );
    let of_type = TaskFilter { task_type: name("wait_for_go"), ..TaskFilter::default() };
    assert_eq!(process.tasks(of_type).await.unwrap().items.len(), 1);
    let failed = TaskFilter { state: Some(TaskState::Failed), ..TaskFilter::default() };
    assert!(process.tasks(failed).await.unwrap().items.is_empty());
}

#[tokio::test(start_paused = true)]
async fn the_result_is_waited_for_across_processes() {
    let harness = Harness::new();
    let (spawner, worker) = (harness.start().await, process(&harness).await);
    worker.start_worker(worker_options()).await;
    let task = spawner.spawn::<echo>("from afar".into()).await.unwrap();
    assert_eq!(spawner.wait::<String>(task.task_id).await.unwrap(), "from afar");
    let error = spawner.wait::<u32>(task.task_id).await.unwrap_err();
    assert!(error.to_string().contains("does not fit the type `u32`"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn tasks_are_cancelled_when_they_start_too_late_or_take_too_long() {
    let harness = Harness::new();
    let process = process(&harness).await;
    let policy = CancellationPolicy { max_delay: Some(10 * SECOND), max_duration: None };
    let late = process.spawn::<wait_for_go>(()).cancellation(policy.clone()).await.unwrap();
    tokio::time::sleep(11 * SECOND).await;
    let start = harness.now();
    process.start_worker(worker_options()).await;
    assert!(matches!(process.wait::<String>(late.task_id).await, Err(Error::TaskCancelled(_))));

    let in_time = process.spawn::<wait_for_go>(()).cancellation(policy).await.unwrap();
    let policy = CancellationPolicy { max_delay: None, max_duration: Some(20 * SECOND) };
    let busy = |(): (), ctx: TaskContext| async move {
        ctx.step("hang", std::future::pending::<anyhow::Result<()>>).await
    };
    process.register_fn("busy", busy).await.unwrap();
    let options = SpawnOptions::new().cancellation(policy);
    for task in [
        process.spawn::<wait_for_go>(()).options(options.clone()).await.unwrap(),
        process.spawn_named("busy", &()).options(options).await.unwrap(),
    ] {
        assert!(matches!(process.wait::<String>(task.task_id).await, Err(Error::TaskCancelled(_))));
        let lasted = until(start, harness.now());
        assert!(lasted >= 20 * SECOND && lasted < 40 * SECOND, "{lasted:?}");
    }
    let info = process.task(in_time.task_id).await.unwrap().unwrap();
    assert_eq!(info.state, TaskState::Suspended, "one that started in time goes on");
}

#[tokio::test(start_paused = true)]
async fn lifecycle_events_tell_what_happens() {
    let harness = Harness::new();
    let process = process(&harness).await;
    let flaky = |(): (), ctx: TaskContext| async move {
        ctx.step("one", || async { Ok(()) }).await?;
        ctx.sleep_for("nap", SECOND).await?;
        if ctx.attempt == 1 { Err(anyhow::anyhow!("oops").into()) } else { Ok(7) }
    };
    process.register_fn("flaky", flaky).await.unwrap();
    process.start_worker(worker_options()).await;
    let mut events = process.subscribe();
    let task = process.spawn_named("flaky", &()).await.unwrap();
    process.wait::<u32>(task.task_id).await.unwrap();
    let cancelled = process.spawn::<wait_for_go>(()).await.unwrap();
    process.cancel(cancelled.task_id).await.unwrap();
    let mut seen = Vec::new();
    while !matches!(seen.last(), Some(Lifecycle::TaskCompleted { .. })) {
        seen.push(events.next().await.unwrap());
    }
    let words: Vec<_> = seen
        .iter()
        .map(|event| format!("{event:?}").split([' ', '{']).next().unwrap_or_default().to_owned())
        .collect();
    let expected = [
        "TaskSpawned",
        "TaskStarted",
        "StepStarted",
        "StepCompleted",
        "TaskSuspended",
        "TaskFailed",
        "TaskStarted",
        "TaskCompleted",
    ];
    assert_eq!(words, expected);
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_waits_for_running_tasks_and_releases_the_rest() {
    let harness = Harness::new();
    let register = async |process: &Process| {
        let napping = |millis: u64, ctx: TaskContext| async move {
            ctx.step("begin", || async { Ok(()) }).await?;
            ctx.step("nap", || async {
                Ok(tokio::time::sleep(Duration::from_millis(millis)).await)
            })
            .await?;
            Ok(ctx.attempt)
        };
        process.register_fn("napping", napping).await.unwrap();
    };
    let process = harness.start().await;
    register(&process).await;
    process.start_worker(worker_options()).await;
    let short = process.spawn_named("napping", &1000).await.unwrap();
    let long = process.spawn_named("napping", &1_000_000).await.unwrap();
    let start = harness.now();
    process.shutdown(10 * SECOND).await;
    assert!(until(start, harness.now()) < 11 * SECOND);
    let state = async |task: SpawnResult| process.task(task.task_id).await.unwrap().unwrap();
    assert_eq!(state(short).await.state, TaskState::Completed);
    let released = state(long).await;
    assert_eq!(
        (released.state, released.attempt),
        (TaskState::Pending, 0),
        "the attempt does not count"
    );
    assert_eq!(process.journal(long.task_id).await.unwrap().len(), 1);

    let process = harness.start().await;
    register(&process).await;
    process.start_worker(worker_options()).await;
    assert_eq!(process.wait::<u32>(long.task_id).await.unwrap(), 1);
}

#[tokio::test]
async fn requests_for_the_same_work_are_one_while_it_has_not_begun() -> anyhow::Result<()> {
    let client = Durable::builder().database_url("sqlite::memory:").build().await?;
    let options = |how| SpawnOptions::new().coalesced("index", how);
    let first = client.spawn_named("rebuild", &1).options(options(Coalesce::Reuse)).await?;
    let again = client.spawn_named("rebuild", &2).options(options(Coalesce::Reuse)).await?;
    assert!(first.created() && again.disposition == Disposition::Coalesced);
    assert_eq!((again.task_id, again.attempt), (first.task_id, 0));

    let error =
        client.spawn_named("rebuild", &3).options(options(Coalesce::Reject)).await.unwrap_err();
    assert!(matches!(error, Error::Waiting(task_id) if task_id == first.task_id), "{error}");
    let newest = client.spawn_named("rebuild", &4).options(options(Coalesce::Replace)).await?;
    assert!(newest.created());
    let replaced = client.task(first.task_id).await?.map(|info| info.state);
    assert_eq!(replaced, Some(TaskState::Cancelled));

    let hourly =
        Schedule::every("hourly", Duration::from_secs(3_600)).options(options(Coalesce::Reuse));
    let refused =
        client.schedules().put_named(hourly, "rebuild", &5).await.unwrap_err().to_string();
    assert!(refused.contains("cannot be coalesced"), "{refused}");
    Ok(())
}
