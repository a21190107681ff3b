//! Workers: signs of life, and what is known of them.

use super::State;
use crate::store::{NewWorker, News, WorkerInfo, WorkerSignal, WorkerState};
use crate::time::{Timestamp, after};

/// A worker that is registered.
pub(super) struct Registered {
    new: NewWorker,
    state: WorkerState,
    at: Timestamp,
    pub(super) lease_until: Timestamp,
}

impl State {
    pub(super) fn signal(&mut self, now: Timestamp, signal: WorkerSignal, news: &mut News) -> WorkerState {
        match signal {
            WorkerSignal::Register(new) => {
                let lease_until = after(now, new.lease);
                let worker = Registered { state: WorkerState::Active, at: now, lease_until, new };
                self.workers.insert(worker.new.worker_id, worker);
                WorkerState::Active
            }
            WorkerSignal::Heartbeat { worker_id, lease } => match self.workers.get_mut(&worker_id) {
                Some(worker) => {
                    worker.lease_until = after(now, lease);
                    worker.state
                }
                None => WorkerState::Gone,
            },
            WorkerSignal::Drain { worker_id } => match self.workers.get_mut(&worker_id) {
                Some(worker) => {
                    worker.state = WorkerState::Draining;
                    worker.state
                }
                None => WorkerState::Gone,
            },
            WorkerSignal::Deregister { worker_id } => {
                let known = self.workers.remove(&worker_id);
                for task_id in self.running_under(worker_id) {
                    if let Some(task) = self.tasks.get_mut(&task_id) {
                        task.attempt -= 1;
                    }
                    self.give_back(now, task_id, None, news);
                }
                self.cancel_doomed(now, news);
                known.map_or(WorkerState::Gone, |worker| worker.state)
            }
        }
    }

    pub(super) fn worker_infos(&self, now: Timestamp) -> Vec<WorkerInfo> {
        let info = |worker: &Registered| WorkerInfo {
            worker_id: worker.new.worker_id,
            name: worker.new.name.clone(),
            queues: worker.new.queues.clone(),
            concurrency: worker.new.concurrency,
            code_version: worker.new.code_version.clone(),
            state: worker.state,
            alive: worker.lease_until > now,
            running: self.running_under(worker.new.worker_id).len() as u64,
            registered_at: worker.at,
            lease_until: worker.lease_until,
        };
        self.workers.values().map(info).collect()
    }
}
