//! The ends of tasks, and the entries that record them in the journal.

use crate::base::failure::{Failure, FailureKind};
use crate::base::journal::{Entry, Key, Kind, Outcome};
use crate::base::name::Name;
use crate::base::payload::Payload;
use crate::base::time::Timestamp;
use crate::store::Finish;
use crate::store::rules::position::{Activity, Cancellation, Course, End, Live};

/// The answer to whether something is left to be undone before a task ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Undo {
    /// The task has recorded no compensation since it was compensated last.
    Nothing,
    /// The task has recorded a compensation since it was compensated last.
    Left,
}

impl Undo {
    /// Returns what is left to be undone, by two entries of the journal.
    ///
    /// `recorded` is the number of the last [`Kind::Compensate`] entry, and `begun` that of the
    /// last [`Kind::Compensating`] entry.
    pub const fn of(recorded: Option<u64>, begun: Option<u64>) -> Self {
        match (recorded, begun) {
            (Some(recorded), Some(begun)) if recorded > begun => Self::Left,
            (Some(_), None) => Self::Left,
            _ => Self::Nothing,
        }
    }
}

/// The way in which a task comes to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ending {
    /// The task ends in this way.
    Ends(End),
    /// The task becomes pending, as compensating, and ends later.
    CompensatesFirst,
}

/// Returns the way in which a task comes to this end.
///
/// A task that has failed or was cancelled is compensated first when something is left to be
/// undone. The end of a task that is being compensated is final.
pub const fn on_end(end: End, course: Course, undo: Undo) -> Ending {
    match (end, course, undo) {
        (End::Failed | End::Cancelled, Course::Ordinary, Undo::Left) => Ending::CompensatesFirst,
        _ => Ending::Ends(end),
    }
}

impl Live {
    /// Returns the position of the task when its compensation begins.
    ///
    /// A request to cancel is answered by the compensation. A pause stays.
    pub const fn compensating(self) -> Self {
        Self {
            activity: Activity::Pending,
            course: Course::Compensating,
            cancellation: Cancellation::NotRequested,
            claims: self.claims,
        }
    }
}

impl From<&Finish> for End {
    fn from(finish: &Finish) -> Self {
        match finish {
            Finish::Completed(_) => Self::Completed,
            Finish::Failed(_) => Self::Failed,
            Finish::Cancelled => Self::Cancelled,
        }
    }
}

/// Returns the number of the attempt that a compensation undoes.
///
/// `attempt` is the count of the task's attempts. The attempt of a suspended task does not count,
/// and is replayed with its number.
pub const fn attempt_to_undo(attempt: u32, activity: Activity) -> u32 {
    match activity {
        Activity::Suspended => attempt.saturating_add(1),
        Activity::Pending | Activity::Running => attempt,
    }
}

/// Returns the maximum number of attempts of a task.
///
/// A task that is being compensated has at least 10, so that a process that dies does not end a
/// compensation halfway.
pub(crate) fn attempts(max_attempts: u32, compensating: bool) -> u32 {
    if compensating { max_attempts.max(10) } else { max_attempts }
}

/// Returns the end of a task that has been compensated after this failure, or after a cancellation.
pub fn end_of(failure: Failure) -> Finish {
    if failure.kind == FailureKind::Cancelled { Finish::Cancelled } else { Finish::Failed(failure) }
}

/// Returns the end of a task whose compensation has run to its end, with the errors that are its
/// output.
///
/// When the errors cannot be read, it is not known what is left to undo, and the failure says so.
pub(crate) fn compensated(original: Failure, errors: &Payload) -> Finish {
    match errors.decode() {
        Ok(compensation_errors) => end_of(Failure { compensation_errors, ..original }),
        Err(error) => {
            let failure = Failure::new(FailureKind::Payload, error.to_string());
            end_of(original.without_the_rest(failure))
        }
    }
}

