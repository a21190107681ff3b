//! Spawns in the user's own transactions are checked by the schemas that others have described.

#![allow(clippy::unwrap_used, missing_docs, reason = "a test ends by a panic")]

use stepwell::postgres::sqlx::{Connection as _, PgConnection};
use stepwell::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_spawn_in_a_transaction_is_checked_by_what_others_described() {
    let server = throwaway::Postgres::start().unwrap();
    let url = server.url();
    let client = Durable::builder().database_url(&url).build().await.unwrap();
    let info = TaskTypeInfo {
        task_type: Name::new("ship").unwrap(),
        params: serde_json::json!({ "type": "string", "maxLength": 3 }),
        output: serde_json::json!({}),
    };
    client.store().describe(info).await.unwrap();
    let mut conn = PgConnection::connect(&url).await.unwrap();
    let mut tx = conn.begin().await.unwrap();
    let spawned = client.spawn_named("ship", "teapot").in_tx(&mut tx).await;
    let error = spawned.unwrap_err().to_string();
    assert!(error.contains("the parameters of ship: does not fit its schema"), "{error}");
    client.spawn_named("ship", "pot").in_tx(&mut tx).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(client.tasks(TaskFilter::default()).await.unwrap().items.len(), 1);
}
