//! Schedules: their versions, and the tasks that a change spawns.

use rusqlite::{Result, params};
use stepwell_core::Name;
use stepwell_core::store::{ScheduleAction, ScheduleChange, ScheduleOutcome, SchedulePlan};

use crate::apply::Applying;
use crate::base::rows::{Sql, Statements as _};

impl Applying<'_, '_> {
    pub(crate) fn change_schedule(&mut self, change: &ScheduleChange) -> Result<ScheduleOutcome> {
        let ScheduleChange { name, action } = change;
        let mut spawned = false;
        let changed = match action {
            ScheduleAction::Create(SchedulePlan { version, definition, next_at }) => {
                self.conn.run(
                    "INSERT INTO stepwell_schedules (name, version, definition, next_at)
                VALUES (?1, ?2, ?3, ?4) ON CONFLICT DO NOTHING",
                    params![Sql(name), Sql(version), Sql(definition), next_at.as_ref().map(Sql)],
                )?
            }
            ScheduleAction::Replace { seen, plan, spawns, unless_running } => {
                let SchedulePlan { version, definition, next_at } = plan;
                let changed = self.conn.run(
                    "UPDATE stepwell_schedules SET version = ?3, definition = ?4, next_at = ?5
                    WHERE name = ?1 AND version = ?2",
                    params![
                        Sql(name),
                        Sql(seen),
                        Sql(version),
                        Sql(definition),
                        next_at.as_ref().map(Sql)
                    ],
                )?;
                if changed == 1
                    && let Some(last) = spawns.last()
                    && !(*unless_running && self.last_task_runs(name)?)
                {
                    self.conn.run(
                        "UPDATE stepwell_schedules SET last_task = ?2 WHERE name = ?1",
                        params![Sql(name), Sql(&last.task_id)],
                    )?;
                    for task in spawns {
                        self.spawn(task)?;
                    }
                    spawned = true;
                }
                changed
            }
            ScheduleAction::Delete => self
                .conn
                .run("DELETE FROM stepwell_schedules WHERE name = ?1", params![Sql(name)])?,
        };
        Ok(if changed == 1 {
            ScheduleOutcome::Changed { spawned }
        } else {
            ScheduleOutcome::Refused
        })
    }

    /// Returns whether the last task that the schedule spawned has not ended.
    fn last_task_runs(&self, name: &Name) -> Result<bool> {
        let runs = self.conn.one(
            "SELECT 1 FROM stepwell_schedules s JOIN stepwell_tasks t ON t.task_id = s.last_task
            WHERE s.name = ?1 AND t.state IN ('pending', 'running', 'suspended')",
            params![Sql(name)],
            |_| Ok(()),
        )?;
        Ok(runs.is_some())
    }
}
