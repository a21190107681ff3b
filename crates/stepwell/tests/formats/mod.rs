//! An entry of the corpus: how it is written, and how today's code goes on with it.

#![allow(dead_code, reason = "each test uses some of it")]

mod tasks;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use stepwell::codec::{Compression, Encryption, Key};
use stepwell::*;

pub(crate) use tasks::Program;

/// The entry of the format that is written today.
pub(crate) const CURRENT: &str = "0.1";

/// How long today's code may take for all that an entry left.
const PATIENCE: Duration = Duration::from_secs(60);

/// What an entry holds, and what comes of it.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Expected {
    /// The tasks that had an idempotency key, by that.
    pub(crate) tasks: BTreeMap<String, Task>,
    /// Schedules, and whether they are paused.
    pub(crate) schedules: BTreeMap<String, (Timing, bool)>,
    /// Task types that were described.
    pub(crate) task_types: Vec<TaskTypeInfo>,
    /// How often each event is in the history of the tasks that had ended, which nothing is added
    /// to.
    pub(crate) history: BTreeMap<String, usize>,
}

impl Expected {
    /// Takes over what an export does not tell: all that is not of a task, and that a task was
    /// claimed.
    pub(crate) fn has_only_tasks_like(&mut self, other: &Self) {
        self.schedules.clone_from(&other.schedules);
        self.task_types.clone_from(&other.task_types);
        self.history.clone_from(&other.history);
        for (key, task) in &mut self.tasks {
            let state = other.tasks[key].state;
            let goes_on = task.state == TaskState::Pending && !state.is_ending();
            assert!(goes_on || task.state == state, "{key} is {}, and was {state}", task.state);
            task.state = state;
        }
    }
}

/// A task.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Task {
    /// As it was spawned.
    spawned: Value,
    /// Where it was, as it is read.
    state: TaskState,
    /// What its journal holds, as it is read.
    journal: Vec<String>,
    /// What it waits for.
    waits: Vec<String>,
    /// What is in its mailbox.
    messages: Vec<String>,
    /// What ran to bring it to its end.
    ran: Vec<String>,
    /// How it ended.
    end: Value,
}

/// The folders of the entries.
pub(crate) fn entries() -> Vec<PathBuf> {
    let folders = std::fs::read_dir(folder("")).unwrap().map(|entry| entry.unwrap().path());
    let mut folders: Vec<_> = folders.filter(|path| path.is_dir()).collect();
    folders.sort();
    assert!(folders.contains(&folder(CURRENT)), "the entry {CURRENT} is not written yet");
    folders
}

pub(crate) fn folder(entry: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus").join(entry)
}

pub(crate) fn expected(entry: &Path) -> Expected {
    serde_json::from_slice(&std::fs::read(entry.join("expected.json")).unwrap()).unwrap()
}

/// Compares what came of an entry with what was expected of it.
pub(crate) fn same(found: &Expected, expected: &Expected, entry: &Path) {
    for (key, task) in &expected.tasks {
        assert_eq!(found.tasks.get(key), Some(task), "{key} of {}", entry.display());
    }
    assert_eq!(found, expected, "{}", entry.display());
}

/// The file's content, which is kept compressed.
pub(crate) fn unpacked(path: &Path) -> Vec<u8> {
    zstd::decode_all(std::fs::File::open(path).unwrap()).unwrap()
}

pub(crate) fn pack(path: &Path, content: &[u8]) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, zstd::encode_all(content, 19).unwrap()).unwrap();
}

/// A client of a database of the corpus.
pub(crate) async fn client(
    program: &Arc<Program>,
    build: impl FnOnce(DurableBuilder) -> DurableBuilder,
) -> Durable {
    let builder = build(Durable::builder()).state(program.clone()).keep_history();
    let client = builder.build().await.unwrap();
    tasks::register(&client, program).await;
    client
}

