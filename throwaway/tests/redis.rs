//! A throwaway Redis answers, is durable, and leaves nothing behind.

#![allow(clippy::unwrap_used, missing_docs, reason = "a test ends by a panic")]

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use throwaway::Redis;

/// What the server answers to one command, in which nothing is quoted.
fn ask(redis: &Redis, command: &str) -> String {
    let address = redis.url().replace("redis://", "").replace('/', "");
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(format!("{command}\r\nQUIT\r\n").as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn a_server_answers_syncs_every_write_and_leaves_nothing_behind() {
    let redis = Redis::start().unwrap();
    assert!(ask(&redis, "PING").starts_with("+PONG"));
    assert!(ask(&redis, "CONFIG GET appendfsync").contains("always"));
    assert!(ask(&redis, "CONFIG GET appendonly").contains("yes"));
    let (folder, address) = (redis.folder().to_owned(), redis.url());
    drop(redis);
    assert!(!folder.exists());
    assert!(TcpStream::connect(address.replace("redis://", "").replace('/', "")).is_err());
}
