//! The stream of events: complete, in order, over reconnects; who does not read hurts nobody.

#![allow(clippy::unwrap_used, missing_docs, reason = "a test ends by a panic")]

mod common;

use std::collections::BTreeSet;
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use common::{client, double, get, send, waiting_refund};
use futures_util::StreamExt as _;
use futures_util::future::join_all;
use serde_json::Value;
use stepwell::{Durable, HistoryFilter, TaskId};
use stepwell_server::Server;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// A client that reads a stream.
struct Reader {
    body: axum::body::BodyDataStream,
    buffered: String,
    /// How much of it was read.
    read: usize,
    last: Option<u64>,
}

impl Reader {
    async fn open(router: &Router, path: &str, last: Option<u64>) -> Self {
        let mut request = get(path);
        if let Some(last) = last {
            request.headers_mut().insert("last-event-id", last.to_string().parse().unwrap());
        }
        let response = send(router, request).await;
        assert_eq!(response.status(), StatusCode::OK);
        let mut reader = Self {
            body: response.into_body().into_data_stream(),
            buffered: String::new(),
            read: 0,
            last: None,
        };
        // Where the stream begins: from there on, nothing is missed.
        while reader.last.is_none() {
            assert!(reader.next_block().await.starts_with("retry:"));
        }
        reader
    }

    /// What is up to the next empty line.
    async fn next_block(&mut self) -> String {
        loop {
            if let Some((block, _)) = self.buffered[self.read..].split_once("\n\n") {
                let block = block.to_owned();
                self.read += block.len() + 2;
                if let Some(id) = block.lines().find_map(|line| line.strip_prefix("id: ")) {
                    self.last = Some(id.parse().unwrap());
                }
                return block;
            }
            self.buffered.drain(..self.read);
            self.read = 0;
            let chunk = self.body.next().await.unwrap().unwrap();
            self.buffered.push_str(std::str::from_utf8(&chunk).unwrap());
        }
    }

    /// The next event: its number, its name, and what it tells.
    async fn next(&mut self) -> (u64, String, Value) {
        loop {
            let block = self.next_block().await;
            let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name));
            let (Some(id), Some(event), Some(data)) =
                (field("id: "), field("event: "), field("data: "))
            else {
                continue;
            };
            return (id.parse().unwrap(), event.to_owned(), serde_json::from_str(data).unwrap());
        }
    }
}

async fn run_tasks(client: &Durable, count: u64) -> BTreeSet<TaskId> {
    let tasks = (0..count).map(|n| client.spawn::<double>(n));
    let spawned = client.spawn_many(tasks).await.unwrap();
    let tasks: BTreeSet<_> = spawned.iter().map(|spawned| spawned.task_id).collect();
    join_all(tasks.iter().map(|task_id| client.wait::<u64>(*task_id))).await;
    tasks
}

