//! Exactly once with the user's own data: a process that writes an order and spawns its task in one
//! transaction, and whose task pays in a step's transaction, dies between every two of its
//! statements, or its connections do. Whatever is left, both sides agree.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use sqlx::{Connection as _, PgConnection, Row as _};
use stepwell::store::{Batch, WorkerSignal};
use stepwell::{Durable, Store as _, TaskContext, TaskResult, WorkerOptions};
use stepwell_postgres::{PostgresOptions, PostgresStore, TransactionExt as _, sqlx};

use crate::database::Database;

/// Strikes when it is called for the `n`-th time; never when that is 0.
struct Fate {
    left: AtomicU32,
    blow: Blow,
    url: String,
    /// The name of the connections of the process that is to be killed.
    name: String,
}

#[derive(Clone, Copy, PartialEq)]
enum Blow {
    /// The process dies.
    Abort,
    /// All of its connections do.
    Terminate,
}

impl Fate {
    async fn strike(&self) {
        let left = self.left.load(Ordering::SeqCst);
        if left == 0 || self.left.fetch_sub(1, Ordering::SeqCst) > 1 {
            return;
        }
        if self.blow == Blow::Abort {
            std::process::abort();
        }
        let mut conn = PgConnection::connect(&self.url).await.unwrap();
        let sql =
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1";
        sqlx::query(sql).bind(&self.name).execute(&mut conn).await.unwrap();
    }
}

#[stepwell::task]
async fn ship(item: String, ctx: TaskContext) -> TaskResult<i64> {
    let fate = ctx.state::<Arc<Fate>>()?;
    let of_step = fate.clone();
    let paid = ctx
        .transaction("pay", move |tx| {
            Box::pin(async move {
                of_step.strike().await;
                sqlx::query("INSERT INTO payments (item) VALUES ($1)")
                    .bind(&item)
                    .execute(&mut *tx)
                    .await?;
                of_step.strike().await;
                sqlx::query("UPDATE totals SET payments = payments + 1").execute(&mut *tx).await?;
                of_step.strike().await;
                let sql = "SELECT payments FROM totals";
                Ok(sqlx::query_scalar::<_, i64>(sql).fetch_one(&mut *tx).await?)
            })
        })
        .await?;
    fate.strike().await;
    ctx.await_event::<u32>("ordered", None).await?;
    fate.strike().await;
    Ok(paid)
}

/// The database as the process that is to be killed reaches it: its tables are found without their
/// schema's name.
fn url_of(database: &Database) -> String {
    let mut url = url::Url::parse(&database.url).unwrap();
    url.query_pairs_mut()
        .append_pair("application_name", &database.schema)
        .append_pair("options[search_path]", &database.schema);
    url.into()
}

async fn program(database: &Database, fate: u32, blow: Blow) {
    let fate = Arc::new(Fate {
        left: AtomicU32::new(fate),
        blow,
        url: database.url.clone(),
        name: database.schema.clone(),
    });
    let url = url_of(database);
    let options = PostgresOptions::parse(&url).unwrap().schema(&database.schema).unwrap();
    let store = PostgresStore::connect(options).await.unwrap();
    let builder = Durable::builder().store(Arc::new(store)).state(fate.clone()).max_attempts(100);
    let client =
        builder.retry(stepwell::RetryStrategy::fixed(Duration::ZERO)).build().await.unwrap();
    client.register::<ship>().await.unwrap();
    while order(&client, &url, &fate).await.is_err() {
        // As a program does that was told of a broken connection: it looks again.
        assert!(blow == Blow::Terminate, "nothing is to fail");
    }
    fate.strike().await;
    let lease = Duration::from_secs(1);
    let worker =
        client.start_worker(WorkerOptions::new().lease(lease).poll_interval(lease / 4)).await;
    let mut conn = PgConnection::connect(&database.url).await.unwrap();
    let sql = format!("SELECT task_id FROM {}.orders", database.schema);
    let id: uuid::Uuid =
        sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_one(&mut conn).await.unwrap();
    assert_eq!(client.wait::<i64>(id.into()).await.unwrap(), 1);
    fate.strike().await;
    worker.shutdown().await;
}

