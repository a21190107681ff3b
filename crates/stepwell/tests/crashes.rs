//! The exhaustive crash test: a set of tasks that uses every feature runs once for each of its commits, and dies right
//! before it, or right after. Restarted, it comes to the same end, and no journaled step has run again.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::unit_arg,
    missing_docs,
    reason = "a test ends by a panic"
)]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::stream::{FuturesUnordered, StreamExt, iter};
use stepwell::testing::{Harness, Intercepted, Process};
use stepwell::*;
use tokio::sync::Notify;

const MOMENT: Duration = Duration::from_millis(3);

/// What ran, kept outside of any process.
#[derive(Default)]
struct Ledger(Mutex<BTreeMap<String, u32>>);

impl Ledger {
    /// Notes that a step's closure runs; gives how often it has run before.
    fn note(&self, task: &str, step: &str) -> u32 {
        let mut ran = self.0.lock().unwrap();
        let times = ran.entry(format!("{task}/{step}")).or_default();
        *times += 1;
        *times - 1
    }
}

#[stepwell::task]
async fn child(n: u32, ctx: TaskContext) -> TaskResult<u32> {
    let ledger = ctx.state::<Arc<Ledger>>()?;
    let name = format!("child {n}");
    ctx.step("work", || async { Ok(ledger.note(&name, "work")) }).await?;
    if n == 3 {
        return Err(TaskError::permanent(anyhow::anyhow!("three fails")));
    }
    ctx.sleep_for("nap", MOMENT).await?;
    Ok(n * 10)
}

/// Every kind of step, and every combinator.
#[stepwell::task]
async fn steps(_nothing: (), ctx: TaskContext) -> TaskResult<String> {
    let ledger = ctx.state::<Arc<Ledger>>()?;
    let note = |step: &'static str| async move { Ok::<_, anyhow::Error>(ledger.note("steps", step)) };
    ctx.step("first", || note("first")).await?;
    let answer = ctx
        .try_step("answer", || async {
            ledger.note("steps", "answer");
            Err::<(), String>("no".into())
        })
        .await?;
    ctx.step("flaky", || async {
        if ledger.note("steps", "flaky") < 2 {
            anyhow::bail!("not yet")
        }
        Ok(())
    })
    .retry(RetryStrategy::fixed(MOMENT))
    .max_attempts(20)
    .await?;
    let (a, b) = tokio::try_join!(ctx.step("a", || note("a")), ctx.step("b", || note("b")))?;
    let _ = (a, b);
    let many = join_all((0..3).map(|n| ctx.step(("each", n), move || async move { Ok(n) }))).await;
    let many: u32 = many.into_iter().collect::<TaskResult<Vec<u32>>>()?.into_iter().sum();
    let first = tokio::select! {
        _ = ctx.sleep_for("quick", MOMENT) => "quick",
        _ = ctx.sleep_for("slow", 1000 * MOMENT) => "slow",
    };
    let mut unordered: FuturesUnordered<_> = (0..3).map(|n| ctx.sleep_for(("u", n), MOMENT)).collect();
    while let Some(slept) = unordered.next().await {
        slept?;
    }
    let streamed: Vec<_> = iter(0..4)
        .map(|n| ctx.step(("s", n), move || async move { Ok(n) }))
        .buffer_unordered(2)
        .collect()
        .await;
    let limited = ctx.timeout("limit", MOMENT, ctx.await_event::<()>("never", None)).await;
    let (now, uuid, random) = (ctx.now().await?, ctx.uuid().await?, ctx.random().await?);
    ctx.heartbeat(None).await?;
    let same = (now, uuid, random);
    let kept = ctx.step("keep", || async { Ok(same) }).await?;
    assert_eq!(kept, same, "the values are the same in every replay");
    ctx.sleep_until("moment", after(now, MOMENT)).await?;
    Ok(format!(
        "{answer:?} {many} {first} {} {}",
        streamed.len(),
        matches!(limited, Err(TaskError::Timeout { .. }))
    ))
}

/// Children, of which one fails, and one is cancelled with its parent.
#[stepwell::task]
async fn family(_nothing: (), ctx: TaskContext) -> TaskResult<String> {
    let spawned = join_all((1..=4).map(|n| ctx.spawn::<child>(("child", n), n))).await;
    let children: Vec<_> = spawned.into_iter().collect::<TaskResult<_>>()?;
    let joined = join_all(children.iter().map(|child| ctx.join(child))).await;
    Ok(joined
        .into_iter()
        .map(|child| child.map_or_else(|_| "failed".into(), |n| n.to_string()))
        .collect::<Vec<_>>()
        .join(" "))
}

