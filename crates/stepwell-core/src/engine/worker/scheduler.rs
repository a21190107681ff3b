//! The care for schedules: every worker comes to every tick, and one of them spawns its task.
//!
//! ```text
//!   sleep until the earliest `next_at` ──▶ read what is due ──▶ commit: if it is still what was
//!        ▲        (a poll interval at most)                     read, spawn its tasks, and wait
//!        │                                                      for the next tick
//!        │                                                            │
//!        └──── nothing is due ◀── read again ◀────────────────────────┘ refused: another worker
//!                                                                       came first
//! ```
//!
//! The tick and its task are one commit. A crash at any moment therefore leaves both or neither,
//! and leaves the tick to another worker. The cost for a worker that came second is one refused
//! commit.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::select;

use crate::base::name::Name;
use crate::base::payload::{Payload, PayloadError};
use crate::base::retry::STORE_RETRY;
use crate::base::time::{Timestamp, until};
use crate::engine::Engine;
use crate::engine::worker::slots::Slots;
use crate::observe::trace;
use crate::store::headers::TICK_HEADER;
use crate::store::page::Page;
use crate::store::schedule::{CatchUp, Overlap, ScheduleInfo};
use crate::store::timing::InvalidSchedule;
use crate::store::{
    NewTask, ScheduleAction, ScheduleChange, ScheduleFilter, SchedulePlan, Scheduled, StoreError,
};

/// The delay after which a tick counts as missed.
const LATE: Duration = Duration::from_secs(60);
/// The number of schedules that are read together, and the most tasks that one change spawns.
const ROUND: usize = 100;
/// The size of a full change, in bytes of parameters.
const FULL: usize = 8 << 20;

/// Spawns the tasks of ticks while its worker lives.
pub(crate) async fn look_after_schedules(slots: Arc<Slots>) {
    let engine = slots.engine.clone();
    let (mut failures, mut unusable) = (0, BTreeSet::new());
    loop {
        let pause = match come_to_ticks(&engine, &mut unusable).await {
            Ok(next_at) => {
                failures = 0;
                let poll = slots.options.poll_interval;
                next_at.map_or(poll, |next_at| until(engine.store.now(), next_at).min(poll))
            }
            Err(error) => {
                failures += 1;
                tracing::warn!(%error, "cannot look after schedules; trying again");
                STORE_RETRY.delay(failures, engine.runtime.random()).unwrap_or_default()
            }
        };
        select(Box::pin(slots.schedules.notified()), engine.runtime.sleep(pause)).await;
    }
}

/// Spawns the tasks of all due ticks, and returns the time of the next one.
async fn come_to_ticks(
    engine: &Engine,
    unusable: &mut BTreeSet<Name>,
) -> Result<Option<Timestamp>, StoreError> {
    let (mut behind, mut refused) = (None, BTreeSet::new());
    loop {
        let next = ScheduleFilter::Next { behind: behind.take(), limit: ROUND };
        let Page { items: schedules, next: rest } = engine.store.schedules(next).await?;
        let now = engine.store.now();
        let due =
            schedules.iter().filter(|schedule| schedule.plan.next_at.is_some_and(|at| at <= now));
        let due = due.filter(|schedule| !refused.contains(&schedule.name));
        let changes: Vec<_> =
            due.filter_map(|schedule| change(engine, schedule, now, unusable)).collect();
        if changes.is_empty() {
            let next =
                schedules.iter().filter_map(|schedule| schedule.plan.next_at).find(|at| *at > now);
            if next.is_some() || rest.is_none() {
                return Ok(next);
            }
            // All of these are left to other workers, and stay due. Further schedules may follow.
            behind = rest;
            continue;
        }
        let change =
            |change: ScheduleChange| (change.name.clone(), engine.commit.change_schedule(change));
        let mut failed = Ok(());
        for (name, receipt) in changes.into_iter().map(change).collect::<Vec<_>>() {
            match receipt.await {
                Ok(_) => {}
                Err(error) if error.is_transient() => failed = Err(error),
                Err(error) => {
                    if unusable.insert(name.clone()) {
                        tracing::error!(%error, schedule = %name, "the store refuses the \
                                                                   schedule's ticks; trying again \
                                                                   later");
                    }
                    refused.insert(name);
                }
            }
        }
        failed?;
    }
}

