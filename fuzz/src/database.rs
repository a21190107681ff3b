//! Damaged files of databases: a file that Stepwell has written, in which bytes are changed.
//!
//! What is opened is looked at and claimed from, with clear errors, and in a limited time. Where
//! SQLite itself finds nothing wrong with the file, a task whose rows are as they were is read as
//! it was.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use arbitrary::{Arbitrary, Unstructured};
use rusqlite::types::Value;
use rusqlite::{Connection, OpenFlags};
use stepwell::sqlite::{Location, SqliteStore};
use stepwell::store::{Batch, Claim, HistoryFilter, NewWorker, ScheduleFilter, WorkerSignal};
use stepwell::{
    Durable, Name, Schedule, Scope, SpawnOptions, Store, StoreError, TaskContext, TaskError,
    TaskFilter, TaskId, TaskState, TokioRuntime, WorkerOptions,
};
use tempfile::TempDir;
use uuid::Uuid;

use crate::said;

/// How long one question may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How many pages a list of some tasks has at most, whatever is in it.
const PAGES: usize = 100;

/// How many places are changed at most.
const EDITS: usize = 8;

/// A change of the bytes that begin with one that is used.
#[derive(Arbitrary, Debug)]
struct Edit {
    which: u32,
    bytes: [u8; 3],
    count: u8,
}

pub(crate) fn run(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let file = &*FILE;
    let mut bytes = file.bytes.clone();
    for _ in 0..EDITS {
        let Ok(Edit { which, bytes: with, count }) = input.arbitrary() else { break };
        let at = file.used[usize::try_from(which).unwrap() % file.used.len()];
        let with = with.iter().take(1 + usize::from(count % 3));
        bytes.iter_mut().skip(at).zip(with).for_each(|(byte, with)| *byte = *with);
        if input.is_empty() {
            break;
        }
    }
    let folder = folder();
    let path = folder.path().join("damaged.db");
    std::fs::write(&path, &bytes).unwrap();
    let as_they_were = file.as_they_were(&path);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let opened = SqliteStore::open(Location::File(path), Arc::new(TokioRuntime::current()));
        match soon(opened).await {
            Ok(store) => {
                file.is_readable(&store, &as_they_were).await;
                go_on(&store).await;
            }
            Err(error) => _ = said(error, 0),
        }
    });
}

/// A file, and what is in it.
struct File {
    bytes: Vec<u8>,
    /// Where bytes are that are not zero.
    used: Vec<usize>,
    tables: Vec<String>,
    tasks: BTreeMap<TaskId, Seen>,
}

/// A task as it was, in the file and through the store.
struct Seen {
    rows: Vec<Vec<Value>>,
    shown: String,
}

static FILE: LazyLock<File> = LazyLock::new(|| {
    let folder = folder();
    let path = folder.path().join("whole.db");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let shown = runtime.block_on(write(&path));
    let copy = folder.path().join("copy.db");
    let conn = Connection::open(&path).unwrap();
    conn.execute("VACUUM INTO ?1", [copy.to_str().unwrap()]).unwrap();
    let tasks = shown.into_iter().map(|(task_id, shown)| {
        let rows = rows(&conn, task_id).unwrap();
        (task_id, Seen { rows, shown })
    });
    let bytes = std::fs::read(&copy).unwrap();
    let used = bytes.iter().enumerate().filter(|(_, byte)| **byte != 0).map(|(at, _)| at).collect();
    File { tasks: tasks.collect(), tables: tables(&conn).unwrap(), used, bytes }
});

/// In memory, where the system has such a place: nothing of it has to last.
fn folder() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

async fn work(kind: String, ctx: TaskContext) -> Result<u64, TaskError> {
    ctx.step("number", || async { Ok(7_u64) }).compensate(|_| async { Ok(()) }).await?;
    match kind.as_str() {
        "event" => ctx.await_event("event", None).await,
        "message" => ctx.recv("topic", None).await,
        "sleep" => ctx.sleep_for("long", Duration::from_secs(9_999_999)).await.map(|()| 1),
        "approval" => ctx.await_approval::<u64>("manager", &kind).await.map(|_| 1),
        "fails" => Err(TaskError::permanent(anyhow::anyhow!("no"))),
        "later" => {
            Err(TaskError::retry_after(Duration::from_secs(9_999_999), anyhow::anyhow!("later")))
        }
        _ => Ok(1),
    }
}