/// Returns the entry that begins a compensation, and the failure that it holds.
///
/// The entry says how the task will have ended, and in which attempt.
pub fn compensating(seq: u64, attempt: u32, finish: Finish, at: Timestamp) -> (Entry, Failure) {
    let failure = match finish {
        Finish::Failed(failure) => failure,
        Finish::Completed(_) | Finish::Cancelled => cancelled(),
    };
    let key = Key {
        kind: Kind::Compensating,
        name: Name::known("compensating"),
        ordinal: attempt.max(1),
    };
    (Entry { seq, key, outcome: Outcome::failed(failure.clone()), at }, failure)
}

/// Returns the entry that begins a retry after a compensation, which makes all earlier entries
/// count no longer.
pub fn retry_entry(seq: u64, at: Timestamp) -> Entry {
    let key = Key { kind: Kind::Attempt, name: Name::known("retry"), ordinal: 1 };
    Entry { seq, key, outcome: Outcome::Done(Payload::null()), at }
}

/// Returns the failure that stands for a cancellation.
pub fn cancelled() -> Failure {
    Failure::new(FailureKind::Cancelled, "the task was cancelled").permanent()
}

/// Returns the failure of a join whose child was deleted before.
pub fn deleted() -> Failure {
    Failure::new(FailureKind::Child, "the child task was deleted before its parent joined it")
        .permanent()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn something_is_left_to_undo_when_it_was_recorded_after_the_last_compensation() {
        let number = |n: u64| (n > 0).then_some(n);
        for recorded in 0..4 {
            for begun in 0..4 {
                let left = recorded > begun;
                let expected = if left { Undo::Left } else { Undo::Nothing };
                assert_eq!(Undo::of(number(recorded), number(begun)), expected);
            }
        }
    }

    #[test]
    fn a_task_is_compensated_once_and_only_when_it_did_not_succeed() {
        for end in End::ALL {
            for course in [Course::Ordinary, Course::Compensating] {
                for undo in [Undo::Nothing, Undo::Left] {
                    let first =
                        end != End::Completed && course == Course::Ordinary && undo == Undo::Left;
                    let expected = if first { Ending::CompensatesFirst } else { Ending::Ends(end) };
                    assert_eq!(on_end(end, course, undo), expected);
                }
            }
        }
    }

    #[test]
    fn a_suspended_attempt_has_its_number_though_it_does_not_count() {
        for attempt in [0, 1, u32::MAX - 1] {
            assert_eq!(attempt_to_undo(attempt, Activity::Pending), attempt);
            assert_eq!(attempt_to_undo(attempt, Activity::Running), attempt);
            assert_eq!(attempt_to_undo(attempt, Activity::Suspended), attempt + 1);
        }
    }

    #[test]
    fn errors_of_a_compensation_that_cannot_be_read_are_no_empty_list() {
        let original = Failure::new(FailureKind::Error, "no");
        let end = |json: &str| match compensated(original.clone(), &Payload::from_json(json)) {
            Finish::Failed(failure) => failure,
            other => panic!("{other:?}"),
        };
        assert_eq!(end("[]"), original);
        for json in ["null", "{}", "[1]", "nonsense"] {
            let errors = end(json).compensation_errors;
            assert_eq!(errors.len(), 1, "{json}");
            assert_eq!(errors[0].failure.kind, FailureKind::Payload, "{json}");
        }
    }

    #[test]
    fn the_entry_of_a_compensation_says_how_the_task_will_have_ended() {
        let failed = Failure::new(FailureKind::Error, "no");
        for (finish, end) in [
            (Finish::Failed(failed.clone()), Finish::Failed(failed)),
            (Finish::Cancelled, Finish::Cancelled),
        ] {
            let (entry, failure) = compensating(7, 0, finish, Timestamp::UNIX_EPOCH);
            assert_eq!((entry.seq, entry.key.ordinal), (7, 1));
            assert_eq!(entry.outcome, Outcome::failed(failure.clone()));
            assert_eq!(end_of(failure), end);
        }
    }
}
