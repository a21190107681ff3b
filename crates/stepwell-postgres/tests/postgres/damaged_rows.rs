//! Rows that a person has damaged, or a newer program has written: each hurts its own task, and
//! neither the batch that meets it nor a list that it is in.

use std::sync::Arc;
use std::time::Duration;

use sqlx::Row as _;
use stepwell::{
    ApprovalFilter, Durable, RetryStrategy, Schedule, Scope, TaskContext, TaskFilter, TaskTypeInfo,
    WorkerOptions,
};
use stepwell_core::store::{
    Batch, CancellationPolicy, Claim, ClaimedTask, Command, CommandOutcome, Finish, HistoryFilter,
    NewMessage, NewTask, NewWorker, Next, Spawned, TaskState, Transition, WorkerSignal,
    WorkerState,
};
use stepwell_core::{Name, Payload, RunId, Store as _, TaskId, WorkerId};
use stepwell_postgres::{PostgresStore, sqlx};
use uuid::Uuid;

use crate::database::Database;

/// Longer than anything takes that does not wait.
const LONG: Duration = Duration::from_secs(20);

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn id(n: u128) -> TaskId {
    Uuid::from_u128(n).into()
}

fn new_task(n: u128, queue: &str) -> NewTask {
    NewTask {
        task_id: id(n),
        run_id: RunId::from(Uuid::from_u128(0xaaaa_0000 + n)),
        task_type: name("type"),
        queue: name(queue),
        params: Payload::from_json(n.to_string()),
        headers: Default::default(),
        scope: Scope::default(),
        priority: 0,
        max_attempts: 3,
        retry: RetryStrategy::default(),
        start_at: None,
        idempotency_key: None,
        concurrency_key: None,
        coalesce: None,
        code_version: None,
        cancellation: CancellationPolicy::default(),
        parent: None,
        claim_by: None,
    }
}

fn worker(n: u128) -> WorkerId {
    Uuid::from_u128(0xffff_0000 + n).into()
}

async fn register(store: &PostgresStore, n: u128) {
    let new = NewWorker {
        worker_id: worker(n),
        name: "worker".into(),
        queues: vec![name("queue")],
        concurrency: 10,
        code_version: None,
        lease: Duration::from_secs(30),
    };
    let workers = vec![WorkerSignal::Register(new)];
    store.commit(Batch { workers, ..Batch::default() }.into()).await.unwrap();
}

fn claim(n: u128) -> Claim {
    Claim {
        worker_id: worker(n),
        queues: vec![name("queue")],
        task_types: vec![name("type")],
        code_version: None,
        limit: 10,
        suspect: u32::MAX,
    }
}

async fn spawn(store: &PostgresStore, tasks: impl IntoIterator<Item = NewTask>) {
    let spawns = tasks.into_iter().collect();
    store.commit(Batch { spawns, ..Batch::default() }.into()).await.unwrap();
}

