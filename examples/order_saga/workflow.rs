//! The workflow of an order, and the task type of its child.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use stepwell::{AfterStep, TaskContext, TaskResult, Workflow, WorkflowContext};

use crate::order::Order;
use crate::outside::{Carrier, DHL, Outside, ROYAL_MAIL, UPS, refused};

/// The name of the workflow.
pub(crate) const ORDER: &str = "order";
/// The name of the child's task type.
pub(crate) const PICK: &str = "pick";
/// The signal that the goods are in a parcel.
pub(crate) const PACKED: &str = "packed";

/// How long the warehouse has for packing.
const PACKING: Duration = Duration::from_secs(3 * 24 * 3600);
/// How soon the bank is asked again.
const BANK: Duration = Duration::from_millis(500);

/// What the packing table says.
#[derive(Serialize, Deserialize)]
pub(crate) struct Parcel {
    pub(crate) packed_by: String,
}

/// The last part is the one that cannot be undone: whatever fails, fails before.
pub(crate) fn order() -> Workflow {
    Workflow::new(ORDER)
        .step("reserve", |ctx| async move {
            let (order, outside, key) = request(&ctx, "reserve")?;
            outside.reserve(&order, key).await
        })
        .compensate(|ctx| async move {
            let (order, outside, key) = request(&ctx, "release")?;
            outside.release(&order, key).await
        })
        .step("charge", |ctx| async move {
            let (order, outside, key) = request(&ctx, "charge")?;
            outside.charge(&order, ctx.attempt, key).await
        })
        .compensate(|ctx| async move {
            let (order, outside, key) = request(&ctx, "refund")?;
            outside.refund(&order, key).await
        })
        .max_attempts(5)
        .backoff(|failures| BANK * failures)
        .parallel("papers", |papers| {
            papers
                .step("invoice", |ctx| async move {
                    let order: Order = ctx.input()?;
                    let (euros, cents) = (order.cents() / 100, order.cents() % 100);
                    Ok(format!("Invoice {}: {euros}.{cents:02} EUR, paid by card", order.id))
                })
                .step("label", |ctx| async move {
                    let order: Order = ctx.input()?;
                    Ok(format!("{}, {}", order.customer, order.country))
                })
        })
        .child("pick", PICK, |ctx| ctx.input::<Order>())
        .wait_for_signal(PACKED, PACKING)
        .route(
            "carrier",
            |ctx| async move {
                let order: Order = ctx.input()?;
                match order.country.as_str() {
                    "AT" | "CH" | "DE" => Ok(DHL.name),
                    "GB" => Ok(ROYAL_MAIL.name),
                    "CA" | "US" => Ok(UPS.name),
                    country => Err(refused(format!("no carrier goes to {country}"))),
                }
            },
            |carriers| ship_by(ship_by(ship_by(carriers, DHL), ROYAL_MAIL), UPS),
        )
}

fn ship_by<L>(carriers: Workflow<L>, carrier: Carrier) -> Workflow<AfterStep> {
    let carrier = std::sync::Arc::new(carrier);
    carriers.step(carrier.name, move |ctx| {
        let carrier = carrier.clone();
        async move {
            let (order, outside, key) = request(&ctx, "ship")?;
            outside.ship(&order, &carrier, key).await
        }
    })
}

/// What a handler needs to ask for something outside. The key is the same whenever this task asks
/// for this.
fn request(ctx: &WorkflowContext, what: &str) -> anyhow::Result<(Order, Outside, String)> {
    Ok((ctx.input()?, ctx.state::<Outside>()?.clone(), format!("{}:{what}", ctx.task_id)))
}

/// The child: takes an order's goods from the shelves, one after the other.
pub(crate) async fn pick(order: Order, ctx: TaskContext) -> TaskResult<usize> {
    let outside = ctx.state::<Outside>()?;
    for (n, item) in order.items.iter().enumerate() {
        let key = format!("{}:{n}", ctx.task_id);
        ctx.step(("pick", &item.sku), || outside.pick(&order, item, key)).await?;
    }
    Ok(order.items.len())
}
