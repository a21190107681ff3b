//! The routes of queues.

use axum::Json;
use axum::http::{Method, StatusCode};
use stepwell::{Name, QueueInfo, QueueLimits};

use super::document::Api;
use crate::access::Operation;
use crate::call::Call;
use crate::extract::{Body, Path};
use crate::problem::Problem;

pub(super) fn add_to(api: &mut Api) {
    let change = Operation::ChangeQueue;
    api.route(Method::GET, "/queues", Operation::ListQueues, "List queues, with what is in them")
        .answers::<Vec<QueueInfo>>(StatusCode::OK)
        .does(list);
    api.route(Method::POST, "/queues/{queue}/pause", change, "Start no more tasks of a queue")
        .done()
        .does(pause);
    api.route(Method::POST, "/queues/{queue}/resume", change, "Start a queue's tasks again")
        .done()
        .does(resume);
    api.route(
        Method::PUT,
        "/queues/{queue}/limits",
        change,
        "Set a queue's limits, in place of those before",
    )
    .body::<QueueLimits>()
    .done()
    .does(limit);
}

async fn list(call: Call) -> Result<Json<Vec<QueueInfo>>, Problem> {
    Ok(Json(call.everything()?.client.queues().list().await?))
}

async fn pause(call: Call, Path(queue): Path<Name>) -> Result<StatusCode, Problem> {
    call.everything()?.client.queues().pause(queue).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn resume(call: Call, Path(queue): Path<Name>) -> Result<StatusCode, Problem> {
    call.everything()?.client.queues().resume(queue).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn limit(
    call: Call,
    Path(queue): Path<Name>,
    Body(limits): Body<QueueLimits>,
) -> Result<StatusCode, Problem> {
    call.everything()?.client.queues().limit(queue, limits).await?;
    Ok(StatusCode::NO_CONTENT)
}