/// What is done to task 2 of three, or to a worker that others watch, and what is said of the task.
const CLAIMED: [(&str, Option<&str>); 20] = [
    ("UPDATE tasks SET task_type = '' WHERE task_id = $2", Some("`task_type`")),
    ("UPDATE tasks SET queue = '' WHERE task_id = $2", Some("`queue`")),
    ("UPDATE tasks SET queue = repeat('x', 600) WHERE task_id = $2", Some("`queue`")),
    ("UPDATE tasks SET scope = 'nonsense' WHERE task_id = $2", Some("`scope`")),
    ("DELETE FROM tasks WHERE task_id = $2", Some("the task's row in `tasks`")),
    ("UPDATE tasks SET max_duration = 9223372036854775807 WHERE task_id = $2", None),
    ("UPDATE tasks SET max_duration = -9223372036854775808 WHERE task_id = $2", None),
    (
        "UPDATE tasks SET max_attempts = 9223372036854775807 WHERE task_id = $2",
        Some("`max_attempts`"),
    ),
    ("UPDATE live_tasks SET attempt = 9223372036854775807 WHERE task_id = $2", None),
    ("UPDATE live_tasks SET attempt = -9223372036854775808 WHERE task_id = $2", None),
    ("UPDATE live_tasks SET lost = 9223372036854775807 WHERE task_id = $2", Some("`lost`")),
    ("UPDATE tasks SET max_attempts = -1 WHERE task_id = $2", Some("`max_attempts`")),
    ("UPDATE live_tasks SET crashes = -1 WHERE task_id = $2", Some("`crashes`")),
    (
        "UPDATE live_tasks SET started_at = now() WHERE task_id = $2; \
         INSERT INTO waits VALUES ($2, 'child', 'c', 1, 'nonsense')",
        Some("a row of `waits`"),
    ),
    (
        "UPDATE live_tasks SET started_at = now() WHERE task_id = $2; \
         INSERT INTO waits VALUES ($2, 'timer', 's', 1, NULL, 'infinity')",
        None,
    ),
    (
        "UPDATE live_tasks SET started_at = now() WHERE task_id = $2; \
         INSERT INTO waits VALUES ($2, 'event', 'e', 1, '');
        INSERT INTO events VALUES ('', '', '1', now())",
        Some("a row of `waits`"),
    ),
    ("UPDATE workers SET lease = -1", None),
    ("UPDATE workers SET heartbeats = -1", None),
    ("UPDATE workers SET lease = 9223372036854775807, heartbeats = 9223372036854775806", None),
    ("UPDATE workers SET state = 'resting'", None),
];

#[tokio::test]
async fn a_batch_that_meets_a_damaged_row_is_applied_once_and_answered() {
    for (damage, said) in CLAIMED {
        let database = Database::new();
        let store = database.open().await;
        register(&store, 1).await;
        register(&store, 2).await;
        spawn(
            &store,
            [
                new_task(1, "queue"),
                new_task(2, "queue"),
                new_task(3, "queue"),
                new_task(9, "other"),
            ],
        )
        .await;
        database.sql(&damage.replace("$2", &format!("'{}'", id(2)))).await;
        let message = NewMessage { task_id: id(9), topic: name("topic"), payload: Payload::null() };
        let batch = Batch {
            messages: vec![message],
            spawns: vec![new_task(10, "other")],
            workers: vec![WorkerSignal::Heartbeat { worker_id: worker(1) }],
            claims: vec![claim(1)],
            ..Batch::default()
        };
        let mut committed =
            store.commit(batch.into()).await.unwrap_or_else(|error| panic!("{damage}: {error}"));
        assert_eq!(committed.spawns, [Spawned::Created { claimed: false }], "{damage}");
        assert_eq!(committed.workers[0].state, WorkerState::Active, "{damage}");
        assert_eq!(committed.workers[0].others.len(), 1, "{damage}");
        let claimed = committed.claims.remove(0).tasks;
        let ids = |tasks: &[ClaimedTask]| tasks.iter().map(|task| task.task_id).collect::<Vec<_>>();
        assert_eq!(ids(&claimed), [id(1), id(2), id(3)], "{damage}");
        for task in &claimed {
            if task.task_id == id(2) {
                let unreadable = task.unreadable.as_ref().map(ToString::to_string);
                assert_eq!(unreadable.is_some(), said.is_some(), "{damage}: {unreadable:?}");
                assert!(said.is_none_or(|said| unreadable.unwrap().contains(said)), "{damage}");
            } else {
                assert!(task.unreadable.is_none(), "{damage}");
                assert_eq!(
                    Payload::from_json(task.task_id.as_uuid().as_u128().to_string()),
                    task.params
                );
            }
        }
        assert_eq!(store.messages(id(9), None).await.unwrap().items.len(), 1, "{damage}");

        // Its worker's death gives it back with the others.
        let watches = vec![WorkerSignal::Heartbeat { worker_id: worker(2) }];
        let seen =
            store.commit(Batch { workers: watches, ..Batch::default() }.into()).await.unwrap();
        let heartbeats = seen.workers[0].others[0].heartbeats;
        let workers = vec![WorkerSignal::DeclareDead { worker_id: worker(1), heartbeats }];
        store.commit(Batch { workers, ..Batch::default() }.into()).await.unwrap();
        let claimed = store
            .commit(Batch { claims: vec![claim(2)], ..Batch::default() }.into())
            .await
            .unwrap();
        // One whose time is up before it begins is cancelled.
        let left = if damage.contains("max_duration = -") { vec![1, 3] } else { vec![1, 2, 3] };
        let left: Vec<_> = left.into_iter().map(id).collect();
        assert_eq!(ids(&claimed.claims[0].tasks), left, "{damage}");
    }
}