/// Returns the change for the due ticks of a schedule.
///
/// A schedule that this program cannot use is left to other workers, which is logged once. A newer
/// program may have written it, or this machine may lack its time zone.
fn change(
    engine: &Engine,
    schedule: &Scheduled,
    now: Timestamp,
    unusable: &mut BTreeSet<Name>,
) -> Option<ScheduleChange> {
    let change = || -> Result<ScheduleChange, Unusable> {
        let mut info = ScheduleInfo::read(schedule)?;
        let ticks = info.come_due(now)?;
        let spawns = ticks.into_iter().map(|tick| engine.scheduled_task(&info, tick));
        let spawns = spawns.collect::<Result<_, _>>()?;
        Ok(info.replace(schedule, engine, spawns)?)
    };
    change()
        .inspect_err(|error| {
            if unusable.insert(schedule.name.clone()) {
                tracing::warn!(%error, schedule = %schedule.name, "this worker cannot tell the \
                                                                   schedule's ticks, and leaves it \
                                                                   to others");
            }
        })
        .ok()
}

/// The reason why a worker leaves a schedule alone.
#[derive(Debug, thiserror::Error)]
enum Unusable {
    #[error(transparent)]
    Invalid(#[from] InvalidSchedule),
    #[error(transparent)]
    Unreadable(#[from] PayloadError),
}

impl Engine {
    /// Returns a task of the schedule for the tick.
    pub(crate) fn scheduled_task(
        &self,
        info: &ScheduleInfo,
        tick: Timestamp,
    ) -> Result<NewTask, InvalidSchedule> {
        let options = info.options.clone().header(TICK_HEADER, tick.to_string());
        let new = || self.new_task(info.task_type.clone(), info.params.clone(), options, None);
        trace::carried(&trace::spawn(info.task_type.as_str()), new)
    }
}

impl ScheduleInfo {
    /// Returns the due ticks for which tasks are spawned, and sets the next tick.
    fn come_due(&mut self, now: Timestamp) -> Result<Vec<Timestamp>, InvalidSchedule> {
        let ticks = self.ticks()?;
        let Some(first) = self.next_tick else { return Ok(Vec::new()) };
        // The first tick is due, regardless of this machine's time zones.
        let newest = ticks.last_due(first, now).unwrap_or(first);
        let (spawns, last) = match (self.catch_up, self.overlap) {
            (CatchUp::All, Overlap::Allow) => {
                let room = (FULL / self.params.as_str().len().max(1)).clamp(1, ROUND);
                let next = |tick: &Timestamp| ticks.after(*tick).filter(|next| *next <= newest);
                let missed: Vec<_> = std::iter::successors(Some(first), next).take(room).collect();
                let last = missed.last().copied().unwrap_or(first);
                (missed, last)
            }
            (CatchUp::Skip, _) if until(ticks.due(newest), now) > LATE => (Vec::new(), newest),
            _ => (vec![newest], newest),
        };
        self.last_tick = Some(last);
        self.wait_for(&ticks, ticks.after(last));
        Ok(spawns)
    }

    /// Reads a schedule as the store keeps it, with the store's last task, which is more recent.
    pub(crate) fn read(schedule: &Scheduled) -> Result<Self, PayloadError> {
        Ok(Self { last_task: schedule.last_task, ..schedule.plan.definition.decode()? })
    }

    pub(crate) fn plan(&self, engine: &Engine) -> Result<SchedulePlan, PayloadError> {
        let definition = Payload::document(&Self { last_task: None, ..self.clone() })?;
        let version = crate::base::ids::ScheduleVersion::new(&*engine.runtime);
        Ok(SchedulePlan { version, definition, next_at: self.next_at })
    }

    /// Returns a change that replaces the schedule as it was seen, and spawns the tasks.
    pub(crate) fn replace(
        &self,
        seen: &Scheduled,
        engine: &Engine,
        spawns: Vec<NewTask>,
    ) -> Result<ScheduleChange, PayloadError> {
        let action = ScheduleAction::Replace {
            seen: seen.plan.version,
            plan: self.plan(engine)?,
            spawns,
            unless_running: self.overlap == Overlap::Skip,
        };
        Ok(ScheduleChange { name: self.name.clone(), action })
    }
}
