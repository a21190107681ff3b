//! The suspension of a task, and the arrival of what it waits for.

use crate::base::time::Timestamp;
use crate::store::rules::position::{Activity, Cancellation, Live, Position};

/// The time at which a wait of a task ends by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WakeAt {
    /// The time has come.
    Passed,
    /// The time is still to come.
    Ahead,
    /// No wait of the task ends by itself.
    Never,
}

impl WakeAt {
    /// Returns the value for a time, or for none.
    pub fn of(wake_at: Option<Timestamp>, now: Timestamp) -> Self {
        match wake_at {
            Some(wake_at) if wake_at <= now => Self::Passed,
            Some(_) => Self::Ahead,
            None => Self::Never,
        }
    }
}

/// The result of a look for what has arrived for a task's waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Found {
    /// Nothing has arrived.
    Nothing,
    /// Something has arrived, or may have.
    Something,
}

/// The answer to a task that asks to be suspended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Suspension {
    /// The task stays running: there is something to do.
    StaysRunning,
    /// The task is suspended.
    Suspends,
    /// The task is suspended, unless that closes a [circle](crate::waits_for_ever) of tasks that
    /// wait for each other.
    SuspendsUnlessInCircle,
}

/// Returns the answer to a task that asks to be suspended, after a look for what has arrived.
pub const fn on_suspension(
    cancellation: Cancellation,
    found: Found,
    wake_at: WakeAt,
) -> Suspension {
    match (cancellation, found, wake_at) {
        (Cancellation::Requested, _, _) | (_, Found::Something, _) | (_, _, WakeAt::Passed) => {
            Suspension::StaysRunning
        }
        // The time ends the wait, whatever the others do.
        (_, _, WakeAt::Ahead) => Suspension::Suspends,
        (_, _, WakeAt::Never) => Suspension::SuspendsUnlessInCircle,
    }
}

/// The effect of an arrival for a wait of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Arrival {
    /// The task becomes pending.
    Wakes,
    /// The task's run is notified.
    Notifies,
    /// The task finds what has arrived when it runs.
    Nothing,
}

/// Returns the effect of an arrival for a wait of a task.
pub const fn on_arrival(position: Position) -> Arrival {
    match position {
        Position::Live(Live { activity: Activity::Suspended, .. }) => Arrival::Wakes,
        Position::Live(Live { activity: Activity::Running, .. }) => Arrival::Notifies,
        Position::Live(Live { activity: Activity::Pending, .. }) | Position::Ended(_) => {
            Arrival::Nothing
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::time::from_micros;

    #[test]
    fn a_task_is_suspended_only_when_there_is_nothing_to_do() {
        for cancellation in [Cancellation::NotRequested, Cancellation::Requested] {
            for found in [Found::Nothing, Found::Something] {
                for wake_at in [WakeAt::Passed, WakeAt::Ahead, WakeAt::Never] {
                    let stays = cancellation == Cancellation::Requested
                        || found == Found::Something
                        || wake_at == WakeAt::Passed;
                    let expected = match (stays, wake_at) {
                        (true, _) => Suspension::StaysRunning,
                        (false, WakeAt::Never) => Suspension::SuspendsUnlessInCircle,
                        (false, _) => Suspension::Suspends,
                    };
                    assert_eq!(on_suspension(cancellation, found, wake_at), expected);
                }
            }
        }
    }

    #[test]
    fn a_time_has_come_at_its_microsecond() {
        let now = from_micros(1_000);
        for (at, expected) in
            [(999, WakeAt::Passed), (1_000, WakeAt::Passed), (1_001, WakeAt::Ahead)]
        {
            assert_eq!(WakeAt::of(Some(from_micros(at)), now), expected);
        }
        assert_eq!(WakeAt::of(None, now), WakeAt::Never);
    }

    #[test]
    fn an_arrival_wakes_a_task_that_waits_and_notifies_one_that_runs() {
        for position in Position::all() {
            let expected = match position {
                Position::Live(live) if live.activity == Activity::Suspended => Arrival::Wakes,
                Position::Live(live) if live.activity == Activity::Running => Arrival::Notifies,
                _ => Arrival::Nothing,
            };
            assert_eq!(on_arrival(position), expected, "{position:?}");
        }
    }
}
