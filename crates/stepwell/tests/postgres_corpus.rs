//! The corpus of formats on PostgreSQL: schemas that released versions have written, as `pg_dump`
//! writes them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "a test ends by a panic"
)]

mod formats;

use std::process::Command;
use std::time::Duration;

use formats::{CURRENT, Program, client, entries, expected, folder, same};
use stepwell::postgres::sqlx::{self, AssertSqlSafe, Connection as _, PgConnection};

/// The schema that the entries are written in.
const SCHEMA: &str = "corpus";

fn url() -> String {
    std::env::var("TEST_POSTGRES_URL").expect("this test needs PostgreSQL: run `cargo xtask test`")
}

async fn run(conn: &mut PgConnection, sql: String) {
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(conn).await.unwrap();
}

/// An empty database of that name.
async fn database(name: &str) -> String {
    let mut conn = PgConnection::connect(&url()).await.unwrap();
    run(&mut conn, format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)")).await;
    run(&mut conn, format!("CREATE DATABASE {name}")).await;
    let (server, _) =
        url().rsplit_once('/').map(|(server, name)| (server.to_owned(), name.to_owned())).unwrap();
    format!("{server}/{name}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn schemas_of_each_version_are_read_and_finished_on_postgresql() {
    for entry in entries() {
        let database = database("corpus_read").await;
        let dump = String::from_utf8(formats::unpacked(&entry.join("postgres.sql.zst"))).unwrap();
        let mut conn = PgConnection::connect(&database).await.unwrap();
        run(&mut conn, dump).await;
        conn.close().await.unwrap();
        let program = Program::new(false);
        let url = format!("{database}?schema={SCHEMA}");
        let client = client(&program, |builder| builder.database_url(url)).await;
        let found = formats::go_on(&client, &program).await;
        client.shutdown(Duration::from_secs(5)).await;
        same(&found, &expected(&entry), &entry);
    }
}

/// Writes the entry of today's format, beside what `corpus` has written. Only for one that is not
/// released yet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "it writes into the source tree"]
async fn write_the_current_entry() {
    let database = database("corpus_written").await;
    let url = format!("{database}?schema={SCHEMA}");
    let client = client(&Program::new(true), |builder| builder.database_url(url)).await;
    formats::fill(&client).await;
    let mut dump = Command::new(throwaway::postgres_binaries().unwrap().join("pg_dump"));
    let options = [
        "--no-owner",
        "--no-privileges",
        "--no-comments",
        "--rows-per-insert=100",
        "--schema",
        SCHEMA,
    ];
    let dump = dump.args(options).arg(&database).output().unwrap();
    assert!(dump.status.success(), "{}", String::from_utf8_lossy(&dump.stderr));
    // Lines with a backslash are commands of psql.
    let sql = String::from_utf8(dump.stdout).unwrap();
    let sql: String = sql.split_inclusive('\n').filter(|line| !line.starts_with('\\')).collect();
    formats::pack(&folder(CURRENT).join("postgres.sql.zst"), sql.as_bytes());
    client.shutdown(Duration::ZERO).await;
}
