//! Positions in the history.

use stepwell::{Durable, HistoryEntry, HistoryFilter};

use crate::problem::Problem;

/// Returns the number of the last event in the history.
pub(crate) async fn end_of_history(client: &Durable) -> Result<u64, Problem> {
    last_of_history(client, |_| true).await
}

/// Returns the number of the last event that satisfies `is_so`, or 0 when no event does. Invariant:
/// all events before one that satisfies it satisfy it too.
pub(crate) async fn last_of_history(
    client: &Durable,
    is_so: impl Fn(&HistoryEntry) -> bool,
) -> Result<u64, Problem> {
    // The store reads forwards only, but it finds the first event after a number at once.
    let (mut low, mut high) = (0, i64::MAX.unsigned_abs());
    while low < high {
        let middle = low + (high - low) / 2;
        let behind = HistoryFilter { task_id: None, after: middle, limit: 1 };
        match client.history(behind).await?.items.first() {
            Some(entry) if is_so(entry) => low = entry.id,
            _ => high = middle,
        }
    }
    Ok(low)
}
