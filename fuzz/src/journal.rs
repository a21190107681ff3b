//! Journals: a task comes with a journal that was tampered with, and is run on.
//!
//! A program is drawn, and runs for a while. Its journal is edited, or replaced, and imported into
//! another store, where the program goes on. It comes to an end or waits, no step runs that the
//! journal holds a result of, and its journal and its export can still be read.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arbitrary::{Arbitrary, Unstructured};
use stepwell::testing::{Harness, Process, worker_options};
use stepwell::{
    ApprovalFilter, BoxFuture, Decision, Entry, Export, Key, Kind, LogLevel, Name, Outcome,
    Payload, RetryStrategy, SpawnOptions, TaskContext, TaskId, TaskResult, TaskState,
};

use crate::{in_virtual_time, said};

const HOUR: Duration = Duration::from_secs(3600);
/// How deep a program is nested.
const DEEPEST: usize = 3;
/// How many operations a list of them has.
const LONGEST: usize = 6;

#[derive(Arbitrary, Clone, Debug)]
enum Op {
    Step,
    Fails,
    FailsOnce,
    Handled,
    Undone,
    WithInput(u8),
    Sleep,
    Event,
    Receive,
    Emit,
    Child,
    Value,
    Items,
    Approval,
    Limited(Box<Self>),
    Both(Box<Self>, Box<Self>),
    Either(Box<Self>, Box<Self>),
    Patched,
    Log,
    Cleanup,
}

#[derive(Arbitrary, Debug)]
enum Edit {
    Remove(u8),
    Swap(u8, u8),
    Repeat(u8, u8),
    Kind(u8, u8),
    Name(u8, u8),
    Ordinal(u8, u32),
    Seq(u8, u64),
    Outcome(u8, Made),
    Add(u8, Made, u8, u8, u32),
    State(u8),
    Attempt(u32),
    Waits,
}

/// An outcome that was made up.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Made {
    Number(u64),
    Null,
    Text,
    Failed(u64),
    Retrying(u64),
    Id,
}

#[derive(Debug)]
struct Input {
    program: Vec<Op>,
    /// For how many minutes it runs before.
    minutes: u8,
    edits: Vec<Edit>,
}

impl<'a> Arbitrary<'a> for Input {
    fn arbitrary(input: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        let program = (0..input.int_in_range(1..=LONGEST)?)
            .map(|_| input.arbitrary())
            .collect::<Result<_, _>>()?;
        let minutes = input.arbitrary()?;
        let edits = (0..input.int_in_range(0..=LONGEST)?)
            .map(|_| input.arbitrary())
            .collect::<Result<_, _>>()?;
        Ok(Self { program, minutes, edits })
    }
}

pub(crate) fn run(data: &[u8]) {
    let Ok(input) = Input::arbitrary(&mut Unstructured::new(data)) else { return };
    let Input { program, minutes, edits } = input;
    let program = Arc::new(program);
    in_virtual_time(async {
        let (first, ran) = (Harness::new(), Ran::default());
        let process = start(&first, &program, &ran).await;
        let options = SpawnOptions::new().max_attempts(3).retry(RetryStrategy::fixed(60 * SECOND));
        let task = process.spawn_named("program", &()).options(options).await.unwrap().task_id;
        tokio::time::sleep(60 * SECOND * u32::from(minutes)).await;
        let mut export = process.export(task).await.unwrap();
        process.kill().await;
        let names = names(&program);
        edits.iter().for_each(|edit| edit.apply(&mut export, &names));
        goes_on(&program, task, export).await;
    });
}

const SECOND: Duration = Duration::from_secs(1);

/// The steps whose closures ran.
type Ran = Arc<Mutex<BTreeSet<String>>>;

async fn start(harness: &Harness, program: &Arc<Vec<Op>>, ran: &Ran) -> Process {
    let process = harness.start().await;
    let world = World { program: program.clone(), ran: ran.clone() };
    let program = move |(): (), ctx: TaskContext| {
        let world = world.clone();
        async move {
            let mut sum = 0_u64;
            for (number, op) in world.program.iter().enumerate() {
                sum = sum.wrapping_add(perform(op, number.to_string(), &ctx, &world.ran).await?);
            }
            Ok(sum)
        }
    };
    process.register_fn("program", program).await.unwrap();
    process.register_fn("child", |n: u64, _: TaskContext| async move { Ok(n) }).await.unwrap();
    process.register_cleanup("clean", |_: u64| async { Ok(()) }).await.unwrap();
    process.start_worker(worker_options()).await;
    process
}

