//! Schedules: their versions, and the tasks that a change spawns.

use super::State;
use crate::store::{News, ScheduleAction, ScheduleChange, ScheduleFilter, ScheduleOutcome, Scheduled};
use crate::time::Timestamp;

impl State {
    pub(super) fn change_schedule(
        &mut self,
        now: Timestamp,
        change: ScheduleChange,
        news: &mut News,
    ) -> ScheduleOutcome {
        let ScheduleChange { name, action } = change;
        let there = self.schedules.get_mut(&name);
        match (action, there) {
            (ScheduleAction::Create(plan), None) => {
                self.schedules.insert(name.clone(), Scheduled { name, plan, last_task: None });
                ScheduleOutcome::Changed { spawned: false }
            }
            (ScheduleAction::Replace { seen, plan, spawns, unless_running }, Some(schedule))
                if schedule.plan.version == seen =>
            {
                schedule.plan = plan;
                let last = schedule.last_task.and_then(|task_id| self.tasks.get(&task_id));
                let held_up = unless_running && last.is_some_and(|task| !task.state.is_finished());
                let spawned = !(spawns.is_empty() || held_up);
                if spawned {
                    schedule.last_task = spawns.last().map(|task| task.task_id);
                    for task in spawns {
                        self.spawn(now, task, news);
                    }
                }
                ScheduleOutcome::Changed { spawned }
            }
            (ScheduleAction::Delete, Some(_)) => {
                self.schedules.remove(&name);
                ScheduleOutcome::Changed { spawned: false }
            }
            _ => ScheduleOutcome::Refused,
        }
    }

    pub(super) fn schedules(&self, which: ScheduleFilter) -> Vec<Scheduled> {
        match which {
            ScheduleFilter::All => self.schedules.values().cloned().collect(),
            ScheduleFilter::Named(name) => self.schedules.get(&name).cloned().into_iter().collect(),
            ScheduleFilter::Next(limit) => {
                let mut next: Vec<_> = self
                    .schedules
                    .values()
                    .filter(|schedule| schedule.plan.next_at.is_some())
                    .cloned()
                    .collect();
                // Stable: by name where the moments are the same.
                next.sort_by_key(|schedule| schedule.plan.next_at);
                next.truncate(limit);
                next
            }
        }
    }
}
