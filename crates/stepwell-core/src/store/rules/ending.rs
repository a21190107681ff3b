//! How tasks end, and what the journal says of it.

use crate::base::failure::{Failure, FailureKind};
use crate::base::journal::{Entry, Key, Kind, Outcome};
use crate::base::name::Name;
use crate::base::payload::Payload;
use crate::base::time::Timestamp;
use crate::store::Finish;

/// How many attempts a task has: its own, and at least 10 once it is being compensated, so that a
/// process that dies does not end what is half undone.
pub(crate) fn attempts(max_attempts: u32, compensating: bool) -> u32 {
    if compensating { max_attempts.max(10) } else { max_attempts }
}

/// How a task ends that failed so, or was cancelled, and has been compensated.
pub fn end_of(failure: Failure) -> Finish {
    if failure.kind == FailureKind::Cancelled { Finish::Cancelled } else { Finish::Failed(failure) }
}

/// The journal's entry that says that a task is compensated from here on, how it will have ended,
/// and after which attempt.
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

/// The journal's entry that says that the task is run again after it was compensated: what is
/// before it no longer counts.
pub fn begun_anew(seq: u64, at: Timestamp) -> Entry {
    let key = Key { kind: Kind::Attempt, name: Name::known("retry"), ordinal: 1 };
    Entry { seq, key, outcome: Outcome::Done(Payload::null()), at }
}

/// What is written down of a cancellation, where a failure would be.
pub fn cancelled() -> Failure {
    Failure::new(FailureKind::Cancelled, "the task was cancelled").permanent()
}

/// What a parent gets for a child that was deleted before it was joined.
pub fn deleted() -> Failure {
    Failure::new(FailureKind::Child, "the child task was deleted before its parent joined it")
        .permanent()
}
