//! The tasks of the corpus. Entries hold their journals, so what is here is never changed: new
//! tasks come beside the old ones.

use std::collections::BTreeMap;
use std::future::{pending, ready};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::anyhow;
use serde_json::{Value, json};
use stepwell::*;

/// So long that it has not passed when an entry is written, and has when it is read.
const SHORTLY: Duration = Duration::from_secs(5);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// What the program does with the entry.
pub(crate) struct Program {
    /// It writes the entry: what has to be left undone is never done.
    pub(crate) writes: bool,
    /// What ran, by task.
    pub(crate) ran: Mutex<BTreeMap<String, Vec<String>>>,
}

impl Program {
    pub(crate) fn new(writes: bool) -> Arc<Self> {
        Arc::new(Self { writes, ran: Mutex::default() })
    }

    fn ran(&self, task: &str, what: &str) {
        self.ran.lock().unwrap().entry(task.to_owned()).or_default().push(what.to_owned());
    }
}

/// A step of a task, which is noted where it runs.
async fn step(ctx: &TaskContext, task: &str, name: &'static str) -> TaskResult<String> {
    let program = ctx.state::<Arc<Program>>()?;
    ctx.step(name, || {
        program.ran(task, name);
        ready(Ok(name.to_owned()))
    })
    .await
}

async fn go(ctx: &TaskContext) -> TaskResult<String> {
    ctx.await_event("go", None).await
}

pub(crate) async fn register(client: &Durable, program: &Arc<Program>) {
    client.register::<values>().await.unwrap();
    client.register::<letter>().await.unwrap();
    client.register::<timer>().await.unwrap();
    client.register::<family>().await.unwrap();
    client.register::<child>().await.unwrap();
    client.register::<approval>().await.unwrap();
    client.register::<backoff>().await.unwrap();
    client.register::<attempts>().await.unwrap();
    client.register::<running>().await.unwrap();
    client.register::<items>().await.unwrap();
    client.register::<undoing>().await.unwrap();
    client.register::<undone>().await.unwrap();
    client.register::<handled>().await.unwrap();
    client.register::<race>().await.unwrap();
    client.register::<rewound>().await.unwrap();
    client.register::<retried>().await.unwrap();
    client.register::<changed>().await.unwrap();
    client.register::<notes>().await.unwrap();
    client.register::<inputs>().await.unwrap();
    client.register::<talks>().await.unwrap();
    client.register::<hoards>().await.unwrap();
    client.register::<late>().await.unwrap();
    client.register::<plain>().await.unwrap();
    client.register::<holds>().await.unwrap();
    client.register::<fails>().await.unwrap();
    client.register_workflow(order(program)).await.unwrap();
    let cleans = program.clone();
    let clean = move |what: String| {
        cleans.ran("undone", &format!("clean {what}"));
        ready(Ok(()))
    };
    client.register_cleanup("clean", clean).await.unwrap();
}

/// Values that are drawn are the same ones afterwards.
#[stepwell::task]
async fn values(text: String, ctx: TaskContext) -> TaskResult<String> {
    let (now, uuid, random) = (ctx.now().await?, ctx.uuid().await?, ctx.random().await?);
    let drawn = format!("{now} {uuid} {random}");
    let kept =
        ctx.step("keep", || ready(Ok((drawn.clone(), text.clone(), 0.1_f64, i128::MIN)))).await?;
    let event = go(&ctx).await?;
    let same = kept == (drawn, text, 0.1, i128::MIN);
    step(&ctx, "values", "after").await?;
    Ok(format!("{event} {same}"))
}

#[stepwell::task]
async fn letter((): (), ctx: TaskContext) -> TaskResult<String> {
    step(&ctx, "letter", "before").await?;
    let letter: String = ctx.recv("letter", 3650 * DAY).await?;
    step(&ctx, "letter", "after").await?;
    Ok(letter)
}