#[tokio::test]
async fn a_number_out_of_range_is_told_of_and_is_no_other_number() {
    let database = Database::new();
    let store = database.open().await;
    spawn(&store, [new_task(1, "queue")]).await;
    for (damage, column) in [
        ("UPDATE live_tasks SET attempt = -1", "`attempt`"),
        ("UPDATE tasks SET max_attempts = 4294967296", "`max_attempts`"),
        ("UPDATE tasks SET max_duration = -1", "`max_duration`"),
    ] {
        database.sql(damage).await;
        let info = store.task(id(1)).await.unwrap().unwrap();
        let said = info.headers["$unreadable"].as_str().unwrap();
        assert!(said.contains(column), "{damage}: {said}");
    }
    for entry in ["-1, 'step', 'step', 1", "1, 'step', 'step', -1"] {
        let sql = format!(
            "DELETE FROM journal; INSERT INTO journal (task_id, seq, kind, name, ordinal, outcome,
                payload, at) VALUES ('{}', {entry}, 'done', '1', now())",
            id(1)
        );
        database.sql(&sql).await;
        let error = store.journal(id(1)).await.unwrap_err().to_string();
        assert!(error.contains("-1 is out of range"), "{entry}: {error}");
    }
    register(&store, 1).await;
    database.sql("UPDATE workers SET lease = -7").await;
    assert_eq!(store.workers().await.unwrap()[0].lease, Duration::ZERO);
    let next = Next::Continue { collect: false };
    let superseded = vec![u64::MAX];
    let too_large = Transition { superseded, ..Transition::new(id(1), Uuid::nil().into(), next) };
    let batch = Batch { transitions: vec![too_large], ..Batch::default() };
    let error = store.commit(batch.into()).await.unwrap_err();
    assert!(error.is_of_an_item() && error.to_string().contains("is too large"), "{error}");
}

#[tokio::test]
async fn an_end_that_cannot_be_read_is_no_cancellation() {
    let database = Database::new();
    let store = database.open().await;
    spawn(&store, [new_task(1, "queue"), new_task(2, "queue")]).await;
    let sql = format!(
        "CREATE FUNCTION hibernate() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF NEW.task_id = '{}' THEN NEW.state := 'hibernating'; END IF;
            RETURN NEW;
        END $$;
        CREATE TRIGGER hibernates BEFORE INSERT ON outcomes
            FOR EACH ROW EXECUTE FUNCTION hibernate()",
        id(1)
    );
    database.sql(&sql).await;
    let commands = vec![Command::Cancel(id(1)), Command::Cancel(id(2))];
    let news = store.commit(Batch { commands, ..Batch::default() }.into()).await.unwrap().news;
    assert_eq!(news.finished, [(id(2), Finish::Cancelled)]);
}