/// With the codecs of the encrypted database, whose key is no secret.
pub(crate) fn encrypted(builder: DurableBuilder) -> DurableBuilder {
    let key = Key::new("corpus", *b"a key that everybody is to know.").unwrap();
    builder.codec(Compression::new()).codec(Encryption::new(key))
}

async fn start_worker(client: &Durable) {
    let options = WorkerOptions::new().lease(Duration::from_secs(1));
    let options =
        options.poll_interval(Duration::from_millis(20)).queues(["default", "paused"]).unwrap();
    client.start_worker(options).await;
}

async fn all(client: &Durable) -> Vec<TaskInfo> {
    client.tasks(TaskFilter { limit: 1_000, ..TaskFilter::default() }).await.unwrap().items
}

/// The tasks that have idempotency keys, by these.
async fn by_key(client: &Durable) -> BTreeMap<String, TaskInfo> {
    let tasks = all(client).await.into_iter();
    tasks.filter_map(|task| Some((task.idempotency_key.as_ref()?.to_string(), task))).collect()
}

async fn until(mut is: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !is().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.expect("it does not come to that");
}

/// Where each task of an entry is when it is written, and how much its journal holds: entries, and
/// of items, how many are done.
const PLACES: [(&str, TaskState, usize); 31] = {
    use TaskState::*;
    [
        ("approval", Suspended, 2),
        ("attempts", Pending, 1),
        ("backoff", Suspended, 1),
        ("cancelled", Cancelled, 0),
        ("changed", Suspended, 6),
        ("child 1", Completed, 0),
        ("child 2", Suspended, 0),
        ("ended", Completed, 1),
        ("failed", Failed, 0),
        ("family", Suspended, 3),
        ("handled", Suspended, 2),
        ("hoards", Suspended, 1),
        ("holds", Suspended, 0),
        ("inputs", Suspended, 1),
        ("items", Running, 5),
        ("late", Pending, 0),
        ("letter", Suspended, 1),
        ("limited", Pending, 0),
        ("notes", Suspended, 4),
        ("order", Suspended, 8),
        ("paused", Pending, 0),
        ("queued", Pending, 0),
        ("race", Suspended, 3),
        ("retried", Suspended, 5),
        ("rewound", Suspended, 4),
        ("running", Running, 2),
        ("talks", Suspended, 4),
        ("timer", Suspended, 1),
        ("undoing", Compensating, 6),
        ("undone", Suspended, 3),
        ("values", Suspended, 4),
    ]
};

