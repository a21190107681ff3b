//! Clients that keep the server waiting keep nobody else from it.

#![allow(clippy::unwrap_used, missing_docs, reason = "a test ends by a panic")]

mod common;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use common::client;
use stepwell::SpawnOptions;
use stepwell_server::Server;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

async fn served(with: impl FnOnce(Server) -> Server) -> SocketAddr {
    let server = with(Server::new(client().await));
    let bound = server.bind(([127, 0, 0, 1], 0).into()).await.unwrap();
    let address = bound.address();
    tokio::spawn(bound.serve(std::future::pending()));
    address
}

async fn begin(address: SocketAddr, head: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    stream
}

/// What the server sends before it closes the connection.
async fn rest(mut stream: TcpStream) -> String {
    let mut text = Vec::new();
    // One that is reset has ended as well.
    let _ = stream.read_to_end(&mut text).await;
    String::from_utf8(text).unwrap()
}

const ASK: &str = "GET /health/live HTTP/1.1\r\nHost: localhost\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn half_open_requests_block_nobody() {
    let patience = Duration::from_millis(300);
    let address = served(|server| server.max_connections(8).patience(patience)).await;
    let begun = Instant::now();
    let mut half = Vec::new();
    for n in 0..40 {
        // Nothing at all, a part of a head, and a head that never ends.
        let head = ["", "GET /health", ASK][n % 3];
        half.push(begin(address, head).await);
    }
    let asked = format!("{ASK}Connection: close\r\n\r\n");
    let answer = rest(begin(address, &asked).await).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    // Each eight of those before it were closed when their time was up.
    assert!(begun.elapsed() < Duration::from_secs(20));
    for stream in half {
        let answer = rest(stream).await;
        assert!(!answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_idle_is_closed_and_one_that_is_used_is_not() {
    let address = served(|server| server.patience(Duration::from_millis(500))).await;
    let mut stream = begin(address, "").await;
    let begun = Instant::now();
    // In all longer than the patience, without a pause of that length.
    while begun.elapsed() < Duration::from_millis(1_500) {
        stream.write_all(format!("{ASK}\r\n").as_bytes()).await.unwrap();
        let mut answer = vec![0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(answer, b"HTTP/1.1 200");
        while !answer.ends_with(b"live\n") {
            answer.push(stream.read_u8().await.unwrap());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(rest(stream).await, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_has_only_so_many_connections() {
    let address = served(|server| server.max_connections_per_address(3)).await;
    let mut own = Vec::new();
    for _ in 0..3 {
        let mut stream = begin(address, &format!("{ASK}\r\n")).await;
        let mut answer = vec![0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        own.push(stream);
    }
    let whole = format!("{ASK}Connection: close\r\n\r\n");
    assert_eq!(rest(begin(address, &whole).await).await, "", "a fourth is closed at once");
    own.pop();
    // When the server has seen that one of them ended, there is room again.
    loop {
        let answer = rest(begin(address, &whole).await).await;
        if answer.starts_with("HTTP/1.1 200") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Asks again and again, as long as the server keeps the connection.
async fn keep_asking(mut stream: TcpStream) {
    loop {
        let mut answer = vec![0; 12];
        let asked = stream.write_all(format!("{ASK}\r\n").as_bytes()).await;
        if asked.is_err() || stream.read_exact(&mut answer).await.is_err() {
            return;
        }
        while !answer.ends_with(b"live\n") {
            answer.push(stream.read_u8().await.unwrap());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn those_who_ask_again_and_again_leave_room_for_others() {
    let address = served(|server| server.max_connections(8)).await;
    for _ in 0..8 {
        tokio::spawn(keep_asking(begin(address, "").await));
    }
    let asked = format!("{ASK}Connection: close\r\n\r\n");
    let answer =
        tokio::time::timeout(Duration::from_secs(15), rest(begin(address, &asked).await)).await;
    assert!(answer.expect("nobody else is answered").starts_with("HTTP/1.1 200"));
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_leave_room_for_others() {
    let address = served(|server| server.max_connections(8).max_streams(100)).await;
    let mut streams = Vec::new();
    loop {
        let mut stream =
            begin(address, "GET /api/v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
        let mut answer = vec![0; 12];
        let answered =
            tokio::time::timeout(Duration::from_secs(15), stream.read_exact(&mut answer)).await;
        answered.expect("nobody else is answered").unwrap();
        if answer == b"HTTP/1.1 503" {
            break;
        }
        streams.push(stream);
    }
    assert_eq!(streams.len(), 4);
    let answer = rest(begin(address, &format!("{ASK}Connection: close\r\n\r\n")).await).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_who_reads_slowly_does_not_hold_up_the_end() {
    let client = client().await;
    for _ in 0..10 {
        let later = SpawnOptions::new().delay(Duration::from_secs(3_600));
        client.spawn_named("nobody's", &"x".repeat(4_000_000)).options(later).await.unwrap();
    }
    let server = Server::new(client).patience(Duration::from_secs(3));
    let bound = server.bind(([127, 0, 0, 1], 0).into()).await.unwrap();
    let address = bound.address();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving = tokio::spawn(bound.serve(async { _ = stopped.await }));
    let mut slow = begin(address, "GET /api/v1/tasks HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    let mut buffer = vec![0; 64 << 10];
    slow.read_exact(&mut buffer).await.unwrap();
    let reading = tokio::spawn(async move {
        // Without a pause of the server's patience, and for longer than the server waits.
        while slow.read(&mut buffer).await.is_ok_and(|read| read > 0) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    stop.send(()).unwrap();
    tokio::time::timeout(Duration::from_secs(15), serving).await.expect("it does not end").unwrap();
    reading.abort();
}
