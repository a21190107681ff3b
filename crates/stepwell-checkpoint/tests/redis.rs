//! Redis as a key-value store.

#![allow(clippy::expect_used, clippy::unwrap_used, missing_docs, reason = "a test ends by a panic")]

mod conformance;

use std::sync::Arc;

use stepwell_checkpoint::key_value::{KeyValueError, KeyValueStore as _, Redis};

fn url() -> String {
    std::env::var("TEST_REDIS_URL")
        .expect("this test needs Redis: run `cargo xtask test`, or set TEST_REDIS_URL")
}

fn prefix() -> String {
    format!("test:{}:", uuid::Uuid::new_v4())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_is_a_key_value_store() {
    conformance::check(Arc::new(Redis::connect(&url()).await.unwrap()), &prefix()).await;
}

#[tokio::test]
async fn keys_are_found_among_more_than_one_scan_gives() {
    let (store, prefix) = (Redis::connect(&url()).await.unwrap(), prefix());
    for number in 0..2_500 {
        store
            .set(&format!("{prefix}{number}"), "", Some(std::time::Duration::from_secs(60)))
            .await
            .unwrap();
    }
    assert_eq!(store.keys(&format!("{prefix}*")).await.unwrap().len(), 2_500);
    assert_eq!(store.keys(&format!("{prefix}*99")).await.unwrap().len(), 25);
}

#[tokio::test]
async fn a_server_that_is_not_there_is_an_error() {
    // Nobody listens on a port that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let error = Redis::connect(&format!("redis://127.0.0.1:{port}/")).await.unwrap_err();
    assert!(
        matches!(error, KeyValueError::Failed { store: "Redis", action: "connect", .. }),
        "{error}"
    );
}