/// Fills a new database, and waits until every task is in its place. The worker goes on until the
/// client is dropped.
pub(crate) async fn fill(client: &Durable) {
    let tenant = Scope::default().label("tenant", "acme");
    let spawn = async |task_type: &str, key: &str, params: Value, options: SpawnOptions| {
        let options =
            options.idempotency_key(key).retry(RetryStrategy::fixed(Duration::from_secs(5)));
        client
            .spawn_named(task_type, &params)
            .options(options.max_attempts(5))
            .await
            .unwrap()
            .task_id
    };
    let simply = SpawnOptions::new;
    let at_once = RetryStrategy::fixed(Duration::ZERO);
    let text = "a text that is long enough to be compressed, and again: ".repeat(9);
    client.emit_event("early", &7_u32).await.unwrap();
    client.queues().pause("paused").await.unwrap();
    let limits = QueueLimits { max_running: Some(2), ..QueueLimits::default() };
    client.queues().limit("paused", limits).await.unwrap();
    let info = TaskTypeInfo {
        task_type: Name::new("plain").unwrap(),
        params: json!({ "type": "integer", "minimum": 0 }),
        output: json!({ "type": "integer" }),
    };
    client.store().describe(info).await.unwrap();

    let paused = spawn("plain", "paused", 5.into(), simply().delay(Duration::from_millis(1))).await;
    client.pause(paused).await.unwrap();
    let cancelled = spawn("plain", "cancelled", 4.into(), simply().delay(PATIENCE)).await;
    client.cancel(cancelled).await.unwrap();
    spawn("plain", "limited", 3.into(), simply().queue("paused")).await;
    spawn("late", "late", Value::Null, simply().delay(Duration::from_secs(5))).await;
    start_worker(client).await;
    let scoped =
        simply().scope(tenant).label("tenant", "acme").header("trace", json!({ "a": [1, null] }));
    spawn("values", "values", text.into(), scoped.priority(7)).await;
    for name in [
        "letter", "timer", "family", "approval", "backoff", "attempts", "running", "items",
        "undoing", "undone", "handled", "race", "retried", "notes", "talks", "order",
    ] {
        spawn(name, name, Value::Null, simply()).await;
    }
    for name in ["rewound", "changed"] {
        let options = simply().idempotency_key(name).retry(at_once.clone()).max_attempts(5);
        client.spawn_named(name, &()).options(options).await.unwrap();
    }
    spawn("inputs", "inputs", json!({ "z": 1, "a": "ä" }), simply()).await;
    let hoards = spawn("hoards", "hoards", Value::Null, simply()).await;
    for number in 1..4_u32 {
        client.send(hoards, "number", &number).await.unwrap();
    }
    let line = || simply().concurrency_key("line");
    spawn("holds", "holds", Value::Null, line()).await;
    spawn("plain", "queued", 2.into(), line()).await;
    spawn("plain", "ended", 1.into(), simply()).await;
    spawn("fails", "failed", Value::Null, simply()).await;
    let nightly =
        Schedule::cron("nightly", "30 2 * * *").time_zone("Europe/Berlin").jitter(PATIENCE);
    client.schedules().put_named(nightly.catch_up(CatchUp::Skip), "plain", &8).await.unwrap();
    let often = Schedule::every("often", 7 * PATIENCE).overlap(Overlap::Skip);
    client.schedules().put_named(often, "plain", &9).await.unwrap();
    client.schedules().pause("often").await.unwrap();
    client.schedules().trigger("often").await.unwrap();
    is_in_place(client).await;
    has_entries_of_every_kind(client).await;
}

async fn has_entries_of_every_kind(client: &Durable) {
    let mut kinds = Vec::new();
    for task in all(client).await {
        kinds.extend(
            client.journal(task.task_id).await.unwrap().into_iter().map(|entry| entry.key.kind),
        );
    }
    let missing: Vec<_> = Kind::ALL.iter().filter(|kind| !kinds.contains(kind)).collect();
    assert!(missing.is_empty(), "no task has an entry of {missing:?}");
}

fn weight(entry: &Entry) -> usize {
    match (entry.key.kind, &entry.outcome) {
        (Kind::Items, Outcome::Done(chunk)) => {
            ItemProgress::from_chunk(chunk).unwrap().counts().succeeded
        }
        _ => 1,
    }
}

