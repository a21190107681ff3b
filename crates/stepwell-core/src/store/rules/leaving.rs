//! The ways in which a run leaves its task, and the counts of attempts after them.

use crate::store::rules::crash::crashes_after_another;
use crate::store::rules::position::Cancellation;

/// The way in which a run leaves a task that does not end by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Leaving {
    /// The attempt failed, and another one may follow.
    Failed,
    /// The run returned the task unfinished, its worker stopped, or its journal has lost its end.
    Released,
    /// The task only waits.
    Suspended,
    /// The worker has died.
    Died(Progress),
}

/// The progress of a task since the last crash, by the numbers of the entries that show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Progress {
    /// The number of the last entry that a run delivered, 0 when there is none.
    pub now: u64,
    /// The same number at the crash before.
    pub at_last_crash: u64,
}

/// The counts that a store keeps of a task's attempts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Counts {
    /// The number of the latest attempt that counts.
    pub attempt: u32,
    /// The number of attempts that a crash has ended; each of them is replaced.
    pub lost: u32,
    /// The number of crashes in a row.
    pub crashes: u32,
}

impl Counts {
    /// Returns the counts when a worker begins an attempt.
    pub const fn claimed(self) -> Self {
        Self { attempt: self.attempt.saturating_add(1), ..self }
    }

    /// Returns the counts when the run has left its task.
    pub const fn left(self, leaving: Leaving) -> Self {
        match leaving {
            Leaving::Failed => Self { crashes: 0, ..self },
            Leaving::Released | Leaving::Suspended => {
                Self { attempt: self.attempt.saturating_sub(1), crashes: 0, ..self }
            }
            Leaving::Died(Progress { now, at_last_crash }) => Self {
                lost: self.lost.saturating_add(1),
                crashes: crashes_after_another(self.crashes, now, at_last_crash),
                ..self
            },
        }
    }

    /// Returns the counts when the compensation of the task begins: all but the crashes begin
    /// again.
    pub const fn compensating(self) -> Self {
        Self { attempt: 0, lost: 0, crashes: self.crashes }
    }
}

/// The state of a task that a run has given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GivenBack {
    /// The task is pending, without an owner.
    Pending,
    /// The task ends as cancelled, or is compensated first, because it was asked to cancel.
    EndsAsCancelled,
}

/// Returns the state of a task that a run has given back.
pub const fn given_back(cancellation: Cancellation) -> GivenBack {
    match cancellation {
        Cancellation::NotRequested => GivenBack::Pending,
        Cancellation::Requested => GivenBack::EndsAsCancelled,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_counts_when_it_failed_or_its_worker_died() {
        for attempt in [0, 1, 5, u32::MAX] {
            for lost in [0, 3, u32::MAX] {
                for crashes in [0, 1, u32::MAX] {
                    let counts = Counts { attempt, lost, crashes };
                    let of = |attempt, lost, crashes| Counts { attempt, lost, crashes };
                    let less = attempt.saturating_sub(1);
                    assert_eq!(counts.left(Leaving::Failed), of(attempt, lost, 0));
                    assert_eq!(counts.left(Leaving::Released), of(less, lost, 0));
                    assert_eq!(counts.left(Leaving::Suspended), of(less, lost, 0));
                    let more = lost.saturating_add(1);
                    let died = |now| Leaving::Died(Progress { now, at_last_crash: 3 });
                    assert_eq!(counts.left(died(4)), of(attempt, more, 1));
                    let again = crashes.saturating_add(1);
                    assert_eq!(counts.left(died(3)), of(attempt, more, again));
                    assert_eq!(counts.compensating(), of(0, 0, crashes));
                    let claimed = attempt.saturating_add(1);
                    assert_eq!(counts.claimed(), of(claimed, lost, crashes));
                }
            }
        }
    }

    #[test]
    fn a_suspension_and_a_release_use_up_no_attempt() {
        let mut counts = Counts { attempt: 2, lost: 1, crashes: 0 };
        let before = counts;
        for leaving in [Leaving::Suspended, Leaving::Released] {
            counts = counts.claimed().left(leaving);
            assert_eq!(counts, before);
        }
    }

    #[test]
    fn a_task_that_was_asked_to_cancel_is_not_tried_again() {
        assert_eq!(given_back(Cancellation::NotRequested), GivenBack::Pending);
        assert_eq!(given_back(Cancellation::Requested), GivenBack::EndsAsCancelled);
    }
}
