//! The ends of tasks, and the entries that record them in the journal.

use crate::base::failure::{Failure, FailureKind};
use crate::base::journal::{Entry, Key, Kind, Outcome};
use crate::base::name::Name;
use crate::base::payload::Payload;
use crate::base::time::Timestamp;
use crate::store::Finish;

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
pub fn begun_anew(seq: u64, at: Timestamp) -> Entry {
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