#[stepwell::task]
async fn forsaken(_nothing: (), ctx: TaskContext) -> TaskResult<()> {
    let child = ctx.spawn::<orphan>("orphan", ()).await?;
    ctx.join(&child).await
}

#[stepwell::task]
async fn orphan(_nothing: (), ctx: TaskContext) -> TaskResult<()> {
    ctx.emit_event("orphan is there", &ctx.task_id).await?;
    ctx.await_event("never", None).await
}

/// Two tasks that talk to each other.
#[stepwell::task]
async fn asks(_nothing: (), ctx: TaskContext) -> TaskResult<Vec<u32>> {
    let partner: TaskId = ctx.await_event("answerer", 100_000 * MOMENT).await?;
    for n in 0..3 {
        ctx.send(partner, "question", &n).await?;
    }
    let (a, b): (Vec<u32>, Vec<u32>) =
        tokio::try_join!(ctx.await_event("answers", None), ctx.await_event("answers", None))?;
    assert_eq!(a, b);
    Ok(a)
}

#[stepwell::task]
async fn answers(_nothing: (), ctx: TaskContext) -> TaskResult<()> {
    let ledger = ctx.state::<Arc<Ledger>>()?;
    ctx.emit_event("answerer", &ctx.task_id).await?;
    let mut answers = Vec::new();
    for _ in 0..3 {
        let question: u32 = ctx.recv("question", None).await?;
        answers.push(
            ctx.step(("answer", question), || async move {
                ledger.note("answers", &format!("answer:{question}"));
                Ok(question * question)
            })
            .await?,
        );
    }
    let nothing = ctx.recv::<u32>("question", MOMENT).await;
    assert!(matches!(nothing, Err(TaskError::Timeout { .. })), "{nothing:?}");
    ctx.emit_event("answers", &answers).await?;
    Ok(())
}

/// Fails twice, after a step that must not run again, and beside one.
#[stepwell::task]
async fn stumbles(_nothing: (), ctx: TaskContext) -> TaskResult<u32> {
    let ledger = ctx.state::<Arc<Ledger>>()?;
    ctx.step("before", || async { Ok(ledger.note("stumbles", "before")) }).await?;
    let broken = ctx.step("broken", || async {
        if ledger.note("stumbles", "broken") < 2 {
            anyhow::bail!("broken")
        }
        Ok(())
    });
    let beside = ctx.step("beside", || async { Ok(ledger.note("stumbles", "beside")) });
    let (broken, beside) = tokio::join!(broken, beside);
    beside?;
    broken?;
    Ok(7)
}

/// Fails at its end, and is undone: two steps, of which one is hard to undo, and a cleanup.
#[stepwell::task]
async fn saga(_nothing: (), ctx: TaskContext) -> TaskResult<()> {
    let ledger = ctx.state::<Arc<Ledger>>()?.clone();
    for step in ["reserve", "charge"] {
        let undo = ledger.clone();
        ctx.step(step, || async { Ok(ledger.note("saga", step)) })
            .compensate(move |_| {
                let times = undo.note("saga", &format!("undo {step}"));
                async move {
                    anyhow::ensure!(step == "reserve" || times > 0, "not yet");
                    Ok(())
                }
            })
            .await?;
        ctx.cleanup("clean", step).await?;
    }
    ctx.step("ship", || async { Ok(ledger.note("saga", "ship")) }).await?;
    Err(TaskError::permanent(anyhow::anyhow!("it is lost")))
}

const TASKS: [&str; 7] = ["steps", "family", "forsaken", "asks", "answers", "stumbles", "saga"];

/// Steps, and the ones that they follow, whose results must be durable before they begin.
const LATER: [(&str, &str); 10] = [
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
];

