//! The page of workers.

use std::sync::Arc;

use axum::Router;
use axum::response::Redirect;
use axum::routing::{get, post};
use maud::{Markup, html};
use stepwell::{Name, WorkerId, WorkerState};

use super::layout::{confirmed, nothing, page};
use super::route;
use super::words::moment;
use crate::access::Operation;
use crate::app::App;
use crate::call::Call;
use crate::extract::Path;
use crate::problem::Problem;

pub(super) fn add_to(router: Router<Arc<App>>) -> Router<Arc<App>> {
    router
        .route("/workers", route(Operation::ListWorkers, get(list)))
        .route("/workers/{worker_id}/drain", route(Operation::DrainWorker, post(drain)))
}

async fn list(call: Call) -> Result<Markup, Problem> {
    let workers = call.everything()?.client.workers().list().await?;
    Ok(page(
        &call,
        "/workers",
        "Workers",
        html! {
            h1 { "Workers" }
            @if workers.is_empty() {
                (nothing("No workers", html! {
                    "Tasks wait until a program starts one with "
                    code { "client.start_worker(..)" } "."
                }))
            } @else {
                div class="scroll" { table {
                    thead { tr {
                        th { "Worker" } th { "State" } th { "Running" } th { "Queues" }
                        th { "Version" } th { "Since" } th { span class="hidden" { "Actions" } }
                    } }
                    tbody { @for worker in &workers {
                        @let queues: Vec<_> = worker.queues.iter().map(Name::as_str).collect();
                        @let state = if worker.alive { worker.state.as_str() } else { "dead" };
                        tr {
                            th scope="row" {
                                (worker.name) br; small class="dim" { (worker.worker_id) }
                            }
                            td { span class={ "state " (state) } { (state) } }
                            td {
                                meter min="0" max=(worker.concurrency) value=(worker.running) {}
                                " " (worker.running) "/" (worker.concurrency)
                            }
                            td { (queues.join(", ")) }
                            td { @match &worker.code_version {
                                Some(version) => (version),
                                None => "–",
                            } }
                            td { (moment(worker.registered_at)) }
                            @let works = worker.alive && worker.state == WorkerState::Active;
                            td class="actions" { @if works {
                                (confirmed(
                                    &call.base.to(&format!("/workers/{}/drain", worker.worker_id)),
                                    "Drain",
                                    "It ends what it runs, takes nothing more, and stops.",
                                    "danger",
                                ))
                            } }
                        }
                    } }
                } }
            }
        },
    ))
}

async fn drain(call: Call, Path(worker_id): Path<WorkerId>) -> Result<Redirect, Problem> {
    call.everything()?.client.workers().drain(worker_id).await?;
    Ok(Redirect::to(&call.base.to("/workers")))
}
