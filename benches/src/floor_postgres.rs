//! The floors of PostgreSQL: the same rows over one bare connection, in the tables that the store
//! made, by statements that write a whole set, and nothing around them: no engine, no function, no
//! locks, no lookups, no answers.
//!
//! A commit is one statement, whose parts write one table each. BEGIN, a statement for each table
//! and COMMIT take half as long again: each of them is a round trip.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use sqlx::postgres::{PgArguments, PgConnection};
use sqlx::query::Query;
use sqlx::{Connection as _, Executor as _, Postgres, Row as _};
use stepwell::RetryStrategy;
use uuid::Uuid;

use crate::floor::{Names, TASKS_A_COMMIT};
use crate::report::percentile;
use crate::server::Schema;
use crate::setup::Setup;
use crate::workloads::{self, millis, rate};

pub(crate) const NAMES: Names = Names {
    w1: "bare PostgreSQL, 64 tasks a commit, 2 commits a task: INSERT tasks, live_tasks; \
        DELETE live_tasks, INSERT outcomes, journal",
    w2: "bare PostgreSQL, 100 tasks a commit: INSERT tasks, live_tasks; 19 times INSERT journal; \
        DELETE live_tasks, INSERT outcomes, journal",
    w3_p50: "commit of one INSERT of a small row, p50",
    w3_p99: "commit of one INSERT of a small row, p99",
    w4: "bare PostgreSQL, 64 tasks a commit, 2 commits a task: UPDATE live_tasks; \
        DELETE live_tasks, INSERT outcomes, journal",
    w5: "bare PostgreSQL: SELECT of the 10,000 journal rows, on a connection just opened",
    items: None,
};

const COMMITS: u64 = 1_000;

/// What the store's functions are run with, so that statements find their rows by the same plans.
const PLANS: &str =
    "SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off; SET enable_hashjoin = off;
    SET enable_mergejoin = off; SET enable_bitmapscan = off; SET jit = off";

/// Claimed at once by the worker, if there is one.
const SPAWN: &str = "WITH asked AS (
        INSERT INTO tasks (task_id, task_type, queue, priority, max_attempts, spawned_at, retry,
            headers, params)
        SELECT x.task_id, 'one-step', 'default', 0, 5, now(), $3, '{}', x.params
        FROM unnest($1::uuid[], $2::text[]) AS x(task_id, params)
    )
    INSERT INTO live_tasks (task_id, run_id, task_type, queue, state, running_in, priority, attempt,
        worker_id, claim_batch, ready_at, started_at)
    SELECT task_id, task_id, 'one-step', 'default',
        CASE WHEN $4::uuid IS NULL THEN 'pending' ELSE 'running' END,
        CASE WHEN $4 IS NOT NULL THEN 'default' END, 0, ($4 IS NOT NULL)::int,
        $4, CASE WHEN $4 IS NOT NULL THEN 1 END, now(), CASE WHEN $4 IS NOT NULL THEN now() END
    FROM unnest($1::uuid[]) AS task_id";

const CLAIM: &str = "UPDATE live_tasks SET state = 'running', running_in = 'default', attempt = 1,
        worker_id = $2, claim_batch = 1, started_at = now()
    WHERE task_id = ANY ($1::uuid[])";

/// The end of a task, and its last step.
const END: &str = "WITH gone AS (
        DELETE FROM live_tasks WHERE task_id = ANY ($1::uuid[])
    ), ended AS (
        INSERT INTO outcomes (task_id, run_id, state, attempt, cancel_requested, started_at,
            finished_at, output)
        SELECT x.task_id, x.task_id, 'completed', 1, false, now(), now(), x.output
        FROM unnest($1::uuid[], $2::text[]) AS x(task_id, output)
    )
    INSERT INTO journal (task_id, seq, kind, name, ordinal, outcome, payload, at)
    SELECT x.task_id, $3, 'step', 'double', 1, 'done', x.output, now()
    FROM unnest($1::uuid[], $2::text[]) AS x(task_id, output)";