/// The store of a process that dies at its `at`-th commit, which is still `applied` or not.
fn mortal(store: Arc<dyn Store>, at: usize, applied: bool, died: Arc<Notify>) -> Arc<dyn Store> {
    let commits = AtomicUsize::new(0);
    Arc::new(Intercepted::new(store, move |store, batch| {
        // What changes nothing is no moment of its own to die at.
        let counts = !batch.has_only_claims() || batch.claims.iter().any(|claim| claim.limit > 0);
        let number = commits.fetch_add(usize::from(counts), Ordering::SeqCst) + usize::from(counts);
        if number < at || (number == at && !counts) {
            return store.commit(batch);
        }
        let last = (counts && number == at).then(|| (applied.then(|| store.commit(batch)), died.clone()));
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
    let ledger = ledger.clone();
    let clean = move |step: String| {
        ledger.note("saga", if step == "reserve" { "undo clean" } else { "undo clean#2" });
        async { Ok(()) }
    };
    process.register_cleanup("clean", clean).await?;
    process.start_worker(WorkerOptions::new().lease(Duration::from_millis(500)).concurrency(4)).await;
    let mut tasks = BTreeMap::new();
    for name in TASKS {
        // A program that dies again and again uses up attempts; that is another test's matter.
        let options = SpawnOptions::new().idempotency_key("the one").max_attempts(10);
        let options = options.retry(RetryStrategy::fixed(MOMENT));
        tasks.insert(name, process.spawn_named(name, &(), options).await?.task_id);
    }
    let orphan = async {
        loop {
            let filter = TaskFilter { parent: Some(tasks["forsaken"]), ..TaskFilter::default() };
            match process.tasks(filter).await?.first() {
                Some(orphan) => return Ok(orphan.task_id),
                None => tokio::time::sleep(MOMENT).await,
            }
        }
    };
    let orphan: Result<TaskId, Error> = orphan.await;
    match process.cancel(tasks["forsaken"]).await {
        Ok(()) | Err(Error::NotAllowed { .. }) => {}
        Err(error) => return Err(error),
    }
    tasks.insert("orphan", orphan?);
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

/// The steps that have a result, by task and label.
async fn journaled(store: &dyn Store) -> Vec<String> {
    let mut steps = Vec::new();
    for task in store.tasks(TaskFilter { limit: 1000, ..TaskFilter::default() }).await.unwrap() {
        let name = match task.task_type.as_str() {
            "child" => format!("child {}", task.params),
            name => name.to_owned(),
        };
        for entry in store.journal(task.task_id).await.unwrap() {
            match (entry.key.kind, &entry.outcome) {
                (Kind::Step, Outcome::Done(_)) => steps.push(format!("{name}/{}", entry.key.label())),
                (Kind::Compensated, Outcome::Done(_)) => {
                    steps.push(format!("{name}/undo {}", entry.key.label()));
                }
                _ => {}
            }
        }
    }
    steps
}

/// Opens the store as one process does; each life opens it anew.
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
            process.kill().await;
            check(&ends.unwrap(), at, applied);
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
    process.kill().await;
    let ran_after = ledger.0.lock().unwrap().clone();
    for step in before {
        let (once, then) = (ran.get(&step), ran_after.get(&step));
        assert_eq!(once, then, "commit {at}, applied {applied}: {step} ran again, though journaled");
    }
    check(&ends, at, applied);
    Some(ends)
}

fn check(ends: &Ends, at: usize, applied: bool) {
    let expected = [
        ("answers", "null"),
        ("asks", "[0,1,4]"),
        ("family", "\"10 20 failed 40\""),
        ("forsaken", "task … was cancelled"),
        ("orphan", "task … was cancelled"),
        ("saga", "task … failed: it is lost"),
        ("steps", "\"Err(\\\"no\\\") 3 quick 4 true\""),
        ("stumbles", "7"),
    ];
    let expected = expected.into_iter().map(|(name, end)| (name, end.to_owned())).collect::<Ends>();
    assert_eq!(*ends, expected, "commit {at}, applied {applied}");
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

/// The cases on SQLite, one in `PARTS`: they run in real time, and so in parallel.
async fn on_sqlite(part: usize) {
    const PARTS: usize = 4;
    struct Sqlite<'a>(&'a Path);
    impl Opens for Sqlite<'_> {
        async fn open(&self, harness: &Harness) -> Arc<dyn Store> {
            let location = stepwell::sqlite::Location::File(self.0.join("tasks.db"));
            Arc::new(stepwell::sqlite::SqliteStore::open(location, harness.runtime()).await.unwrap())
        }
    }
    let mut cases = 0;
    for at in (1 + part..).step_by(PARTS) {
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let after = case(&Sqlite(folders[0].path()), at, true).await;
        let before = case(&Sqlite(folders[1].path()), at, false).await;
        match (after, before) {
            (None, None) => break,
            _ => cases += 2,
        }
    }
    assert!(cases > 40 / PARTS, "only {cases} cases");
}

macro_rules! parts {
    ($($name:ident: $part:literal),*) => {
        $(#[tokio::test]
        async fn $name() {
            on_sqlite($part).await;
        })*
    };
}

parts! {
    a_crash_before_or_after_any_commit_changes_nothing_on_sqlite_part_1: 0,
    a_crash_before_or_after_any_commit_changes_nothing_on_sqlite_part_2: 1,
    a_crash_before_or_after_any_commit_changes_nothing_on_sqlite_part_3: 2,
    a_crash_before_or_after_any_commit_changes_nothing_on_sqlite_part_4: 3
}
