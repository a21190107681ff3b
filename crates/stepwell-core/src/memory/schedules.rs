//! Schedules: their versions, and the tasks that a change spawns.

use std::collections::BTreeMap;
use std::ops::Bound;

use super::State;
use crate::base::name::Name;
use crate::base::time::Timestamp;
use crate::store::page::Page;
use crate::store::{
    News, ScheduleAction, ScheduleChange, ScheduleFilter, ScheduleOutcome, Scheduled,
};

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

    pub(super) fn schedules(&self, which: ScheduleFilter) -> Page<Scheduled> {
        match which {
            ScheduleFilter::All { behind } => {
                let behind = |name: &Name| behind.as_ref().is_none_or(|(_, behind)| name > behind);
                let all = self.schedules.values().filter(|schedule| behind(&schedule.name));
                Page::of(all.cloned(), usize::MAX)
            }
            ScheduleFilter::Named(name) => Page::of(self.schedules.get(&name).cloned(), 1),
            ScheduleFilter::Next { behind, limit } => {
                let next =
                    self.schedules.values().filter(|schedule| schedule.plan.next_at.is_some());
                let next: BTreeMap<_, _> = next
                    .map(|schedule| ((schedule.plan.next_at, &schedule.name), schedule))
                    .collect();
                let from = behind
                    .as_ref()
                    .map_or(Bound::Unbounded, |(at, name)| Bound::Excluded((*at, name)));
                Page::of(
                    next.range((from, Bound::Unbounded)).map(|(_, schedule)| (*schedule).clone()),
                    limit,
                )
            }
        }
    }
}