#[derive(Clone)]
struct World {
    program: Arc<Vec<Op>>,
    ran: Ran,
}

/// Performs one operation, which has its place in the program for a name.
fn perform<'a>(
    op: &'a Op,
    name: String,
    ctx: &'a TaskContext,
    ran: &'a Ran,
) -> BoxFuture<'a, TaskResult<u64>> {
    Box::pin(async move {
        let name = name.as_str();
        let step = |fails_once: bool| {
            ctx.step(name, move || {
                let again = !ran.lock().unwrap().insert(name.to_owned());
                async move { if fails_once && !again { anyhow::bail!("no") } else { Ok(7_u64) } }
            })
        };
        let fails = || ctx.step(name, || async { Err::<u64, _>(anyhow::anyhow!("no")) });
        let inner = |op: &'a Op, part: &str| {
            let op = if name.len() < 1 + DEEPEST { op } else { &Op::Step };
            perform(op, format!("{name}{part}"), ctx, ran)
        };
        match op {
            Op::Step => step(false).await,
            Op::Fails => fails().await,
            Op::FailsOnce => step(true).await,
            Op::Handled => Ok(fails().max_attempts(2).await.unwrap_or(1)),
            Op::Undone => step(false).compensate(|_| async { Ok(()) }).await,
            // Its name has the hash of the input, and so is not asked after.
            Op::WithInput(input) => ctx.step(name, || async { Ok(8_u64) }).input(input).await,
            Op::Sleep => ctx.sleep_for(name, HOUR).await.map(|()| 1),
            Op::Event => ctx.await_event("event", None).await,
            Op::Receive => ctx.recv("topic", HOUR).await,
            Op::Emit => ctx.emit_event(name, &1).await.map(|()| 1),
            Op::Child => {
                let child = ctx.spawn_named::<_, u64>(name, "child", &3_u64).await?;
                ctx.join(&child).await
            }
            Op::Value => {
                let (now, id) = (ctx.now().await?, ctx.uuid().await?);
                Ok(ctx.random().await? ^ now.as_microsecond().unsigned_abs() ^ id.as_u64_pair().0)
            }
            Op::Items => {
                let report =
                    ctx.items(name, vec![1_u64, 2, 3]).each(|n| async move { Ok(n) }).await?;
                Ok(report.results.into_values().fold(0, u64::wrapping_add))
            }
            Op::Approval => {
                let decision = ctx.await_approval::<u64>("manager", &1).timeout(24 * HOUR).await?;
                Ok(u64::from(decision.is_approved()))
            }
            Op::Limited(op) => ctx.timeout(name, HOUR, inner(op, "l")).await.unwrap_or(Ok(9)),
            Op::Both(a, b) => {
                let (a, b) = tokio::try_join!(inner(a, "a"), inner(b, "b"))?;
                Ok(a.wrapping_add(b))
            }
            Op::Either(a, b) => {
                tokio::select! {
                    a = inner(a, "a") => a,
                    b = inner(b, "b") => b,
                }
            }
            Op::Patched => Ok(u64::from(ctx.patched("change")?)),
            Op::Log => {
                ctx.log(LogLevel::Info, "a line", [("number", 1.into())]);
                ctx.progress(1, 2, "half");
                Ok(0)
            }
            Op::Cleanup => {
                let cleanup = ctx.cleanup("clean", &1).await?;
                ctx.discard(&cleanup).await.map(|()| 0)
            }
        }
    })
}

/// The names that operations have, and some that none has.
fn names(program: &[Op]) -> Vec<Name> {
    let own = (0..program.len()).flat_map(|n| [n.to_string(), format!("{n}a"), format!("{n}b")]);
    let others =
        ["event", "topic", "manager", "approval/x/manager", "change", "clean", "now", "child"];
    own.chain(others.map(str::to_owned)).map(|name| Name::new(name).unwrap()).collect()
}

impl Made {
    fn outcome(self, task: TaskId) -> Outcome {
        let failure = |seq: u64| {
            let (kind, causes): (_, [&str; 0]) = ("error", []);
            serde_json::json!({
                "kind": kind,
                "message": "made",
                "causes": causes,
                "sources": [seq],
            })
        };
        let at = "2026-01-01T01:00:00Z";
        let (word, json) = match self {
            Self::Number(number) => ("done", number.into()),
            Self::Null => ("done", serde_json::Value::Null),
            Self::Text => ("done", "text".into()),
            Self::Id => ("done", task.to_string().into()),
            Self::Failed(seq) => ("failed", failure(seq)),
            Self::Retrying(seq) => {
                ("retrying", serde_json::json!({ "failure": failure(seq), "at": at }))
            }
        };
        Outcome::from_columns(word, Payload::from_json(json.to_string())).expect("an outcome")
    }
}

