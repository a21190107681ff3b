//! Watching other workers, to find those that have died.
//!
//! A worker counts its heartbeats up in the store, and sees those of others whenever it sends its
//! own. It declares another worker dead once it has seen the same number for that worker's whole
//! lease. No clock is read: the time is the sum of the pauses that the watching worker itself made
//! between two heartbeats that the store answered at once. A pause at whose end the store was away
//! does not count, and none counts for more than a third of the lease, however rarely the watching
//! worker looks. So neither a clock that jumps nor a store that comes and goes makes a living
//! worker look dead.

use std::time::Duration;

use hashbrown::HashMap;

use crate::base::ids::WorkerId;
use crate::store::OtherWorker;

/// What a worker has seen of others.
#[derive(Default)]
pub(crate) struct Witness {
    seen: HashMap<WorkerId, Seen>,
}

struct Seen {
    heartbeats: u64,
    /// For how long the number has been the same.
    unchanged: Duration,
}

impl Witness {
    /// Takes note of the other workers as the store has just shown them, at least `passed` after it
    /// showed them last, in which it was not away. Returns those that have died.
    pub(crate) fn observe(&mut self, others: &[OtherWorker], passed: Duration) -> Vec<OtherWorker> {
        let mut dead = Vec::new();
        let mut seen = HashMap::with_capacity(others.len());
        for other in others {
            let unchanged = match self.seen.get(&other.worker_id) {
                Some(before) if before.heartbeats == other.heartbeats => {
                    before.unchanged + passed.min(third(other.lease))
                }
                _ => Duration::ZERO,
            };
            if unchanged >= other.lease {
                dead.push(*other);
            }
            seen.insert(other.worker_id, Seen { heartbeats: other.heartbeats, unchanged });
        }
        self.seen = seen;
        dead
    }
}

/// Rounded up, so that three of them are a whole.
fn third(lease: Duration) -> Duration {
    (lease + Duration::from_nanos(2)) / 3
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    const LEASE: Duration = Duration::from_secs(30);
    const PAUSE: Duration = Duration::from_secs(10);

    fn other(heartbeats: u64) -> OtherWorker {
        OtherWorker { worker_id: Uuid::from_u128(1).into(), heartbeats, lease: LEASE }
    }

    #[test]
    fn a_worker_is_dead_after_a_whole_lease_without_a_heartbeat() {
        let mut witness = Witness::default();
        for heartbeats in [1, 2, 2, 3, 3, 3] {
            assert_eq!(witness.observe(&[other(heartbeats)], PAUSE), []);
        }
        assert_eq!(witness.observe(&[other(3)], PAUSE), [other(3)]);
        assert_eq!(witness.observe(&[other(4)], PAUSE), [], "it is alive after all");
    }

    #[test]
    fn a_pause_counts_for_a_third_of_a_lease_at_most() {
        let mut witness = Witness::default();
        for _ in 0..3 {
            assert_eq!(witness.observe(&[other(1)], 10 * LEASE), []);
        }
        assert_eq!(witness.observe(&[other(1)], Duration::ZERO), [], "the store was away");
        assert_eq!(witness.observe(&[other(1)], 10 * LEASE), [other(1)]);
    }

    #[test]
    fn a_worker_that_was_away_is_seen_afresh() {
        let mut witness = Witness::default();
        witness.observe(&[other(1)], PAUSE);
        witness.observe(&[], PAUSE);
        for _ in 0..3 {
            assert_eq!(witness.observe(&[other(1)], PAUSE), []);
        }
        assert_eq!(witness.observe(&[other(1)], PAUSE), [other(1)]);
    }
}
