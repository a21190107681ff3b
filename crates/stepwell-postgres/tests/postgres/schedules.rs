//! Schedules, when answers of the server are lost: several clients come to every tick, over a network that drops an answer now
//! and then, with its connection; and each tick spawns one task.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use stepwell::{
    CatchUp, Durable, Schedule, SpawnOptions, Store as _, TICK_HEADER, TaskFilter, Timestamp, WorkerOptions,
    until,
};
use stepwell_postgres::{PostgresOptions, PostgresStore};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::database::Database;

const SECOND: Duration = Duration::from_secs(1);
const TICKS: usize = 5;
/// Of so many answers one is lost: what the server has done by then, it has done.
const LOST: u64 = 25;

/// A way to the server, as long as the runtime lives. Returns its port.
async fn bad_network(server: (String, u16)) -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let answers = Arc::new(AtomicU64::new(0));
    tokio::spawn(async move {
        loop {
            let (client, _) = listener.accept().await.unwrap();
            let server = TcpStream::connect(&server).await.unwrap();
            tokio::spawn(lead(client, server, answers.clone()));
        }
    });
    port
}

async fn lead(client: TcpStream, server: TcpStream, answers: Arc<AtomicU64>) {
    client.set_nodelay(true).unwrap();
    server.set_nodelay(true).unwrap();
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let asks = tokio::io::copy(&mut from_client, &mut to_server);
    let answered = async {
        let mut answer = vec![0; 1 << 16];
        loop {
            let length = from_server.read(&mut answer).await.unwrap_or(0);
            if length == 0 || answers.fetch_add(1, Ordering::Relaxed) % LOST == LOST - 1 {
                return;
            }
            if to_client.write_all(&answer[..length]).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        _ = asks => {}
        () = answered => {}
    }
}

async fn client(database: &Database, port: u16) -> Durable {
    let mut url = url::Url::parse(&database.url).unwrap();
    url.set_host(Some("127.0.0.1")).unwrap();
    url.set_port(Some(port)).unwrap();
    loop {
        let options = PostgresOptions::parse(url.as_str()).unwrap().schema(&database.schema).unwrap();
        if let Ok(store) = PostgresStore::connect(options).await {
            return Durable::builder().store(Arc::new(store)).build().await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_tick_and_each_trigger_spawns_one_task_though_answers_are_lost() {
    let database = Database::new();
    let store = database.open().await;
    let url = url::Url::parse(&database.url).unwrap();
    let port = bad_network((url.host_str().unwrap().to_owned(), url.port().unwrap_or(5432))).await;
    let mut clients = Vec::new();
    for _ in 0..3 {
        let client = client(&database, port).await;
        client.register_fn("work", |(): (), _| async { Ok(()) }).await.unwrap();
        clients.push(client);
    }
    let steady = Durable::builder().store(Arc::new(store.clone())).build().await.unwrap();
    let options = SpawnOptions::new().priority(1);
    let often = Schedule::every("often", SECOND).catch_up(CatchUp::All).options(options);
    steady.put_schedule_named(often, "work", &()).await.unwrap();
    steady.put_schedule_named(Schedule::cron("seldom", "@yearly"), "work", &()).await.unwrap();
    for client in &clients {
        client.start_worker(WorkerOptions::new().poll_interval(SECOND / 10)).await;
    }

    let begin = Instant::now();
    let mut triggered = 0;
    while begin.elapsed() < SECOND * (TICKS as u32 + 1) || triggered < 3 {
        // One that fails has done nothing.
        if let Ok(task) = clients[triggered % 3].trigger_schedule("seldom").await {
            assert!(task.created);
            triggered += 1;
        }
    }

    let scheduled = async || {
        let all = TaskFilter { limit: 100_000, ..TaskFilter::default() };
        let tasks = store.tasks(all).await.unwrap();
        let (ticks, triggers): (Vec<_>, Vec<_>) = tasks.into_iter().partition(|task| task.priority == 1);
        let tick = |text: &str| text.parse::<Timestamp>().unwrap();
        let mut ticks: Vec<_> =
            ticks.iter().map(|task| tick(task.headers[TICK_HEADER].as_str().unwrap())).collect();
        ticks.sort_unstable();
        (ticks, triggers.len())
    };
    while scheduled().await.0.len() < TICKS {
        tokio::time::sleep(SECOND / 100).await;
    }
    let (ticks, triggers) = scheduled().await;
    assert!(ticks.windows(2).all(|pair| until(pair[0], pair[1]) == SECOND), "{ticks:?}");
    assert_eq!(triggers, triggered, "each trigger that was answered, and no other");
}
