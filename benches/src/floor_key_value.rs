//! The floors of checkpoints: the same writes by the bare clients.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Result;
use aws_sdk_dynamodb::Client as DynamoDb;
use aws_sdk_dynamodb::types::AttributeValue;
use redis::AsyncCommands as _;
use rusqlite::Connection;
use sqlx::{Connection as _, Executor as _, PgConnection};

use crate::checkpoint::Write;
use crate::plan::blocking;
use crate::workloads::rate;

/// A client, as durable as the store of the same kind.
pub(crate) enum Bare {
    Files(PathBuf),
    Sqlite(Connection),
    Postgres(PgConnection),
    Redis(redis::aio::ConnectionManager),
    DynamoDb { client: DynamoDb, table: String },
}

impl Bare {
    pub(crate) fn files(folder: PathBuf) -> Result<Self> {
        fs::create_dir_all(&folder)?;
        Ok(Self::Files(folder))
    }

    pub(crate) fn sqlite(path: &Path) -> Result<Self> {
        let connection = Connection::open(path)?;
        connection.execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;
            CREATE TABLE bare (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID",
        )?;
        Ok(Self::Sqlite(connection))
    }

    pub(crate) async fn postgres(url: &str) -> Result<Self> {
        let mut connection = PgConnection::connect(url).await?;
        let sql = "CREATE TABLE IF NOT EXISTS bare (key text PRIMARY KEY, value text NOT NULL)";
        connection.execute(sqlx::raw_sql(sql)).await?;
        Ok(Self::Postgres(connection))
    }

    pub(crate) async fn redis(url: &str) -> Result<Self> {
        Ok(Self::Redis(redis::aio::ConnectionManager::new(redis::Client::open(url)?).await?))
    }

    /// Does the writes one after the other. Writes a second.
    pub(crate) async fn replay(self, writes: Vec<Write>) -> Result<f64> {
        let count = writes.len() as u64;
        let start = Instant::now();
        match self {
            Self::Files(folder) => {
                blocking(move || {
                    for (key, value) in writes {
                        let (temp, path) =
                            (folder.join("temp"), folder.join(key.replace('/', "%2f")));
                        let mut file = File::create(&temp)?;
                        file.write_all(value.as_bytes())?;
                        file.sync_all()?;
                        fs::rename(temp, path)?;
                        File::open(&folder)?.sync_all()?;
                    }
                    Ok(())
                })
                .await?;
            }
            Self::Sqlite(connection) => {
                blocking(move || {
                    let sql = "INSERT OR REPLACE INTO bare (key, value) VALUES (?1, ?2)";
                    let mut insert = connection.prepare(sql)?;
                    for (key, value) in writes {
                        insert.execute([key, value])?;
                    }
                    Ok(())
                })
                .await?;
            }
            Self::Postgres(mut connection) => {
                for (key, value) in writes {
                    let sql = "INSERT INTO bare (key, value) VALUES ($1, $2)
                        ON CONFLICT (key) DO UPDATE SET value = excluded.value";
                    sqlx::query(sql).bind(key).bind(value).execute(&mut connection).await?;
                }
            }
            Self::Redis(mut connection) => {
                for (key, value) in writes {
                    connection.set::<_, _, ()>(format!("bare/{key}"), value).await?;
                }
            }
            Self::DynamoDb { client, table } => {
                for (key, value) in writes {
                    let put = client.put_item().table_name(&table);
                    let put = put.item("pk", AttributeValue::S(format!("bare/{key}")));
                    put.item("value", AttributeValue::S(value)).send().await?;
                }
            }
        }
        Ok(rate(count, start.elapsed()))
    }
}
