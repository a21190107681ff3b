//! Looks after schedules: every worker comes to every tick, and one of them spawns its task.
//!
//! ```text
//!   sleep until the earliest `next_at` ──▶ read what is due ──▶ commit: if it is still what was read,
//!        ▲        (a poll interval at most)                     spawn its tasks, and wait for the next tick
//!        │                                                            │
//!        └────────────── nothing is due ◀── read again ◀──────────────┘ refused: another worker came first
//! ```
//!
//! The tick and its task are one commit. So a crash at any moment leaves both or neither, and the
//! tick to another worker; and those that came second have asked one question in vain.

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

/// How late a tick may be come to before it counts as missed.
const LATE: Duration = Duration::from_secs(60);
/// How many schedules are looked at together, and how many tasks one change spawns at most.
const ROUND: usize = 100;
/// How many bytes of parameters are enough for a change.
const FULL: usize = 8 << 20;

/// Spawns the tasks of ticks, for as long as its worker lives.
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

/// Does what is due. Returns when something is next.
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
            // All of them are left to others, and stay due. There may be more behind them.
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

/// What is due of a schedule. One that this program cannot use (it was written by a newer one, or
/// the machine lacks its time zone) is left to other workers, and that is said once.
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

/// Why a worker leaves a schedule alone.
#[derive(Debug, thiserror::Error)]
enum Unusable {
    #[error(transparent)]
    Invalid(#[from] InvalidSchedule),
    #[error(transparent)]
    Unreadable(#[from] PayloadError),
}

impl Engine {
    /// A task of the schedule, for that tick.
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
    /// The ticks to spawn tasks for, now that some are due. It waits for the next one then.
    fn come_due(&mut self, now: Timestamp) -> Result<Vec<Timestamp>, InvalidSchedule> {
        let ticks = self.ticks()?;
        let Some(first) = self.next_tick else { return Ok(Vec::new()) };
        // It is due, whatever this machine's time zones say.
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

    /// What the store keeps is what is known here, but for the last task, which it knows better.
    pub(crate) fn read(schedule: &Scheduled) -> Result<Self, PayloadError> {
        Ok(Self { last_task: schedule.last_task, ..schedule.plan.definition.decode()? })
    }

    pub(crate) fn plan(&self, engine: &Engine) -> Result<SchedulePlan, PayloadError> {
        let definition = Payload::document(&Self { last_task: None, ..self.clone() })?;
        let version = crate::base::ids::ScheduleVersion::new(&*engine.runtime);
        Ok(SchedulePlan { version, definition, next_at: self.next_at })
    }

    /// Makes this of the schedule that was seen, and spawns the tasks.
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
