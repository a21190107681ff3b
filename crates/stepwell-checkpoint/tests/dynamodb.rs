//! DynamoDB as a key-value store.

#![allow(clippy::expect_used, clippy::unwrap_used, missing_docs, reason = "a test ends by a panic")]

mod conformance;

use std::sync::Arc;
use std::time::Duration;

use aws_sdk_dynamodb::config::{Credentials, Region};
use aws_sdk_dynamodb::{Client, Config};
use stepwell_checkpoint::key_value::{DynamoDb, KeyValueError, KeyValueStore as _};

fn client() -> Client {
    let url = std::env::var("TEST_DYNAMODB_URL").expect(
        "this test needs a DynamoDB endpoint: run `cargo xtask test`, or set TEST_DYNAMODB_URL",
    );
    let config = Config::builder()
        .endpoint_url(url)
        .region(Region::new("us-east-1"))
        .credentials_provider(Credentials::new("test", "test", None, None, "test"))
        .http_client(aws_smithy_http_client::Builder::new().build_http());
    Client::from_conf(config.build())
}

async fn new_store(client: &Client) -> DynamoDb {
    let store = DynamoDb::new(client.clone(), format!("test-{}", uuid::Uuid::new_v4()));
    store.create_table().await.unwrap();
    store
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dynamodb_is_a_key_value_store() {
    conformance::check(Arc::new(new_store(&client()).await), "p/").await;
}

#[tokio::test]
async fn a_table_that_is_there_stays_as_it_is() {
    let store = new_store(&client()).await;
    store.set("key", "value", None).await.unwrap();
    store.create_table().await.unwrap();
    assert_eq!(store.get("key").await.unwrap().as_deref(), Some("value"));
}

#[tokio::test]
async fn keys_come_from_all_pages() {
    let store = new_store(&client()).await;
    // A page has at most 1 MB.
    for number in 0..8 {
        store.set(&format!("page:{number}"), &"x".repeat(300_000), None).await.unwrap();
    }
    store.set("other", "", None).await.unwrap();
    assert_eq!(store.keys("page:*").await.unwrap().len(), 8);
    assert_eq!(store.keys("*").await.unwrap().len(), 9);
}

#[tokio::test]
async fn a_value_that_dynamodb_would_refuse_is_said_to_be_too_large() {
    let store = new_store(&client()).await;
    let large = "x".repeat(400 << 10);
    for result in [
        store.set("key", &large, None).await,
        store
            .compare_and_set("key", None, Some(&large), Some(Duration::from_secs(1)))
            .await
            .map(drop),
    ] {
        assert!(
            matches!(result, Err(KeyValueError::TooLarge { bytes: 409_603, .. })),
            "{result:?}"
        );
    }
}
