//! The workflow of simulated histories, with a part of each kind.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use stepwell::{BoxFuture, Kind, TaskError, Workflow, WorkflowContext};

use crate::ledger::Who;
use crate::params::{Params, Seen, TASK};
use crate::script::{Op, Trouble};
use crate::tasks::Site;

/// Its name.
pub(crate) const FLOW: &str = "flow";
/// The steps whose results parts that follow are given by the names of the steps.
const GIVEN: [&str; 4] = ["/first", "/left", "/right", "/found"];

/// What comes of it.
#[derive(Serialize, Deserialize)]
pub(crate) struct Output {
    #[serde(rename = "/first")]
    first: u64,
    #[serde(rename = "/both")]
    both: Both,
    #[serde(rename = "/way")]
    found: u64,
    #[serde(rename = "/round")]
    round: u64,
}

#[derive(Serialize, Deserialize)]
struct Both {
    #[serde(rename = "/left")]
    left: u64,
    #[serde(rename = "/right")]
    right: u64,
}

impl Output {
    /// The results in it, by the names of their steps.
    pub(crate) fn seen(self) -> Seen {
        let Self { first, both: Both { left, right }, found, round } = self;
        let named = |name: &str, value| (name.to_owned(), value);
        let round = named(&format!("/round:{ROUNDS}"), round);
        vec![
            named("/first", first),
            named("/left", left),
            named("/right", right),
            named("/found", found),
            round,
        ]
    }
}

/// How often the loop is done.
const ROUNDS: u32 = 3;

/// How often a step is tried, which is until it does not fail.
const ATTEMPTS: u32 = 1_000;
const PAUSE: Duration = Duration::from_millis(5);

/// Makes the workflow that a process runs.
pub(crate) fn flow(site: &Site) -> Workflow {
    let first = step(Workflow::new(FLOW), site, "/first", Trouble::Fails);
    let both = first.parallel("/both", |both| {
        let both = step(both, site, "/left", Trouble::Kills);
        step(both, site, "/right", Trouble::Panics)
    });
    let way = both.route("/way", choose, |ways| {
        let lost = || TaskError::permanent(anyhow::anyhow!("it is lost"));
        let ways = ways.step("/lost", move |_| async move { Err::<u64, _>(lost().into()) });
        step(ways, site, "/found", Trouble::Blocks)
    });
    way.loop_("/round", handler(site, "/round", Trouble::Fails))
        .max_iterations(ROUNDS)
        .max_attempts(ATTEMPTS)
        .backoff(|_| PAUSE)
        .compensate(undo(site, "/round", Trouble::None))
        .sleep("/nap", Duration::from_millis(20))
        .wait_for_signal("topic0", None)
        .child("/child", TASK, |_| {
            let step = Op::Step { time: 0, trouble: Trouble::Fails, retries: true, undone: false };
            Ok(Params::of(vec![step]))
        })
}

async fn choose(ctx: WorkflowContext) -> anyhow::Result<&'static str> {
    let params: Params = ctx.input()?;
    ctx.state::<Site>()?.may_run(ctx.task_id, &params);
    Ok(if params.fails { "/lost" } else { "/found" })
}

/// Adds a step.
fn step<L>(
    flow: Workflow<L>,
    site: &Site,
    name: &'static str,
    trouble: Trouble,
) -> Workflow<stepwell::AfterStep> {
    let flow =
        flow.step(name, handler(site, name, trouble)).max_attempts(ATTEMPTS).backoff(|_| PAUSE);
    flow.compensate(undo(site, name, trouble))
}

/// Makes the handler of a step, or of a loop.
fn handler(
    site: &Site,
    name: &'static str,
    trouble: Trouble,
) -> impl Fn(WorkflowContext) -> BoxFuture<'static, anyhow::Result<u64>> + use<> {
    let site = site.clone();
    move |ctx| {
        let (site, name) = (site.clone(), label(name, &ctx));
        Box::pin(async move {
            let given = |name: &&str| Some(((*name).to_owned(), ctx.result(name).ok()?));
            let seen: Seen = GIVEN.iter().filter_map(given).collect();
            let who = Who::from(&ctx);
            let nonce = site.ledger.begins(&site.place, who, Kind::Step, &name, &seen);
            site.work(who, nonce % 10, trouble).await?;
            Ok(nonce)
        })
    }
}

/// Makes the compensation of one.
fn undo(
    site: &Site,
    name: &'static str,
    trouble: Trouble,
) -> impl Fn(WorkflowContext) -> BoxFuture<'static, anyhow::Result<()>> + use<> {
    let site = site.clone();
    move |ctx| {
        let (site, step) = (site.clone(), label(name, &ctx));
        Box::pin(async move { site.undo(Who::from(&ctx), step, ctx.result(name)?, trouble).await })
    }
}

/// The name of the step, of which a loop has one for each iteration.
fn label(name: &str, ctx: &WorkflowContext) -> String {
    if name == "/round" { format!("{name}:{}", ctx.iteration) } else { name.to_owned() }
}
