//! A value comes back from PostgreSQL as it was given.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::unit_arg,
    missing_docs,
    reason = "a test ends by a panic"
)]

mod floats;

use stepwell::postgres::sqlx::{self, AssertSqlSafe, Connection as _, PgConnection};
use stepwell::*;

#[tokio::test]
async fn floats_come_back_from_postgresql() {
    let url = std::env::var("TEST_POSTGRES_URL")
        .expect("this test needs PostgreSQL: run `cargo xtask test`");
    let mut conn = PgConnection::connect(&url).await.unwrap();
    let (there, here) = (floats::seen(), floats::seen());
    let mut clients = Vec::new();
    for (schema, seen) in [("test_values_one", &there), ("test_values_other", &here)] {
        let drop = format!("DROP SCHEMA IF EXISTS {schema} CASCADE");
        sqlx::raw_sql(AssertSqlSafe(drop)).execute(&mut conn).await.unwrap();
        let builder = Durable::builder().database_url(format!("{url}?schema={schema}"));
        clients.push(builder.state(seen.clone()).build().await.unwrap());
    }
    let [one, other] = <[Durable; 2]>::try_from(clients).ok().unwrap();
    floats::floats_come_back(one, &there, other, &here).await;
}
