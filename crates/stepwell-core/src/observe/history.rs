//! The history: lifecycle events that are kept.
//!
//! A client that was built to [keep them](crate::Settings::keep_history) writes its lifecycle
//! events to the store, in the background and in batches, after the events themselves. The history
//! therefore costs tasks no time. A crash may lose the last moments of the history, and never those
//! of the journal.
//!
//! ```text
//!   what happens ──▶ subscribers (this process, at once)
//!        └─────────▶ recorder ──▶ store ──▶ Client::history (any process, later)
//! ```

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use crate::base::guard;
use crate::base::ids::TaskId;
use crate::base::name::Name;
use crate::base::payload::{Payload, PayloadError};
use crate::base::retry::STORE_RETRY;
use crate::base::runtime::Runtime;
use crate::base::time::Timestamp;
use crate::observe::lifecycle::Lifecycle;
use crate::store::page::{ITEM_BYTES, Listed};
use crate::store::{Happening, Store, StoreError};

/// The maximum number of events that are written at once.
const BATCH: usize = 1_000;

/// A lifecycle event that was kept.
#[derive(Clone, Debug)]
pub struct HistoryEntry {
    /// The place of the event in the history; later events have higher numbers, with gaps.
    pub id: u64,
    /// The time of the event, by the store's clock.
    pub at: Timestamp,
    /// The task that the event belongs to.
    pub task_id: TaskId,
    /// The event, or an error when the entry cannot be read (without the key that it was encrypted
    /// with, say).
    pub event: Result<Lifecycle, PayloadError>,
}

impl HistoryEntry {
    pub(crate) fn read((id, happening): (u64, Happening)) -> Self {
        let Happening { task_id, at, event, .. } = happening;
        Self { id, at, task_id, event: event.decode() }
    }
}

impl Listed for HistoryEntry {
    type Cursor = u64;

    fn cursor(&self) -> u64 {
        self.id
    }

    fn bytes(&self) -> usize {
        ITEM_BYTES
    }
}

pub(crate) enum Note {
    Event(Timestamp, Lifecycle),
    /// A request for an answer when all earlier events are written.
    Flush(oneshot::Sender<()>),
}

/// Writes the events that arrive, until their sender is gone.
///
/// Events that the store cannot take just now are tried again. An event that the store refuses for
/// good is left out.
pub(crate) async fn record(
    store: Arc<dyn Store>,
    runtime: Arc<dyn Runtime>,
    mut notes: mpsc::UnboundedReceiver<Note>,
) {
    let mut gathered = Vec::new();
    while notes.recv_many(&mut gathered, BATCH).await > 0 {
        let (mut happenings, mut flushes) = (Vec::with_capacity(gathered.len()), Vec::new());
        for note in gathered.drain(..) {
            match note {
                Note::Event(at, event) => happenings.push(happening(at, &event)),
                Note::Flush(written) => flushes.push(written),
            }
        }
        let mut tries = 0;
        let mut parts = vec![happenings];
        while let Some(mut part) = parts.pop().filter(|part| !part.is_empty()) {
            let Err(error) = store.record(part.clone()).await else {
                tries = 0;
                continue;
            };
            if matches!(error, StoreError::Closed) {
                return;
            }
            if error.is_of_an_item() && part.len() > 1 {
                let rest = part.split_off(part.len() / 2);
                parts.extend([rest, part]);
            } else if !error.is_transient() {
                let events: Vec<_> =
                    part.iter().map(|event| (event.task_id, &event.name)).collect();
                tracing::error!(%error, ?events, "the store refuses a lifecycle event, which is \
                                                  left out of the history");
            } else {
                tracing::warn!(%error, "cannot keep lifecycle events; trying again");
                tries += 1;
                parts.push(part);
                let delay = STORE_RETRY.delay(tries, runtime.random());
                runtime.sleep(delay.unwrap_or_default()).await;
            }
        }
        flushes.into_iter().for_each(|written| guard::answer(written, ()));
    }
}

fn happening(at: Timestamp, event: &Lifecycle) -> Happening {
    let json =
        serde_json::to_string(event).unwrap_or_else(|error| format!("{:?}", error.to_string()));
    Happening {
        task_id: event.task_id(),
        at,
        name: Name::known(event.name()),
        event: Payload::from_json(json),
    }
}