#[tokio::test]
async fn a_state_of_a_newer_program_allows_no_command() {
    let database = Database::new();
    let store = database.open().await;
    spawn(&store, [new_task(1, "queue"), new_task(2, "queue")]).await;
    let end = format!("UPDATE live_tasks SET state = 'hibernating' WHERE task_id = '{}'", id(1));
    database.sql(&end).await;
    for command in [Command::Retry(id(1)), Command::Wake(id(1)), Command::Delete(id(1))] {
        let commands = vec![command, Command::Pause(id(2))];
        let committed = store.commit(Batch { commands, ..Batch::default() }.into()).await.unwrap();
        assert!(matches!(committed.commands[0], CommandOutcome::NotAllowed(_)), "{command:?}");
        assert_eq!(committed.commands[1], CommandOutcome::Done);
    }
}

#[tokio::test]
async fn a_task_that_cannot_be_cancelled_in_time_keeps_no_other_from_being_claimed() {
    let database = Database::new();
    let store = database.open().await;
    register(&store, 1).await;
    spawn(&store, (1..=4).map(|n| new_task(n, "queue"))).await;
    database
        .sql(&format!(
            "ALTER TABLE outcomes ADD CONSTRAINT no_2 CHECK (task_id <> '{}');
            UPDATE live_tasks SET cancel_at = now() WHERE task_id <= '{}'",
            id(2),
            id(3)
        ))
        .await;
    let committed =
        store.commit(Batch { claims: vec![claim(1)], ..Batch::default() }.into()).await.unwrap();
    let claimed: Vec<_> = committed.claims[0].tasks.iter().map(|task| task.task_id).collect();
    // The one that cannot be cancelled may run.
    assert_eq!(claimed, [id(2), id(4)]);
    for cancelled in [1, 3] {
        assert_eq!(store.task(id(cancelled)).await.unwrap().unwrap().state, TaskState::Cancelled);
    }
}

#[tokio::test]
async fn pages_go_on_behind_rows_that_cannot_be_read() {
    let database = Database::new();
    let store = database.open().await;
    spawn(&store, (1..=30).map(|n| new_task(n, "queue"))).await;
    for (damage, n) in [
        ("queue = ''", 13),
        ("queue = ''", 14),
        ("task_type = ''", 15),
        ("queue = ''", 16),
        ("scope = 'nonsense'", 22),
        ("queue = ''", 1),
    ] {
        database.sql(&format!("UPDATE tasks SET {damage} WHERE task_id = '{}'", id(n))).await;
    }
    let (mut found, mut before) = (Vec::new(), None);
    loop {
        let page =
            store.tasks(TaskFilter { limit: 2, before, ..TaskFilter::default() }).await.unwrap();
        found.extend(page.items.iter().map(|task| task.task_id));
        before = page.next;
        if before.is_none() {
            break;
        }
    }
    let there = (1..=30).rev().filter(|n| ![13, 14, 15, 16, 22, 1].contains(n));
    assert_eq!(found, there.map(id).collect::<Vec<_>>());
    // A client's page that has nothing on it is the last.
    let client = Durable::builder().store(Arc::new(store)).build().await.unwrap();
    let filter = TaskFilter { limit: 2, before: Some(id(17)), ..TaskFilter::default() };
    let page = client.tasks(filter).await.unwrap();
    assert_eq!((page.items[0].task_id, page.next), (id(12), Some(id(11))));
}