/// Orders, unless that was done before.
async fn order(client: &Durable, url: &str, fate: &Fate) -> anyhow::Result<()> {
    let mut conn = PgConnection::connect(url).await?;
    let mut tx = conn.begin().await?;
    let orders: i64 = sqlx::query_scalar("SELECT count(*) FROM orders").fetch_one(&mut *tx).await?;
    if orders == 0 {
        fate.strike().await;
        sqlx::query("INSERT INTO orders (item) VALUES ('teapot')").execute(&mut *tx).await?;
        fate.strike().await;
        let task = client.spawn::<ship>("teapot".into()).in_tx(&mut tx).await?;
        fate.strike().await;
        client.emit_event("ordered", &1).in_tx(&mut tx).await?;
        fate.strike().await;
        let sql = "UPDATE orders SET task_id = $1";
        sqlx::query(sql).bind(*task.task_id.as_uuid()).execute(&mut *tx).await?;
        fate.strike().await;
    }
    Ok(tx.commit().await?)
}

#[tokio::test]
#[ignore = "it is started by the test that lets it die"]
async fn doomed_program() {
    let Ok(schema) = std::env::var("EXACTLY_ONCE_SCHEMA") else { return };
    let database = Database { url: std::env::var("EXACTLY_ONCE_URL").unwrap(), schema };
    program(&database, std::env::var("EXACTLY_ONCE_FATE").unwrap().parse().unwrap(), Blow::Abort)
        .await;
    // The schema is the parent's.
    std::mem::forget(database);
}

async fn prepared() -> Database {
    let database = Database::new();
    database.open().await;
    database
        .sql(
            "CREATE TABLE orders (item text, task_id uuid); CREATE TABLE payments (item text);
            CREATE TABLE totals (payments bigint); INSERT INTO totals VALUES (0)",
        )
        .await;
    database
}

/// Checks that both sides agree. Gives how many orders and payments there are.
async fn both(database: &Database, when: &str) -> (i64, i64) {
    let sql = "SELECT (SELECT count(*) FROM orders WHERE task_id IS NOT NULL),
        (SELECT count(*) FROM tasks),
        (SELECT count(*) FROM events) + (SELECT count(*) FROM outbox),
        (SELECT count(*) FROM payments), (SELECT payments FROM totals),
        (SELECT count(*) FROM journal WHERE kind = 'step' AND outcome = 'done')";
    let rows = database.sql(sql).await;
    let counts: Vec<i64> = (0..6).map(|column| rows[0].get(column)).collect();
    let [orders, tasks, events, payments, total, steps] = counts[..] else { panic!("{counts:?}") };
    assert_eq!((tasks, events), (orders, orders), "{when}");
    assert_eq!((payments, total), (steps, steps), "{when}");
    (orders, payments)
}

#[tokio::test(flavor = "multi_thread")]
async fn whenever_the_process_dies_both_sides_agree() {
    let mut deaths = 0;
    loop {
        let database = prepared().await;
        let mut doomed = Command::new(std::env::current_exe().unwrap());
        doomed.args(["--exact", "exactly_once::doomed_program", "--ignored", "--nocapture"]);
        doomed.env("EXACTLY_ONCE_URL", &database.url).env("EXACTLY_ONCE_SCHEMA", &database.schema);
        doomed.env("EXACTLY_ONCE_FATE", (deaths + 1).to_string());
        let ended = doomed.output().unwrap();
        both(&database, &format!("after death {deaths}")).await;
        if ended.status.success() {
            break;
        }
        program(&database, 0, Blow::Abort).await;
        assert_eq!(both(&database, &format!("after death {deaths} and a new start")).await, (1, 1));
        deaths += 1;
    }
    assert_eq!(deaths, 12, "it was to die at each of its places");
}

#[tokio::test(flavor = "multi_thread")]
async fn whenever_its_connections_die_both_sides_agree() {
    for blow in 1..=12 {
        let database = prepared().await;
        program(&database, blow, Blow::Terminate).await;
        assert_eq!(both(&database, &format!("after blow {blow}")).await, (1, 1));
    }
}

#[tokio::test]
async fn what_is_rolled_back_was_never_there() {
    let database = prepared().await;
    let client = Durable::builder().store(Arc::new(database.open().await)).build().await.unwrap();
    let mut conn = database.connection().await;
    let mut tx = conn.begin().await.unwrap();
    let task = client.spawn::<ship>("teapot".into()).in_tx(&mut tx).await.unwrap();
    client.emit_event("ordered", &1).in_tx(&mut tx).await.unwrap();
    tx.rollback().await.unwrap();
    assert!(client.task(task.task_id).await.unwrap().is_none());
    assert!(client.emit_event("ordered", &2).await.unwrap(), "it is the first");
}

