//! The watch over other workers, which finds those that have died.
//!
//! A worker counts its heartbeats in the store, and sees the numbers of other workers with each of
//! its own heartbeats. It declares another worker dead when that worker's number has stayed the
//! same for its whole lease. No clock is read: the time is the sum of the watching worker's own
//! pauses between two heartbeats that the store answered at once. A pause at whose end the store
//! was away does not count. No pause counts for more than a third of the lease, however rarely the
//! watching worker looks. A living worker therefore does not look dead when a clock jumps, or when
//! the store comes and goes.

use std::time::Duration;

use hashbrown::HashMap;

use crate::base::ids::WorkerId;
use crate::store::OtherWorker;

/// The last observations of other workers.
#[derive(Default)]
pub(crate) struct Witness {
    seen: HashMap<WorkerId, Seen>,
}

struct Seen {
    heartbeats: u64,
    /// The time for which the number has stayed the same.
    unchanged: Duration,
}

impl Witness {
    /// Records the other workers as the store has just listed them, and returns those that have
    /// died.
    ///
    /// `passed` is the least time since the last list, in which the store was not away.
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

/// Returns a third of the lease, rounded up, so that three of them are at least a whole.
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