#[tokio::test]
async fn a_scopes_list_leaves_out_what_cannot_be_read_and_what_others_have_labelled() {
    let database = Database::new();
    let store = database.open().await;
    let acme = Scope::default().label("tenant", "acme");
    let labelled = |n: u128, scope: &Scope| {
        let headers = [("tenant".to_owned(), "acme".into())].into_iter().collect();
        NewTask { headers, scope: scope.clone(), ..new_task(n, "queue") }
    };
    let evil = Scope::default().label("tenant", "evil");
    spawn(
        &store,
        [
            labelled(1, &acme),
            labelled(2, &acme),
            labelled(3, &evil),
            labelled(4, &Scope::default()),
            labelled(5, &Scope::default().queue(name("queue"))),
            labelled(6, &acme.clone().queue(name("queue"))),
        ],
    )
    .await;
    database.sql(&format!("UPDATE tasks SET scope = 'nonsense' WHERE task_id = '{}'", id(1))).await;
    let list = async |scope: &Scope, labels: &[(&str, &str)]| {
        let labels =
            labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let filter = TaskFilter { scope: scope.clone(), labels, ..TaskFilter::default() };
        store.tasks(filter).await.unwrap().items.iter().map(|task| task.task_id).collect::<Vec<_>>()
    };
    assert_eq!(list(&acme, &[]).await, [6, 4, 2].map(id));
    assert_eq!(list(&acme.queue(name("queue")), &[]).await, [6, 4].map(id));
    assert_eq!(list(&evil, &[]).await, []);
    assert_eq!(list(&Scope::default(), &[("tenant", "acme")]).await, [6, 5, 4, 3, 2].map(id));
    let own = database.sql("SELECT task_id FROM labels WHERE own ORDER BY task_id").await;
    let own: Vec<TaskId> = own.iter().map(|row| row.get::<Uuid, _>(0).into()).collect();
    assert_eq!(own, [1, 2, 4, 6].map(id));
}

