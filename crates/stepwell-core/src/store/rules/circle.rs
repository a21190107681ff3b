//! Circles of tasks that wait for each other's ends.
//!
//! ```text
//!   order (key "acme") ── joins ──▶ check ── joins ──▶ sync (key "acme")
//!          ▲                                                  │
//!          └──────── begins when that has ended ──────────────┘
//! ```
//!
//! None of these tasks would ever go on. A circle closes when one of its tasks is suspended. The
//! store therefore looks for a circle at each suspension that only joins lead to. The task that
//! would close a circle stays running, and its join fails.

use std::collections::HashSet;

use crate::base::failure::{Failure, FailureKind};
use crate::base::ids::TaskId;

/// Returns the failure of a join whose child would never end.
pub fn blocked() -> Failure {
    Failure::new(FailureKind::Blocked, "it would be waited for for ever").permanent()
}

/// Returns a task that this one would wait for for ever, if nothing that it waits for can come
/// before it has ended itself.
///
/// `held_up_by` returns tasks that have to end before a task goes on, at most as many as the second
/// argument says:
/// - for a task that waits for its turn, the task whose turn it is by their concurrency key;
/// - for a suspended task that waits only for the ends of other tasks, those tasks;
/// - for any other task, none: it goes on by itself, or something from outside may let it.
///
/// # Errors
/// The errors of `held_up_by`.
pub fn waits_for_ever<E>(
    task_id: TaskId,
    mut held_up_by: impl FnMut(TaskId, usize) -> Result<Vec<TaskId>, E>,
) -> Result<Option<TaskId>, E> {
    let Some(first) = held_up_by(task_id, 1)?.first().copied() else { return Ok(None) };
    // A path mostly ends at a task that goes on, and is short.
    let (mut seen, mut at) = (HashSet::from([task_id]), first);
    while seen.insert(at) {
        match held_up_by(at, 1)?.first() {
            Some(next) => at = *next,
            None => return Ok(None),
        }
    }
    let (mut seen, mut left) = (HashSet::new(), vec![task_id]);
    while let Some(at) = left.pop() {
        if seen.insert(at) {
            let others = held_up_by(at, usize::MAX)?;
            if others.is_empty() {
                return Ok(None);
            }
            left.extend(others);
        }
    }
    Ok(Some(first))
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use uuid::Uuid;

    use super::*;

    /// Returns whether task 0 waits for ever, and the number of looks that this took; a task
    /// without a line goes on.
    fn of(tasks: &[&[u128]]) -> (bool, usize) {
        let mut looks = 0;
        let Ok(blocked) = waits_for_ever::<Infallible>(Uuid::nil().into(), |task_id, most| {
            looks += 1;
            let line = tasks.get(task_id.as_uuid().as_u128() as usize).copied().unwrap_or_default();
            Ok(line.iter().take(most).map(|n| Uuid::from_u128(*n).into()).collect())
        });
        (blocked.is_some(), looks)
    }

    #[test]
    fn a_task_waits_for_ever_when_no_path_leads_to_one_that_goes_on() {
        for (tasks, for_ever) in [
            (&[&[0_u128] as &[u128]] as &[&[u128]], true),
            (&[&[1], &[2], &[0]], true),
            // Task 0 is not in the circle, and waits for it.
            (&[&[1], &[2], &[1]], true),
            (&[&[1, 2], &[0], &[0]], true),
            (&[], false),
            (&[&[1], &[2]], false),
            // A path leads out of the circle.
            (&[&[1, 2], &[0]], false),
            (&[&[1], &[0, 2], &[3], &[4]], false),
        ] {
            assert_eq!(of(tasks).0, for_ever, "{tasks:?}");
        }
    }

    #[test]
    fn a_task_that_waits_for_many_looks_at_one_of_them() {
        let many: Vec<_> = (1..10_000).collect();
        assert_eq!(of(&[&many]), (false, 2));
    }
}
