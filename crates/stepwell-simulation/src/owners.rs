//! The ownership of tasks by the store's answers alone, and other checks of these answers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use stepwell::store::{
    Applied, Batch, ClaimedTask, Command, CommandOutcome, Committed, Next, Refused, Spawned,
    Transition, WorkerSignal,
};
use stepwell::store::{NewEvent, NewTask, QueueAction};
use stepwell::testing::Seen;
use stepwell::{Name, RunId, TaskId, Timestamp, WorkerId, WorkerState};

use crate::ledger::Ledger;

/// The observer of the store's answers.
pub(crate) struct Owners {
    ledger: Arc<Ledger>,
    /// Tells whether the store sees at once that a process has died. The tasks of its workers then
    /// have no owner.
    notices_deaths: bool,
    books: Mutex<Books>,
}

#[derive(Default)]
struct Books {
    /// The run of each task that may write, and the worker of the run.
    owners: BTreeMap<TaskId, (RunId, WorkerId)>,
    /// The runs with their workers, while a worker is not known to be gone.
    runs: BTreeMap<RunId, WorkerId>,
    /// The concurrency keys of tasks that have an owner.
    keys: BTreeMap<TaskId, Name>,
    /// The tasks that are paused.
    paused: BTreeSet<TaskId>,
    /// The state of the queue: whether it is paused, and the most tasks that it may run at a time.
    queue: (bool, Option<u32>),
    /// The workers of each process, since the process has begun.
    processes: BTreeMap<Option<usize>, BTreeSet<WorkerId>>,
    /// The number of heartbeats of each worker.
    workers: BTreeMap<WorkerId, u64>,
    /// The times at which tasks may start.
    starts: BTreeMap<TaskId, Timestamp>,
    /// The news that processes have not received yet, by the number of the batch: runs that were
    /// refused, and workers that are gone.
    unheard: BTreeMap<u64, (Vec<RunId>, Vec<WorkerId>)>,
}

