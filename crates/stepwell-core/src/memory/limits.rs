//! The conditions of a claim: the limits of queues, the turns of concurrency keys, the versions of
//! code.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::{State, Task, concurrency_key};
use crate::base::ids::{TaskId, WorkerId};
use crate::base::name::Name;
use crate::base::time::Timestamp;
use crate::store::queue::{QueueAction, QueueChange, QueueInfo, QueueLimits};
use crate::store::rules::Claims;
use crate::store::rules::crash::SUSPECT_CRASHES;
use crate::store::scope::Scope;
use crate::store::{Claim, NewTask, News, TaskState};

/// A queue that was paused, resumed or limited at least once.
#[derive(Default)]
pub(super) struct Queue {
    paused: bool,
    limits: QueueLimits,
    /// The moment up to which the rate is used up.
    used_until: Option<Timestamp>,
}

impl Queue {
    /// Returns whether a task that stops running makes room for another.
    pub(super) fn counts_running(&self) -> bool {
        self.limits.count_running()
    }

    /// Returns whether the queue may keep a task from starting at once.
    pub(super) fn restricts(&self) -> bool {
        self.paused || !self.limits.are_none()
    }
}

/// The place of a claimable task in its queue.
pub(super) type Place = (Reverse<i32>, Timestamp, TaskId);

impl State {
    pub(super) fn change_queue(&mut self, change: QueueChange, news: &mut News) {
        let queue = self.queues.entry(change.queue.clone()).or_default();
        match change.action {
            QueueAction::Pause => queue.paused = true,
            QueueAction::Resume => queue.paused = false,
            QueueAction::Limit(limits) => {
                if limits.rate != queue.limits.rate {
                    queue.used_until = None;
                }
                queue.limits = limits;
            }
        }
        if !queue.paused {
            news.ready.push((change.queue, 1));
        }
    }

    /// Takes tasks of a queue that the claim may have, as many as there is room for.
    ///
    /// The second result is the time at which the queue's rate lets the next task start, when the
    /// rate is used up.
    pub(super) fn pick(
        &mut self,
        now: Timestamp,
        claim: &Claim,
        queue: &Name,
        room: usize,
        suspect: &mut u32,
    ) -> (Vec<Place>, Option<Timestamp>) {
        let known = |task: &Task| {
            let version = task.new.code_version.as_ref();
            claim.task_types.contains(&task.new.task_type)
                && (version.is_none() || version == claim.code_version.as_ref())
        };
        let config = self.queues.get(queue);
        if room == 0 || config.is_some_and(|config| config.paused) {
            return (Vec::new(), None);
        }
        let limits = config.map(|config| config.limits).unwrap_or_default();
        let room = self.room_within(limits, claim.worker_id, queue, room);
        if room == 0 {
            return (Vec::new(), None);
        }
        let config = self.queues.get_mut(queue);
        let ready = self.ready.entry(queue.clone()).or_default();
        let most = *suspect;
        let of = |suspect: bool, goes_on: Option<bool>, room: usize| -> Vec<Place> {
            let fits = |(_, _, task_id): &&Place| {
                self.tasks.get(task_id).is_some_and(|task| {
                    known(task)
                        && (task.counts.crashes >= SUSPECT_CRASHES) == suspect
                        && (!suspect || task.counts.crashes <= most)
                        && goes_on.is_none_or(|goes_on| task.worker_id.is_some() == goes_on)
                })
            };
            ready.iter().filter(fits).take(room).copied().collect()
        };
        let goes_on = match limits.rate {
            Some(_) => of(false, Some(true), room),
            None => Vec::new(),
        };
        let used = config.as_ref().and_then(|config| config.used_until);
        let allowed = limits.rate.map_or(room, |rate| rate.allowed(now, used));
        let startable = (room - goes_on.len()).min(allowed);
        // A suspect starts, because its worker died.
        let suspects = of(true, None, startable.min(1));
        if !suspects.is_empty() {
            *suspect = 0;
        }
        let starts = of(false, limits.rate.map(|_| false), startable - suspects.len());
        let mut next = None;
        if let (Some(rate), Some(config)) = (limits.rate, config) {
            let used = rate.used_until(now, used, suspects.len() + starts.len());
            config.used_until = Some(used);
            next = (rate.allowed(now, Some(used)) == 0).then(|| rate.next(used));
        }
        let places = [goes_on, suspects, starts].concat();
        for place in &places {
            ready.remove(place);
        }
        (places, next)
    }