/// Runs one task with this transaction; gives its result, and how many payments there are.
async fn paid<F>(work: F) -> (Result<i64, stepwell::Error>, i64)
where
    F: for<'c> Fn(&'c mut PgConnection) -> futures_util::future::BoxFuture<'c, anyhow::Result<i64>>,
    F: Clone + Send + Sync + 'static,
{
    let database = prepared().await;
    let options =
        PostgresOptions::parse(&url_of(&database)).unwrap().schema(&database.schema).unwrap();
    let store = PostgresStore::connect(options).await.unwrap();
    let client = Durable::builder().store(Arc::new(store)).max_attempts(1).build().await.unwrap();
    let task = move |(): (), ctx: TaskContext| {
        let work = work.clone();
        async move { ctx.transaction("pay", move |tx| work(tx)).await }
    };
    client.register_fn("pay", task).await.unwrap();
    let worker = client.start_worker(WorkerOptions::new()).await;
    let task = client.spawn_named("pay", &()).options(stepwell::SpawnOptions::new()).await.unwrap();
    let result = client.wait::<i64>(task.task_id).await;
    worker.shutdown().await;
    (result, database.sql("SELECT count(*) FROM payments").await[0].get(0))
}

const PAY: &str = "INSERT INTO payments (item) VALUES ('teapot')";