impl Owners {
    pub(crate) fn new(ledger: Arc<Ledger>, notices_deaths: bool) -> Self {
        Self { ledger, notices_deaths, books: Mutex::default() }
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn sees(&self, seen: &Seen<'_>) {
        match *seen {
            Seen::Applied { process, number, batch, committed } => {
                let registered = batch.workers.iter().filter_map(|signal| match signal {
                    WorkerSignal::Register(new) => Some(new.worker_id),
                    _ => None,
                });
                self.books().processes.entry(process).or_default().extend(registered);
                self.applied(number, batch, committed);
            }
            Seen::Died { process } => {
                let gone = self.books().processes.remove(&Some(process)).unwrap_or_default();
                if self.notices_deaths {
                    self.books().owners.retain(|_, (_, owner)| !gone.contains(owner));
                }
            }
            Seen::Answered { number, .. } => {
                let Some((runs, workers)) = self.books().unheard.remove(&number) else { return };
                runs.into_iter().for_each(|run_id| self.ledger.lose(run_id));
                for worker_id in workers {
                    let runs: Vec<_> = {
                        let books = self.books();
                        let of_worker = books.runs.iter().filter(|(_, owner)| **owner == worker_id);
                        of_worker.map(|(run_id, _)| *run_id).collect()
                    };
                    runs.into_iter().for_each(|run_id| self.ledger.lose(run_id));
                }
            }
        }
    }

    fn applied(&self, number: u64, batch: &Batch, committed: &Committed) {
        let mut unheard = (Vec::new(), Vec::new());
        for (transition, result) in batch.transitions.iter().zip(&committed.transitions) {
            self.transition(transition, result, &mut unheard.0);
        }
        let ended = committed.news.finished.iter().map(|(task_id, _)| *task_id);
        self.ledger.books().ended.extend(ended);
        self.commands(batch, committed);
        batch.events.iter().for_each(|event| self.emitted(event));
        for (task, spawned) in batch.spawns.iter().zip(&committed.spawns) {
            self.spawned(task, spawned);
        }
        for change in &batch.queues {
            let queue = &mut self.books().queue;
            match &change.action {
                QueueAction::Pause => queue.0 = true,
                QueueAction::Resume => queue.0 = false,
                QueueAction::Limit(limits) => queue.1 = limits.max_running,
            }
        }
        for (signal, status) in batch.workers.iter().zip(&committed.workers) {
            let mut books = self.books();
            let gone = match signal {
                WorkerSignal::Register(new) => {
                    books.workers.insert(new.worker_id, 0);
                    continue;
                }
                WorkerSignal::Heartbeat { worker_id } if status.state == WorkerState::Gone => {
                    unheard.1.push(*worker_id);
                    *worker_id
                }
                WorkerSignal::Heartbeat { worker_id } => {
                    *books.workers.entry(*worker_id).or_default() += 1;
                    continue;
                }
                WorkerSignal::DeclareDead { worker_id, heartbeats }
                    if books.workers.get(worker_id) == Some(heartbeats) =>
                {
                    *worker_id
                }
                WorkerSignal::Deregister { worker_id } => *worker_id,
                _ => continue,
            };
            books.workers.remove(&gone);
            drop(books);
            self.books().owners.retain(|_, (_, owner)| *owner != gone);
        }
        for (claim, claimed) in batch.claims.iter().zip(&committed.claims) {
            for task in &claimed.tasks {
                self.may_run(task);
                self.claimed(task.task_id, task.run_id, claim.worker_id);
            }
        }
        if !(unheard.0.is_empty() && unheard.1.is_empty()) {
            self.books().unheard.insert(number, unheard);
        }
    }

    fn commands(&self, batch: &Batch, committed: &Committed) {
        let outcomes = batch.commands.iter().zip(&committed.commands);
        for (command, _) in outcomes.filter(|(_, outcome)| **outcome == CommandOutcome::Done) {
            match command {
                Command::Pause(task_id) => _ = self.books().paused.insert(*task_id),
                // A task that was deleted and spawned again is not paused.
                Command::Resume(task_id) | Command::Delete(task_id) => {
                    self.books().paused.remove(task_id);
                }
                // A retried task starts at once.
                Command::Retry(task_id) => {
                    self.books().starts.remove(task_id);
                    self.books().paused.remove(task_id);
                }
                Command::Cancel(_) | Command::Wake(_) => {}
            }
        }
    }

    /// Checks that a worker may claim a task.
    fn may_run(&self, task: &ClaimedTask) {
        let books = self.books();
        let task_id = task.task_id;
        let running = books.owners.len();
        let others = |(other, key): (&TaskId, &Name)| {
            *other != task_id
                && books.owners.contains_key(other)
                && Some(key) == task.concurrency_key.as_ref()
        };
        let why = match books.queue {
            (true, _) => Some("while its queue is paused".to_owned()),
            (_, Some(limit)) if running >= limit as usize => {
                Some(format!("beside {running}, of {limit} at most"))
            }
            _ if books.paused.contains(&task_id) => Some("while it is paused".to_owned()),
            _ if books.keys.iter().any(others) => Some("beside another one of its key".to_owned()),
            _ => None,
        };
        drop(books);
        if let Some(why) = why {
            self.ledger.fail("claimed", format_args!("task {task_id} is claimed {why}"));
        }
        let mut books = self.books();
        books.keys.extend(task.concurrency_key.clone().map(|key| (task_id, key)));
    }

    fn transition(
        &self,
        transition: &Transition,
        result: &Result<Applied, Refused>,
        unheard: &mut Vec<RunId>,
    ) {
        let Transition { task_id, run_id, next, .. } = transition;
        let owner = self.books().owners.get(task_id).copied();
        let owns = owner.is_some_and(|(owner, _)| owner == *run_id);
        match result {
            Ok(applied) => {
                if !owns {
                    self.ledger.fail(
                        "owner",
                        format_args!(
                            "a write of run {run_id} of task {task_id} is accepted, whose owner is \
                             {owner:?}"
                        ),
                    );
                }
                let goes_on = match next {
                    Next::Continue { .. } => true,
                    Next::Suspend { .. } => !applied.suspended,
                    _ => false,
                };
                if !goes_on {
                    self.books().owners.remove(task_id);
                }
                transition.events.iter().for_each(|event| self.emitted(event));
                transition
                    .spawns
                    .iter()
                    .for_each(|task| self.spawned(task, &Spawned::Created { claimed: false }));
            }
            Err(Refused) => {
                unheard.push(*run_id);
                if owns {
                    // The journal differs from what the run expects, which no store in this world
                    // can cause.
                    self.ledger.fail(
                        "journal",
                        format_args!(
                            "a write of run {run_id} is refused, which owns task {task_id}"
                        ),
                    );
                }
            }
        }
    }

    fn emitted(&self, event: &NewEvent) {
        let payload = event.payload.as_str().to_owned();
        self.ledger.books().emitted.entry(event.name.to_string()).or_insert(payload);
    }

    fn spawned(&self, task: &NewTask, spawned: &Spawned) {
        let Spawned::Created { claimed } = spawned else { return };
        self.books().starts.extend(task.start_at.map(|at| (task.task_id, at)));
        if let (true, Some(worker_id)) = (claimed, task.claim_by) {
            self.claimed(task.task_id, task.run_id, worker_id);
        }
    }

    fn claimed(&self, task_id: TaskId, run_id: RunId, worker_id: WorkerId) {
        let (owner, start) = {
            let mut books = self.books();
            books.runs.insert(run_id, worker_id);
            (books.owners.insert(task_id, (run_id, worker_id)), books.starts.remove(&task_id))
        };
        if let Some((owner, of)) = owner {
            self.ledger.fail(
                "two owners",
                format_args!(
                    "task {task_id} is claimed by worker {worker_id}, and run {owner} of worker \
                     {of} owns it"
                ),
            );
        }
        let latest = self.ledger.world.latest();
        if start.is_some_and(|start| start > latest) {
            self.ledger
                .fail("early", format_args!("task {task_id} is claimed before it was to start"));
        }
    }
}
