//! The floors of SQLite: the same work by the bare disk, and the same rows by bare SQLite, on one
//! thread, with the store's own schema, settings and statements, and nothing around them: no
//! engine, no lookups, no answers.

use std::fs::File;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use rusqlite::{Connection, params};
use stepwell::sqlite::{Location, SqliteStore};
use stepwell::{RetryStrategy, TokioRuntime};
use uuid::Uuid;

use crate::backend::temp_folder;
use crate::items;
use crate::plan::blocking;
use crate::report::percentile;
use crate::setup::Setup;
use crate::workloads::{self, millis, rate};

/// What the floors are, in words.
pub(crate) struct Names {
    pub(crate) w1: &'static str,
    pub(crate) w2: &'static str,
    pub(crate) w3_p50: &'static str,
    pub(crate) w3_p99: &'static str,
    pub(crate) w4: &'static str,
    pub(crate) w5: &'static str,
    pub(crate) items: Option<&'static str>,
}

pub(crate) const NAMES: Names = Names {
    w1: "bare SQLite, 64 tasks a commit, 2 commits a task: INSERT task; UPDATE task, INSERT \
         journal",
    w2: "bare SQLite, 100 tasks a commit: INSERT task; 19 times INSERT journal; UPDATE task, \
         INSERT journal",
    w3_p50: "fdatasync of a 4 KiB append, p50",
    w3_p99: "fdatasync of a 4 KiB append, p99",
    w4: "bare SQLite, 64 tasks a commit, 2 commits a task: UPDATE task; UPDATE task, INSERT \
         journal",
    w5: "bare SQLite: SELECT of the 10,000 journal rows, on a connection just opened",
    items: Some("bare SQLite, 1,000 items a commit: INSERT journal"),
};

/// How many tasks the floors of W1 and W4 handle in a commit.
pub(crate) const TASKS_A_COMMIT: usize = 64;
const PAGE: [u8; 4096] = [0x5a; 4096];
const SYNCS: u64 = 1_000;

/// Where a page is written before it is synced.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Write {
    /// At the end: the file's length has to reach the disk as well.
    Append,
    /// Over what is there.
    Over,
}

/// Writes pages, each followed by an fdatasync. Milliseconds of both: the median and the 99th
/// percentile.
pub(crate) fn fdatasync(dir: &Path, write: Write) -> Result<(f64, f64)> {
    let folder = temp_folder(dir)?;
    let mut file = File::create(folder.path().join("pages"))?;
    if write == Write::Over {
        for _ in 0..SYNCS {
            file.write_all(&PAGE)?;
        }
        file.sync_all()?;
        file.seek(SeekFrom::Start(0))?;
    }
    let mut times = Vec::new();
    for _ in 0..SYNCS {
        let start = Instant::now();
        file.write_all(&PAGE)?;
        file.sync_data()?;
        times.push(millis(start.elapsed()));
    }
    Ok((percentile(&mut times, 0.5), percentile(&mut times, 0.99)))
}

/// As W1: each task is inserted as one that runs, and then completed.
pub(crate) async fn w1(setup: &Setup) -> Result<f64> {
    rows(setup, |bare| {
        let tasks = ids(workloads::W1_TASKS);
        let start = Instant::now();
        for chunk in tasks.chunks(TASKS_A_COMMIT) {
            bare.transaction(chunk, |id| bare.insert(id, "running"))?;
            bare.transaction(chunk, |id| bare.complete(id, 1))?;
        }
        let took = start.elapsed();
        bare.check(workloads::W1_TASKS, workloads::W1_TASKS)?;
        Ok(rate(workloads::W1_TASKS, took))
    })
    .await
}

/// As W2: all tasks are inserted as ones that run, then every task's next entry goes in one commit,
/// the last one with its end.
pub(crate) async fn w2(setup: &Setup) -> Result<f64> {
    rows(setup, |bare| {
        let mut took = Duration::ZERO;
        for _ in 0..workloads::W2_ROUNDS {
            let tasks = ids(workloads::W2_TASKS);
            let start = Instant::now();
            bare.transaction(&tasks, |id| bare.insert(id, "running"))?;
            for seq in 1..workloads::W2_STEPS {
                bare.transaction(&tasks, |id| bare.journal(id, seq, &format!("add:{}", seq - 1)))?;
            }
            bare.transaction(&tasks, |id| bare.complete(id, workloads::W2_STEPS))?;
            took += start.elapsed();
        }
        let entries = workloads::W2_TASKS * workloads::W2_STEPS * workloads::W2_ROUNDS;
        bare.check(workloads::W2_TASKS * workloads::W2_ROUNDS, entries)?;
        Ok(rate(entries, took))
    })
    .await
}