impl Edit {
    fn apply(&self, export: &mut Export, names: &[Name]) {
        let task = export.record.info.task_id;
        let journal = &mut export.record.journal;
        let length = journal.len();
        let place = |at: u8| usize::from(at) % length.max(1);
        let kind = |kind: u8| Kind::ALL[usize::from(kind) % Kind::ALL.len()];
        let name = |name: u8| names[usize::from(name) % names.len()].clone();
        match *self {
            Self::Add(at, made, of, called, ordinal) => {
                let key = Key { kind: kind(of), name: name(called), ordinal: ordinal.max(1) };
                let seq = u64::try_from(length).unwrap() + 1;
                let at_end = journal.last().map_or(export.exported_at, |entry| entry.at);
                let entry = Entry { seq, key, outcome: made.outcome(task), at: at_end };
                journal.insert(usize::from(at) % (length + 1), entry);
            }
            Self::State(state) => {
                export.record.info.state =
                    TaskState::ALL[usize::from(state) % TaskState::ALL.len()];
            }
            Self::Attempt(attempt) => export.record.info.attempt = attempt,
            Self::Waits => export.record.waits.clear(),
            _ if length == 0 => {}
            Self::Remove(at) => _ = journal.remove(place(at)),
            Self::Swap(a, b) => journal.swap(place(a), place(b)),
            Self::Repeat(of, at) => journal.insert(place(at), journal[place(of)].clone()),
            Self::Kind(at, of) => journal[place(at)].key.kind = kind(of),
            Self::Name(at, called) => journal[place(at)].key.name = name(called),
            Self::Ordinal(at, ordinal) => journal[place(at)].key.ordinal = ordinal,
            Self::Seq(at, seq) => journal[place(at)].seq = seq,
            Self::Outcome(at, made) => journal[place(at)].outcome = made.outcome(task),
        }
    }
}

async fn goes_on(program: &Arc<Vec<Op>>, task: TaskId, export: Export) {
    let (harness, ran) = (Harness::new(), Ran::default());
    let process = start(&harness, program, &ran).await;
    let held = held(&export);
    if let Err(error) = process.import(export).await {
        said(error, 0);
        return;
    }
    process.emit_event("event", &1_u64).await.unwrap();
    for number in 0..LONGEST {
        process.send(task, "topic", &number).await.unwrap_or_default();
    }
    let state = async || process.task(task).await.unwrap().unwrap().state;
    for _ in 0..100 {
        if state().await.is_finished() {
            break;
        }
        for approval in process
            .approvals()
            .list(ApprovalFilter { limit: 10, ..ApprovalFilter::default() })
            .await
            .unwrap()
            .items
        {
            let decision = Decision::approved("ada", 1_u64);
            process.approvals().decide(task, &approval.name, &decision).await.unwrap_or_default();
        }
        tokio::time::sleep(HOUR).await;
    }
    let state = state().await;
    let waits = process.waits(task).await.unwrap();
    let journal = process.journal(task).await.unwrap();
    let has_ended = state.is_finished() || (state == TaskState::Suspended && !waits.is_empty());
    assert!(has_ended, "it is {state} and waits for {waits:?}: {journal:#?}");
    let again: Vec<_> = ran.lock().unwrap().intersection(&held).cloned().collect();
    assert!(again.is_empty(), "{again:?} ran again: {journal:#?}");
    let json = process.export(task).await.unwrap().to_json().unwrap();
    Export::from_json(&json).expect("an export can be read");
    match process.wait::<u64>(task).await {
        _ if !state.is_finished() => {}
        Ok(_) => {}
        Err(error) => _ = said(error, 0),
    }
    process.kill().await;
}

/// The steps that the journal holds a result of. One that begins again after its compensation holds
/// none.
fn held(export: &Export) -> BTreeSet<String> {
    let journal = &export.record.journal;
    if journal.iter().any(|entry| entry.key.kind == Kind::Compensating) {
        return BTreeSet::new();
    }
    let done = journal.iter().filter(|entry| {
        entry.key.kind == Kind::Step
            && entry.key.ordinal == 1
            && matches!(entry.outcome, Outcome::Done(_))
    });
    done.map(|entry| entry.key.label()).collect()
}
