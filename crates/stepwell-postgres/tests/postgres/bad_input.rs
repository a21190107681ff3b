//! What goes wrong around a store: each gets an error that says what to do, and nothing is lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use sqlx::{Connection as _, Row as _};
use stepwell::{Durable, Error, RetryStrategy, SpawnOptions, TaskContext, WorkerOptions};
use stepwell_core::StoreError;
use stepwell_postgres::{PostgresOptions, PostgresStore, sqlx};

use crate::database::{Database, server};

async fn refused(url: &str) -> String {
    match PostgresStore::connect(PostgresOptions::parse(url).unwrap()).await {
        Ok(_) => panic!("the store was opened at {url}"),
        Err(error) => error.to_string(),
    }
}

/// The server's URL, with another user, password and database.
fn url_of(user: &str, password: &str, database: &str) -> String {
    let mut url = url::Url::parse(&server()).unwrap();
    url.set_username(user).unwrap();
    url.set_password(Some(password)).unwrap();
    url.set_path(database);
    url.into()
}

#[tokio::test]
async fn a_server_that_will_not_have_us() {
    let nobody = refused(&url_of("nobody_of_that_name", "wrong", "postgres")).await;
    assert!(
        nobody.contains("cannot open the database postgres://nobody_of_that_name@"),
        "{nobody}"
    );
    assert!(nobody.contains("Check the user and the password in the URL"), "{nobody}");
    assert!(!nobody.contains("wrong"), "a password is not for logs: {nobody}");

    let mut url = url::Url::parse(&server()).unwrap();
    url.set_path("no_such_database");
    let missing = refused(url.as_str()).await;
    assert!(missing.contains("Create the database, or check its name in the URL"), "{missing}");

    // A port that nobody listens on: taken, and given back.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let down = refused(&format!("postgres://ann:hush@127.0.0.1:{port}/app")).await;
    assert!(
        down.contains("Check that the server runs, and the host and port in the URL"),
        "{down}"
    );
    assert!(!down.contains("hush"), "{down}");
}

#[tokio::test]
async fn a_schema_of_a_newer_version() {
    let database = Database::new();
    database.open().await;
    database.sql("UPDATE schema_version SET version = 999").await;
    let error = PostgresStore::connect(database.options()).await.err().unwrap();
    assert!(matches!(error, StoreError::NewerSchema { found: 999, .. }), "{error}");
    assert!(error.to_string().contains("run a newer build of it"), "{error}");
}

#[tokio::test]
async fn a_schema_that_is_to_be_left_as_it_is() {
    let database = Database::new();
    let error = PostgresStore::connect_existing(database.options()).await.err().unwrap();
    assert!(matches!(error, StoreError::OlderSchema { found: 0, .. }), "{error}");
    assert!(error.to_string().contains("has no tables of Stepwell"), "{error}");
    let error = PostgresStore::connect_existing(database.options()).await.err().unwrap();
    assert!(matches!(error, StoreError::OlderSchema { found: 0, .. }), "it was made: {error}");
    database.open().await;
    PostgresStore::connect_existing(database.options()).await.unwrap();
}

#[tokio::test]
async fn many_processes_that_start_at_the_same_time_make_one_schema() {
    let database = Database::new();
    let stores = (0..8).map(|_| PostgresStore::connect(database.options()));
    for store in futures_util::future::join_all(stores).await {
        store.unwrap();
    }
    let rows = database.sql("SELECT count(*) FROM schema_version").await;
    assert_eq!(rows[0].get::<i64, _>(0), 1);
}

/// A user with the privileges of the documentation, and no more.
struct User {
    database: Database,
    name: String,
}

impl User {
    async fn new(database: Database, privileges: &str) -> Self {
        let name = format!("user_{}", uuid::Uuid::new_v4().simple());
        database.sql(&format!("CREATE ROLE {name} LOGIN PASSWORD 'secret'")).await;
        let privileges =
            privileges.replace("the_user", &name).replace("the_schema", &database.schema);
        database.sql(&privileges).await;
        Self { database, name }
    }

    fn options(&self) -> PostgresOptions {
        let path =
            url::Url::parse(&self.database.url).unwrap().path().trim_start_matches('/').to_owned();
        let url = url_of(&self.name, "secret", &path);
        PostgresOptions::parse(&url).unwrap().schema(&self.database.schema).unwrap()
    }

    async fn drop(self) {
        self.database.sql(&format!("DROP OWNED BY {0}; DROP ROLE {0}", self.name)).await;
    }
}

#[tokio::test]
async fn a_user_without_privileges() {
    let database = Database::new();
    database.open().await;
    let user = User::new(database, "").await;
    let error = PostgresStore::connect(user.options()).await.err().unwrap().to_string();
    assert!(error.contains("lacks a privilege"), "{error}");
    user.drop().await;
}

