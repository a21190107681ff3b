//! The positions of a task in its life: all that the rules distinguish.

use crate::store::TaskState;
use crate::store::rules::spawn::{Start, Turn};

/// The activity of a task that has not ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activity {
    /// The task waits to be claimed.
    Pending,
    /// A worker runs the task.
    Running,
    /// The task has given up its run until something arrives.
    Suspended,
}

/// The course of a task: towards its output, or back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Course {
    /// The task works towards its output.
    Ordinary,
    /// The task has failed or was cancelled, and is compensated before it ends.
    Compensating,
}

impl Course {
    /// Returns the course that a store's flag says.
    pub const fn of(compensating: bool) -> Self {
        if compensating { Self::Compensating } else { Self::Ordinary }
    }
}

/// The flag of a task that has been asked to cancel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cancellation {
    /// No client has asked the task's run to end.
    NotRequested,
    /// The task's run is asked to end.
    Requested,
}

impl Cancellation {
    /// Returns the request that a store's flag says.
    pub const fn of(requested: bool) -> Self {
        if requested { Self::Requested } else { Self::NotRequested }
    }
}

/// The flag of a paused task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Claims {
    /// Workers may claim the task.
    Open,
    /// The task is paused: no worker claims it until it is resumed.
    Paused,
}

impl Claims {
    /// Returns the value that a store's flag says.
    pub const fn of(paused: bool) -> Self {
        if paused { Self::Paused } else { Self::Open }
    }
}

/// The end of a task, without its output or failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum End {
    /// The task has its output.
    Completed,
    /// The task has failed.
    Failed,
    /// The task was cancelled.
    Cancelled,
}

impl End {
    /// The list of all ends.
    pub const ALL: [Self; 3] = [Self::Completed, Self::Failed, Self::Cancelled];

    /// Returns the state of a task that has ended in this way.
    pub const fn state(self) -> TaskState {
        match self {
            Self::Completed => TaskState::Completed,
            Self::Failed => TaskState::Failed,
            Self::Cancelled => TaskState::Cancelled,
        }
    }
}

/// The position of a task that has not ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Live {
    /// The activity of the task.
    pub activity: Activity,
    /// The course of the task.
    pub course: Course,
    /// The request to cancel.
    pub cancellation: Cancellation,
    /// The flag of a pause.
    pub claims: Claims,
}

impl Live {
    /// The position of a task that was just spawned, or that runs again after its end.
    pub const NEW: Self = Self {
        activity: Activity::Pending,
        course: Course::Ordinary,
        cancellation: Cancellation::NotRequested,
        claims: Claims::Open,
    };

    /// Returns whether a worker may claim the task: its time and turn have come, and it is not
    /// paused.
    pub const fn is_claimable(self, start: Start, turn: Turn) -> bool {
        matches!(
            (self.activity, self.claims, start, turn),
            (Activity::Pending, Claims::Open, Start::Now, Turn::Free)
        )
    }
}

/// The position of a task in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Position {
    /// The task has not ended.
    Live(Live),
    /// The task has ended.
    Ended(End),
}

impl Position {
    /// Returns the position that a store's row says.
    ///
    /// The flags of a task that has ended mean nothing. [`TaskState::Compensating`] does not say
    /// what the task does: such a task, from an export, is pending.
    pub const fn of(
        state: TaskState,
        course: Course,
        cancellation: Cancellation,
        claims: Claims,
    ) -> Self {
        let (activity, course) = match state {
            TaskState::Pending => (Activity::Pending, course),
            TaskState::Running => (Activity::Running, course),
            TaskState::Suspended => (Activity::Suspended, course),
            TaskState::Compensating => (Activity::Pending, Course::Compensating),
            TaskState::Completed => return Self::Ended(End::Completed),
            TaskState::Failed => return Self::Ended(End::Failed),
            TaskState::Cancelled => return Self::Ended(End::Cancelled),
        };
        Self::Live(Live { activity, course, cancellation, claims })
    }

    /// Returns the state that users see.
    pub const fn state(self) -> TaskState {
        match self {
            Self::Ended(end) => end.state(),
            Self::Live(Live { course: Course::Compensating, .. }) => TaskState::Compensating,
            Self::Live(Live { activity: Activity::Pending, .. }) => TaskState::Pending,
            Self::Live(Live { activity: Activity::Running, .. }) => TaskState::Running,
            Self::Live(Live { activity: Activity::Suspended, .. }) => TaskState::Suspended,
        }
    }

    /// Returns whether a task can be in the position.
    ///
    /// Only a run is asked to cancel, and the request is answered when the run leaves its task. A
    /// task that is compensated is not asked.
    pub const fn is_reachable(self) -> bool {
        match self {
            Self::Live(Live {
                activity, course, cancellation: Cancellation::Requested, ..
            }) => {
                matches!((activity, course), (Activity::Running, Course::Ordinary))
            }
            Self::Live(_) | Self::Ended(_) => true,
        }
    }

    /// Returns the list of all positions, in a fixed order.
    pub fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for course in [Course::Ordinary, Course::Compensating] {
            for activity in [Activity::Pending, Activity::Running, Activity::Suspended] {
                for cancellation in [Cancellation::NotRequested, Cancellation::Requested] {
                    for claims in [Claims::Open, Claims::Paused] {
                        all.push(Self::Live(Live { activity, course, cancellation, claims }));
                    }
                }
            }
        }
        all.extend(End::ALL.map(Self::Ended));
        all
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn the_list_of_positions_has_each_once_and_rows_say_them() {
        let all = Position::all();
        assert_eq!((all.len(), all.iter().collect::<HashSet<_>>().len()), (27, 27));
        let mut said = HashSet::new();
        for state in TaskState::ALL {
            for flags in 0..8_u8 {
                let flag = |bit: u8| flags & bit != 0;
                let (course, cancellation) = (Course::of(flag(1)), Cancellation::of(flag(2)));
                let position = Position::of(state, course, cancellation, Claims::of(flag(4)));
                said.insert(position);
                let shown = match state.is_finished() || course == Course::Ordinary {
                    true => state,
                    false => TaskState::Compensating,
                };
                assert_eq!(position.state(), shown, "{position:?}");
            }
        }
        assert_eq!(said, all.into_iter().collect());
    }

    #[test]
    fn a_worker_may_claim_a_pending_task_with_nothing_in_the_way() {
        for position in Position::all() {
            let Position::Live(live) = position else { continue };
            for start in [Start::Now, Start::Later] {
                for turn in [Turn::Free, Turn::Taken] {
                    let expected = live.activity == Activity::Pending
                        && live.claims == Claims::Open
                        && start == Start::Now
                        && turn == Turn::Free;
                    assert_eq!(live.is_claimable(start, turn), expected, "{live:?}");
                }
            }
        }
    }

    #[test]
    fn only_an_ordinary_run_has_been_asked_to_cancel() {
        let asked = |position: &Position| match position {
            Position::Live(live) => live.cancellation == Cancellation::Requested,
            Position::Ended(_) => false,
        };
        let reached: Vec<_> =
            Position::all().into_iter().filter(|position| position.is_reachable()).collect();
        assert_eq!(reached.len(), 17);
        for position in reached.iter().filter(|position| asked(position)) {
            let Position::Live(live) = position else { panic!("{position:?}") };
            assert_eq!((live.activity, live.course), (Activity::Running, Course::Ordinary));
        }
    }
}
