//! The routes of workers.

use axum::Json;
use axum::http::{Method, StatusCode};
use stepwell::{WorkerId, WorkerInfo};

use super::document::Api;
use crate::access::Operation;
use crate::call::Call;
use crate::extract::Path;
use crate::problem::Problem;

pub(super) fn add_to(api: &mut Api) {
    api.route(Method::GET, "/workers", Operation::ListWorkers, "List the workers of all machines")
        .answers::<Vec<WorkerInfo>>(StatusCode::OK)
        .does(list);
    api.route(
        Method::POST,
        "/workers/{worker_id}/drain",
        Operation::DrainWorker,
        "Tell a worker to end what it runs, and to stop",
    )
    .done()
    .does(drain);
}

async fn list(call: Call) -> Result<Json<Vec<WorkerInfo>>, Problem> {
    Ok(Json(call.everything()?.client.workers().list().await?))
}

async fn drain(call: Call, Path(worker_id): Path<WorkerId>) -> Result<StatusCode, Problem> {
    call.everything()?.client.workers().drain(worker_id).await?;
    Ok(StatusCode::NO_CONTENT)
}
