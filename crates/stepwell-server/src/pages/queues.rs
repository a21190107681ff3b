//! The page of queues.

use std::sync::Arc;

use axum::Router;
use axum::response::Redirect;
use axum::routing::{get, post};
use maud::{Markup, html};
use serde::Deserialize;
use stepwell::{Name, QueueInfo};

use super::layout::{nothing, page};
use super::route;
use super::words::{duration, moment, number};
use crate::access::Operation;
use crate::app::App;
use crate::call::Call;
use crate::extract::Form;
use crate::problem::Problem;

pub(super) fn add_to(router: Router<Arc<App>>) -> Router<Arc<App>> {
    router
        .route("/queues", route(Operation::ListQueues, get(list)))
        .route("/queues/pause", route(Operation::ChangeQueue, post(pause)))
        .route("/queues/resume", route(Operation::ChangeQueue, post(resume)))
}

async fn list(call: Call) -> Result<Markup, Problem> {
    let queues = call.everything()?.client.queues().list().await?;
    Ok(page(
        &call,
        "/queues",
        "Queues",
        html! {
            h1 { "Queues" }
            @if queues.is_empty() {
                (nothing("No queues", html! { "A queue is there while it has tasks that have not \
                                               ended, or limits." }))
            } @else {
                (table(&call, &queues))
            }
        },
    ))
}

pub(super) fn table(call: &Call, queues: &[QueueInfo]) -> Markup {
    let now = call.now();
    html! {
        div class="scroll" { table {
            thead { tr {
                th { "Queue" } th class="number" { "Pending" } th class="number" { "Running" }
                th class="number" { "Suspended" } th { "Waits since" } th { "Limits" }
                th { span class="hidden" { "Actions" } }
            } }
            tbody { @for queue in queues {
                tr {
                    th scope="row" {
                        @let tasks = encoded(queue.queue.as_str());
                        a href={ (call.base.to("/tasks")) "?queue=" (tasks) } {
                            (queue.queue)
                        }
                        @if queue.paused { " " span class="state paused" { "paused" } }
                    }
                    td class="number" { (number(queue.pending)) }
                    td class="number" { (number(queue.running)) }
                    td class="number" { (number(queue.suspended)) }
                    td { @match queue.ready_at.filter(|ready_at| *ready_at <= now) {
                        Some(ready_at) => (moment(ready_at)),
                        None => "–",
                    } }
                    td { (limits(queue)) }
                    @let action = if queue.paused { "/queues/resume" } else { "/queues/pause" };
                    td class="actions" { form method="post" action=(call.base.to(action)) {
                        input type="hidden" name="queue" value=(queue.queue);
                        button { @if queue.paused { "Resume" } @else { "Pause" } }
                    } }
                }
            } }
        } }
    }
}

fn limits(queue: &QueueInfo) -> String {
    let limits = queue.limits;
    let mut words = Vec::new();
    words.extend(limits.max_running.map(|n| format!("{n} running")));
    words.extend(limits.max_running_per_worker.map(|n| format!("{n} on a worker")));
    words.extend(
        limits.rate.map(|rate| format!("{} starts in {}", rate.starts, duration(rate.per))),
    );
    if words.is_empty() { "–".into() } else { words.join(", ") }
}

pub(super) fn encoded(text: &str) -> String {
    form_urlencoded::byte_serialize(text.as_bytes()).collect()
}

#[derive(Deserialize)]
struct Which {
    queue: Name,
}

async fn pause(call: Call, Form(Which { queue }): Form<Which>) -> Result<Redirect, Problem> {
    call.everything()?.client.queues().pause(queue).await?;
    Ok(Redirect::to(&call.base.to("/queues")))
}

async fn resume(call: Call, Form(Which { queue }): Form<Which>) -> Result<Redirect, Problem> {
    call.everything()?.client.queues().resume(queue).await?;
    Ok(Redirect::to(&call.base.to("/queues")))
}
