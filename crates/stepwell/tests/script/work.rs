//! Tasks that keep more than the results of steps: of items, of people's decisions, of what is to
//! be undone.

use std::sync::Arc;

use stepwell::*;
use tokio::sync::watch;

use super::{Ledger, MOMENT};

/// How many items there are. So many that their chunks are merged.
pub(crate) const ITEMS: usize = 60;

/// Items, few of which begin before the ones in front of them are durable: so they come to many
/// chunks.
#[stepwell::task]
pub(crate) async fn harvest(_nothing: (), ctx: TaskContext) -> TaskResult<usize> {
    let ledger = ctx.state::<Arc<Ledger>>()?;
    let (durable, _) = watch::channel(0);
    let report = ctx
        .items("fruit", 0..ITEMS)
        .concurrency(4)
        .on_progress(|counts| {
            ledger.note("harvest", "chunk");
            durable.send_replace(counts.succeeded);
        })
        .each(|item| {
            let mut durable = durable.subscribe();
            async move {
                durable.wait_for(|durable| durable + 2 > item).await?;
                ledger.note("harvest", &format!("item {item}"));
                Ok((item % 3 == 0).then_some(item))
            }
        })
        .await?;
    Ok(report.results.into_values().flatten().sum())
}

/// Waits for a person, who is reminded, and then for another one.
#[stepwell::task]
pub(crate) async fn leave(_nothing: (), ctx: TaskContext) -> TaskResult<String> {
    let note = |step: &'static str| {
        let ledger = ctx.state::<Arc<Ledger>>().cloned();
        move || {
            let ledger = ledger.as_ref().map(|ledger| ledger.note("leave", step));
            std::future::ready(ledger.map(drop).map_err(|error| anyhow::anyhow!(error.to_string())))
        }
    };
    let decision: Decision<u32> = ctx
        .await_approval("days", &10)
        .assign("manager")
        .remind_every(2 * MOMENT, note("remind"))
        .escalate_after(3 * MOMENT, "director", note("days:escalate:1"))
        .await?;
    Ok(format!("{decision:?}"))
}

/// A workflow that fails at its end, and is undone.
pub(crate) fn journey(ledger: &Arc<Ledger>) -> Workflow<AfterStep> {
    let note = |step: &'static str| {
        let ledger = ledger.clone();
        move |ctx: WorkflowContext| {
            let label =
                if step == "walk" { format!("walk:{}", ctx.iteration) } else { step.to_owned() };
            ledger.note("journey", &label);
            std::future::ready(Ok::<_, anyhow::Error>(step))
        }
    };
    let undo = |step: &'static str| {
        let undone = note(step);
        move |ctx| {
            let undone = undone(ctx);
            async { undone.await.map(drop) }
        }
    };
    let route = note("way:route");
    let quick = |_| MOMENT;
    Workflow::new("journey")
        .step("book", note("book"))
        .compensate(undo("undo book"))
        .loop_("walk", note("walk"))
        .until(|_: String, iteration| iteration == 2)
        .route(
            "way",
            move |ctx| {
                let noted = route(ctx);
                async { noted.await.map(|_| "sea") }
            },
            |ways| {
                ways.step("land", note("land"))
                    .step("sea", note("sea"))
                    .compensate(undo("undo sea"))
            },
        )
        .parallel("both", |parts| parts.step("eat", note("eat")).step("sleep", note("sleep")))
        .step("arrive", |_| async { Err::<(), _>(anyhow::anyhow!("lost at sea")) })
        .max_attempts(2)
        .backoff(quick)
}

/// Is cancelled while it waits, and undone.
#[stepwell::task]
pub(crate) async fn holds(_nothing: (), ctx: TaskContext) -> TaskResult<()> {
    let ledger = ctx.state::<Arc<Ledger>>()?.clone();
    let undo = ledger.clone();
    ctx.step("hold", || async { Ok(ledger.note("holds", "hold")) })
        .compensate(move |_| {
            undo.note("holds", "undo hold");
            async { Ok(()) }
        })
        .await?;
    ctx.await_event("never", None).await
}
