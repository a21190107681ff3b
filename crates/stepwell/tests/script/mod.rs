//! The tasks of the crash test: between them, they use every feature.

mod work;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::stream::{FuturesUnordered, StreamExt, iter};
use stepwell::store::after;
use stepwell::*;

pub(crate) use work::*;

pub(crate) const MOMENT: Duration = Duration::from_millis(3);

/// What ran, kept outside of any process.
#[derive(Default)]
pub(crate) struct Ledger(pub(crate) Mutex<BTreeMap<String, u32>>);

impl Ledger {
    /// Notes that a step's closure runs; gives how often it has run before.
    pub(crate) fn note(&self, task: &str, step: &str) -> u32 {
        let mut ran = self.0.lock().unwrap();
        let times = ran.entry(format!("{task}/{step}")).or_default();
        *times += 1;
        *times - 1
    }
}

#[stepwell::task]
pub(crate) async fn child(n: u32, ctx: TaskContext) -> TaskResult<u32> {
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
pub(crate) async fn steps(_nothing: (), ctx: TaskContext) -> TaskResult<String> {
    let ledger = ctx.state::<Arc<Ledger>>()?;
    let note =
        |step: &'static str| async move { Ok::<_, anyhow::Error>(ledger.note("steps", step)) };
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
    let mut unordered: FuturesUnordered<_> =
        (0..3).map(|n| ctx.sleep_for(("u", n), MOMENT)).collect();
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
pub(crate) async fn family(_nothing: (), ctx: TaskContext) -> TaskResult<String> {
    let spawned = join_all((1..=4).map(|n| ctx.spawn::<child>(("child", n), n))).await;
    let children: Vec<_> = spawned.into_iter().collect::<TaskResult<_>>()?;
    let joined = join_all(children.iter().map(|child| ctx.join(child))).await;
    Ok(joined
        .into_iter()
        .map(|child| child.map_or_else(|_| "failed".into(), |n| n.to_string()))
        .collect::<Vec<_>>()
        .join(" "))
}

/// Spawns with one key, which are one child.
#[stepwell::task]
pub(crate) async fn shares(_nothing: (), ctx: TaskContext) -> TaskResult<String> {
    let spawn = |name: &'static str, n| ctx.spawn::<child>(name, n).idempotency_key("shared");
    let (a, b) = tokio::try_join!(spawn("a", 5), spawn("b", 6))?;
    let (x, y) = tokio::try_join!(ctx.join(&a), ctx.join(&b))?;
    // One that has ended.
    let late = spawn("late", 7).await?;
    let z = ctx.join(&late).await?;
    let [a, b, late] = [&a, &b, &late].map(|child| child.disposition().as_str());
    Ok(format!("{x} {a}, {y} {b}, {z} {late}"))
}

#[stepwell::task]
pub(crate) async fn forsaken(_nothing: (), ctx: TaskContext) -> TaskResult<()> {
    let child = ctx.spawn::<orphan>("orphan", ()).await?;
    ctx.join(&child).await
}

#[stepwell::task]
pub(crate) async fn orphan(_nothing: (), ctx: TaskContext) -> TaskResult<()> {
    ctx.emit_event("orphan is there", &ctx.task_id).await?;
    ctx.await_event("never", None).await
}

/// Two tasks that talk to each other.
#[stepwell::task]
pub(crate) async fn asks(_nothing: (), ctx: TaskContext) -> TaskResult<Vec<u32>> {
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
pub(crate) async fn answers(_nothing: (), ctx: TaskContext) -> TaskResult<()> {
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
pub(crate) async fn stumbles(_nothing: (), ctx: TaskContext) -> TaskResult<u32> {
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
pub(crate) async fn saga(_nothing: (), ctx: TaskContext) -> TaskResult<()> {
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
