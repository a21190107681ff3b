//! The overview: counts, charts, and recent failures.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::response::{IntoResponse as _, Redirect, Response};
use axum::routing::get;
use maud::{Markup, html};
use stepwell::{TaskFilter, TaskState};

use super::chart::{Chart, Series};
use super::layout::{nothing, page};
use super::words::{duration, moment, number, state};
use super::{queues, route};
use crate::access::Operation;
use crate::app::App;
use crate::call::Call;
use crate::problem::Problem;
use crate::sample::{EVERY, KEPT, Sample};

/// The number of failed tasks that are shown.
const FAILED: usize = 5;

pub(super) fn add_to(router: Router<Arc<App>>) -> Router<Arc<App>> {
    router.route("/", route(Operation::ListTasks, get(overview)))
}

async fn overview(call: Call) -> Result<Response, Problem> {
    // A caller that may only see its own tasks sees their list.
    if !call.may(Operation::ReadOverview, None).await {
        return Ok(Redirect::to(&call.base.to("/tasks")).into_response());
    }
    let all = call.everything()?;
    let samples = all.samples.look(&all.client, &all.closing).await?;
    let workers = all.client.workers().list().await?;
    let filter =
        TaskFilter { state: Some(TaskState::Failed), limit: FAILED, ..TaskFilter::default() };
    let failed = call.tasks(filter).await?.items;
    let newest = call.tasks(TaskFilter { limit: 1, ..TaskFilter::default() }).await?.items;
    let now = samples.last();
    let count = |of: fn(&Sample) -> u64| now.map(of);
    let alive = workers.iter().filter(|worker| worker.alive).count();
    let content = html! {
        h1 { "Overview" }
        @if newest.is_empty() {
            (nothing("No tasks yet", html! {
                "Spawn one: " code { "client.spawn::<MyTask>(params)" } ", or "
                code { "stepwell tasks spawn my_task '{}'" } "."
            }))
        }
        div class="tiles" {
            (tile(&call, "Pending", count(|now| now.pending), "/tasks?state=pending"))
            (tile(&call, "Running", count(|now| now.running), "/tasks?state=running"))
            (tile(&call, "Suspended", count(|now| now.suspended), "/tasks?state=suspended"))
            (tile(&call, "Workers alive", Some(alive as u64), "/workers"))
        }
        (charts(&samples))
        @let queues = now.and_then(|now| now.queues.as_ref());
        @if let Some(queues) = queues.filter(|queues| !queues.is_empty()) {
            h2 { "Queues" }
            (queues::table(&call, queues))
        }
        @if !failed.is_empty() {
            h2 { "Failed last" }
            div class="scroll" { table {
                thead { tr { th { "Task" } th { "Why" } th { "When" } } }
                tbody { @for task in &failed {
                    tr {
                        th scope="row" {
                            @let page = call.base.to(&format!("/tasks/{}", task.task_id));
                            a href=(page) { (task.task_type) } " " (state(task.state))
                        }
                        td class="why" {
                            @if let Some(failure) = &task.failure { (failure.message) }
                        }
                        td { @match task.finished_at { Some(at) => (moment(at)), None => "–" } }
                    }
                } }
            } }
            p { a href=(call.base.to("/tasks?state=failed")) { "All that failed" } }
        }
    };
    Ok(page(&call, "/", "Overview", content).into_response())
}

/// Draws a count, or a dash when the count is not known.
fn tile(call: &Call, name: &str, count: Option<u64>, path: &str) -> Markup {
    let count = count.map_or_else(|| "–".to_owned(), number);
    html! { a class="tile" href=(call.base.to(path)) { span { (name) } strong { (count) } } }
}

fn charts(samples: &[Sample]) -> Markup {
    let seconds = EVERY.as_secs_f64();
    let count = |of: fn(&Sample) -> u64| {
        let known = samples.iter().filter(|sample| sample.queues.is_some());
        known.map(|sample| of(sample) as f64).collect::<Vec<_>>()
    };
    let rate = |of: fn(&Sample) -> u64| {
        samples.iter().map(|sample| of(sample) as f64 / seconds).collect::<Vec<_>>()
    };
    let took = |of: fn(&Sample) -> Option<Duration>| {
        let mut last = 0.0;
        let value = |sample: &Sample| {
            last = of(sample).map_or(last, |took| took.as_secs_f64());
            last
        };
        samples.iter().map(value).collect::<Vec<_>>()
    };
    let span = duration(EVERY * u32::try_from(KEPT).unwrap_or(1));
    let chart = |title, series, stacked, write| {
        Chart { title, series, stacked, room: KEPT, span: span.clone(), write }.draw()
    };
    let series = |name, class, values| Series { name, class, values };
    html! {
        div class="charts" {
            (chart("Ended a second", vec![
                series("completed", "completed", rate(|sample| sample.completed)),
                series("failed", "failed", rate(|sample| sample.failed)),
                series("cancelled", "cancelled", rate(|sample| sample.cancelled)),
            ], true, short))
            (chart("From spawn to completion", vec![
                series("p50", "completed", took(|sample| sample.p50)),
                series("p95", "running", took(|sample| sample.p95)),
            ], false, |seconds| duration(Duration::from_secs_f64(seconds))))
            (chart("Not ended", vec![
                series("running", "running", count(|sample| sample.running)),
                series("pending", "pending", count(|sample| sample.pending)),
                series("suspended", "suspended", count(|sample| sample.suspended)),
            ], true, short))
        }
        p class="dim" {
            "What ended, and how long it took, is known of clients that keep the history ("
            code { "keep_history()" } ")."
        }
    }
}

fn short(value: f64) -> String {
    match value {
        v if v >= 1e6 => format!("{:.1} M", v / 1e6),
        v if v >= 1e4 => format!("{:.0} k", v / 1e3),
        v if v == v.trunc() => format!("{v:.0}"),
        v => format!("{v:.1}"),
    }
}
