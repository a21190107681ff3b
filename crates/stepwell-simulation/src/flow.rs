//! The workflow of simulated histories, with one part of each kind.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use stepwell::{BoxFuture, Kind, TaskError, Workflow, WorkflowContext};

use crate::ledger::Who;
use crate::params::{Params, Seen, TASK};
use crate::script::{Op, Trouble};
use crate::tasks::Site;

/// The name of the workflow.
pub(crate) const FLOW: &str = "flow";
/// The steps whose results are passed to later parts under the steps' names.
const GIVEN: [&str; 4] = ["/first", "/left", "/right", "/found"];

/// The output of the workflow.
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
    /// Returns the results in the output, by the names of their steps.
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

/// The number of iterations of the loop.
const ROUNDS: u32 = 3;

/// The maximum number of tries of a step, which in effect is tried until it succeeds.
const ATTEMPTS: u32 = 1_000;
const PAUSE: Duration = Duration::from_millis(5);

/// Returns the workflow that a process runs.
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

/// Returns the handler of a step or of a loop.
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

/// Returns the compensation of a step or of a loop.
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

/// Returns the name of a step; a loop has one step for each iteration.
fn label(name: &str, ctx: &WorkflowContext) -> String {
    if name == "/round" { format!("{name}:{}", ctx.iteration) } else { name.to_owned() }
}