#[stepwell::task]
async fn timer((): (), ctx: TaskContext) -> TaskResult<String> {
    step(&ctx, "timer", "before").await?;
    ctx.sleep_for("nap", SHORTLY).await?;
    step(&ctx, "timer", "after").await
}

/// Has joined one child, and waits for another.
#[stepwell::task]
async fn family((): (), ctx: TaskContext) -> TaskResult<String> {
    let key = |n: u32| SpawnOptions::new().idempotency_key(format!("child {n}"));
    let first = ctx.spawn::<child>("first", 1).options(key(1)).await?;
    let second = ctx.spawn::<child>("second", 2).options(key(2)).await?;
    let (first, second) = (ctx.join(&first).await?, ctx.join(&second).await?);
    step(&ctx, "family", "after").await?;
    Ok(format!("{first} {second}"))
}

#[stepwell::task]
async fn child(n: u32, ctx: TaskContext) -> TaskResult<u32> {
    if n == 2 {
        go(&ctx).await?;
    }
    Ok(n * 10)
}

#[stepwell::task]
async fn approval((): (), ctx: TaskContext) -> TaskResult<String> {
    let notify = || ready(Ok(()));
    let decision: Decision<u32> = ctx
        .await_approval("manager", &json!({ "amount": 7 }))
        .assign("ada")
        .remind_every(365 * DAY, notify)
        .escalate_after(900 * DAY, "grace", notify)
        .await?;
    step(&ctx, "approval", "after").await?;
    Ok(format!("{decision:?}"))
}

/// Waits to try a step again.
#[stepwell::task]
async fn backoff((): (), ctx: TaskContext) -> TaskResult<u32> {
    let program = ctx.state::<Arc<Program>>()?;
    let tries = ctx.step("flaky", || {
        program.ran("backoff", "flaky");
        ready(if program.writes { Err(anyhow!("not yet")) } else { Ok(7) })
    });
    tries.retry(RetryStrategy::fixed(SHORTLY)).max_attempts(100).await
}

/// Waits for its next attempt.
#[stepwell::task]
async fn attempts((): (), ctx: TaskContext) -> TaskResult<String> {
    let program = ctx.state::<Arc<Program>>()?;
    step(&ctx, "attempts", "before").await?;
    if program.writes {
        return Err(anyhow!("not in this attempt").into());
    }
    step(&ctx, "attempts", "after").await
}

/// Runs when its worker dies.
#[stepwell::task]
async fn running((): (), ctx: TaskContext) -> TaskResult<String> {
    let program = ctx.state::<Arc<Program>>()?;
    step(&ctx, "running", "before").await?;
    let blocked = ctx.step("blocked", || async {
        program.ran("running", "blocked");
        if program.writes { pending().await } else { Ok("blocked".to_owned()) }
    });
    let (blocked, beside) = tokio::try_join!(blocked, step(&ctx, "running", "beside"))?;
    Ok(format!("{blocked} {beside}"))
}

/// Has done some of its items when its worker dies.
#[stepwell::task]
async fn items((): (), ctx: TaskContext) -> TaskResult<u32> {
    let program = ctx.state::<Arc<Program>>()?;
    let items = ctx.items("rows", 0..10_u32).concurrency(1);
    let report = items
        .each(|item| async move {
            if item >= 5 && program.writes {
                pending::<()>().await;
            }
            program.ran("items", &item.to_string());
            Ok(item)
        })
        .await?;
    Ok(report.results.into_values().sum())
}

/// Is being compensated when its worker dies.
#[stepwell::task]
async fn undoing((): (), ctx: TaskContext) -> TaskResult<()> {
    let program = ctx.state::<Arc<Program>>()?.clone();
    for name in ["first", "second"] {
        let program = program.clone();
        let undo = move |_: u32| {
            let program = program.clone();
            async move {
                if name == "first" && program.writes {
                    pending::<()>().await;
                }
                program.ran("undoing", &format!("undo {name}"));
                Ok(())
            }
        };
        ctx.step(name, || ready(Ok(7_u32))).compensate(undo).await?;
    }
    Err(TaskError::permanent(anyhow!("it is to be undone").context("it failed")))
}

