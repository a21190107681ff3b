//! The exhaustive crash test: a set of tasks that uses every feature runs once for each of its
//! commits, and dies right before it, or right after. Restarted, it comes to the same end, and no
//! journaled step has run again.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::unit_arg,
    missing_docs,
    reason = "a test ends by a panic"
)]

mod script;

use std::collections::BTreeMap;
use std::path::Path;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use script::*;
use stepwell::testing::{Harness, Intercepted, Process};
use stepwell::*;
use tokio::sync::Notify;

const TASKS: [&str; 12] = [
    "steps", "family", "forsaken", "asks", "answers", "stumbles", "saga", "harvest", "leave",
    "journey", "holds", "shares",
];

/// Steps, and the ones that they follow, whose results must be durable before they begin.
const LATER: [(&str, &str); 17] = [
    ("steps/answer", "steps/first"),
    ("steps/flaky", "steps/answer"),
    ("steps/a", "steps/flaky"),
    ("steps/b", "steps/flaky"),
    ("stumbles/broken", "stumbles/before"),
    ("stumbles/beside", "stumbles/before"),
    ("saga/undo clean#2", "saga/ship"),
    ("saga/undo charge", "saga/undo clean#2"),
    ("saga/undo clean", "saga/undo charge"),
    ("saga/undo reserve", "saga/undo clean"),
    ("leave/days:escalate:1", "leave/days:remind:1"),
    ("journey/walk:1", "journey/book"),
    ("journey/walk:2", "journey/walk:1"),
    ("journey/sea", "journey/way:route"),
    ("journey/undo sea", "journey/sleep"),
    ("journey/undo book", "journey/undo sea"),
    ("holds/undo hold", "holds/hold"),
];

/// What has to be undone in the end.
const UNDONE: [&str; 7] = [
    "saga/undo clean#2",
    "saga/undo charge",
    "saga/undo clean",
    "saga/undo reserve",
    "journey/undo sea",
    "journey/undo book",
    "holds/undo hold",
];

/// The store of a process that dies at its `at`-th commit, which is still `applied` or not.
fn mortal(store: Arc<dyn Store>, at: usize, applied: bool, died: Arc<Notify>) -> Arc<dyn Store> {
    let commits = AtomicUsize::new(0);
    Arc::new(Intercepted::new(store, move |store, batch| {
        // What changes nothing is no moment of its own to die at.
        let counts = !batch.has_only_claims() || batch.claims.iter().any(|claim| claim.limit > 0);
        let number = commits.fetch_add(usize::from(counts), Ordering::SeqCst) + usize::from(counts);
        if number < at || (number == at && !counts) {
            return store.commit(batch.into());
        }
        let last = (counts && number == at)
            .then(|| (applied.then(|| store.commit(batch.into())), died.clone()));
        Box::pin(async move {
            if let Some((applied, died)) = last {
                if let Some(applied) = applied {
                    applied.await?;
                }
                died.notify_one();
            }
            std::future::pending().await
        })
    }))
}

/// How each task ended.
type Ends = BTreeMap<&'static str, String>;

/// A life of the program: it spawns what is not there yet, and waits for all.
async fn live(process: &Process, ledger: &Arc<Ledger>) -> Result<Ends, Error> {
    process.register::<child>().await?;
    process.register::<steps>().await?;
    process.register::<family>().await?;
    process.register::<forsaken>().await?;
    process.register::<orphan>().await?;
    process.register::<asks>().await?;
    process.register::<answers>().await?;
    process.register::<stumbles>().await?;
    process.register::<saga>().await?;
    process.register::<harvest>().await?;
    process.register::<leave>().await?;
    process.register::<holds>().await?;
    process.register::<shares>().await?;
    process.register_workflow(journey(ledger)).await?;
    let ledger = ledger.clone();
    let clean = move |step: String| {
        ledger.note("saga", if step == "reserve" { "undo clean" } else { "undo clean#2" });
        async { Ok(()) }
    };
    process.register_cleanup("clean", clean).await?;
    process
        .start_worker(WorkerOptions::new().lease(Duration::from_millis(500)).concurrency(4))
        .await;
    let mut tasks = BTreeMap::new();
    for name in TASKS {
        // A program that dies again and again uses up attempts; that is another test's matter.
        let options = SpawnOptions::new().idempotency_key("the one").max_attempts(10);
        let options = options.retry(RetryStrategy::fixed(MOMENT));
        tasks.insert(name, process.spawn_named(name, &()).options(options).await?.task_id);
    }
    let orphan = orphan_of(process, tasks["forsaken"]).await?;
    cancel(process, tasks["forsaken"]).await?;
    tasks.insert("orphan", orphan);
    decide(process, tasks["leave"]).await?;
    while matches!(state(process, tasks["holds"]).await?, TaskState::Pending | TaskState::Running) {
        tokio::time::sleep(MOMENT).await;
    }
    cancel(process, tasks["holds"]).await?;
    let mut ends = Ends::new();
    for (name, task_id) in tasks {
        let end = process.wait::<serde_json::Value>(task_id).await;
        ends.insert(
            name,
            match end {
                Ok(output) => output.to_string(),
                Err(error) => error.to_string().replace(&task_id.to_string(), "…"),
            },
        );
    }
    Ok(ends)
}

