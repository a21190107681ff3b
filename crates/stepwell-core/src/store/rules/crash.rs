//! Crashes: what the death of a worker means for the tasks that it ran.
//!
//! A process that dies takes all of its runs with it, and usually at most one task is to blame. A
//! task therefore gets another attempt in the place of the one that a crash has ended. The store
//! counts, for each task, the crashes in a row that its runs met without journaling anything in
//! between.
//!
//! | crashes in a row | the task |
//! | --- | --- |
//! | 1 | is claimed again like any other |
//! | [`SUSPECT_CRASHES`] | is a *suspect*: a process runs a group of them at a time, so that a further crash is blamed on few |
//! | more | is run as the only suspect, so that a further crash is blamed on it alone |
//! | [`crash_limit`] | fails with [`crashed`] |

use crate::base::failure::{Failure, FailureKind};
use crate::store::Finish;
use crate::store::rules::ending::end_of;
use crate::store::rules::leaving::{GivenBack, given_back};
use crate::store::rules::position::{Cancellation, Course};

/// The number of crashes in a row from which on a task is a suspect: a process runs few suspects at
/// a time.
pub const SUSPECT_CRASHES: u32 = 2;

/// Returns the number of crashes in a row with which a task fails: its maximum number of attempts,
/// and at least 5.
///
/// The number is at least 10 for a task that is being compensated, because a compensation that has
/// begun should be completed.
pub const fn crash_limit(max_attempts: u32, compensating: bool) -> u32 {
    let least = if compensating { 10 } else { 5 };
    if max_attempts > least { max_attempts } else { least }
}

/// Returns the number of crashes in a row after another crash.
///
/// `progress` is the number of the last journal entry that a run delivered
/// ([`Kind::is_progress`](crate::Kind::is_progress)), 0 when there is none. `seen` is the same
/// number at the crash before.
pub const fn crashes_after_another(crashes: u32, progress: u64, seen: u64) -> u32 {
    if progress > seen { 1 } else { crashes.saturating_add(1) }
}

/// Returns the failure of a task whose worker died this many times in a row while it ran the task.
pub fn crashed(crashes: u32) -> Failure {
    let message = format!(
        "the worker's process died {crashes} times in a row while it ran the task, and the task \
         journaled nothing in between. If the task itself ends its process (out of memory, abort), \
         mend that, then retry it"
    );
    Failure::new(FailureKind::Crashed, message).permanent()
}

/// The consequence of a worker's death for a task that it ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Death {
    /// The task loses its owner, and gets another attempt.
    GivenBack(GivenBack),
    /// The task is quarantined: it fails with [`crashed`], or is compensated first.
    Quarantined,
    /// The compensation is given up, and the task ends [as it would have](end_of), with the crash
    /// among the errors of its compensations.
    EndsAsItWouldHave,
}

/// Returns the consequence of a worker's death for a task that has met this many crashes in a row
/// with this one.
pub const fn on_death(
    crashes: u32,
    max_attempts: u32,
    course: Course,
    cancellation: Cancellation,
) -> Death {
    let compensating = matches!(course, Course::Compensating);
    match (given_back(cancellation), course) {
        (back, _)
            if matches!(back, GivenBack::EndsAsCancelled)
                || crashes < crash_limit(max_attempts, compensating) =>
        {
            Death::GivenBack(back)
        }
        (_, Course::Ordinary) => Death::Quarantined,
        (_, Course::Compensating) => Death::EndsAsItWouldHave,
    }
}

/// Returns the end of a task with too many crashes in a row.
///
/// `original` is the failure that the task's row holds: of a task that is being compensated, the
/// one with which it would have ended.
pub fn end_after_death(crashes: u32, course: Course, original: Option<Failure>) -> Finish {
    match (course, original) {
        (Course::Compensating, Some(original)) => {
            end_of(original.without_the_rest(crashed(crashes)))
        }
        (Course::Compensating, None) | (Course::Ordinary, _) => Finish::Failed(crashed(crashes)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::rules::ending::cancelled;

    #[test]
    fn a_task_fails_at_its_limit_unless_it_was_to_be_cancelled() {
        for max_attempts in [0, 1, 4, 5, 6, 9, 10, 11, u32::MAX] {
            for (course, least) in [(Course::Ordinary, 5), (Course::Compensating, 10)] {
                let limit = least.max(max_attempts);
                for crashes in [1, limit - 1, limit, limit.saturating_add(1), u32::MAX] {
                    let death =
                        |cancellation| on_death(crashes, max_attempts, course, cancellation);
                    let expected = match (crashes < limit, course) {
                        (true, _) => Death::GivenBack(GivenBack::Pending),
                        (false, Course::Ordinary) => Death::Quarantined,
                        (false, Course::Compensating) => Death::EndsAsItWouldHave,
                    };
                    assert_eq!(death(Cancellation::NotRequested), expected);
                    let asked = Death::GivenBack(GivenBack::EndsAsCancelled);
                    assert_eq!(death(Cancellation::Requested), asked);
                }
            }
        }
    }

    #[test]
    fn a_compensation_that_is_given_up_keeps_the_end_of_its_task() {
        let failed = Failure::new(FailureKind::Error, "no");
        for original in [None, Some(failed.clone()), Some(cancelled())] {
            let ordinary = end_after_death(7, Course::Ordinary, original.clone());
            assert_eq!(ordinary, Finish::Failed(crashed(7)), "its last failure is not its end");
            let expected = match &original {
                None => Finish::Failed(crashed(7)),
                Some(original) if *original == failed => {
                    Finish::Failed(original.clone().without_the_rest(crashed(7)))
                }
                Some(_) => Finish::Cancelled,
            };
            assert_eq!(end_after_death(7, Course::Compensating, original), expected);
        }
    }

    #[test]
    fn crashes_are_counted_from_one_after_progress() {
        for crashes in [0, 1, 4, u32::MAX] {
            for (progress, seen) in [(0, 0), (1, 1), (2, 1), (1, 2)] {
                let more = crashes_after_another(crashes, progress, seen);
                match progress > seen {
                    true => assert_eq!(more, 1),
                    false => assert_eq!(more, crashes.saturating_add(1)),
                }
            }
        }
    }
}