    /// Returns how many more tasks of the queue may run, at most `room`.
    fn room_within(
        &self,
        limits: QueueLimits,
        worker_id: WorkerId,
        queue: &Name,
        room: usize,
    ) -> usize {
        let running = |of_worker: bool| {
            let runs = |task: &&Task| {
                task.new.queue == *queue
                    && task.state == TaskState::Running
                    && (!of_worker || task.worker_id == Some(worker_id))
            };
            self.tasks.values().filter(runs).count()
        };
        let limits = [(limits.max_running, false), (limits.max_running_per_worker, true)];
        limits.into_iter().fold(room, |room, (limit, of_worker)| match limit {
            Some(limit) => room.min((limit as usize).saturating_sub(running(of_worker))),
            None => room,
        })
    }

    /// Adds a task to the end of the line of its concurrency key.
    pub(super) fn line_up(&mut self, task_id: TaskId) {
        let Some(task) = self.tasks.get_mut(&task_id) else { return };
        if let Some(key) = concurrency_key(&task.new) {
            self.places += 1;
            task.place = self.places;
            self.keys.entry(key).or_default().insert((self.places, task_id));
        }
    }

    /// Ends the turn of a task of a concurrency key, so that the next one may start.
    pub(super) fn end_turn(
        &mut self,
        now: Timestamp,
        key: &(Scope, Name),
        turn: (u64, TaskId),
        news: &mut News,
    ) {
        let Some(line) = self.keys.get_mut(key) else { return };
        let was_first = line.first() == Some(&turn);
        line.remove(&turn);
        let next = line.first().map(|(_, task_id)| *task_id).filter(|_| was_first);
        if line.is_empty() {
            self.keys.remove(key);
        }
        let Some(task) = next.and_then(|next| self.tasks.get_mut(&next)) else { return };
        if task.state == TaskState::Pending {
            task.ready_at = now;
            let task_id = task.new.task_id;
            self.offer(task_id, news);
        }
    }

    /// Returns whether no other task of the concurrency key comes before this one.
    pub(super) fn has_turn(&self, task: &NewTask) -> bool {
        let line = concurrency_key(task).and_then(|key| self.keys.get(&key));
        line.and_then(BTreeSet::first).is_none_or(|(_, first)| *first == task.task_id)
    }

    pub(super) fn queue_infos(&self) -> Vec<QueueInfo> {
        let mut infos = BTreeMap::new();
        let named: BTreeSet<_> =
            self.queues.keys().chain(self.tasks.values().map(|task| &task.new.queue)).collect();
        for queue in named {
            let count = |state: TaskState| {
                let of_state = |task: &&Task| task.new.queue == *queue && task.state == state;
                self.tasks.values().filter(of_state).count() as u64
            };
            let pending = self.tasks.values().filter(|task| {
                task.new.queue == *queue
                    && task.state == TaskState::Pending
                    && task.claims == Claims::Open
                    && self.has_turn(&task.new)
            });
            let config = self.queues.get(queue);
            let info = QueueInfo {
                queue: queue.clone(),
                paused: config.is_some_and(|config| config.paused),
                limits: config.map(|config| config.limits).unwrap_or_default(),
                pending: count(TaskState::Pending),
                running: count(TaskState::Running),
                suspended: count(TaskState::Suspended),
                ready_at: pending.map(|task| task.due_at.unwrap_or(task.ready_at)).min(),
            };
            let idle = info.pending + info.running + info.suspended == 0;
            if !idle || info.paused || !info.limits.are_none() {
                infos.insert(queue.clone(), info);
            }
        }
        infos.into_values().collect()
    }
}
