//! Workers: registration, heartbeats, drains and deaths.

use std::ops::Bound;

use super::State;
use crate::base::ids::WorkerId;
use crate::base::time::{Timestamp, after};
use crate::store::rules::{Death, Leaving, Progress, end_after_death, on_death};
use crate::store::*;

/// A worker that is registered.
pub(super) struct Registered {
    new: NewWorker,
    state: WorkerState,
    at: Timestamp,
    heartbeats: u64,
    heartbeat_at: Timestamp,
}

impl State {
    pub(super) fn signal(
        &mut self,
        now: Timestamp,
        signal: WorkerSignal,
        news: &mut News,
    ) -> WorkerStatus {
        match signal {
            WorkerSignal::Register(new) => {
                let (worker_id, state) = (new.worker_id, WorkerState::Active);
                let worker = Registered { new, state, at: now, heartbeats: 0, heartbeat_at: now };
                self.workers.insert(worker_id, worker);
                self.status(worker_id, state)
            }
            WorkerSignal::Heartbeat { worker_id } => {
                let Some(worker) = self.workers.get_mut(&worker_id) else {
                    return WorkerState::Gone.into();
                };
                worker.heartbeats += 1;
                worker.heartbeat_at = now;
                let state = worker.state;
                self.status(worker_id, state)
            }
            WorkerSignal::DeclareDead { worker_id, heartbeats } => {
                let known =
                    self.workers.get(&worker_id).map(|worker| (worker.heartbeats, worker.state));
                match known {
                    Some((shown, state)) if shown == heartbeats => {
                        self.remove_dead(now, worker_id, news);
                        state.into()
                    }
                    Some((_, state)) => state.into(),
                    None => WorkerState::Gone.into(),
                }
            }
            WorkerSignal::Drain { worker_id } => {
                let Some(worker) = self.workers.get_mut(&worker_id) else {
                    return WorkerState::Gone.into();
                };
                worker.state = WorkerState::Draining;
                worker.state.into()
            }
            WorkerSignal::Deregister { worker_id } => {
                let known = self.workers.remove(&worker_id);
                for task_id in self.running_under(worker_id) {
                    self.give_back(now, task_id, Leaving::Released, None, news);
                }
                self.cancel_doomed(now, news);
                known.map_or(WorkerState::Gone, |worker| worker.state).into()
            }
        }
    }

    /// Returns the answer to a registration or a heartbeat.
    fn status(&self, worker_id: WorkerId, state: WorkerState) -> WorkerStatus {
        let runs = self.running_under(worker_id).into_iter();
        let runs = runs.filter_map(|task_id| Some((task_id, self.tasks.get(&task_id)?.run_id)));
        let following = self.workers.range((Bound::Excluded(worker_id), Bound::Unbounded));
        let others = following.chain(self.workers.range(..worker_id)).take(WATCHED);
        let others = others.map(|(worker_id, worker)| OtherWorker {
            worker_id: *worker_id,
            heartbeats: worker.heartbeats,
            lease: worker.new.lease,
        });
        WorkerStatus { state, runs: runs.collect(), others: others.collect() }
    }

    /// Removes a worker that has died.
    ///
    /// The tasks of the worker become pending, each with another attempt. Those that have met too
    /// many crashes in a row fail.
    fn remove_dead(&mut self, now: Timestamp, worker_id: WorkerId, news: &mut News) {
        self.workers.remove(&worker_id);
        for task_id in self.running_under(worker_id) {
            let Some(task) = self.tasks.get_mut(&task_id) else { continue };
            let delivered = task.journal.iter().rev().find(|entry| entry.key.kind.is_progress());
            let now_at = delivered.map_or(0, |entry| entry.seq);
            let progress = Progress { now: now_at, at_last_crash: task.progress_at_crash };
            task.progress_at_crash = now_at;
            let leaving = Leaving::Died(progress);
            let crashes = task.counts.left(leaving).crashes;
            match on_death(crashes, task.new.max_attempts, task.course, task.cancellation) {
                Death::GivenBack(_) => self.give_back(now, task_id, leaving, None, news),
                Death::Quarantined | Death::EndsAsItWouldHave => {
                    task.counts = task.counts.left(leaving);
                    let finish = end_after_death(crashes, task.course, task.failure.clone());
                    self.finish(now, task_id, finish, news);
                }
            }
        }
        self.cancel_doomed(now, news);
    }

    pub(super) fn worker_infos(&self, now: Timestamp) -> Vec<WorkerInfo> {
        let info = |worker: &Registered| WorkerInfo {
            worker_id: worker.new.worker_id,
            name: worker.new.name.clone(),
            queues: worker.new.queues.clone(),
            concurrency: worker.new.concurrency,
            code_version: worker.new.code_version.clone(),
            state: worker.state,
            alive: after(worker.heartbeat_at, worker.new.lease) > now,
            running: self.running_under(worker.new.worker_id).len() as u64,
            registered_at: worker.at,
            heartbeat_at: worker.heartbeat_at,
            lease: worker.new.lease,
        };
        self.workers.values().map(info).collect()
    }
}