/// Has something to undo, and fails or is cancelled in the end.
#[stepwell::task]
async fn undone((): (), ctx: TaskContext) -> TaskResult<()> {
    let program = ctx.state::<Arc<Program>>()?.clone();
    let undo = move |n: u32| {
        program.ran("undone", &format!("undo {n}"));
        ready(Ok(()))
    };
    ctx.step("do", || ready(Ok(7_u32))).compensate(undo).await?;
    ctx.cleanup("clean", "files").await?;
    go(&ctx).await?;
    Err(TaskError::permanent(anyhow!("it failed")))
}

/// Has handled a failure, and an error that is an answer.
#[stepwell::task]
async fn handled((): (), ctx: TaskContext) -> TaskResult<String> {
    let failed =
        ctx.step("fails", || ready(Err::<(), _>(anyhow!("no").context("it failed")))).await;
    let answer = ctx.try_step("answer", || ready(Err::<(), _>("no".to_owned()))).await?;
    go(&ctx).await?;
    step(&ctx, "handled", "after").await?;
    Ok(format!("{} {answer:?}", failed.unwrap_err()))
}

/// Has seen one of several win, and a time limit pass.
#[stepwell::task]
async fn race((): (), ctx: TaskContext) -> TaskResult<String> {
    let first = tokio::select! {
        slept = ctx.sleep_for("quick", Duration::from_millis(1)) => slept.map(|()| "quick"),
        event = ctx.await_event::<String>("never", None) => event.map(|_| "event"),
    };
    let limited =
        ctx.timeout("limit", Duration::from_millis(1), ctx.await_event::<()>("never", None)).await;
    let nothing = ctx.recv::<()>("nothing", Duration::from_millis(1)).await;
    let event = go(&ctx).await?;
    step(&ctx, "race", "after").await?;
    Ok(format!("{} {event} {} {}", first?, limited.is_err(), nothing.is_err()))
}

/// Its first attempt has failed beside a step that is kept.
#[stepwell::task]
async fn rewound((): (), ctx: TaskContext) -> TaskResult<String> {
    let program = ctx.state::<Arc<Program>>()?;
    let fails = ctx.step("fails", || {
        program.ran("rewound", "fails");
        ready(if ctx.attempt == 1 { Err(anyhow!("no")) } else { Ok(()) })
    });
    let (fails, kept) = tokio::join!(fails, step(&ctx, "rewound", "kept"));
    let kept = kept?;
    fails?;
    go(&ctx).await?;
    step(&ctx, "rewound", "after").await?;
    Ok(kept)
}

/// Has tried a step three times.
#[stepwell::task]
async fn retried((): (), ctx: TaskContext) -> TaskResult<u32> {
    let tries = AtomicU32::new(0);
    let thrice = ctx.step("thrice", || {
        let number = tries.fetch_add(1, Ordering::Relaxed);
        ready(if number < 2 { Err(anyhow!("not yet")) } else { Ok(number) })
    });
    let number =
        thrice.retry(RetryStrategy::fixed(Duration::from_millis(1))).max_attempts(5).await?;
    go(&ctx).await?;
    step(&ctx, "retried", "after").await?;
    Ok(number)
}

/// Its second attempt has given a step another input.
#[stepwell::task]
async fn changed((): (), ctx: TaskContext) -> TaskResult<u32> {
    let attempt = ctx.attempt;
    let of = ctx.step("of", || ready(Ok(attempt))).input(&attempt).await?;
    let fails = || ready(if attempt == 1 { Err(anyhow!("no")) } else { Ok(()) });
    ctx.step("fails", fails).await?;
    go(&ctx).await?;
    step(&ctx, "changed", "after").await?;
    Ok(of)
}

