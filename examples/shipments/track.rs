//! The task: follows a shipment from event to event, and tells its customer.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use stepwell::{Task, TaskContext, TaskError, TaskResult, async_trait};

use crate::event::{self, CarrierEvent, Text, What};
use crate::print;

/// A shipment: a line of a file of shipments.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Shipment {
    pub(crate) tracking: Text,
    customer: Text,
    /// After how many hours it is late.
    hours: u32,
}

/// How a shipment ended.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    Delivered,
    Lost,
    Late,
}

pub(crate) struct TrackShipment;

#[async_trait]
impl Task for TrackShipment {
    const NAME: &'static str = "track-shipment";
    type Params = Shipment;
    type Output = Outcome;

    async fn run(shipment: Shipment, ctx: TaskContext) -> TaskResult<Outcome> {
        let wait =
            |what| ctx.await_event::<CarrierEvent>(event::name(what, &shipment.tracking), None);
        let journey = async {
            tell(&ctx, &shipment, &wait(What::Packed).await?).await?;
            tell(&ctx, &shipment, &wait(What::PickedUp).await?).await?;
            let (last, outcome) = tokio::select! {
                delivered = wait(What::Delivered) => (delivered?, Outcome::Delivered),
                lost = wait(What::Lost) => (lost?, Outcome::Lost),
            };
            tell(&ctx, &shipment, &last).await?;
            TaskResult::Ok(outcome)
        };
        let hours = Duration::from_secs(3600) * shipment.hours;
        match ctx.timeout("late", hours, journey).await {
            Err(TaskError::Timeout { .. }) => Ok(Outcome::Late),
            outcome => outcome?,
        }
    }
}

/// Here a mail would be sent, with the task's id and the event as its idempotency key: when the
/// process dies before the step is journaled, it runs again.
async fn tell(ctx: &TaskContext, shipment: &Shipment, event: &CarrierEvent) -> TaskResult<()> {
    let Shipment { tracking, customer, .. } = shipment;
    let (what, place) = (event.what, event.place.as_str());
    ctx.step(("tell", what), || async {
        print(&format!("{tracking} {what} in {place}: told {customer}\n"))
    })
    .await
}