const JOURNAL: &str =
    "INSERT INTO journal (task_id, seq, kind, name, ordinal, outcome, payload, at)
    SELECT x.task_id, x.seq, 'step', 'add:' || x.seq - 1, 1, 'done', x.payload, now()
    FROM unnest($1::uuid[], $2::bigint[], $3::text[]) AS x(task_id, seq, payload)";

/// As W1: each task is inserted as one that runs, and then completed.
pub(crate) async fn w1(setup: &Setup) -> Result<f64> {
    let mut bare = Bare::open(setup).await?;
    let tasks = ids(workloads::W1_TASKS);
    let start = Instant::now();
    for chunk in tasks.chunks(TASKS_A_COMMIT) {
        bare.spawn(chunk, Some(bare.worker_id)).await?;
        bare.end(chunk, 1).await?;
    }
    let took = start.elapsed();
    bare.check(workloads::W1_TASKS, workloads::W1_TASKS).await?;
    Ok(rate(workloads::W1_TASKS, took))
}

/// As W2: all tasks are inserted as ones that run, then every task's next entry goes in one commit,
/// the last one with its end.
pub(crate) async fn w2(setup: &Setup) -> Result<f64> {
    let mut bare = Bare::open(setup).await?;
    let mut took = Duration::ZERO;
    for _ in 0..workloads::W2_ROUNDS {
        let tasks = ids(workloads::W2_TASKS);
        let start = Instant::now();
        bare.spawn(&tasks, Some(bare.worker_id)).await?;
        for seq in 1..workloads::W2_STEPS {
            bare.journal(&tasks, seq..=seq).await?;
        }
        bare.end(&tasks, workloads::W2_STEPS).await?;
        took += start.elapsed();
    }
    let entries = workloads::W2_TASKS * workloads::W2_STEPS * workloads::W2_ROUNDS;
    bare.check(workloads::W2_TASKS * workloads::W2_ROUNDS, entries).await?;
    Ok(rate(entries, took))
}

/// The unit of W3: one row, one commit. Milliseconds: the median and the 99th percentile.
pub(crate) async fn w3(setup: &Setup) -> Result<(f64, f64)> {
    let mut bare = Bare::open(setup).await?;
    bare.conn.execute("CREATE TABLE single (id uuid PRIMARY KEY, value text NOT NULL)").await?;
    let mut times = Vec::new();
    for id in ids(COMMITS) {
        let start = Instant::now();
        bare.run(sqlx::query("INSERT INTO single VALUES ($1, $2)").bind(id).bind("1234"), 1)
            .await?;
        times.push(millis(start.elapsed()));
    }
    Ok((percentile(&mut times, 0.5), percentile(&mut times, 0.99)))
}

/// As W4: the tasks are there; each is claimed, and then completed.
pub(crate) async fn w4(setup: &Setup) -> Result<f64> {
    let mut bare = Bare::open(setup).await?;
    let tasks = ids(workloads::W4_TASKS);
    for chunk in tasks.chunks(5_000) {
        bare.spawn(chunk, None).await?;
    }
    let start = Instant::now();
    for chunk in tasks.chunks(TASKS_A_COMMIT) {
        bare.claim(chunk).await?;
        bare.end(chunk, 1).await?;
    }
    let took = start.elapsed();
    bare.check(workloads::W4_TASKS, workloads::W4_TASKS).await?;
    Ok(rate(workloads::W4_TASKS, took))
}

/// As W5: a journal is read. Milliseconds.
pub(crate) async fn w5(setup: &Setup) -> Result<f64> {
    let mut bare = Bare::open(setup).await?;
    let task = ids(1);
    bare.journal(&task, 1..=workloads::W5_ENTRIES).await?;
    let mut fresh = bare.schema.connect().await?;
    let start = Instant::now();
    let rows = sqlx::query(
        "SELECT seq, kind, name, ordinal, outcome, payload, at FROM journal WHERE task_id = $1 \
         ORDER BY seq",
    )
    .bind(task[0])
    .fetch_all(&mut fresh)
    .await?;
    // The time is read as it comes: microseconds.
    type Entry = (i64, String, String, i64, String, String, i64);
    let entries = rows.iter().map(|row| {
        let at = row.try_get_unchecked(6)?;
        Ok((
            row.try_get(0)?,
            row.try_get(1)?,
            row.try_get(2)?,
            row.try_get(3)?,
            row.try_get(4)?,
            row.try_get(5)?,
            at,
        ))
    });
    let entries: Vec<Entry> = entries.collect::<sqlx::Result<_>>()?;
    let took = start.elapsed();
    ensure!(entries.len() as u64 == workloads::W5_ENTRIES, "{} entries were read", entries.len());
    fresh.close().await?;
    Ok(millis(took))
}

