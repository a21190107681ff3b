//! Servers that do not write, or do not answer: who asks is told so.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use sqlx::{Connection as _, Executor as _};
use stepwell::{Durable, Error, StoreError, TaskContext, TaskFilter, WorkerOptions};
use stepwell_postgres::{PostgresOptions, PostgresStore, sqlx};
use throwaway::{Postgres, Stop};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::database::Database;

async fn client(url: &str) -> Durable {
    let store = PostgresStore::connect(PostgresOptions::parse(url).unwrap()).await.unwrap();
    let client = Durable::builder().store(Arc::new(store)).build().await.unwrap();
    client
        .register_fn("echo", |value: u32, _: TaskContext| async move { Ok(value) })
        .await
        .unwrap();
    client
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_can_be_read_and_says_that_it_cannot_be_written_to_until_it_is_promoted() {
    let primary = Postgres::start().unwrap();
    let spawned = client(&primary.url()).await.spawn_named("echo", &1).await.unwrap();
    let replica = primary.replica().unwrap();
    let client = client(&replica.url()).await;
    assert_eq!(client.tasks(TaskFilter::default()).await.unwrap().items.len(), 1);
    let worker = client.start_worker(WorkerOptions::new()).await;
    let begun = Instant::now();
    for refused in [
        client.spawn_named("echo", &2).await.err(),
        client.spawn_named("echo", &2).idempotency_key("k").await.err(),
        client.emit_event("event", &()).await.err(),
        client.cancel(spawned.task_id).await.err(),
        client.purge(Duration::ZERO, None).await.err(),
    ] {
        let Some(Error::Store(StoreError::Open { reason, advice, .. })) = refused else {
            panic!("{refused:?}")
        };
        assert!(reason.contains("the server is a standby"), "{reason}");
        assert!(advice.contains("Let the URL lead to the primary"), "{advice}");
    }
    assert!(begun.elapsed() < Duration::from_secs(20));
    let rows = "SELECT count(*) FROM stepwell.tasks";
    assert_eq!(primary.sql(rows).unwrap(), "1");
    primary.stop(Stop::Fast).unwrap();
    replica.promote().unwrap();
    assert_eq!(client.wait::<u32>(spawned.task_id).await.unwrap(), 1);
    let spawned = client.spawn_named("echo", &3).await.unwrap();
    assert_eq!(client.wait::<u32>(spawned.task_id).await.unwrap(), 3);
    worker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_a_schema_that_does_not_write_is_an_error() {
    let primary = Postgres::start().unwrap();
    let replica = primary.replica().unwrap();
    let refused = PostgresStore::connect(PostgresOptions::parse(&replica.url()).unwrap())
        .await
        .err()
        .unwrap();
    assert!(refused.to_string().contains("the server is a standby"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_does_not_wait_for_ever_for_an_answer() {
    let database = Database::new();
    let builder = Durable::builder().store(Arc::new(database.open().await));
    let client = builder.answer_timeout(Duration::from_millis(300)).build().await.unwrap();
    let mut conn = database.connection().await;
    conn.execute("BEGIN; LOCK TABLE tasks, events, live_tasks IN ACCESS EXCLUSIVE MODE")
        .await
        .unwrap();
    for unanswered in
        [client.spawn_named("echo", &1).await.err(), client.emit_event("event", &()).await.err()]
    {
        assert!(
            matches!(unanswered, Some(Error::Store(StoreError::Unanswered(_)))),
            "{unanswered:?}"
        );
    }
    conn.execute("COMMIT").await.unwrap();
    // What was asked for is done all the same.
    while database.sql("SELECT FROM tasks, events").await.is_empty() {}
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_is_given_up_leaves_nothing_behind_in_the_server() {
    let postgres = Postgres::start().unwrap();
    let url = postgres.url();
    client(&url).await;
    let mut conn = sqlx::PgConnection::connect(&url).await.unwrap();
    conn.execute("BEGIN; LOCK TABLE stepwell.tasks, stepwell.live_tasks IN ACCESS EXCLUSIVE MODE")
        .await
        .unwrap();
    let given_up = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let spawning = given_up.spawn(async move {
        let client = client(&url).await;
        client.spawn_named("echo", &1).await
    });
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'stepwell' AND \
                   wait_event_type = 'Lock'";
    while postgres.sql(waiting).unwrap() != "1" {}
    given_up.shutdown_background();
    let begun = Instant::now();
    while postgres.sql(waiting).unwrap() != "0" {
        assert!(begun.elapsed() < Duration::from_secs(30), "it waits as long as the lock is held");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    drop(spawning);
    conn.execute("ROLLBACK").await.unwrap();
}

/// A way to a server on which connections can go dead: what comes from the server no longer
/// arrives, and nobody is told.
async fn way_that_goes_dead(port: u16, dead: Arc<AtomicBool>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let own = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            // One that is made later is another one.
            let dead = if dead.load(Ordering::SeqCst) { Arc::default() } else { dead.clone() };
            tokio::spawn(async move {
                let (mut from_client, mut to_client) = client.into_split();
                let (mut from_server, mut to_server) = server.into_split();
                let asks = tokio::io::copy(&mut from_client, &mut to_server);
                let answers = async {
                    let mut bytes = vec![0; 1 << 16];
                    while let Ok(length @ 1..) = from_server.read(&mut bytes).await {
                        if !dead.load(Ordering::SeqCst)
                            && to_client.write_all(&bytes[..length]).await.is_err()
                        {
                            return;
                        }
                    }
                };
                tokio::select! {
                    _ = asks => {}
                    () = answers => {}
                }
            });
        }
    });
    own
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_goes_dead_is_given_up_and_its_batch_applied_once() {
    let postgres = Postgres::start().unwrap();
    let dead = Arc::new(AtomicBool::new(false));
    let mut url = url::Url::parse(&postgres.url()).unwrap();
    url.set_host(Some("127.0.0.1")).unwrap();
    url.set_port(Some(way_that_goes_dead(postgres.port(), dead.clone()).await)).unwrap();
    let client = client(url.as_str()).await;
    client.spawn_named("echo", &1).await.unwrap();
    dead.store(true, Ordering::SeqCst);
    client.spawn_named("echo", &2).await.unwrap();
    assert_eq!(postgres.sql("SELECT count(*) FROM stepwell.tasks").unwrap(), "2");
}