/// The numbers of all events.
async fn all_ids(client: &Durable) -> Vec<u64> {
    let (mut ids, mut after) = (Vec::new(), 0);
    loop {
        let page =
            client.history(HistoryFilter { after, ..HistoryFilter::default() }).await.unwrap();
        let Some(last) = page.items.last() else { return ids };
        after = last.id;
        ids.extend(page.items.iter().map(|entry| entry.id));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_watch_and_each_sees_everything_in_order_over_reconnects() {
    let number = |name, default| std::env::var(name).map_or(default, |text| text.parse().unwrap());
    let (watchers, tasks) = (number("WATCHERS", 40), number("WATCHED_TASKS", 400));
    let client = client().await;
    let router = Server::new(client.clone()).max_streams(2 * watchers as usize).router();
    let watching: Vec<_> = (0..watchers)
        .map(|n| {
            let router = router.clone();
            tokio::spawn(async move {
                let mut reader = Reader::open(&router, "/api/v1/events?after=0", None).await;
                let (mut ids, mut completed) = (Vec::new(), 0);
                while completed < tasks {
                    let (id, event, _) = reader.next().await;
                    ids.push(id);
                    completed += u64::from(event == "task:complete");
                    // Some lose their connection again and again.
                    if n % 4 == 1 && ids.len() as u64 % tasks == n {
                        reader = Reader::open(&router, "/api/v1/events", reader.last).await;
                    }
                }
                (ids, reader.last)
            })
        })
        .collect();
    let begin = std::time::Instant::now();
    run_tasks(&client, tasks).await;
    let seen = join_all(watching).await;
    println!("{watchers} watchers, {tasks} tasks: {:?}", begin.elapsed());
    let all = all_ids(&client).await;
    assert!(all.len() as u64 >= 5 * tasks);
    for seen in seen {
        let (ids, last) = seen.unwrap();
        assert_eq!(last, ids.last().copied());
        assert_eq!(ids, all[..ids.len()], "complete, and in order");
        assert!(ids.len() + 50 > all.len());
    }
}

/// What comes live waits behind what the store still has.
#[tokio::test(flavor = "multi_thread")]
async fn who_is_pages_behind_when_something_comes_misses_none_of_them() {
    let client = client().await;
    let router = Server::new(client.clone()).router();
    let mut live = Reader::open(&router, "/api/v1/events", None).await;
    // More pages than wait for a client that does not read.
    let talk = |_: (), ctx: stepwell::TaskContext| async move {
        for _ in 0..8_000 {
            ctx.log(stepwell::LogLevel::Info, "a line", [("n", Value::Null)]);
        }
        Ok(())
    };
    client.register_fn("talk", talk).await.unwrap();
    client.spawn_named("talk", &()).await.unwrap();
    while live.next().await.1 != "task:complete" {}
    let mut behind = Reader::open(&router, "/api/v1/events?after=0", None).await;
    run_tasks(&client, 1).await;
    while live.next().await.1 != "task:complete" {}
    let all = all_ids(&client).await;
    assert!(all.len() > 8_000);
    for id in all {
        assert_eq!(behind.next().await.0, id, "complete, and in order");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_has_what_it_was_asked_for() {
    let client = client().await;
    let router = Server::new(client.clone()).router();
    let refund = waiting_refund(&client, "acme").await;
    let mut of_all = Reader::open(&router, "/api/v1/events", None).await;
    let mut of_type =
        Reader::open(&router, "/api/v1/events?type=refund&label=tenant=other", None).await;
    let mut of_one = Reader::open(&router, &format!("/api/v1/tasks/{refund}/events"), None).await;
    let begun =
        ["task:spawn", "task:start", "log:write", "step:start", "step:complete", "task:suspend"];
    for expected in begun {
        let (_, event, told) = of_one.next().await;
        assert_eq!((event.as_str(), &told["task_id"]), (expected, &refund.to_string().into()));
    }
    let tasks = run_tasks(&client, 3).await;
    let other = waiting_refund(&client, "other").await;
    client.cancel(refund).await.unwrap();
    assert_eq!(of_one.next().await.1, "task:cancel");
    for expected in begun {
        let (_, event, told) = of_type.next().await;
        assert_eq!((event.as_str(), &told["task_id"]), (expected, &other.to_string().into()));
    }
    let (id, event, told) = of_all.next().await;
    assert_eq!(event, "task:spawn", "what was before the stream is not in it");
    assert!(
        tasks.iter().any(|task| told["task_id"] == task.to_string()) && told["id"] == id,
        "{told}"
    );
    assert!(told["at"].as_str().unwrap().ends_with('Z') && told["event"] == "task:spawn", "{told}");
}

/// A client that may see none of it still learns how far the stream has come, and goes on there.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_with_nothing_to_tell_says_how_far_it_has_come() {
    let client = client().await;
    let router = Server::new(client.clone()).patience(Duration::from_millis(400)).router();
    let path = "/api/v1/events?label=tenant=b";
    let mut quiet = Reader::open(&router, path, None).await;
    let begun = quiet.last;
    // The others pause for less than a sign of life may take.
    let others = {
        let client = client.clone();
        tokio::spawn(async move {
            loop {
                run_tasks(&client, 1).await;
            }
        })
    };
    let signs = async {
        while quiet.last < begun.map(|begun| begun + 100) {
            let block = quiet.next_block().await;
            assert!(!block.contains("event:"), "{block}");
        }
    };
    tokio::time::timeout(Duration::from_secs(60), signs).await.expect("there is no sign of life");
    let mut again = Reader::open(&router, path, quiet.last).await;
    assert!(again.last > begun);
    let own = waiting_refund(&client, "b").await;
    for reader in [&mut quiet, &mut again] {
        let (_, event, told) = reader.next().await;
        assert_eq!((event.as_str(), &told["task_id"]), ("task:spawn", &own.to_string().into()));
    }
    others.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_read_is_dropped() {
    let client = client().await;
    let server = Server::new(client.clone()).max_streams(2).patience(Duration::from_secs(2));
    let bound = server.bind(([127, 0, 0, 1], 0).into()).await.unwrap();
    let address = bound.address();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving = tokio::spawn(bound.serve(async { _ = stopped.await }));
    let open = async |path: &str| {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut head = [0; 12];
        stream.read_exact(&mut head).await.unwrap();
        (stream, String::from_utf8(head.to_vec()).unwrap())
    };
    let (mut idle, status) = open("/api/v1/events?after=0").await;
    assert!(status.ends_with("200"));
    let (mut reads, status) = open("/api/v1/events?after=0").await;
    assert!(status.ends_with("200"));
    let (_, status) = open("/api/v1/events").await;
    assert!(status.ends_with("503"), "there is room for two");
    let reading = tokio::spawn(async move {
        let (mut buffer, mut text) = (vec![0; 1 << 16], String::new());
        while !text.contains("the last one") {
            let read = reads.read(&mut buffer).await.unwrap();
            assert!(read > 0, "who reads is not dropped");
            // Enough of it to find what may be cut in two.
            text = text.chars().rev().take(100).collect::<Vec<_>>().into_iter().rev().collect();
            text.push_str(&String::from_utf8_lossy(&buffer[..read]));
        }
        reads
    });
    // More than the buffers of both sockets hold.
    let talk = |_: (), ctx: stepwell::TaskContext| async move {
        for _ in 0..300 {
            ctx.log(stepwell::LogLevel::Info, "x".repeat(100_000), [("n", Value::Null)]);
        }
        ctx.log(stepwell::LogLevel::Info, "the last one", [("n", Value::Null)]);
        Ok(())
    };
    client.register_fn("talk", talk).await.unwrap();
    let task = client.spawn_named("talk", &()).await.unwrap().task_id;
    client.wait::<()>(task).await.unwrap();
    let reads = reading.await.unwrap();
    // The place of the one that does not is free again, and its connection ended.
    loop {
        let (_stream, status) = open("/api/v1/events").await;
        if status.ends_with("200") {
            break;
        }
        tokio::task::yield_now().await;
    }
    let mut rest = Vec::new();
    let _ = idle.read_to_end(&mut rest).await;
    assert!(!String::from_utf8_lossy(&rest).contains("the last one"), "it was cut off");
    drop(reads);
    stop.send(()).unwrap();
    serving.await.unwrap();
}
