//! The client's functions for schedules.

use serde::Serialize;

use crate::base::ids::TaskId;
use crate::base::name::Name;
use crate::base::payload::PayloadError;
use crate::client::Client;
use crate::client::error::Error;
use crate::client::spawn::SpawnResult;
use crate::context::task::Task;
use crate::engine::run::child::Disposition;
use crate::store::schedule::{Schedule, ScheduleInfo};
use crate::store::timing::InvalidSchedule;
use crate::store::*;

/// The schedules of a client's store.
#[derive(Clone, Copy)]
pub struct Schedules<'c> {
    client: &'c Client,
}

impl Client {
    /// Returns the functions for schedules.
    pub fn schedules(&self) -> Schedules<'_> {
        Schedules { client: self }
    }
}

impl Schedules<'_> {
    /// Puts a schedule into the store, in place of the schedule of the same name.
    ///
    /// From then on, the workers of all processes spawn tasks of this type, with these parameters,
    /// at the schedule's ticks.
    ///
    /// A program may put its schedules each time that it starts. A schedule that is put again
    /// without a change keeps its state, with the ticks that were missed meanwhile. A schedule
    /// whose pattern, interval or jitter has changed goes on from now. A paused schedule stays
    /// paused.
    ///
    /// ```
    /// # use stepwell_core::{Client, Error, Schedule, Task};
    /// # async fn put<Report: Task<Params = String>>(client: Client) -> Result<(), Error> {
    /// let nightly = Schedule::cron("nightly report", "0 2 * * *").time_zone("Europe/Berlin");
    /// client.schedules().put::<Report>(nightly, "all customers".into()).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Schedule`] when the schedule has no valid ticks, or its name or options are not
    /// valid; [`Error::Payload`] when the parameters do not serialise or are too large;
    /// [`Error::Store`] when nothing could be written.
    pub async fn put<T: Task>(
        self,
        schedule: Schedule,
        params: T::Params,
    ) -> Result<ScheduleInfo, Error> {
        let params = self.client.proven(&Name::new(T::NAME)?, &params)?;
        self.put_named(schedule, T::NAME, &params).await
    }

    /// Puts a schedule as [`Schedules::put`] does, for a task type that is known by its name
    /// only.
    ///
    /// # Errors
    /// The errors of [`Schedules::put`].
    pub async fn put_named<P: Serialize + ?Sized>(
        self,
        schedule: Schedule,
        task_type: &str,
        params: &P,
    ) -> Result<ScheduleInfo, Error> {
        let name = schedule.name.clone();
        let invalid = |source| Error::Schedule { name: name.clone(), source };
        let task_type = Name::new(task_type)?;
        let params = self.client.params(&task_type, params).await?;
        let options = schedule.options.clone().filled(&self.client.engine.settings);
        let now = self.client.engine.store.now();
        let new = schedule.options(options).check(now, task_type, params).map_err(invalid)?;
        loop {
            let seen = self.find(new.name.clone()).await?;
            let (info, change) = match &seen {
                None => {
                    let plan = new
                        .plan(&self.client.engine)
                        .map_err(|source| unreadable(&new.name, source))?;
                    let action = ScheduleAction::Create(plan);
                    (new.clone(), ScheduleChange { name: new.name.clone(), action })
                }
                Some(seen) => {
                    // A schedule that cannot be read is replaced as a whole.
                    let old = ScheduleInfo::read(seen).ok();
                    let info = match &old {
                        Some(old) => new.clone().in_place_of(old),
                        None => new.clone(),
                    };
                    if old.as_ref() == Some(&info) {
                        return Ok(info);
                    }
                    let change = info.replace(seen, &self.client.engine, Vec::new());
                    let change = change.map_err(|source| unreadable(&new.name, source))?;
                    (info, change)
                }
            };
            if let ScheduleOutcome::Changed { .. } = self.change(change).await? {
                return Ok(info);
            }
        }
    }

    /// Returns all schedules, ordered by name.
    ///
    /// A schedule that cannot be read is left out, and the log names it: a newer Stepwell may have
    /// written it, for instance. [`Schedules::get`] returns the error.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn list(self) -> Result<Vec<ScheduleInfo>, Error> {
        let readable = |schedule: Scheduled| {
            let left_out = |error: &Error| {
                tracing::error!(%error, "a schedule that cannot be read is left out of a list");
            };
            read(&schedule).inspect_err(left_out).ok()
        };
        let (mut all, mut behind) = (Vec::new(), None);
        loop {
            let part = self.client.engine.store.schedules(ScheduleFilter::All { behind });
            let part = self.client.engine.answered(part).await?;
            all.extend(part.items.into_iter().filter_map(readable));
            behind = part.next;
            if behind.is_none() {
                return Ok(all);
            }
        }
    }

    /// Returns the schedule of the name; `None` when there is none.
    ///
    /// # Errors
    /// The errors of [`Schedules::list`]; [`Error::Payload`] when the schedule cannot be read;
    /// [`Error::Name`] when the name is not valid.
    pub async fn get(self, name: impl AsRef<str>) -> Result<Option<ScheduleInfo>, Error> {
        self.find(Name::new(name)?).await?.as_ref().map(read).transpose()
    }

    /// Pauses a schedule: it has no ticks until it is resumed.
    ///
    /// Tasks that the schedule has spawned go on.
    ///
    /// # Errors
    /// [`Error::UnknownSchedule`]; [`Error::Name`]; [`Error::Store`] when nothing could be written.
    pub async fn pause(self, name: impl AsRef<str>) -> Result<(), Error> {
        self.update(name.as_ref(), |info| {
            info.pause();
            Ok(None)
        })
        .await
        .map(drop)
    }

    /// Resumes a paused schedule, from its next tick on.
    ///
    /// A schedule that is not paused stays as it is.
    ///
    /// # Errors
    /// The errors of [`Schedules::pause`]; [`Error::Schedule`] when this machine does not
    /// know the schedule's time zone.
    pub async fn resume(self, name: impl AsRef<str>) -> Result<(), Error> {
        self.update(name.as_ref(), |info| {
            if info.paused {
                info.go_on_after(self.client.engine.store.now())?;
            }
            Ok(None)
        })
        .await
        .map(drop)
    }

    /// Removes a schedule.
    ///
    /// Tasks that the schedule has spawned go on.
    ///
    /// # Errors
    /// The errors of [`Schedules::pause`].
    pub async fn delete(self, name: impl AsRef<str>) -> Result<(), Error> {
        let name = Name::new(name)?;
        let change = ScheduleChange { name: name.clone(), action: ScheduleAction::Delete };
        match self.change(change).await? {
            ScheduleOutcome::Changed { .. } => Ok(()),
            ScheduleOutcome::Refused => Err(Error::UnknownSchedule(name.to_string())),
        }
    }

    /// Spawns a task of the schedule now, besides its ticks, even while the schedule is paused.
    ///
    /// With [`Overlap::Skip`](crate::Overlap::Skip), nothing is spawned while the schedule's last
    /// task has not ended. The result is then that last task.
    ///
    /// # Errors
    /// The errors of [`Schedules::pause`].
    pub async fn trigger(self, name: impl AsRef<str>) -> Result<SpawnResult, Error> {
        loop {
            let triggered = self.update(name.as_ref(), |info| {
                self.client.engine.scheduled_task(info, self.client.engine.store.now()).map(Some)
            });
            let (last_task, spawned) = triggered.await?;
            if let Some(task) = spawned {
                return Ok(SpawnResult {
                    task_id: task.task_id,
                    run_id: task.run_id,
                    attempt: 1,
                    disposition: Disposition::Created,
                });
            }
            // The last task may have been deleted just now, in which case it no longer blocks the
            // spawn.
            if let Some(task_id) = last_task
                && let Some(task) = self.client.task(task_id).await?
            {
                let TaskInfo { run_id, attempt, .. } = task;
                return Ok(SpawnResult {
                    task_id,
                    run_id,
                    attempt,
                    disposition: Disposition::Existing,
                });
            }
        }
    }

    async fn find(self, name: Name) -> Result<Option<Scheduled>, Error> {
        let named = self.client.engine.store.schedules(ScheduleFilter::Named(name));
        Ok(self.client.engine.answered(named).await?.items.pop())
    }

    /// Changes a schedule and spawns a task, and repeats both when another change came first.
    ///
    /// Returns the last task that the schedule had before, and the task that was spawned.
    async fn update(
        self,
        name: &str,
        update: impl Fn(&mut ScheduleInfo) -> Result<Option<NewTask>, InvalidSchedule>,
    ) -> Result<(Option<TaskId>, Option<NewTask>), Error> {
        let name = Name::new(name)?;
        loop {
            let seen = self.find(name.clone()).await?;
            let seen = seen.ok_or_else(|| Error::UnknownSchedule(name.to_string()))?;
            let mut info = read(&seen)?;
            let task = update(&mut info)
                .map_err(|source| Error::Schedule { name: name.to_string(), source })?;
            if let Some(task) = &task {
                self.client.check(&task.task_type, std::slice::from_ref(&task.params)).await?;
            }
            let spawns = task.iter().cloned().collect();
            let change = info.replace(&seen, &self.client.engine, spawns);
            let change = change.map_err(|source| unreadable(&name, source))?;
            if let ScheduleOutcome::Changed { spawned } = self.change(change).await? {
                return Ok((seen.last_task, task.filter(|_| spawned)));
            }
        }
    }

    /// Commits a change, and notifies this process's workers of it.
    async fn change(self, change: ScheduleChange) -> Result<ScheduleOutcome, Error> {
        let outcome =
            self.client.engine.answered(self.client.engine.commit.change_schedule(change)).await?;
        self.client.engine.hub.workers().iter().for_each(|worker| worker.schedules_changed());
        Ok(outcome)
    }
}

fn read(schedule: &Scheduled) -> Result<ScheduleInfo, Error> {
    ScheduleInfo::read(schedule).map_err(|source| unreadable(&schedule.name, source))
}

fn unreadable(name: &Name, source: PayloadError) -> Error {
    Error::Payload { what: format!("the schedule {name}"), source }
}
