//! Schedules as stores keep them: what is kept of each, and what changes it.
//!
//! A store knows nothing of patterns and policies: it keeps a definition that it need not read, and
//! when the schedule is to be looked at. Whoever changes a schedule names the version that it saw.
//! So of all workers that come to a tick, one changes the schedule, and spawns its task in the same
//! commit; the others are refused.

use crate::base::ids::{ScheduleVersion, TaskId};
use crate::base::name::Name;
use crate::base::payload::Payload;
use crate::base::time::Timestamp;
use crate::store::NewTask;
use crate::store::page::Listed;

/// A schedule in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scheduled {
    /// Its name.
    pub name: Name,
    /// What it is now.
    pub plan: SchedulePlan,
    /// The last task that was spawned by a change of it.
    pub last_task: Option<TaskId>,
}

/// What a schedule is until it is changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SchedulePlan {
    /// Names this state of it: another one after each change.
    pub version: ScheduleVersion,
    /// What the engine knows of it, as JSON.
    pub definition: Payload,
    /// When it is to be looked at; never when `None`.
    pub next_at: Option<Timestamp>,
}

/// A change of a schedule.
#[derive(Clone, Debug)]
pub struct ScheduleChange {
    /// Its name.
    pub name: Name,
    /// What becomes of it.
    pub action: ScheduleAction,
}

/// What becomes of a schedule.
#[derive(Clone, Debug)]
pub enum ScheduleAction {
    /// It comes to be. Refused when it is there.
    Create(SchedulePlan),
    /// It becomes this, and tasks are spawned. Refused unless it is what it was when it was seen.
    Replace {
        /// Its version when it was seen.
        seen: ScheduleVersion,
        /// What it becomes.
        plan: SchedulePlan,
        /// The tasks, of which the last one becomes its `last_task`. None has a parent, an
        /// idempotency key or a `claim_by`.
        spawns: Vec<NewTask>,
        /// Nothing is spawned while its `last_task` has not ended.
        unless_running: bool,
    },
    /// It is removed. Refused when it is not there.
    Delete,
}

impl ScheduleChange {
    /// What it becomes, unless it is removed.
    pub const fn plan(&self) -> Option<&SchedulePlan> {
        match &self.action {
            ScheduleAction::Create(plan) | ScheduleAction::Replace { plan, .. } => Some(plan),
            ScheduleAction::Delete => None,
        }
    }

    /// The tasks that are to be spawned.
    pub fn spawns(&self) -> &[NewTask] {
        match &self.action {
            ScheduleAction::Replace { spawns, .. } => spawns,
            ScheduleAction::Create(_) | ScheduleAction::Delete => &[],
        }
    }
}

/// What became of a [`ScheduleChange`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScheduleOutcome {
    /// It was changed.
    Changed {
        /// Whether the tasks were spawned.
        spawned: bool,
    },
    /// It was not, and nothing was spawned.
    Refused,
}

impl ScheduleOutcome {
    /// Whether tasks were spawned.
    pub const fn has_spawned(&self) -> bool {
        matches!(self, Self::Changed { spawned: true })
    }
}

/// Which schedules to read.
#[derive(Clone, Debug)]
pub enum ScheduleFilter {
    /// All of them, by name.
    All {
        /// Behind this one, by its name alone.
        behind: Option<<Scheduled as Listed>::Cursor>,
    },
    /// The one of this name, if it is there.
    Named(Name),
    /// Those with a `next_at`, the earliest first, then by name.
    Next {
        /// Behind this one.
        behind: Option<<Scheduled as Listed>::Cursor>,
        /// So many at most.
        limit: usize,
    },
}