/// As W4: the tasks are there; each is claimed, and then completed.
pub(crate) async fn w4(setup: &Setup) -> Result<f64> {
    rows(setup, |bare| {
        let tasks = ids(workloads::W4_TASKS);
        for chunk in tasks.chunks(5_000) {
            bare.transaction(chunk, |id| bare.insert(id, "pending"))?;
        }
        let start = Instant::now();
        for (i, chunk) in tasks.chunks(TASKS_A_COMMIT).enumerate() {
            let mut rowid = i * TASKS_A_COMMIT;
            bare.transaction(chunk, |id| {
                rowid += 1;
                bare.claim(id, rowid)
            })?;
            bare.transaction(chunk, |id| bare.complete(id, 1))?;
        }
        let took = start.elapsed();
        bare.check(workloads::W4_TASKS, workloads::W4_TASKS)?;
        Ok(rate(workloads::W4_TASKS, took))
    })
    .await
}

/// As W5: a journal is read. Milliseconds.
pub(crate) async fn w5(setup: &Setup) -> Result<f64> {
    rows(setup, |bare| {
        let tasks = ids(1);
        for id in &tasks {
            let seqs: Vec<u64> = (1..=workloads::W5_ENTRIES).collect();
            bare.transaction(&seqs, |seq| bare.journal(id, *seq, &format!("add:{}", seq - 1)))?;
        }
        let fresh = Bare::open(bare.file.clone())?;
        let start = Instant::now();
        let mut select = fresh.conn.prepare_cached(
            "SELECT seq, kind, name, ordinal, outcome, payload, at FROM stepwell_journal WHERE \
             task_id = ?1 ORDER BY seq",
        )?;
        type Row = (i64, String, String, u32, String, String, i64);
        let entries = select.query_map([tasks.first()], |row| Row::try_from(row))?;
        let entries: Vec<Row> = entries.collect::<rusqlite::Result<_>>()?;
        let took = start.elapsed();
        ensure!(
            entries.len() as u64 == workloads::W5_ENTRIES,
            "{} entries were read",
            entries.len()
        );
        Ok(millis(took))
    })
    .await
}

/// As the items: their results are written in rows of 1,000, each of them a commit.
pub(crate) async fn items(setup: &Setup) -> Result<f64> {
    rows(setup, |bare| {
        let tasks = ids(1);
        let start = Instant::now();
        for (first, seq) in (0..items::ITEMS).step_by(1_000).zip(1..) {
            let last = first + 999;
            let results: Vec<_> = (first..=last).collect();
            let chunk = serde_json::json!({
                "total": items::ITEMS, "done": [[first, last]], "results": [[first, results]],
            });
            let chunk = chunk.to_string();
            bare.transaction(&tasks, |id| bare.entry(id, seq, "items", "item", &chunk))?;
        }
        let took = start.elapsed();
        bare.check(0, items::ITEMS / 1_000)?;
        Ok(rate(items::ITEMS, took))
    })
    .await
}

/// Lets the store make a new file, and works on it without the store.
async fn rows(
    setup: &Setup,
    work: impl FnOnce(&Bare) -> Result<f64> + Send + 'static,
) -> Result<f64> {
    let folder = temp_folder(&setup.dir)?;
    let file = folder.path().join("floor.db");
    let store =
        SqliteStore::open(Location::File(file.clone()), Arc::new(TokioRuntime::current())).await?;
    blocking(move || {
        // Its drop waits for its threads.
        drop(store);
        let figure = work(&Bare::open(file)?);
        drop(folder);
        figure
    })
    .await
}

fn ids(count: u64) -> Vec<String> {
    (0..count).map(|_| Uuid::now_v7().to_string()).collect()
}

/// A bare connection, set up as the store's writer is.
struct Bare {
    conn: Connection,
    file: PathBuf,
    worker_id: String,
    retry: String,
}

