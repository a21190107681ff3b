//! The start in the commit that spawns a task, and the tasks that spawns coalesce with.

use crate::base::time::Timestamp;
use crate::store::rules::position::{Activity, Course, Live};

/// The time of a task's start, or of its next attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Start {
    /// The task may start now.
    Now,
    /// The time of the task is still to come.
    Later,
}

impl Start {
    /// Returns the value for a time, or for none.
    pub fn of(start_at: Option<Timestamp>, now: Timestamp) -> Self {
        match start_at {
            Some(start_at) if start_at > now => Self::Later,
            Some(_) | None => Self::Now,
        }
    }
}

/// The turn of a task by its concurrency key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Turn {
    /// The task has no key, or no other task comes before it.
    Free,
    /// Another task comes first, or may.
    Taken,
}

/// The worker that is to start a task with its spawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Registration {
    /// The spawn names a worker that is registered.
    Registered,
    /// The spawn names no worker, or one that is not registered.
    Unknown,
}

/// The queue of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Queueing {
    /// The queue lets each task start at once.
    Free,
    /// The queue is paused or has limits.
    Restricted,
}

/// Returns whether a task starts in the commit that spawns it (an eager start).
///
/// A task with a concurrency key has [`Turn::Taken`] here, whatever other tasks there are. The
/// store is asked for the worker and the queue only when their answers matter.
///
/// # Errors
/// The errors of `worker` and `queue`.
pub fn starts_with_spawn<E>(
    start: Start,
    turn: Turn,
    worker: impl FnOnce() -> Result<Registration, E>,
    queue: impl FnOnce() -> Result<Queueing, E>,
) -> Result<bool, E> {
    Ok(start == Start::Now
        && turn == Turn::Free
        && worker()? == Registration::Registered
        && queue()? == Queueing::Free)
}

/// The answer to whether a task was ever claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Started {
    /// No worker has claimed the task.
    Never,
    /// A worker has claimed the task at least once.
    Once,
}

/// Returns whether a spawn of the same type, scope and concurrency key coalesces with the task.
pub const fn is_waiting(live: Live, started: Started) -> bool {
    matches!(
        (live.activity, live.course, started),
        (Activity::Pending, Course::Ordinary, Started::Never)
    )
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::convert::Infallible;

    use super::*;
    use crate::base::time::from_micros;
    use crate::store::rules::position::Position;

    #[test]
    fn a_task_starts_with_its_spawn_when_nothing_is_in_the_way() {
        for start in [Start::Now, Start::Later] {
            for turn in [Turn::Free, Turn::Taken] {
                for worker in [Registration::Registered, Registration::Unknown] {
                    for queue in [Queueing::Free, Queueing::Restricted] {
                        let asked = Cell::new(0);
                        let Ok(starts) = starts_with_spawn::<Infallible>(
                            start,
                            turn,
                            || Ok(worker),
                            || {
                                asked.set(asked.get() + 1);
                                Ok(queue)
                            },
                        );
                        let may = start == Start::Now
                            && turn == Turn::Free
                            && worker == Registration::Registered;
                        assert_eq!(starts, may && queue == Queueing::Free);
                        assert_eq!(
                            asked.get(),
                            u32::from(may),
                            "the queue is read when it matters"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn a_time_that_has_come_is_no_delay() {
        let now = from_micros(1_000);
        for (at, expected) in [(999, Start::Now), (1_000, Start::Now), (1_001, Start::Later)] {
            assert_eq!(Start::of(Some(from_micros(at)), now), expected);
        }
        assert_eq!(Start::of(None, now), Start::Now);
    }

    #[test]
    fn a_spawn_coalesces_with_a_task_that_no_worker_has_claimed() {
        for position in Position::all() {
            let Position::Live(live) = position else { continue };
            let expected = live.activity == Activity::Pending && live.course == Course::Ordinary;
            assert_eq!(is_waiting(live, Started::Never), expected, "{live:?}");
            assert!(!is_waiting(live, Started::Once));
        }
    }
}
