//! The packing table: says of each order that waits for it that it is packed.

use std::collections::HashSet;
use std::convert::Infallible;
use std::time::Duration;

use stepwell::{Durable, Error, Name, TaskFilter, TaskState};

use crate::workflow::{ORDER, PACKED, Parcel};

/// How often the table looks for orders.
const LOOK: Duration = Duration::from_millis(100);

/// Packs until there is an error. What is to be packed stands in the database, so that nothing is
/// lost with the process; an order whose signal was sent, but not received, gets it twice, and
/// receives one.
pub(crate) async fn pack(client: &Durable, orders: usize) -> Result<Infallible, Error> {
    let waiting = TaskFilter {
        state: Some(TaskState::Suspended),
        task_type: Some(Name::new(ORDER)?),
        limit: orders,
        ..TaskFilter::default()
    };
    let mut packed = HashSet::new();
    loop {
        for task in client.tasks(waiting.clone()).await? {
            let at = client.snapshot(task.task_id).await?.current_step;
            if at.as_deref() == Some(PACKED) && packed.insert(task.task_id) {
                match client
                    .send(task.task_id, PACKED, &Parcel { packed_by: "table 1".into() })
                    .await
                {
                    // It has been cancelled meanwhile.
                    Ok(()) | Err(Error::NotAllowed { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}