impl Bare {
    fn open(file: PathBuf) -> Result<Self> {
        let conn = Connection::open(&file)?;
        let mode: String = conn.query_row("PRAGMA journal_mode", [], |row| row.get(0))?;
        ensure!(mode == "wal", "the store's file is in journal mode {mode}");
        conn.execute_batch(
            "PRAGMA synchronous = FULL; PRAGMA cache_size = -32768;
            PRAGMA wal_autocheckpoint = 2000; PRAGMA temp_store = MEMORY",
        )?;
        conn.set_prepared_statement_cache_capacity(128);
        let retry = serde_json::to_string(&RetryStrategy::default())?;
        Ok(Self { conn, file, worker_id: Uuid::now_v7().to_string(), retry })
    }

    fn run(&self, sql: &str, params: impl rusqlite::Params) -> Result<()> {
        self.conn.prepare_cached(sql)?.execute(params)?;
        Ok(())
    }

    fn transaction<T>(&self, items: &[T], write: impl FnMut(&T) -> Result<()>) -> Result<()> {
        self.run("BEGIN IMMEDIATE", [])?;
        items.iter().try_for_each(write)?;
        self.run("COMMIT", [])
    }

    /// As the store's spawn.
    fn insert(&self, id: &str, state: &str) -> Result<()> {
        let claimed = state == "running";
        let none = None::<i64>;
        self.run(
            "INSERT INTO stepwell_tasks (task_id, run_id, task_type, queue, state, priority,
                attempt, max_attempts, worker_id, parent, idempotency_key, spawned_at, ready_at,
                started_at, due_at, cancel_at, max_duration, retry, headers, params)
            VALUES (?1, ?2, ?3, ?4, ?5, ?6,
                ?7, ?8, ?9, ?10, ?11, ?12, ?12,
                ?13, ?14, ?15, ?16, ?17, ?18, ?19)",
            params![
                id,
                id,
                "one-step",
                "default",
                state,
                0,
                claimed,
                5,
                claimed.then_some(&self.worker_id),
                none,
                none,
                NOW,
                claimed.then_some(NOW),
                none,
                none,
                none,
                self.retry,
                "{}",
                "1234"
            ],
        )
    }

    /// As the store's claim of a task that never ran.
    fn claim(&self, id: &str, rowid: usize) -> Result<()> {
        self.run(
            "UPDATE stepwell_tasks SET state = 'running', run_id = ?2, attempt = ?3,
                worker_id = ?4, poked = 0, started_at = coalesce(started_at, ?5),
                cancel_at = CASE WHEN started_at IS NULL THEN ?6 ELSE cancel_at END
            WHERE rowid = ?1",
            params![i64::try_from(rowid)?, id, 1, self.worker_id, NOW, None::<i64>],
        )
    }

    /// As the store's end of a task with its last step, with its fence, but for the deletes that
    /// find nothing.
    fn complete(&self, id: &str, seq: u64) -> Result<()> {
        self.run(
            "UPDATE stepwell_tasks SET state = ?2, output = ?3,
                failure = CASE ?2 WHEN 'cancelled' THEN failure ELSE ?4 END, finished_at = ?5,
                worker_id = NULL, poked = 0, due_at = NULL, cancel_at = NULL
            WHERE task_id = ?1 AND (?6 IS NULL OR (run_id = ?6 AND state = 'running'))",
            params![id, "completed", "2468", None::<i64>, NOW, id],
        )?;
        self.journal(id, seq, "double")
    }

    fn journal(&self, id: &str, seq: u64, name: &str) -> Result<()> {
        self.entry(id, seq, "step", name, "2468")
    }

    fn entry(&self, id: &str, seq: u64, kind: &str, name: &str, payload: &str) -> Result<()> {
        self.run(
            "INSERT INTO stepwell_journal (task_id, seq, kind, name, ordinal, outcome, payload, at)
            VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            params![id, i64::try_from(seq)?, kind, name, 1, "done", payload, NOW],
        )
    }

    /// Checks that so many tasks are completed and so many entries are there.
    fn check(&self, tasks: u64, entries: u64) -> Result<()> {
        let count = |sql: &str| self.conn.query_row(sql, [], |row| row.get::<_, u32>(0));
        let completed = count("SELECT count(*) FROM stepwell_tasks WHERE state = 'completed'")?;
        let journaled = count("SELECT count(*) FROM stepwell_journal")?;
        ensure!(
            u64::from(completed) == tasks,
            "the floor completed {completed} tasks instead of {tasks}"
        );
        ensure!(
            u64::from(journaled) == entries,
            "the floor wrote {journaled} entries instead of {entries}"
        );
        Ok(())
    }
}

/// A time in microseconds, as long as those of today.
const NOW: i64 = 1_795_000_000_000_000;
