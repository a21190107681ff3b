//! Schedules as stores keep them, and the changes of them.
//!
//! A store knows nothing of patterns and policies. It keeps a definition, which it need not read,
//! and the time at which a worker is to look at the schedule. A change of a schedule names the
//! version that the worker saw. So one of all workers that come to a tick changes the schedule, and
//! spawns its task in the same commit. The changes of the other workers are refused.

use crate::base::ids::{ScheduleVersion, TaskId};
use crate::base::name::Name;
use crate::base::payload::Payload;
use crate::base::time::Timestamp;
use crate::store::NewTask;
use crate::store::page::Listed;

/// A schedule in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scheduled {
    /// The name of the schedule.
    pub name: Name,
    /// The current plan of the schedule.
    pub plan: SchedulePlan,
    /// The last task that was spawned by a change of the schedule.
    pub last_task: Option<TaskId>,
}

/// The state of a schedule between two changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SchedulePlan {
    /// The id of this state, which is another one after each change.
    pub version: ScheduleVersion,
    /// The engine's definition of the schedule, as JSON.
    pub definition: Payload,
    /// The time at which a worker is to look at the schedule; `None` for never.
    pub next_at: Option<Timestamp>,
}

/// A change of a schedule.
#[derive(Clone, Debug)]
pub struct ScheduleChange {
    /// The name of the schedule.
    pub name: Name,
    /// The change.
    pub action: ScheduleAction,
}

/// The kind of change of a schedule.
#[derive(Clone, Debug)]
pub enum ScheduleAction {
    /// The schedule is created; the change is refused when the schedule exists.
    Create(SchedulePlan),
    /// The schedule gets this plan, and tasks are spawned; the change is refused unless the version
    /// is the seen one.
    Replace {
        /// The version of the schedule when it was seen.
        seen: ScheduleVersion,
        /// The new plan.
        plan: SchedulePlan,
        /// The tasks to spawn, of which the last one becomes the schedule's `last_task`.
        ///
        /// None of them has a parent, an idempotency key or a `claim_by`.
        spawns: Vec<NewTask>,
        /// `true` to spawn nothing while the schedule's `last_task` has not ended.
        unless_running: bool,
    },
    /// The schedule is removed; the change is refused when the schedule does not exist.
    Delete,
}

impl ScheduleChange {
    /// Returns the new plan, unless the schedule is removed.
    pub const fn plan(&self) -> Option<&SchedulePlan> {
        match &self.action {
            ScheduleAction::Create(plan) | ScheduleAction::Replace { plan, .. } => Some(plan),
            ScheduleAction::Delete => None,
        }
    }

    /// Returns the tasks that are to be spawned.
    pub fn spawns(&self) -> &[NewTask] {
        match &self.action {
            ScheduleAction::Replace { spawns, .. } => spawns,
            ScheduleAction::Create(_) | ScheduleAction::Delete => &[],
        }
    }
}

/// The result of a [`ScheduleChange`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScheduleOutcome {
    /// The schedule was changed.
    Changed {
        /// `true` when the tasks were spawned.
        spawned: bool,
    },
    /// The schedule was not changed, and nothing was spawned.
    Refused,
}

impl ScheduleOutcome {
    /// Returns whether tasks were spawned.
    pub const fn has_spawned(&self) -> bool {
        matches!(self, Self::Changed { spawned: true })
    }
}

/// A selection of schedules.
#[derive(Clone, Debug)]
pub enum ScheduleFilter {
    /// Selects all schedules, by name.
    All {
        /// The place after which to begin, of which only the name counts.
        behind: Option<<Scheduled as Listed>::Cursor>,
    },
    /// Selects the schedule of this name, if it exists.
    Named(Name),
    /// Selects the schedules with a `next_at`, the earliest first, then by name.
    Next {
        /// The place after which to begin.
        behind: Option<<Scheduled as Listed>::Cursor>,
        /// The maximum number of schedules.
        limit: usize,
    },
}
