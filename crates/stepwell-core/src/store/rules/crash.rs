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