#[stepwell::task]
async fn notes((): (), ctx: TaskContext) -> TaskResult<bool> {
    ctx.log(LogLevel::Warn, "a line", [("number", 7.into())]);
    let patched = ctx.patched("change")?;
    step(&ctx, "notes", "before").await?;
    ctx.progress(1, 2, "half of it");
    go(&ctx).await?;
    step(&ctx, "notes", "after").await?;
    Ok(patched)
}

/// A step that is known by its input as well.
#[stepwell::task]
async fn inputs(input: Value, ctx: TaskContext) -> TaskResult<u32> {
    let program = ctx.state::<Arc<Program>>()?;
    let of = |n: u32| {
        let step = ctx.step("of", move || {
            program.ran("inputs", &n.to_string());
            ready(Ok(n))
        });
        step.input(&json!({ "b": [n, 1.5, "ä"], "a": &input }))
    };
    let first = of(1).await?;
    go(&ctx).await?;
    Ok(first + of(2).await?)
}

/// Has emitted, sent, and received.
#[stepwell::task]
async fn talks((): (), ctx: TaskContext) -> TaskResult<String> {
    ctx.emit_event("said", &"aloud").await?;
    let said: String = ctx.await_event("said", None).await?;
    ctx.send(ctx.task_id, "self", &"note").await?;
    let note: String = ctx.recv("self", None).await?;
    go(&ctx).await?;
    step(&ctx, "talks", "after").await?;
    Ok(format!("{said} {note}"))
}

/// Has messages that it has not asked for yet.
#[stepwell::task]
async fn hoards((): (), ctx: TaskContext) -> TaskResult<Vec<u32>> {
    let first = ctx.recv("number", None).await?;
    go(&ctx).await?;
    Ok(vec![first, ctx.recv("number", None).await?, ctx.recv("number", None).await?])
}

/// Comes late to an event.
#[stepwell::task]
async fn late((): (), ctx: TaskContext) -> TaskResult<u32> {
    ctx.await_event("early", None).await
}

#[stepwell::task]
async fn plain(number: u32, ctx: TaskContext) -> TaskResult<u32> {
    let program = ctx.state::<Arc<Program>>()?;
    let name = format!("plain {number}");
    ctx.step("add", || {
        program.ran(&name, "add");
        ready(Ok(number + 1))
    })
    .await
}

/// Holds up those that have its concurrency key.
#[stepwell::task]
async fn holds((): (), ctx: TaskContext) -> TaskResult<String> {
    go(&ctx).await
}

#[stepwell::task]
async fn fails((): (), _ctx: TaskContext) -> TaskResult<()> {
    Err(TaskError::permanent(anyhow!("the cause").context("what failed")))
}

/// A workflow with one part of each kind, which waits for a signal.
fn order(program: &Arc<Program>) -> Workflow {
    let part = |name: &'static str| {
        let program = program.clone();
        move |ctx: WorkflowContext| {
            let name = if name == "letter" {
                format!("letter {}", ctx.iteration)
            } else {
                name.to_owned()
            };
            program.ran("order", &name);
            ready(Ok::<_, anyhow::Error>(name))
        }
    };
    let undo = program.clone();
    Workflow::new("order")
        .step("reserve", part("reserve"))
        .compensate(move |_| {
            undo.ran("order", "undo");
            ready(Ok(()))
        })
        .parallel("papers", |papers| {
            papers.step("invoice", part("invoice")).sleep("dry", Duration::from_millis(1))
        })
        .route(
            "carrier",
            |_| ready(Ok("ups")),
            |carriers| carriers.step("dhl", part("dhl")).step("ups", part("ups")),
        )
        .loop_("letter", part("letter"))
        .until(|_: String, iteration| iteration == 2)
        .wait_for_signal("received", None)
        .step("close", part("close"))
        .child("last", "plain", |_| Ok(7))
}