async fn is_in_place(client: &Durable) {
    let mut elsewhere = Vec::new();
    let place = async {
        loop {
            let mut found = Vec::new();
            for (key, task) in by_key(client).await {
                let journal = client.journal(task.task_id).await.unwrap();
                found.push((key, task.state, journal.iter().map(weight).sum()));
            }
            let found: Vec<_> =
                found.iter().map(|(key, state, length)| (&**key, *state, *length)).collect();
            if found == PLACES {
                return;
            }
            elsewhere = found
                .into_iter()
                .filter(|place| !PLACES.contains(place))
                .map(|p| format!("{p:?}"))
                .collect();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    // Before the shortest of the timers ends.
    if tokio::time::timeout(Duration::from_secs(4), place).await.is_err() {
        panic!("not in its place: {elsewhere:#?}");
    }
}

/// What the documents of an entry hold: one for each of its tasks.
pub(crate) async fn exports(client: &Durable) -> Vec<String> {
    let mut exports = Vec::new();
    for task in by_key(client).await.into_values() {
        exports.push(client.export(task.task_id).await.unwrap().to_json().unwrap());
    }
    exports
}

/// Goes on with what is there, until all of it has ended. Returns what came of it.
pub(crate) async fn go_on(client: &Durable, program: &Program) -> Expected {
    let found = by_key(client).await;
    let mut tasks = BTreeMap::new();
    for (key, task) in &found {
        tasks.insert(key.clone(), look(client, task).await);
    }
    let history = history(client, &found).await;
    start_worker(client).await;
    let of = |key: &str| found[key].task_id;
    client.emit_event("early", &7_u32).await.unwrap();
    client.emit_event("go", &"went").await.unwrap();
    client.send(of("letter"), "letter", "dear").await.unwrap();
    client.send(of("order"), "received", "thanks").await.unwrap();
    client
        .approvals()
        .decide(of("approval"), "manager", &Decision::approved("grace", 12))
        .await
        .unwrap();
    // An export does not tell that it was paused.
    client.resume(of("paused")).await.unwrap_or_default();
    client.queues().resume("paused").await.unwrap();
    until(async || all(client).await.iter().all(|task| task.state.is_finished())).await;
    for (key, task) in &mut tasks {
        task.end = match client.wait::<Value>(of(key)).await {
            Ok(output) => output,
            Err(error) => error.to_string().replace(&of(key).to_string(), "…").into(),
        };
        task.ran = program.ran.lock().unwrap().get(key).cloned().unwrap_or_default();
        task.ran.sort();
    }
    let schedules = client.schedules().list().await.unwrap().into_iter();
    Expected {
        tasks,
        schedules: schedules.map(|s| (s.name.to_string(), (s.timing, s.paused))).collect(),
        task_types: client.task_types().await.unwrap(),
        history,
    }
}

async fn look(client: &Durable, task: &TaskInfo) -> Task {
    let journal = client.journal(task.task_id).await.unwrap();
    let shown = |entry: &Entry| format!("{} {}", entry.key, entry.outcome.to_columns().0);
    let mut journal: Vec<_> = journal.iter().map(shown).map(|entry| without_ids(&entry)).collect();
    // What ran side by side came in any order.
    journal.sort();
    // So did items, in any number of chunks.
    journal.dedup();
    let waits = client.waits(task.task_id).await.unwrap();
    let mut waits: Vec<_> = waits.iter().map(|wait| without_ids(&wait.key.to_string())).collect();
    waits.sort();
    let messages = client.export(task.task_id).await.unwrap().record.messages;
    let spawned = json!({
        "type": task.task_type, "queue": task.queue, "params": task.params, "headers": task.headers,
        "scope": task.scope, "priority": task.priority, "concurrency_key": task.concurrency_key,
        "max_attempts": task.max_attempts, "retry": task.retry,
        "has a parent": task.parent.is_some(),
    });
    Task {
        spawned,
        state: task.state,
        journal,
        waits,
        messages: messages.iter().map(|(topic, payload)| format!("{topic} {payload}")).collect(),
        ran: Vec::new(),
        end: Value::Null,
    }
}

/// Without ids and times, which are others in each entry.
fn without_ids(text: &str) -> String {
    let varies = |word: &str| {
        word.parse::<TaskId>().is_ok() || word.parse::<u64>().is_ok_and(|n| n > 1 << 50)
    };
    let words = text.split_inclusive([':', '/', ' ', '"']).map(|part| {
        let word = part.trim_end_matches([':', '/', ' ', '"']);
        if varies(word) { part.replacen(word, "…", 1) } else { part.to_owned() }
    });
    words.collect()
}

async fn history(client: &Durable, tasks: &BTreeMap<String, TaskInfo>) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for (key, task) in tasks.iter().filter(|(_, task)| task.state.is_finished()) {
        let filter = HistoryFilter { task_id: Some(task.task_id), ..HistoryFilter::default() };
        for entry in client.history(filter).await.unwrap() {
            *counts
                .entry(format!("{key} {}", entry.event.as_ref().unwrap().name()))
                .or_default() += 1;
        }
    }
    counts
}
