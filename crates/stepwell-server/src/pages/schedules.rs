//! The page of schedules.

use std::sync::Arc;

use axum::Router;
use axum::response::Redirect;
use axum::routing::{get, post};
use maud::{Markup, html};
use serde::Deserialize;
use stepwell::{ScheduleInfo, Timing};

use super::layout::{nothing, page};
use super::route;
use super::words::{duration, moment};
use crate::access::Operation;
use crate::app::App;
use crate::call::Call;
use crate::extract::Form;
use crate::problem::Problem;

pub(super) fn add_to(router: Router<Arc<App>>) -> Router<Arc<App>> {
    router
        .route("/schedules", route(Operation::ListSchedules, get(list)))
        .route("/schedules/change", route(Operation::ChangeSchedule, post(change)))
}

async fn list(call: Call) -> Result<Markup, Problem> {
    let schedules = call.everything()?.client.schedules().list().await?;
    let action = call.base.to("/schedules/change");
    Ok(page(
        &call,
        "/schedules",
        "Schedules",
        html! {
            h1 { "Schedules" }
            @if schedules.is_empty() {
                (nothing("No schedules", html! {
                    "Put one into the store with " code { "client.schedules().put(..)" } "."
                }))
            } @else {
                div class="scroll" { table {
                    thead { tr {
                        th { "Schedule" } th { "When" } th { "Task type" } th { "Next" }
                        th { "Last task" } th { span class="hidden" { "Actions" } }
                    } }
                    tbody { @for schedule in &schedules {
                        tr {
                            th scope="row" {
                                (schedule.name)
                                @if schedule.paused { " " span class="state paused" { "paused" } }
                            }
                            td { (timing(schedule)) }
                            td { (schedule.task_type) }
                            td { @match schedule.next_at { Some(at) => (moment(at)), None => "–" } }
                            td { @match schedule.last_task {
                                Some(task_id) => {
                                    a href=(call.base.to(&format!("/tasks/{task_id}"))) {
                                        @match schedule.last_tick {
                                            Some(at) => (moment(at)),
                                            None => (task_id),
                                        }
                                    }
                                },
                                None => "–",
                            } }
                            td class="actions" { form method="post" action=(action) {
                                input type="hidden" name="name" value=(schedule.name);
                                @let turn = if schedule.paused { "resume" } else { "pause" };
                                button name="action" value=(turn) {
                                    @if schedule.paused { "Resume" } @else { "Pause" }
                                }
                                button name="action" value="trigger" { "Trigger now" }
                            } }
                        }
                    } }
                } }
            }
        },
    ))
}

fn timing(schedule: &ScheduleInfo) -> Markup {
    match &schedule.timing {
        Timing::Cron { pattern, time_zone } => {
            html! { code { (pattern) } " " span class="dim" { (time_zone) } }
        }
        Timing::Every { interval } => html! { "every " (duration(*interval)) },
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Action {
    Pause,
    Resume,
    Trigger,
}

#[derive(Deserialize)]
struct Change {
    name: String,
    action: Action,
}

async fn change(
    call: Call,
    Form(Change { name, action }): Form<Change>,
) -> Result<Redirect, Problem> {
    let to = match action {
        Action::Pause => call
            .everything()?
            .client
            .schedules()
            .pause(name)
            .await
            .map(|()| "/schedules".to_owned())?,
        Action::Resume => call
            .everything()?
            .client
            .schedules()
            .resume(name)
            .await
            .map(|()| "/schedules".to_owned())?,
        Action::Trigger => {
            format!("/tasks/{}", call.everything()?.client.schedules().trigger(name).await?.task_id)
        }
    };
    Ok(Redirect::to(&call.base.to(&to)))
}
