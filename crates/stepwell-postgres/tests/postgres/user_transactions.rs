//! What users' transactions bring, whatever their isolation level and however long they take:
//! nothing is lost, and no batch waits for them.

use std::sync::Arc;
use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection, Row as _};
use stepwell::{
    Coalesce, Durable, Error, Scope, SpawnOptions, SpawnResult, TaskContext, TaskId, TaskState,
    Worker, WorkerOptions,
};
use stepwell_postgres::{TransactionExt as _, sqlx};

use crate::database::Database;

const LEVELS: [&str; 3] = ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"];
/// Longer than anything takes that does not wait.
const LONG: Duration = Duration::from_secs(20);

/// A process: `echo` gives its parameter, `listen` what is emitted under its parameter, `hold` ends
/// when that is emitted.
async fn process(database: &Database) -> (Durable, Worker) {
    let client = Durable::builder().store(Arc::new(database.open().await)).build().await.unwrap();
    client.register_fn("echo", |value: String, _: TaskContext| async { Ok(value) }).await.unwrap();
    let listen = |event: String, ctx: TaskContext| async move {
        ctx.await_event::<String>(event, None).await
    };
    client.register_fn("listen", listen).await.unwrap();
    let worker = client.start_worker(WorkerOptions::new()).await;
    (client, worker)
}

/// Begins a transaction that sees nothing of what is committed from now on, above the first level.
async fn begin(conn: &mut PgConnection, level: &str) {
    let begin = format!(
        "BEGIN ISOLATION LEVEL {level}; SELECT count(*) FROM live_tasks, journal, waits, workers"
    );
    conn.execute(sqlx::raw_sql(AssertSqlSafe(begin))).await.unwrap();
}

