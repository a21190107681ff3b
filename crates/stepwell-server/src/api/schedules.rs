//! The routes of schedules.

use axum::Json;
use axum::http::{Method, StatusCode};
use schemars::JsonSchema;
use serde::Serialize;
use stepwell::{Name, ScheduleInfo, TaskId};

use super::document::Api;
use crate::access::Operation;
use crate::call::Call;
use crate::extract::Path;
use crate::problem::Problem;

pub(super) fn add_to(api: &mut Api) {
    let change = Operation::ChangeSchedule;
    api.route(Method::GET, "/schedules", Operation::ListSchedules, "List schedules")
        .answers::<Vec<ScheduleInfo>>(StatusCode::OK)
        .does(list);
    api.route(Method::DELETE, "/schedules/{name}", change, "Remove a schedule").done().does(delete);
    api.route(
        Method::POST,
        "/schedules/{name}/pause",
        change,
        "Let a schedule spawn no more tasks",
    )
    .done()
    .does(pause);
    api.route(Method::POST, "/schedules/{name}/resume", change, "Let a schedule go on")
        .done()
        .does(resume);
    api.route(
        Method::POST,
        "/schedules/{name}/trigger",
        change,
        "Spawn a schedule's task now, beside its ticks",
    )
    .answers::<Triggered>(StatusCode::CREATED)
    .does(trigger);
}

async fn list(call: Call) -> Result<Json<Vec<ScheduleInfo>>, Problem> {
    Ok(Json(call.everything()?.client.schedules().list().await?))
}

async fn delete(call: Call, Path(name): Path<Name>) -> Result<StatusCode, Problem> {
    call.everything()?.client.schedules().delete(name).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn pause(call: Call, Path(name): Path<Name>) -> Result<StatusCode, Problem> {
    call.everything()?.client.schedules().pause(name).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn resume(call: Call, Path(name): Path<Name>) -> Result<StatusCode, Problem> {
    call.everything()?.client.schedules().resume(name).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// A task that a schedule spawned.
#[derive(Serialize, JsonSchema)]
struct Triggered {
    /// The task.
    task_id: TaskId,
}

async fn trigger(
    call: Call,
    Path(name): Path<Name>,
) -> Result<(StatusCode, Json<Triggered>), Problem> {
    let task_id = call.everything()?.client.schedules().trigger(name).await?.task_id;
    Ok((StatusCode::CREATED, Json(Triggered { task_id })))
}
