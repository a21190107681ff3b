//! The page of approvals that wait for a decision.

use std::sync::Arc;

use axum::Router;
use axum::response::Redirect;
use axum::routing::{get, post};
use maud::{Markup, html};
use serde::Deserialize;
use stepwell::{ApprovalInfo, Decision, Page, TaskId};

use super::layout::{nothing, page};
use super::route;
use super::words::{json, moment};
use crate::access::Operation;
use crate::api::approvals::{PAGE, in_name_of};
use crate::app::App;
use crate::call::{Call, Own};
use crate::extract::{Form, Path, Query, json_of};
use crate::problem::Problem;

pub(super) fn add_to(router: Router<Arc<App>>) -> Router<Arc<App>> {
    router
        .route("/approvals", route(Operation::ListApprovals, get(list)))
        .route("/tasks/{task_id}/decide", route(Operation::Decide, post(decide)))
}

#[derive(Deserialize)]
struct Behind {
    behind: Option<TaskId>,
}

async fn list(call: Call, Query(Behind { behind }): Query<Behind>) -> Result<Markup, Problem> {
    let Page { items: approvals, next } = call.approvals(behind, PAGE).await?;
    Ok(page(
        &call,
        "/approvals",
        "Approvals",
        html! {
            h1 { "Approvals" }
            @if approvals.is_empty() {
                (nothing("Nothing waits for a decision", html! {
                    "A task asks for one with " code { "ctx.await_approval(..)" } "."
                }))
            }
            div class="cards" { @for approval in &approvals { (card(&call, approval)) } }
            @if let Some(next) = next {
                p { a href={ (call.base.to("/approvals")) "?behind=" (next) } { "Next" } }
            }
        },
    ))
}

/// Draws an approval, and the form to decide it.
pub(super) fn card(call: &Call, approval: &ApprovalInfo) -> Markup {
    let id = format!("{}-{}", approval.task_id, approval.name);
    let task = call.base.to(&format!("/tasks/{}", approval.task_id));
    html! {
        article class="card approval" id={ "approval-" (id) } {
            h2 { (approval.name) " " small { a href=(task) { (approval.task_type) } } }
            p class="dim" {
                "asked " (moment(approval.asked_at))
                @if let Some(assignee) = &approval.assignee { " · for " strong { (assignee) } }
                @if let Some(due_at) = approval.due_at { " · until " (moment(due_at)) }
            }
            (json(&approval.request))
            form method="post" class="stack" action={ (task) "/decide" } {
                input type="hidden" name="name" value=(approval.name);
                @if call.who.name.is_none() {
                    label {
                        "Who decides"
                        input name="by" required id={ "by-" (id) } autocomplete="name";
                    }
                }
                label { "Why" input name="reason" id={ "reason-" (id) }; }
                details { summary { "With a value" }
                    label {
                        "JSON"
                        textarea name="value" rows="2" spellcheck="false" id={ "value-" (id) } {}
                    }
                }
                div class="actions" {
                    button class="primary" name="decision" value="approve" { "Approve" }
                    button class="danger" name="decision" value="reject" { "Reject" }
                }
            }
        }
    }
}

#[derive(Deserialize)]
struct Decided {
    name: String,
    decision: Word,
    by: Option<String>,
    #[serde(default)]
    reason: String,
    #[serde(default)]
    value: String,
}

#[derive(Deserialize, PartialEq)]
#[serde(rename_all = "snake_case")]
enum Word {
    Approve,
    Reject,
}

async fn decide(
    call: Call,
    Path(task_id): Path<TaskId>,
    Form(Decided { name, decision, by, reason, value }): Form<Decided>,
) -> Result<Redirect, Problem> {
    let Own { client, .. } = call.own(task_id).await?;
    let by = in_name_of(&call, by);
    let reason = (!reason.is_empty()).then_some(reason);
    let decision = match decision {
        Word::Approve => Decision::Approved { by, reason, value: json_of("the value", &value)? },
        Word::Reject => Decision::Rejected { by, reason },
    };
    client.approvals().decide(task_id, &name, &decision).await?;
    Ok(Redirect::to(&call.base.to(&format!("/tasks/{task_id}"))))
}
