//! The routes of approvals.

use axum::Json;
use axum::http::{Method, StatusCode};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use stepwell::{ApprovalInfo, Decision, Page, Payload, TaskId};

use super::document::Api;
use crate::access::Operation;
use crate::call::{Call, Own};
use crate::extract::{Body, Path, Query};
use crate::problem::Problem;

/// The number of tasks whose approvals one page lists.
pub(crate) const PAGE: usize = 100;

pub(super) fn add_to(api: &mut Api) {
    api.route(
        Method::GET,
        "/approvals",
        Operation::ListApprovals,
        "List what waits for a decision",
    )
    .query::<Behind>()
    .answers::<Approvals>(StatusCode::OK)
    .does(list);
    api.route(
        Method::POST,
        "/tasks/{task_id}/approvals/{name}",
        Operation::Decide,
        "Approve or reject; the first decision stands",
    )
    .body::<Decided>()
    .done()
    .does(decide);
}

/// The start of a page.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Behind {
    /// The last task of the page before.
    behind: Option<TaskId>,
}

/// A page of approvals.
#[derive(Serialize, JsonSchema)]
struct Approvals {
    /// The approvals, by task.
    approvals: Vec<ApprovalInfo>,
    /// `behind` of the next page, when there may be one.
    next: Option<TaskId>,
}

async fn list(
    call: Call,
    Query(Behind { behind }): Query<Behind>,
) -> Result<Json<Approvals>, Problem> {
    let Page { items: approvals, next } = call.approvals(behind, PAGE).await?;
    Ok(Json(Approvals { approvals, next }))
}

/// A decision.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Decided {
    /// The decision: `true` approves, and `false` rejects.
    approved: bool,
    /// The name of the user who decides. A user who is logged in by name decides in that name.
    by: Option<String>,
    /// The reason for the decision.
    reason: Option<String>,
    /// The value of the decision, in the form that the task wants.
    #[serde(default)]
    value: Payload,
}

/// Returns the name under which a decision is stored.
pub(crate) fn in_name_of(call: &Call, by: Option<String>) -> String {
    call.who.name.clone().or(by.filter(|by| !by.is_empty())).unwrap_or_else(|| "somebody".into())
}

async fn decide(
    call: Call,
    Path((task_id, name)): Path<(TaskId, String)>,
    Body(Decided { approved, by, reason, value }): Body<Decided>,
) -> Result<StatusCode, Problem> {
    let Own { client, .. } = call.own(task_id).await?;
    let by = in_name_of(&call, by);
    let decision = match approved {
        true => Decision::Approved { by, reason, value },
        false => Decision::Rejected { by, reason },
    };
    client.approvals().decide(task_id, &name, &decision).await?;
    Ok(StatusCode::NO_CONTENT)
}
