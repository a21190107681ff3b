//! Tables full of tasks that have ended long ago.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use sqlx::{Connection as _, Executor as _};
use stepwell::RetryStrategy;

use crate::server::Schema;

/// How many tasks are inserted in a transaction.
const CHUNK: u64 = 100_000;
/// What a task with its outcome, its journal entry, their places in the indexes and the write-ahead
/// log may take.
const BYTES_A_TASK: u64 = 1_024;
/// What the server needs beside: its own tables, and the write-ahead log between two checkpoints.
const BYTES_BESIDE: u64 = 3 << 30;

/// Tasks of one step, a millisecond apart, the last one a minute ago. Their ids are of version 7,
/// made from random ones: the first 48 bits become the time, and two bits change version 4 into 7.
const FILL: &str = "WITH ended AS MATERIALIZED (
        SELECT n, at, encode(set_bit(set_bit(overlay(uuid_send(gen_random_uuid())
            PLACING substring(int8send((extract(epoch FROM at) * 1000)::bigint) FROM 3)
            FROM 1 FOR 6), 52, 1), 53, 1), 'hex')::uuid AS task_id
        FROM (
            SELECT n, $1::text::timestamptz - (($2 - n) * interval '1 millisecond') AS at
            FROM generate_series($3, $4) AS n
        ) n
    ), asked AS (
        INSERT INTO tasks (task_id, task_type, queue, priority, max_attempts, spawned_at, retry,
            headers, params)
        SELECT task_id, 'one-step', 'default', 0, 5, at, $5, '{}', n::text FROM ended
    ), finished AS (
        INSERT INTO outcomes (task_id, run_id, state, attempt, cancel_requested, started_at,
            finished_at, output)
        SELECT task_id, task_id, 'completed', 1, false, at,
            at + interval '5 milliseconds', (n * 2)::text
        FROM ended
    )
    INSERT INTO journal (task_id, seq, kind, name, ordinal, outcome, payload, at)
    SELECT task_id, 1, 'step', 'double', 1, 'done', (n * 2)::text, at + interval '3 milliseconds'
    FROM ended";

/// Creates the tables, inserts so many finished tasks, and leaves the tables as autovacuum would in
/// time.
pub(crate) async fn fill(schema: &Schema, tasks: u64) -> Result<()> {
    drop(schema.store().await?);
    let mut conn = schema.connect().await?;
    let last: String = sqlx::query_scalar("SELECT (now() - interval '1 minute')::text")
        .fetch_one(&mut conn)
        .await?;
    let retry = serde_json::to_string(&RetryStrategy::default())?;
    for from in (1..=tasks).step_by(usize::try_from(CHUNK)?) {
        let to = tasks.min(from + CHUNK - 1);
        let fill = sqlx::query(FILL).bind(&last).bind(i64::try_from(tasks)?);
        fill.bind(i64::try_from(from)?)
            .bind(i64::try_from(to)?)
            .bind(&retry)
            .execute(&mut conn)
            .await?;
        eprint!("\rfinished tasks: {to} of {tasks}");
    }
    if tasks > 0 {
        eprintln!();
    }
    conn.execute("VACUUM (ANALYZE) tasks").await?;
    conn.execute("VACUUM (ANALYZE) outcomes").await?;
    conn.execute("VACUUM (ANALYZE) journal").await?;
    conn.execute("CHECKPOINT")
        .await
        .context("the user of --database-url has to be one who may CHECKPOINT")?;
    let found: i64 =
        sqlx::query_scalar("SELECT count(*) FROM outcomes").fetch_one(&mut conn).await?;
    ensure!(found == i64::try_from(tasks)?, "there are {found} finished tasks instead of {tasks}");
    Ok(conn.close().await?)
}

/// Refuses to fill the disk that the folder is on.
pub(crate) fn ensure_room(dir: &Path, tasks: u64) -> Result<()> {
    let output = Command::new("df").arg("-Pk").arg(dir).output().context("could not run df")?;
    let text = String::from_utf8(output.stdout)?;
    let free = available(&text).with_context(|| format!("df said {text:?}"))?;
    let needed = tasks * BYTES_A_TASK + BYTES_BESIDE;
    ensure!(
        free >= needed,
        "{} GiB are needed in {}, and {} are free",
        needed >> 30,
        dir.display(),
        free >> 30
    );
    Ok(())
}

/// The bytes that are free, by what `df -Pk` says: a line of headings, then one of a file system.
fn available(text: &str) -> Option<u64> {
    let kib: u64 = text.lines().nth(1)?.split_whitespace().nth(3)?.parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_free_bytes_are_in_the_fourth_column() {
        let text = "Filesystem 1024-blocks Used Available Capacity Mounted on\n/dev/sda1 1000 600 \
                    400 60% /\n";
        assert_eq!(available(text), Some(400 * 1024));
        assert_eq!(available("df: no such folder\n"), None);
    }
}
