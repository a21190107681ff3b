//! The command `stepwell approvals`.

use anyhow::Result;
use serde_json::Value;
use stepwell::{ApprovalFilter, ApprovalInfo, Durable, Page};

use crate::args::{Approvals, Decision};
use crate::input;
use crate::screen::{Screen, brief, moment, or_dash};

/// The maximum number of characters of a request in a table.
const REQUEST: usize = 60;

pub(crate) async fn run(client: &Durable, command: Approvals, screen: &Screen) -> Result<()> {
    match command {
        Approvals::List { mut limit } => {
            let mut list = screen.parts(|approval: &ApprovalInfo| {
                [
                    approval.task_id.to_string(),
                    approval.name.clone(),
                    approval.task_type.to_string(),
                    or_dash(approval.assignee.as_ref()),
                    moment(approval.asked_at),
                    or_dash(approval.due_at.map(moment)),
                    brief(&approval.request, REQUEST),
                ]
            });
            let mut after = None;
            loop {
                let filter = ApprovalFilter { after, limit, ..ApprovalFilter::default() };
                let Page { items, next } = client.approvals().list(filter).await?;
                list.add(&items)?;
                limit -=
                    items.chunk_by(|one, other| one.task_id == other.task_id).count().min(limit);
                match next {
                    Some(_) if limit > 0 => after = next,
                    _ => break,
                }
            }
            let columns = ["TASK", "NAME", "TYPE", "FOR", "ASKED", "UNTIL", "REQUEST"];
            list.end(columns, "nothing waits for an approval")
        }
        Approvals::Approve { task_id, name, value, decision: Decision { by, reason } } => {
            let value = input::json(value.as_deref())?;
            let decision = stepwell::Decision::Approved { by, reason, value };
            client.approvals().decide(task_id, &name, &decision).await?;
            screen.done(&format!("approved {name} of {task_id}"))
        }
        Approvals::Reject { task_id, name, decision: Decision { by, reason } } => {
            client
                .approvals()
                .decide(task_id, &name, &stepwell::Decision::<Value>::Rejected { by, reason })
                .await?;
            screen.done(&format!("rejected {name} of {task_id}"))
        }
    }
}