async fn suspended(client: &Durable, task: TaskId) {
    while client.task(task).await.unwrap().unwrap().state != TaskState::Suspended {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn ends(client: &Durable, task: &SpawnResult) -> Result<String, Error> {
    tokio::time::timeout(LONG, client.wait(task.task_id)).await.expect("the task waits for ever")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_wakes_those_who_began_to_wait_after_the_transaction_did() {
    let database = Database::new();
    let (client, worker) = process(&database).await;
    for level in LEVELS {
        let mut conn = database.connection().await;
        begin(&mut conn, level).await;
        let task = client.spawn_named("listen", level).await.unwrap();
        suspended(&client, task.task_id).await;
        client.emit_event(level, &"heard").in_tx(&mut conn).await.unwrap();
        conn.execute("COMMIT").await.unwrap();
        assert_eq!(ends(&client, &task).await.unwrap(), "heard", "{level}");
        assert!(!client.emit_event(level, &"late").await.unwrap(), "{level}: it was the first");
    }
    worker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_concurrency_keys_next_task_has_its_turn_though_the_one_before_ended_unseen() {
    let database = Database::new();
    let (client, worker) = process(&database).await;
    for level in LEVELS {
        let keyed = || SpawnOptions::new().concurrency_key("turn");
        let first = client.spawn_named("listen", level).options(keyed()).await.unwrap();
        suspended(&client, first.task_id).await;
        let mut conn = database.connection().await;
        begin(&mut conn, level).await;
        let second =
            client.spawn_named("echo", "second").options(keyed()).in_tx(&mut conn).await.unwrap();
        client.emit_event(level, &"go").await.unwrap();
        assert_eq!(ends(&client, &first).await.unwrap(), "go", "{level}");
        // One that comes later, and commits before: both must not run at the same time.
        let third =
            client.spawn_named("listen", &format!("{level} third")).options(keyed()).await.unwrap();
        suspended(&client, third.task_id).await;
        conn.execute("COMMIT").await.unwrap();
        client.emit_event("any", &"thing").await.ok();
        let running = client.task(second.task_id).await.unwrap().unwrap();
        assert_eq!((running.state, running.started_at), (TaskState::Pending, None), "{level}");
        client.emit_event(format!("{level} third"), &"go").await.unwrap();
        assert_eq!(ends(&client, &third).await.unwrap(), "go", "{level}");
        assert_eq!(ends(&client, &second).await.unwrap(), "second", "{level}");
    }
    worker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_batch_waits_for_a_users_transaction() {
    let database = Database::new();
    let (client, worker) = process(&database).await;
    let (other, _other_worker) = process(&database).await;
    for level in LEVELS {
        let key = || SpawnOptions::new().idempotency_key(format!("order {level}"));
        let waiting = || SpawnOptions::new().coalesced(format!("index {level}"), Coalesce::Reuse);
        client.queues().pause("default").await.unwrap();
        let waits = client.spawn_named("echo", "waits").options(waiting()).await.unwrap();
        let mut conn = database.connection().await;
        begin(&mut conn, level).await;
        let with_key = client
            .spawn_named("echo", "of the transaction")
            .options(key())
            .in_tx(&mut conn)
            .await
            .unwrap();
        let coalesced = client
            .spawn_named("echo", "coalesced")
            .options(waiting())
            .in_tx(&mut conn)
            .await
            .unwrap();
        client.emit_event("done", &"by the transaction").in_tx(&mut conn).await.unwrap();
        assert!(with_key.created() && coalesced.created(), "what is not known yet");

        let spawns = async {
            client.queues().resume("default").await.unwrap();
            let spawned = other.spawn_named("echo", "of the other").options(key()).await.unwrap();
            assert!(spawned.created(), "{level}");
            assert_eq!(ends(&other, &spawned).await.unwrap(), "of the other");
            // Nor does what another transaction brings.
            let brief = format!("brief {level}");
            let listens = other.spawn_named("listen", &brief).await.unwrap();
            let mut short = database.connection().await;
            begin(&mut short, LEVELS[0]).await;
            other.emit_event(&brief, &"heard").in_tx(&mut short).await.unwrap();
            short.execute("COMMIT").await.unwrap();
            assert_eq!(ends(&other, &listens).await.unwrap(), "heard");
            other.emit_event("done", &"by the other").await.unwrap();
            other.queues().pause("default").await.unwrap();
            let last = other
                .spawn_named("echo", "last")
                .coalesced(format!("index {level}"), Coalesce::Replace);
            (spawned, last.await.unwrap())
        };
        let (spawned, last) = tokio::time::timeout(LONG, spawns).await.expect("a batch waits");
        conn.execute("COMMIT").await.unwrap();

        // Each id leads to the task that was done.
        other.queues().resume("default").await.unwrap();
        assert_eq!(ends(&client, &with_key).await.unwrap(), "of the other", "{level}");
        assert!(
            ["waits", "coalesced", "last"]
                .contains(&ends(&client, &coalesced).await.unwrap().as_str())
        );
        let _ = (ends(&client, &waits).await, ends(&client, &last).await.unwrap());
        let info = client.task(with_key.task_id).await.unwrap().unwrap();
        assert_eq!(info.state, TaskState::Cancelled);
        let why = info.failure.unwrap().message;
        assert!(
            why.contains(&format!("not run: task {} has its idempotency key", spawned.task_id)),
            "{why}"
        );
        let again = client.spawn_named("echo", "again").options(key()).await.unwrap();
        assert_eq!((again.task_id, again.created()), (spawned.task_id, false));
    }
    worker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn users_transactions_with_one_idempotency_key_wait_for_each_other() {
    let database = Database::new();
    let (client, worker) = process(&database).await;
    let spawn = async |conn: &mut PgConnection, key: &str| {
        let options = SpawnOptions::new().idempotency_key(key);
        client.spawn_named("echo", "once").options(options).in_tx(conn).await.unwrap()
    };
    for (key, end) in [("kept", "COMMIT"), ("undone", "ROLLBACK")] {
        let (mut first, mut second) = (database.connection().await, database.connection().await);
        begin(&mut first, "READ COMMITTED").await;
        begin(&mut second, "READ COMMITTED").await;
        let created = spawn(&mut first, key).await;
        let twice = spawn(&mut first, key).await;
        assert_eq!((twice.task_id, twice.created()), (created.task_id, false));
        let (other, ()) = tokio::join!(spawn(&mut second, key), async {
            let pid = sqlx::query("SELECT pg_backend_pid()").fetch_one(&mut first).await.unwrap();
            let waits = format!(
                "SELECT 1 FROM pg_stat_activity WHERE {} = ANY (pg_blocking_pids(pid))",
                pid.get::<i32, _>(0)
            );
            while database.sql(&waits).await.is_empty() {}
            first.execute(end).await.unwrap();
        });
        second.execute("COMMIT").await.unwrap();
        assert_eq!(
            (other.task_id == created.task_id, other.created()),
            (end == "COMMIT", end == "ROLLBACK")
        );
        assert_eq!(ends(&client, &other).await.unwrap(), "once");
        let later = client.spawn_named("echo", "later").idempotency_key(key).await.unwrap();
        assert_eq!((later.task_id, later.created()), (other.task_id, false));
    }
    worker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_steps_transaction_may_have_any_isolation_level() {
    let database = Database::new();
    let (client, worker) = process(&database).await;
    let step = |level: String, ctx: TaskContext| async move {
        let heard = ctx.clone();
        let paid = ctx.transaction("pay", move |tx| {
            Box::pin(async move {
                let set = format!("SET TRANSACTION ISOLATION LEVEL {level}");
                tx.execute(sqlx::raw_sql(AssertSqlSafe(set))).await?;
                Ok(sqlx::query_scalar::<_, String>(
                    "SELECT current_setting('transaction_isolation')",
                )
                .fetch_one(tx)
                .await?)
            })
        });
        let (paid, ()) = tokio::try_join!(paid, heard.emit_event("paid", &1))?;
        Ok(paid)
    };
    client.register_fn("pay", step).await.unwrap();
    for level in LEVELS {
        let task = client.spawn_named("pay", level).await.unwrap();
        assert_eq!(ends(&client, &task).await.unwrap(), level.to_lowercase());
    }
    worker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn much_in_one_transaction_is_done_in_parts() {
    let database = Database::new();
    let (_client, worker) = process(&database).await;
    let mut conn = database.connection().await;
    begin(&mut conn, "READ COMMITTED").await;
    let many = format!(
        "SELECT {0}.emit_within('{0}', 'event ' || n, '', '1') FROM generate_series(1, 2500) AS n",
        database.schema
    );
    conn.execute(sqlx::raw_sql(AssertSqlSafe(many))).await.unwrap();
    conn.execute("COMMIT").await.unwrap();
    while database.sql("SELECT count(*) FROM outbox").await[0].get::<i64, _>(0) > 0 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert_eq!(database.sql("SELECT count(*) FROM events").await[0].get::<i64, _>(0), 2500);
    worker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_those_of_the_tasks_scope_also_while_they_are_in_the_outbox() {
    let database = Database::new();
    let (client, worker) = process(&database).await;
    let scopes = [
        Scope::default(),
        Scope::default().label("tenant", "a"),
        Scope::default().label("tenant", "b"),
    ];
    let order = |scope: &Scope| SpawnOptions::new().idempotency_key("order").scope(scope.clone());
    let turn = |scope: &Scope| SpawnOptions::new().concurrency_key("turn").scope(scope.clone());
    let coalesced = |scope: &Scope| {
        let later = SpawnOptions::new().coalesced("index", Coalesce::Reject).scope(scope.clone());
        later.delay(Duration::from_secs(3600))
    };

    let mut conn = database.connection().await;
    let mut tasks = Vec::new();
    begin(&mut conn, LEVELS[0]).await;
    for scope in &scopes {
        let task = client
            .spawn_named("echo", "order")
            .options(order(scope))
            .in_tx(&mut conn)
            .await
            .unwrap();
        let again = client
            .spawn_named("echo", "again")
            .options(order(scope))
            .in_tx(&mut conn)
            .await
            .unwrap();
        assert!(task.created() && again.task_id == task.task_id, "{scope:?}: {task:?}, {again:?}");
        let listens =
            client.spawn_named("listen", "go").options(turn(scope)).in_tx(&mut conn).await.unwrap();
        let waits = client
            .spawn_named("echo", "waits")
            .options(coalesced(scope))
            .in_tx(&mut conn)
            .await
            .unwrap();
        assert!(waits.created(), "{scope:?}: {waits:?}");
        tasks.push((task, listens, waits));
    }
    conn.execute("COMMIT").await.unwrap();

    for (scope, (task, listens, waits)) in scopes.iter().zip(&tasks) {
        assert_eq!(ends(&client, task).await.unwrap(), "order", "{scope:?}");
        // All of them at once: each has the turn of its own scope.
        suspended(&client, listens.task_id).await;
        let state = client.task(waits.task_id).await.unwrap().unwrap().state;
        assert_eq!(state, TaskState::Pending, "{scope:?}");
        // Those of one scope find each other, also from outside of the transaction and in the next
        // one.
        let again = client.spawn_named("echo", "again").options(order(scope)).await.unwrap();
        assert_eq!(again.task_id, task.task_id, "{scope:?}");
        begin(&mut conn, LEVELS[0]).await;
        let again = client
            .spawn_named("echo", "again")
            .options(order(scope))
            .in_tx(&mut conn)
            .await
            .unwrap();
        assert_eq!(again.task_id, task.task_id, "{scope:?}");
        let rejected =
            client.spawn_named("echo", "again").options(coalesced(scope)).in_tx(&mut conn).await;
        assert!(!rejected.as_ref().is_ok_and(SpawnResult::created), "{scope:?}: {rejected:?}");
        conn.execute("COMMIT").await.unwrap();
    }
    client.emit_event("go", &"gone").await.unwrap();
    for (_, listens, _) in &tasks {
        assert_eq!(ends(&client, listens).await.unwrap(), "gone");
    }
    worker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_database_does_not_accept_of_one_transaction_holds_up_no_other() {
    let database = Database::new();
    let (client, worker) = process(&database).await;
    database
        .sql(
            "ALTER TABLE events ADD CONSTRAINT no_13 CHECK (payload <> '\"13\"');
            ALTER TABLE idempotency_keys ADD CONSTRAINT no_bad CHECK (idempotency_key <> 'bad')",
        )
        .await;
    let listens = client.spawn_named("listen", "14").await.unwrap();
    suspended(&client, listens.task_id).await;
    let key = |key: &str| SpawnOptions::new().idempotency_key(key);
    let mut conn = database.connection().await;
    // By different users, before and behind.
    let mut tasks = Vec::new();
    for (event, with) in [("a", "good"), ("13", "bad"), ("14", "fine")] {
        begin(&mut conn, "READ COMMITTED").await;
        client.emit_event(event, event).in_tx(&mut conn).await.unwrap();
        tasks.push(
            client.spawn_named("echo", with).options(key(with)).in_tx(&mut conn).await.unwrap(),
        );
        conn.execute("COMMIT").await.unwrap();
    }
    assert_eq!(ends(&client, &listens).await.unwrap(), "14");
    assert_eq!(ends(&client, &tasks[0]).await.unwrap(), "good");
    assert_eq!(ends(&client, &tasks[2]).await.unwrap(), "fine");
    let error = ends(&client, &tasks[1]).await.unwrap_err().to_string();
    assert!(error.contains("the store refuses its keys") && error.contains("no_bad"), "{error}");
    let aside = database
        .sql("SELECT event, task_id IS NOT NULL, reason FROM outbox_refused ORDER BY id")
        .await;
    let events: Vec<(Option<String>, bool)> =
        aside.iter().map(|row| (row.get(0), row.get(1))).collect();
    assert_eq!(events, [(Some("13".to_owned()), false), (None, true)]);
    assert!(aside[0].get::<String, _>(2).contains("no_13"));

    // Put back when it is accepted.
    database
        .sql(
            "ALTER TABLE events DROP CONSTRAINT no_13;
            WITH again AS (DELETE FROM outbox_refused WHERE event IS NOT NULL RETURNING *)
            INSERT INTO outbox (event, queue, payload) SELECT event, queue, payload FROM again",
        )
        .await;
    let listens = client.spawn_named("listen", "13").await.unwrap();
    assert_eq!(ends(&client, &listens).await.unwrap(), "13");
    worker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_follows_from_transactions_may_take_longer_than_a_default_allows() {
    let postgres = throwaway::Postgres::start().unwrap();
    let mut admin = PgConnection::connect(&postgres.url()).await.unwrap();
    admin.execute("ALTER ROLE CURRENT_USER SET statement_timeout = '300ms'").await.unwrap();
    let database = Database { url: postgres.url(), schema: "slow".into() };
    let (client, worker) = process(&database).await;
    let slow = "CREATE FUNCTION slow.sleep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            PERFORM pg_sleep(0.5); RETURN NEW; END $$;
        CREATE TRIGGER sleep BEFORE INSERT ON slow.events
            FOR EACH ROW EXECUTE FUNCTION slow.sleep()";
    admin.execute(sqlx::raw_sql(slow)).await.unwrap();
    client.emit_event("event", &"heard").in_tx(&mut admin).await.unwrap();
    let listens = client.spawn_named("listen", "event").await.unwrap();
    assert_eq!(ends(&client, &listens).await.unwrap(), "heard");
    worker.shutdown().await;
}

/// A task in whose place another one was spawned, or waited, is that other one for every caller.
#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_is_not_run_because_another_one_is_stands_for_that_one() {
    let database = Database::new();
    let (client, worker) = process(&database).await;
    let join = |(key, event): (String, String), ctx: TaskContext| async move {
        let options = SpawnOptions::new().idempotency_key(key);
        let child =
            ctx.spawn_named::<_, String>("child", "echo", "never run").options(options).await?;
        ctx.await_event::<String>(event, None).await?;
        ctx.join::<String>(&child).await
    };
    client.register_fn("join", join).await.unwrap();
    let key = |key: &str| SpawnOptions::new().idempotency_key(key);
    // A client's comes first.
    let mut conn = database.connection().await;
    begin(&mut conn, "READ COMMITTED").await;
    let second =
        client.spawn_named("echo", "second").options(key("order")).in_tx(&mut conn).await.unwrap();
    client.spawn_named("echo", "first").options(key("order")).await.unwrap();
    conn.execute("COMMIT").await.unwrap();
    assert_eq!(ends(&client, &second).await.unwrap(), "first");
    let refused = client.retry(second.task_id).await.unwrap_err();
    assert!(matches!(refused, Error::NotAllowed { .. }), "{refused}");
    assert_eq!(ends(&client, &second).await.unwrap(), "first");

    // A task waits, in whose favour another one with a key is not run: the key leads
    // to the one that waits.
    client.queues().pause("default").await.unwrap();
    let reuse = || SpawnOptions::new().coalesced("index", Coalesce::Reuse);
    let waits = client.spawn_named("echo", "waits").options(reuse()).await.unwrap();
    begin(&mut conn, "READ COMMITTED").await;
    let reused = client
        .spawn_named("echo", "reuses")
        .options(reuse().idempotency_key("k"))
        .in_tx(&mut conn)
        .await
        .unwrap();
    conn.execute("COMMIT").await.unwrap();
    client.emit_event("settled", &"").await.unwrap();
    assert_eq!(client.task(reused.task_id).await.unwrap().unwrap().state, TaskState::Cancelled);
    let again = client.spawn_named("echo", "again").options(key("k")).await.unwrap();
    assert_eq!((again.task_id, again.created()), (waits.task_id, false));
    begin(&mut conn, "READ COMMITTED").await;
    let again =
        client.spawn_named("echo", "again").options(key("k")).in_tx(&mut conn).await.unwrap();
    conn.execute("ROLLBACK").await.unwrap();
    assert_eq!((again.task_id, again.created()), (waits.task_id, false));
    // One that waits for the other's id, as code of its own may have given it to it, wakes by the
    // end of what is done.
    let by_id = client.spawn_named("join", &("k", "go")).await.unwrap();
    client.queues().resume("default").await.unwrap();
    client.emit_event("go", &"").await.unwrap();
    assert_eq!(ends(&client, &by_id).await.unwrap(), "waits");
    assert_eq!(ends(&client, &reused).await.unwrap(), "waits");
    assert!(matches!(client.retry(reused.task_id).await, Err(Error::NotAllowed { .. })));
    let rows = database.sql("SELECT count(*) FROM journal WHERE payload LIKE '%never%'").await;
    assert_eq!(rows[0].get::<i64, _>(0), 0);
    worker.shutdown().await;
}

/// A task that was answered with another one may await it later: until then that one is kept.
#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_another_one_was_answered_with_is_kept_until_that_has_ended() {
    let database = Database::new();
    let (client, worker) = process(&database).await;
    let join = |_: (), ctx: TaskContext| async move {
        let options = SpawnOptions::new().idempotency_key("order");
        let child = ctx.spawn_named::<_, String>("child", "echo", "again").options(options).await?;
        ctx.await_event::<String>("go", None).await?;
        ctx.join::<String>(&child).await
    };
    client.register_fn("join", join).await.unwrap();
    let there = client.spawn_named("echo", "once").idempotency_key("order").await.unwrap();
    assert_eq!(ends(&client, &there).await.unwrap(), "once");
    let joins = client.spawn_named("join", &()).await.unwrap();
    suspended(&client, joins.task_id).await;
    let needed = client.delete(there.task_id).await.unwrap_err();
    assert!(matches!(needed, Error::Needed { by, .. } if by == joins.task_id), "{needed}");
    assert_eq!(client.purge(Duration::ZERO, None).await.unwrap(), 0);
    client.emit_event("go", &"").await.unwrap();
    assert_eq!(ends(&client, &joins).await.unwrap(), "once");
    while client.purge(Duration::ZERO, None).await.unwrap() < 2 {
        assert!(!database.sql("SELECT FROM tasks").await.is_empty(), "they were purged one by one");
    }
    assert!(database.sql("SELECT FROM needs").await.is_empty());
    worker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_in_another_database_is_told_so() {
    let database = Database::new();
    let (client, worker) = process(&database).await;
    let other = throwaway::Postgres::start().unwrap();
    let mut conn = PgConnection::connect(&other.url()).await.unwrap();
    let spawned = client.spawn_named("echo", "x").in_tx(&mut conn).await.unwrap_err();
    let emitted = client.emit_event("event", &1).in_tx(&mut conn).await.unwrap_err();
    for error in [spawned.to_string(), emitted.to_string()] {
        assert!(error.contains("begin it in the store's own database"), "{error}");
    }
    worker.shutdown().await;
}