async fn orphan_of(process: &Process, parent: TaskId) -> Result<TaskId, Error> {
    loop {
        let filter = TaskFilter { parent: Some(parent), ..TaskFilter::default() };
        match process.tasks(filter).await?.items.first() {
            Some(orphan) => return Ok(orphan.task_id),
            None => tokio::time::sleep(MOMENT).await,
        }
    }
}

async fn state(process: &Process, task_id: TaskId) -> Result<TaskState, Error> {
    process.task(task_id).await?.map(|info| info.state).ok_or(Error::NotFound(task_id))
}

/// Cancels a task that an earlier life may have cancelled.
async fn cancel(process: &Process, task_id: TaskId) -> Result<(), Error> {
    match process.cancel(task_id).await {
        Ok(()) | Err(Error::NotAllowed { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Approves what the task waits for as soon as that was escalated, if it still waits.
async fn decide(process: &Process, task_id: TaskId) -> Result<(), Error> {
    while !state(process, task_id).await?.is_finished() {
        let approvals = process
            .approvals()
            .list(ApprovalFilter { limit: 10, ..ApprovalFilter::default() })
            .await?
            .items;
        if approvals.iter().any(|approval| approval.assignee.as_deref() == Some("director")) {
            return match process
                .approvals()
                .decide(task_id, "days", &Decision::approved("ada", 7))
                .await
            {
                Ok(()) | Err(Error::AlreadyDecided { .. } | Error::UnknownApproval { .. }) => {
                    Ok(())
                }
                Err(error) => Err(error),
            };
        }
        tokio::time::sleep(MOMENT).await;
    }
    Ok(())
}

/// The steps and the items that have a result, by task and label.
async fn journaled(store: &dyn Store) -> Vec<String> {
    let mut steps = Vec::new();
    for task in
        store.tasks(TaskFilter { limit: 1000, ..TaskFilter::default() }).await.unwrap().items
    {
        let name = match task.task_type.as_str() {
            "child" => format!("child {}", task.params),
            name => name.to_owned(),
        };
        for entry in store.journal(task.task_id).await.unwrap() {
            match (entry.key.kind, &entry.outcome) {
                (Kind::Step, Outcome::Done(_)) => {
                    steps.push(format!("{name}/{}", entry.key.label()));
                }
                (Kind::Compensated, Outcome::Done(_)) => {
                    steps.push(format!("{name}/undo {}", entry.key.label()));
                }
                (Kind::Items, Outcome::Done(chunk)) => {
                    let done = ItemProgress::from_chunk(chunk).unwrap();
                    let done = (0..ITEMS).filter(|item| done.is_done(*item));
                    steps.extend(done.map(|item| format!("{name}/item {item}")));
                }
                _ => {}
            }
        }
    }
    steps
}

/// Opens the store as one process does. Each life opens it again.
trait Opens {
    async fn open(&self, harness: &Harness) -> Arc<dyn Store>;
}

/// One case. `None` when the program came to its end before that commit.
async fn case(opens: &impl Opens, at: usize, applied: bool) -> Option<Ends> {
    let harness = Harness::new();
    let ledger = Arc::new(Ledger::default());
    let died = Arc::new(Notify::new());
    let store = mortal(opens.open(&harness).await, at, applied, died.clone());
    let process = harness.start_on(store, |builder| builder.state(ledger.clone())).await.unwrap();
    tokio::select! {
        ends = live(&process, &ledger) => {
            check(&ends.unwrap(), &ledger, at, applied);
            let rows = rows_of_items(&*opens.open(&harness).await).await;
            let chunks = ledger.0.lock().unwrap()["harvest/chunk"];
            process.kill().await;
            assert!(rows + 20 < chunks, "of {chunks} chunks of items, {rows} are left: too few \
                                         were merged");
            return None;
        }
        () = died.notified() => {}
    }
    process.kill().await;

    let store = opens.open(&harness).await;
    let before = journaled(&*store).await;
    let ran = ledger.0.lock().unwrap().clone();
    for (later, earlier) in LATER {
        let (began, journaled) = (ran.contains_key(later), before.contains(&earlier.to_owned()));
        assert!(
            !began || journaled,
            "commit {at}, applied {applied}: {later} began before {earlier} was durable"
        );
    }
    let process = harness.start_on(store, |builder| builder.state(ledger.clone())).await.unwrap();
    let ends = tokio::time::timeout(Duration::from_secs(30), live(&process, &ledger)).await;
    let ends = ends.unwrap_or_else(|_| panic!("commit {at}, applied {applied}: stuck")).unwrap();
    let reminders = |steps: &[String]| {
        u32::try_from(steps.iter().filter(|step| step.starts_with("leave/days:remind")).count())
            .unwrap()
    };
    let reminded = reminders(&journaled(&*opens.open(&harness).await).await) - reminders(&before);
    process.kill().await;
    let ran_after = ledger.0.lock().unwrap().clone();
    let count = |ran: &BTreeMap<String, u32>| ran.get("leave/remind").copied().unwrap_or_default();
    assert_eq!(
        count(&ran_after) - count(&ran),
        reminded,
        "commit {at}, applied {applied}: reminded twice"
    );
    for step in before {
        let (once, then) = (ran.get(&step), ran_after.get(&step));
        assert_eq!(
            once, then,
            "commit {at}, applied {applied}: {step} ran again, though journaled"
        );
    }
    check(&ends, &ledger, at, applied);
    Some(ends)
}

fn check(ends: &Ends, ledger: &Ledger, at: usize, applied: bool) {
    let expected = [
        ("answers", "null"),
        ("asks", "[0,1,4]"),
        ("family", "\"10 20 failed 40\""),
        ("forsaken", "task … was cancelled"),
        ("harvest", "570"),
        ("holds", "task … was cancelled"),
        ("journey", "task … failed: step \"arrive\" failed: lost at sea"),
        ("leave", r#""Approved { by: \"ada\", reason: None, value: 7 }""#),
        ("orphan", "task … was cancelled"),
        ("saga", "task … failed: it is lost"),
        ("shares", "\"50 created, 50 existing, 50 existing\""),
        ("steps", "\"Err(\\\"no\\\") 3 quick 4 true\""),
        ("stumbles", "7"),
    ];
    let expected = expected.into_iter().map(|(name, end)| (name, end.to_owned())).collect::<Ends>();
    assert_eq!(*ends, expected, "commit {at}, applied {applied}");
    let ran = ledger.0.lock().unwrap();
    for undone in UNDONE {
        assert!(ran.contains_key(undone), "commit {at}, applied {applied}: no {undone}");
    }
}

/// How many entries of the journals hold items.
async fn rows_of_items(store: &dyn Store) -> u32 {
    let mut rows = 0;
    for task in
        store.tasks(TaskFilter { limit: 1000, ..TaskFilter::default() }).await.unwrap().items
    {
        let journal = store.journal(task.task_id).await.unwrap();
        rows += journal.iter().filter(|entry| entry.key.kind == Kind::Items).count();
    }
    u32::try_from(rows).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_crash_before_or_after_any_commit_changes_nothing_in_memory() {
    struct Memory(Mutex<Option<MemoryStore>>);
    impl Opens for Memory {
        async fn open(&self, harness: &Harness) -> Arc<dyn Store> {
            let mut store = self.0.lock().unwrap();
            Arc::new(store.get_or_insert_with(|| harness.store()).connect())
        }
    }
    let mut cases = 0;
    for at in 1.. {
        let after = case(&Memory(Mutex::default()), at, true).await;
        let before = case(&Memory(Mutex::default()), at, false).await;
        match (after, before) {
            (None, None) => break,
            _ => cases += 2,
        }
    }
    assert!(cases > 60, "only {cases} cases");
}

/// In real time, in which cases mostly wait: some at once.
#[tokio::test]
async fn a_crash_before_or_after_any_commit_changes_nothing_on_sqlite() {
    struct Sqlite<'a>(&'a Path);
    impl Opens for Sqlite<'_> {
        async fn open(&self, harness: &Harness) -> Arc<dyn Store> {
            let location = stepwell::sqlite::Location::File(self.0.join("tasks.db"));
            Arc::new(
                stepwell::sqlite::SqliteStore::open(location, harness.runtime()).await.unwrap(),
            )
        }
    }
    let both = |at| async move {
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let after = case(&Sqlite(folders[0].path()), at, true).await;
        let before = case(&Sqlite(folders[1].path()), at, false).await;
        after.is_some() || before.is_some()
    };
    let mut deaths = pin!(stream::iter(1..).map(both).buffered(8));
    let mut cases = 0;
    while deaths.next().await == Some(true) {
        cases += 2;
    }
    assert!(cases > 40, "only {cases} cases");
}