#[tokio::test]
async fn the_privileges_of_the_documentation_are_enough() {
    let documented = include_str!("../../../../docs/operations/postgresql.md");
    let from = documented.find("GRANT USAGE").unwrap();
    let grants = &documented[from..from + documented[from..].find("```").unwrap()];
    let database = Database::new();
    database.open().await;
    let user =
        User::new(database, &grants.replace("stepwell", "the_schema").replace("app", "the_user"))
            .await;
    let client = client(user.options()).await;
    let worker = client.start_worker(WorkerOptions::new()).await;
    let task = client.spawn_named("double", &21).await.unwrap();
    assert_eq!(client.wait::<u64>(task.task_id).await.unwrap(), 42);
    client.delete(task.task_id).await.unwrap();
    worker.shutdown().await;
    user.drop().await;
}

/// What lies in an item fails its caller; what lies in the server is waited for.
#[tokio::test(flavor = "multi_thread")]
async fn one_item_that_the_server_refuses_holds_up_nobody() {
    let database = Database::new();
    let client = client(database.options()).await;
    database
        .sql(
            "ALTER TABLE tasks ADD CONSTRAINT no_13 CHECK (params <> '13');
            ALTER TABLE journal ADD CONSTRAINT no_34 CHECK (payload <> '34');
            ALTER TABLE outcomes ADD CONSTRAINT no_36 CHECK (output <> '36')",
        )
        .await;
    let worker = client.start_worker(WorkerOptions::new()).await;
    let spawn = |n: u64| {
        let options =
            SpawnOptions::new().max_attempts(2).retry(RetryStrategy::fixed(Duration::ZERO));
        let client = &client;
        async move { client.spawn_named("double", &n).options(options).await }
    };
    let spawned = futures_util::future::join_all((0..40).map(spawn)).await;
    for (n, spawned) in (0..).zip(spawned) {
        let task = match (n, spawned) {
            (13, Err(Error::Store(error))) => {
                assert!(!error.is_transient() && error.to_string().contains("no_13"), "{error}");
                continue;
            }
            (_, spawned) => spawned.unwrap().task_id,
        };
        let end =
            tokio::time::timeout(Duration::from_secs(60), client.wait::<u64>(task)).await.unwrap();
        match n {
            17 | 18 => {
                let error = end.unwrap_err().to_string();
                assert!(error.contains("the store refuses what this attempt did"), "{error}");
            }
            n => assert_eq!(end.unwrap(), n * 2),
        }
    }
    worker.shutdown().await;
}