fn ids(count: u64) -> Vec<Uuid> {
    (0..count).map(|_| Uuid::now_v7()).collect()
}

/// A bare connection to tables that the store has made.
struct Bare {
    conn: PgConnection,
    worker_id: Uuid,
    retry: String,
    schema: Schema,
}

impl Bare {
    async fn open(setup: &Setup) -> Result<Self> {
        let schema = setup.schema()?;
        drop(schema.store().await?);
        let mut conn = schema.connect().await?;
        conn.execute(sqlx::raw_sql(PLANS)).await?;
        let retry = serde_json::to_string(&RetryStrategy::default())?;
        Ok(Self { conn, worker_id: Uuid::now_v7(), retry, schema })
    }

    /// Runs a statement, which is kept prepared and is a transaction of its own.
    async fn run(&mut self, query: Query<'_, Postgres, PgArguments>, rows: usize) -> Result<()> {
        let done = query.execute(&mut self.conn).await?;
        ensure!(
            done.rows_affected() == rows as u64,
            "{} rows were written instead of {rows}",
            done.rows_affected()
        );
        Ok(())
    }

    async fn spawn(&mut self, tasks: &[Uuid], worker_id: Option<Uuid>) -> Result<()> {
        let query = sqlx::query(SPAWN).bind(tasks).bind(vec!["1234"; tasks.len()]);
        let query = query.bind(self.retry.clone()).bind(worker_id);
        self.run(query, tasks.len()).await
    }

    async fn claim(&mut self, tasks: &[Uuid]) -> Result<()> {
        let worker_id = self.worker_id;
        self.run(sqlx::query(CLAIM).bind(tasks).bind(worker_id), tasks.len()).await
    }

    async fn end(&mut self, tasks: &[Uuid], seq: u64) -> Result<()> {
        let query =
            sqlx::query(END).bind(tasks).bind(vec!["2468"; tasks.len()]).bind(i64::try_from(seq)?);
        self.run(query, tasks.len()).await
    }

    /// Adds these entries to each of the journals.
    async fn journal(&mut self, tasks: &[Uuid], seqs: std::ops::RangeInclusive<u64>) -> Result<()> {
        let rows =
            seqs.flat_map(|seq| tasks.iter().map(move |task| Ok((*task, i64::try_from(seq)?))));
        let (of, seqs): (Vec<Uuid>, Vec<i64>) =
            rows.collect::<Result<Vec<_>>>()?.into_iter().unzip();
        let count = of.len();
        self.run(sqlx::query(JOURNAL).bind(of).bind(seqs).bind(vec!["2468"; count]), count).await
    }

    /// Checks that so many tasks are completed and so many entries are there, and nothing is left
    /// undone.
    async fn check(mut self, tasks: u64, entries: u64) -> Result<()> {
        let sql = "SELECT (SELECT count(*) FROM tasks), (SELECT count(*) FROM outcomes),
            (SELECT count(*) FROM journal), (SELECT count(*) FROM live_tasks)";
        let found: (i64, i64, i64, i64) = sqlx::query_as(sql).fetch_one(&mut self.conn).await?;
        let (tasks, entries) = (i64::try_from(tasks)?, i64::try_from(entries)?);
        ensure!(
            found == (tasks, tasks, entries, 0),
            "the floor left tasks, outcomes, journal, live_tasks: {found:?}"
        );
        Ok(self.conn.close().await?)
    }
}