#[tokio::test(flavor = "multi_thread")]
async fn what_a_failed_transaction_wrote_is_undone() {
    let (result, payments) = paid(|tx| {
        Box::pin(async move {
            sqlx::query(PAY).execute(tx).await?;
            anyhow::bail!("no money")
        })
    })
    .await;
    assert!(result.unwrap_err().to_string().contains("no money"));
    assert_eq!(payments, 0);

    let (result, payments) = paid(|tx| {
        Box::pin(async move {
            sqlx::query(PAY).execute(&mut *tx).await?;
            sqlx::query("SELECT 1 / 0").execute(tx).await?;
            Ok(1)
        })
    })
    .await;
    assert!(result.unwrap_err().to_string().contains("division by zero"));
    assert_eq!(payments, 0);

    let (result, payments) = paid(|tx| {
        Box::pin(async move {
            sqlx::query(PAY).execute(tx).await?;
            panic!("ouch")
        })
    })
    .await;
    assert!(result.unwrap_err().to_string().contains("panicked: ouch"));
    assert_eq!(payments, 0);

    let (result, payments) = paid(|_| panic!("before there is a future")).await;
    assert!(result.unwrap_err().to_string().contains("panicked: before there is a future"));
    assert_eq!(payments, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_ends_itself_is_told_so() {
    let (result, _) = paid(|tx| {
        Box::pin(async move {
            sqlx::query(PAY).execute(&mut *tx).await?;
            sqlx::query("COMMIT").execute(tx).await?;
            Ok(1)
        })
    })
    .await;
    let error = result.unwrap_err().to_string();
    assert!(error.contains("was ended by its closure: remove its COMMIT or ROLLBACK"), "{error}");
}

/// A process with tasks whose transactions do that.
async fn transacting<F>(database: &Database, work: F) -> (Durable, stepwell::Worker)
where
    F: for<'c> Fn(
        &'c mut PgConnection,
    ) -> futures_util::future::BoxFuture<'c, anyhow::Result<String>>,
    F: Clone + Send + Sync + 'static,
{
    let client = Durable::builder().store(Arc::new(database.open().await)).build().await.unwrap();
    let task = move |(): (), ctx: TaskContext| {
        let work = work.clone();
        async move { ctx.transaction("work", move |tx| work(tx)).await }
    };
    client.register_fn("work", task).await.unwrap();
    client
        .register_fn("echo", |value: u64, _: TaskContext| async move { Ok(value) })
        .await
        .unwrap();
    let worker = client.start_worker(WorkerOptions::new()).await;
    (client, worker)
}

#[tokio::test(flavor = "multi_thread")]
async fn transactions_that_take_their_time_are_in_nobodys_way() {
    const TASKS: usize = 20;
    let database = Database::new();
    let (begun, go) = (Arc::new(AtomicU32::new(0)), tokio::sync::watch::channel(false));
    let (counted, heard) = (begun.clone(), go.1);
    let transacting = transacting(&database, move |_| {
        let (begun, mut go) = (counted.clone(), heard.clone());
        Box::pin(async move {
            begun.fetch_add(1, Ordering::SeqCst);
            go.wait_for(|go| *go).await?;
            Ok("done".into())
        })
    });
    let (client, worker) = transacting.await;
    let mut tasks = Vec::new();
    for _ in 0..TASKS {
        tasks.push(
            client
                .spawn_named("work", &())
                .options(stepwell::SpawnOptions::new())
                .await
                .unwrap()
                .task_id,
        );
    }
    // As many as run at a time.
    while begun.load(Ordering::SeqCst) < 8 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let others = async {
        for n in 0..10 {
            assert_eq!(
                client.tasks(stepwell::TaskFilter::default()).await.unwrap().items.len(),
                TASKS + n
            );
            let task = client
                .spawn_named("echo", &7)
                .options(stepwell::SpawnOptions::new())
                .await
                .unwrap();
            assert_eq!(client.wait::<u64>(task.task_id).await.unwrap(), 7);
        }
    };
    tokio::time::timeout(Duration::from_secs(20), others)
        .await
        .expect("they wait for the transactions");
    go.0.send_replace(true);
    for task in tasks {
        assert_eq!(client.wait::<String>(task).await.unwrap(), "done");
        assert_eq!(client.task(task).await.unwrap().unwrap().attempt, 1);
    }
    worker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_closure_sets_for_its_session_is_not_the_next_ones() {
    let database = Database::new();
    let role = format!("role_{}", uuid::Uuid::new_v4().simple());
    database.open().await;
    // A role that may add the step's entry.
    database
        .sql(&format!(
            "CREATE ROLE {role}; GRANT USAGE ON SCHEMA {0} TO {role}; GRANT ALL ON ALL TABLES IN \
             SCHEMA {0} TO {role}",
            database.schema
        ))
        .await;
    let set = format!(
        "SET ROLE {role}; SET app.tenant = 'a'; CREATE TEMP TABLE mine (); SELECT \
         pg_advisory_lock(72, 1)"
    );
    let transacting = transacting(&database, move |tx| {
        let set = set.clone();
        Box::pin(async move {
            let found = "SELECT (current_user = session_user) || ' '
                || coalesce(current_setting('app.tenant', true), '') || ' '
                || (to_regclass('pg_temp.mine') IS NULL) || ' '
                || (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'
                    AND pid = pg_backend_pid() AND classid = 72)";
            let found: String = sqlx::query_scalar(found).fetch_one(&mut *tx).await?;
            sqlx::raw_sql(sqlx::AssertSqlSafe(set)).execute(tx).await?;
            Ok(found)
        })
    });
    let (client, worker) = transacting.await;
    for _ in 0..20 {
        let task = client
            .spawn_named("work", &())
            .options(stepwell::SpawnOptions::new().max_attempts(1))
            .await
            .unwrap();
        assert_eq!(client.wait::<String>(task.task_id).await.unwrap(), "true  true 0");
        client.tasks(stepwell::TaskFilter::default()).await.unwrap();
    }
    worker.shutdown().await;
    database.sql(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_of_a_run_that_was_lost_is_undone() {
    let database = prepared().await;
    let (begun, mut is_begun) = tokio::sync::mpsc::unbounded_channel();
    let process = |name: &'static str| {
        let (begun, go) = (begun.clone(), Arc::new(tokio::sync::Notify::new()));
        let goes_on = go.clone();
        let pay = format!("INSERT INTO {}.payments (item) VALUES ($1)", database.schema);
        let transacting = transacting(&database, move |tx| {
            let (begun, go, pay) = (begun.clone(), goes_on.clone(), pay.clone());
            Box::pin(async move {
                sqlx::query(sqlx::AssertSqlSafe(pay)).bind(name).execute(&mut *tx).await?;
                begun.send(name)?;
                go.notified().await;
                Ok(name.to_owned())
            })
        });
        async move { (transacting.await, go) }
    };
    let ((first, lost), first_goes_on) = process("first").await;
    let task = first
        .spawn_named("work", &())
        .options(stepwell::SpawnOptions::new())
        .await
        .unwrap()
        .task_id;
    assert_eq!(is_begun.recv().await, Some("first"));
    let store = database.open().await;
    // However often it was heard of until now.
    for heartbeats in 0..10 {
        let dead = WorkerSignal::DeclareDead { worker_id: lost.worker_id(), heartbeats };
        store.commit(Batch { workers: vec![dead], ..Batch::default() }.into()).await.unwrap();
    }
    let ((second, worker), second_goes_on) = process("second").await;
    assert_eq!(is_begun.recv().await, Some("second"));
    first_goes_on.notify_one();
    // Until its transaction has ended.
    let open = "SELECT count(*) FROM pg_locks WHERE relation = 'payments'::regclass AND mode = \
                'RowExclusiveLock'";
    while database.sql(open).await[0].get::<i64, _>(0) > 1 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    second_goes_on.notify_one();
    assert_eq!(second.wait::<String>(task).await.unwrap(), "second");
    let items = database.sql("SELECT item FROM payments").await;
    let items: Vec<String> = items.iter().map(|row| row.get(0)).collect();
    assert_eq!(items, ["second"], "what the first one wrote is undone");
    worker.shutdown().await;
}