/// Writes a database with tasks in most states. Returns how they are shown.
async fn write(path: &Path) -> BTreeMap<TaskId, String> {
    let url = format!("sqlite://{}", path.display());
    let client = Durable::builder().database_url(url).keep_history().build().await.unwrap();
    client.register_fn("work", work).await.unwrap();
    let mut tasks = Vec::new();
    for (kind, state) in [
        ("event", TaskState::Suspended),
        ("message", TaskState::Suspended),
        ("sleep", TaskState::Suspended),
        ("approval", TaskState::Suspended),
        ("fails", TaskState::Failed),
        ("later", TaskState::Pending),
        ("ends", TaskState::Completed),
    ] {
        let options =
            SpawnOptions::new().label("kind", kind).idempotency_key(kind).concurrency_key(kind);
        tasks.push((
            client.spawn_named("work", &kind).options(options).await.unwrap().task_id,
            state,
        ));
    }
    client
        .schedules()
        .put_named(Schedule::cron("yearly", "@yearly"), "work", &"ends")
        .await
        .unwrap();
    let worker = client.start_worker(WorkerOptions::new()).await;
    for (task, state) in &tasks {
        let is_there = async |task| {
            let task = client.task(task).await.unwrap().unwrap();
            task.state == *state
                && task.started_at.is_some()
                && (task.attempt == 1 || task.attempt == 0)
        };
        while !is_there(*task).await {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    worker.shutdown().await;
    let mut shown = BTreeMap::new();
    for (task, _) in tasks {
        client.send(task, "other", "mail").await.unwrap_or_default();
        shown.insert(task, show(client.store(), task).await.unwrap());
    }
    client.shutdown(Duration::ZERO).await;
    shown
}

async fn show(store: &dyn Store, task: TaskId) -> Result<String, StoreError> {
    let info = soon(store.task(task)).await?;
    Ok(format!(
        "{info:?} {:?} {:?}",
        soon(store.journal(task)).await?,
        soon(store.waits_of(task)).await?
    ))
}

/// How all tables and indexes are defined. A column whose name has changed is not found, though
/// SQLite finds nothing wrong with its values.
fn tables(conn: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut statement =
        conn.prepare("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY name")?;
    statement.query_map([], |row| row.get(0))?.collect()
}

/// All rows of a task, but for what the store has of it beside the task itself.
fn rows(conn: &Connection, task: TaskId) -> rusqlite::Result<Vec<Vec<Value>>> {
    let mut all = Vec::new();
    for table in ["stepwell_tasks", "stepwell_journal", "stepwell_waits"] {
        let mut statement = conn.prepare(&format!("SELECT * FROM {table} WHERE task_id = ?1"))?;
        let columns = statement.column_count();
        let mut rows = statement.query([task.to_string()])?;
        while let Some(row) = rows.next()? {
            all.push((0..columns).map(|column| row.get(column)).collect::<rusqlite::Result<_>>()?);
        }
    }
    Ok(all)
}

impl File {
    /// The tasks whose rows are as they were, where SQLite finds nothing wrong with the file. Its
    /// tables are defined as they were.
    fn as_they_were(&self, path: &Path) -> Vec<TaskId> {
        let sound = || {
            let conn = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
            let found: String =
                conn.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))?;
            let same = |(task, seen): (&TaskId, &Seen)| {
                rows(&conn, *task).is_ok_and(|rows| rows == seen.rows).then_some(*task)
            };
            let defined = tables(&conn)?;
            Ok::<_, rusqlite::Error>(match found.as_str() {
                "ok" if defined == self.tables => self.tasks.iter().filter_map(same).collect(),
                _ => Vec::new(),
            })
        };
        sound().unwrap_or_default()
    }

    async fn is_readable(&self, store: &SqliteStore, as_they_were: &[TaskId]) {
        for (task, seen) in &self.tasks {
            match show(store, *task).await {
                Ok(shown) if as_they_were.contains(task) => assert_eq!(shown, seen.shown),
                Err(error) if as_they_were.contains(task) => panic!("{task} is as it was: {error}"),
                Ok(_) => {}
                Err(error) => _ = said(error, 0),
            }
        }
    }
}

/// Looks at everything, and claims what there is.
async fn go_on(store: &SqliteStore) {
    let mut filter = TaskFilter { limit: 2, ..TaskFilter::default() };
    for page in 0.. {
        assert!(page < PAGES, "the list of tasks does not end");
        match soon(store.tasks(filter.clone())).await {
            Ok(page) if page.next.is_some() => filter.before = page.next,
            Ok(_) => break,
            Err(error) => {
                said(error, 0);
                break;
            }
        }
    }
    tell(soon(store.queues()).await);
    tell(soon(store.workers()).await);
    tell(soon(store.schedules(ScheduleFilter::All { behind: None })).await);
    tell(soon(store.history(HistoryFilter::default())).await);
    tell(soon(store.waits(Scope::default(), "approval/".into(), None, 10)).await);
    let worker_id = Uuid::from_u128(9).into();
    let queues = vec![Name::new("default").unwrap()];
    let lease = Duration::from_secs(30);
    let worker = NewWorker {
        worker_id,
        name: "fuzz".into(),
        queues: queues.clone(),
        concurrency: 9,
        code_version: None,
        lease,
    };
    let claim = Claim {
        worker_id,
        queues,
        task_types: vec![Name::new("work").unwrap()],
        code_version: None,
        limit: 9,
        suspect: u32::MAX,
    };
    let signal = |signal| Batch { workers: vec![signal], ..Batch::default() };
    for batch in [
        signal(WorkerSignal::Register(worker)),
        Batch { claims: vec![claim], ..Batch::default() },
        signal(WorkerSignal::Heartbeat { worker_id }),
        signal(WorkerSignal::Deregister { worker_id }),
    ] {
        tell(soon(store.commit(Arc::new(batch))).await);
    }
}

fn tell<T>(answer: Result<T, StoreError>) {
    if let Err(error) = answer {
        said(error, 0);
    }
}

async fn soon<T>(answer: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, answer).await.expect("an answer in time")
}