async fn client(options: PostgresOptions) -> Durable {
    let store = PostgresStore::connect(options).await.unwrap();
    let client = Durable::builder().store(Arc::new(store)).build().await.unwrap();
    let double = |n: u64, ctx: TaskContext| async move {
        let doubled = ctx.step("double", || async move { Ok(n * 2) }).await?;
        ctx.sleep_for("nap", Duration::from_millis(1)).await?;
        ctx.step("same", || async move { Ok(doubled) }).await
    };
    client.register_fn("double", double).await.unwrap();
    client
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_backends_lose_nothing_and_repeat_nothing() {
    let database = Database::new();
    let name = format!("victim_{}", database.schema);
    let url = format!("{}?application_name={name}", database.url);
    let client =
        client(PostgresOptions::parse(&url).unwrap().schema(&database.schema).unwrap()).await;
    client.start_worker(WorkerOptions::new()).await;
    let (stop, mut stopped) = tokio::sync::oneshot::channel::<()>();
    let killed = Arc::new(AtomicI64::new(0));
    let killer = tokio::spawn({
        let (name, mut conn, killed) = (name.clone(), database.connection().await, killed.clone());
        async move {
            let kill = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE \
                        application_name = $1";
            while stopped.try_recv().is_err() {
                let kill = sqlx::query_scalar::<_, i64>(kill).bind(&name);
                killed.fetch_add(kill.fetch_one(&mut conn).await.unwrap(), Ordering::SeqCst);
                // A new backend needs some of this to plan its statements.
                tokio::time::sleep(Duration::from_millis(150)).await;
            }
        }
    });
    let mut rounds = 0;
    while killed.load(Ordering::SeqCst) < 20 {
        let round = rounds;
        rounds += 1;
        let spawns = (0..20_u64).map(|n| {
            let client = &client;
            async move {
                let number: u64 = round * 100 + n;
                // What was refused before it was on its way may be tried again; with the key, so
                // may anything.
                let options = SpawnOptions::new().idempotency_key(format!("key {number}"));
                loop {
                    match client.spawn_named("double", &number).options(options.clone()).await {
                        Ok(task) => return (number, task.task_id),
                        Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
                    }
                }
            }
        });
        for (number, task_id) in futures_util::future::join_all(spawns).await {
            let doubled = loop {
                match client.wait::<u64>(task_id).await {
                    Ok(doubled) => break doubled,
                    Err(stepwell::Error::Store(_)) => {
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                    Err(error) => panic!("task {number}: {error}"),
                }
            };
            assert_eq!(doubled, number * 2);
        }
    }
    stop.send(()).unwrap();
    killer.await.unwrap();
    // Each entry once, and no more than the code asked for.
    let rows = database.sql("SELECT count(*), count(DISTINCT task_id) FROM journal").await;
    let tasks = i64::try_from(rounds).unwrap() * 20;
    assert_eq!((rows[0].get::<i64, _>(0), rows[0].get::<i64, _>(1)), (tasks * 3, tasks));
    let rows = database.sql("SELECT count(*) FROM outcomes WHERE attempt > 1").await;
    assert_eq!(rows[0].get::<i64, _>(0), 0, "no attempt was lost");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_holds_tasks_up_and_loses_none() {
    let database = Database::new();
    let client = client(database.options()).await;
    client.start_worker(WorkerOptions::new()).await;
    database
        .sql(
            "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN RAISE EXCEPTION 'could not extend file' USING ERRCODE = 'disk_full'; END $$;
            CREATE TRIGGER full_disk BEFORE INSERT ON outcomes EXECUTE FUNCTION full_disk()",
        )
        .await;
    let task = client.spawn_named("double", &21).await.unwrap();
    let entries = async {
        while client.journal(task.task_id).await.unwrap().len() < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), entries).await.unwrap();
    database.sql("DROP TRIGGER full_disk ON outcomes").await;
    assert_eq!(client.wait::<u64>(task.task_id).await.unwrap(), 42);
}

#[tokio::test]
async fn a_disk_that_is_full_is_named() {
    let database = Database::new();
    let client = client(database.options()).await;
    database
        .sql(
            "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN RAISE EXCEPTION 'could not extend file' USING ERRCODE = 'disk_full'; END $$;
            CREATE TRIGGER full_disk BEFORE INSERT ON tasks EXECUTE FUNCTION full_disk()",
        )
        .await;
    let error = client.spawn_named("double", &21).await.unwrap_err().to_string();
    assert!(error.contains("the disk is full (could not extend file"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn through_a_pooler_in_transaction_mode() {
    let Some(_) = throwaway::pgbouncer_binary() else {
        // `cargo xtask test` says that it is missing, and fails in CI.
        eprintln!("PgBouncer is not installed: not run");
        return;
    };
    let postgres = throwaway::Postgres::start().unwrap();
    let pooler = throwaway::PgBouncer::start(&postgres).unwrap();
    let options =
        PostgresOptions::parse(&format!("{}?statement-cache-capacity=0", pooler.url())).unwrap();
    let (a, b) = (client(options.clone()).await, client(options).await);
    let worker =
        b.start_worker(WorkerOptions::new().poll_interval(Duration::from_secs(3600))).await;
    let spawns = (0..50_u64).map(|n| {
        let a = &a;
        async move {
            let task = a.spawn_named("double", &n).await.unwrap();
            assert_eq!(a.wait::<u64>(task.task_id).await.unwrap(), n * 2);
        }
    });
    // Well before the worker polls: what is not heard is supposed.
    tokio::time::timeout(Duration::from_secs(60), futures_util::future::join_all(spawns))
        .await
        .unwrap();
    worker.shutdown().await;
}

#[tokio::test]
async fn a_server_that_was_restarted_is_found_again() {
    let postgres = throwaway::Postgres::start().unwrap();
    let client = client(PostgresOptions::parse(&postgres.url()).unwrap()).await;
    let worker = client.start_worker(WorkerOptions::new()).await;
    let task = client.spawn_named("double", &21).await.unwrap();
    client.wait::<u64>(task.task_id).await.unwrap();
    postgres.stop(throwaway::Stop::Immediate).unwrap();
    // The first may have been on its way when the server went; it is held until that is known. The
    // server is down now, and says so.
    let down = async {
        loop {
            if let Err(error) = client.task(task.task_id).await {
                break error.to_string();
            }
        }
    };
    let error = tokio::time::timeout(Duration::from_secs(60), down).await.unwrap();
    assert!(error.contains("The engine goes on by itself when the server is back"), "{error}");
    postgres.start_again().unwrap();
    let task = loop {
        match client.spawn_named("double", &4).await {
            Ok(task) => break task,
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    };
    assert_eq!(client.wait::<u64>(task.task_id).await.unwrap(), 8);
    worker.shutdown().await;
    sqlx::PgConnection::connect(&postgres.url()).await.unwrap();
}