#[tokio::test]
async fn lists_beside_tasks_show_what_can_be_read() {
    let database = Database::new();
    let client = Durable::builder().store(Arc::new(database.open().await)).build().await.unwrap();
    let store = database.open().await;
    // Approvals, in pages of one task.
    let ask = |(): (), ctx: TaskContext| async move {
        ctx.await_approval::<u32>("sure", &1).await?;
        Ok(())
    };
    client.register_fn("ask", ask).await.unwrap();
    let worker = client.start_worker(WorkerOptions::new()).await;
    let mut tasks = Vec::new();
    for _ in 0..4 {
        tasks.push(client.spawn_named("ask", &()).await.unwrap().task_id);
    }
    while client
        .approvals()
        .list(ApprovalFilter { limit: 10, ..ApprovalFilter::default() })
        .await
        .unwrap()
        .items
        .len()
        < 4
    {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    worker.shutdown().await;
    for hurt in &tasks[1..3] {
        database.sql(&format!("UPDATE waits SET name = '' WHERE task_id = '{hurt}'")).await;
    }
    let page = async |behind, limit| {
        let page = store.waits(Scope::default(), "approval/".into(), behind, limit).await.unwrap();
        (page.items.iter().map(|(task_id, _)| *task_id).collect::<Vec<_>>(), page.next)
    };
    assert_eq!(page(None, 1).await, (vec![tasks[0]], Some(tasks[0])));
    assert_eq!(page(Some(tasks[0]), 2).await, (vec![], Some(tasks[2])));
    assert_eq!(page(Some(tasks[2]), 1).await, (vec![tasks[3]], None));
    assert_eq!(page(None, 4).await, (vec![tasks[0], tasks[3]], None));
    let approvals = client
        .approvals()
        .list(ApprovalFilter { after: Some(tasks[0]), limit: 1, ..ApprovalFilter::default() })
        .await
        .unwrap()
        .items;
    assert_eq!(approvals.iter().map(|approval| approval.task_id).collect::<Vec<_>>(), [tasks[3]]);

    // What is known of types.
    for task_type in ["a", "b"] {
        let info =
            TaskTypeInfo { task_type: name(task_type), params: true.into(), output: true.into() };
        store.describe(info).await.unwrap();
    }
    database.sql("UPDATE task_types SET params = 'nonsense' WHERE task_type = 'a'").await;
    assert!(store.task_types().await.unwrap().iter().all(|info| info.task_type.as_str() != "a"));
    let elsewhere =
        Durable::builder().store(Arc::new(database.open().await)).build().await.unwrap();
    for task_type in ["a", "b"] {
        elsewhere.spawn_named(task_type, &1).await.unwrap();
    }
    elsewhere.schedules().put_named(Schedule::cron("hourly", "0 * * * *"), "a", &1).await.unwrap();

    // What waits for workers.
    spawn(&store, [new_task(1, "types"), new_task(2, "types")]).await;
    database
        .sql(&format!("UPDATE live_tasks SET task_type = '' WHERE task_id = '{}'", id(1)))
        .await;
    assert_eq!(store.waiting_types(vec![name("types")]).await.unwrap(), [name("type")]);

    // The history keeps its numbers.
    let happen = |n: u128| stepwell_core::store::Happening {
        task_id: id(n),
        at: store.now(),
        name: name("task.spawned"),
        event: Payload::null(),
    };
    store.record((1..=3).map(happen).collect()).await.unwrap();
    database
        .sql(&format!("UPDATE history SET name = '', event = '{{' WHERE task_id = '{}'", id(2)))
        .await;
    let history =
        store.history(HistoryFilter { after: 0, ..HistoryFilter::default() }).await.unwrap().items;
    let of: Vec<_> = history.iter().map(|(_, happening)| happening.task_id).collect();
    assert!(of.ends_with(&[id(1), id(2), id(3)]), "{of:?}");
    let hurt = history.iter().find(|(_, happening)| happening.task_id == id(2)).unwrap();
    assert!(hurt.1.event.unreadable().is_some());
}

/// The whole way: whatever is done to one task, others are claimed, run and end.
#[tokio::test(flavor = "multi_thread")]
async fn others_go_on_beside_a_damaged_task() {
    let database = Database::new();
    let client = Durable::builder().store(Arc::new(database.open().await)).build().await.unwrap();
    client
        .register_fn("echo", |value: u64, _: TaskContext| async move { Ok(value) })
        .await
        .unwrap();
    let join = |value: u64, ctx: TaskContext| async move {
        let child = ctx.spawn_named::<_, u64>("child", "listen", &value).await?;
        ctx.join::<u64>(&child).await
    };
    client.register_fn("join", join).await.unwrap();
    let listen = |_: u64, ctx: TaskContext| async move { ctx.await_event::<u64>("go", None).await };
    client.register_fn("listen", listen).await.unwrap();
    let worker = client.start_worker(WorkerOptions::new().max_in_memory(0)).await;
    let mut waiting = Vec::new();
    for n in 0..4_u64 {
        waiting.push(client.spawn_named("join", &n).await.unwrap().task_id);
    }
    let suspended = "SELECT count(*) FROM live_tasks WHERE state = 'suspended'";
    while database.sql(suspended).await[0].get::<i64, _>(0) < 8 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    for (hurt, damage) in waiting.iter().zip([
        "UPDATE waits SET target = 'nonsense' WHERE task_id = $1",
        "UPDATE tasks SET queue = '' WHERE task_id = $1",
        "DELETE FROM tasks WHERE task_id = $1",
    ]) {
        database.sql(&damage.replace("$1", &format!("'{hurt}'"))).await;
    }
    database.sql("UPDATE live_tasks SET due_at = now() WHERE task_type = 'join'").await;
    client.emit_event("go", &7).await.unwrap();
    let ends = async {
        assert_eq!(client.wait::<u64>(waiting[3]).await.unwrap(), 7);
        for n in 0..20 {
            let task = client.spawn_named("echo", &n).await.unwrap();
            assert_eq!(client.wait::<u64>(task.task_id).await.unwrap(), n);
        }
        for (hurt, said) in waiting.iter().zip(["a row of `waits`", "`queue`"]) {
            let failure = loop {
                let rows = database
                    .sql(&format!("SELECT failure FROM outcomes WHERE task_id = '{hurt}'"))
                    .await;
                if let Some(row) = rows.first() {
                    break row.get::<String, _>(0);
                }
            };
            assert!(failure.contains(said), "{failure}");
        }
        while !database.sql("SELECT FROM live_tasks").await.is_empty() {}
    };
    tokio::time::timeout(LONG, ends).await.expect("something waits for ever");
    worker.shutdown().await;
}
