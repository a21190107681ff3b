//! A handle on a store, with short forms of what points do often.

use std::sync::Arc;

use stepwell_core::store::{
    Applied, Batch, Claimed, ClaimedTask, Command, CommandOutcome, Committed, Facts, NewEvent,
    NewMessage, NewTask, Next, Refused, Spawned, TaskFilter, Transition, Wait, WorkerSignal,
};
use stepwell_core::{
    Entry, Page, Payload, QueueInfo, RunId, Store, StoreError, TaskId, TaskInfo, TaskState,
    WorkerState, WorkerStatus,
};

use crate::make::{self, LOOK, claim, task_id};

/// A handle on a store.
#[derive(Clone)]
pub(crate) struct Handle(pub(crate) Arc<dyn Store>);

impl Handle {
    pub(crate) async fn try_commit(&self, batch: Batch) -> Result<Committed, StoreError> {
        self.0.commit(batch.into()).await
    }

    pub(crate) async fn commit(&self, batch: Batch) -> Committed {
        self.try_commit(batch).await.expect("the store fails")
    }

    pub(crate) async fn spawn(&self, tasks: impl IntoIterator<Item = NewTask>) -> Vec<Spawned> {
        self.commit(make::spawns(tasks)).await.spawns
    }

    /// Applies a signal, and returns whether the worker is registered.
    pub(crate) async fn signal(&self, signal: WorkerSignal) -> bool {
        self.status(signal).await.state != WorkerState::Gone
    }

    pub(crate) async fn status(&self, signal: WorkerSignal) -> WorkerStatus {
        self.commit(make::signals([signal])).await.workers.remove(0)
    }

    /// Declares a worker dead that has sent no heartbeat since it was registered.
    pub(crate) async fn crash(&self, worker: u128) {
        let status = self.status(make::declare_dead(worker, 0)).await;
        assert_ne!(status.state, WorkerState::Gone, "there is no worker {worker}");
    }

    /// Emits an event, and returns whether it was the first emission.
    pub(crate) async fn emit(&self, event: NewEvent) -> bool {
        self.commit(make::emitting([event])).await.events[0]
    }

    /// Sends a message, and returns whether it was accepted.
    pub(crate) async fn send(&self, message: NewMessage) -> bool {
        self.commit(make::sending([message])).await.messages[0]
    }

    pub(crate) async fn command(&self, command: Command) -> CommandOutcome {
        self.commit(make::commands([command])).await.commands[0]
    }

    /// Claims tasks for a worker from the queue `queue` and of the type `type`.
    pub(crate) async fn claim(&self, worker: u128, limit: usize) -> Vec<ClaimedTask> {
        self.claimed(worker, limit).await.tasks
    }

    pub(crate) async fn claimed(&self, worker: u128, limit: usize) -> Claimed {
        self.commit(make::claims([claim(worker, limit)])).await.claims.remove(0)
    }

    /// Claims the only task that is claimable for the worker.
    pub(crate) async fn claim_one(&self, worker: u128) -> ClaimedTask {
        let mut tasks = self.claim(worker, 10).await;
        assert_eq!(tasks.len(), 1, "exactly one task is claimable: {tasks:#?}");
        tasks.remove(0)
    }

    pub(crate) async fn apply(&self, transition: Transition) -> Result<Applied, Refused> {
        self.commit(make::transitions([transition])).await.transitions.remove(0)
    }

    /// Applies a transition that contains only the task's next state.
    pub(crate) async fn next(&self, task: (TaskId, RunId), next: Next) -> Applied {
        self.apply(Transition::new(task.0, task.1, next)).await.expect("the run owns its task")
    }

    /// Adds entries to the task's journal.
    pub(crate) async fn journals(&self, task: (TaskId, RunId), entries: Vec<Entry>) {
        let transition = Transition { entries, ..Transition::new(task.0, task.1, make::GO_ON) };
        self.apply(transition).await.expect("the run owns its task");
    }

    /// Returns what has arrived for the task.
    pub(crate) async fn look(&self, task: (TaskId, RunId)) -> Facts {
        self.next(task, LOOK).await.facts
    }

    /// Returns the waits of the task, by key.
    pub(crate) async fn waits_of(&self, n: u128) -> Vec<Wait> {
        self.0.waits_of(task_id(n)).await.expect("the store fails")
    }

    /// Spawns the tasks, all running under worker 1. Each task has the run with which it was
    /// spawned.
    pub(crate) async fn run(
        &self,
        tasks: impl IntoIterator<Item = NewTask>,
    ) -> Vec<(TaskId, RunId)> {
        let claim_by = Some(make::worker_id(1));
        let tasks: Vec<_> = tasks.into_iter().map(|task| NewTask { claim_by, ..task }).collect();
        let runs = tasks.iter().map(|task| (task.task_id, task.run_id)).collect();
        if !self.signal(make::heartbeat(1)).await {
            self.signal(make::register(1)).await;
        }
        for spawned in self.spawn(tasks).await {
            assert_eq!(spawned, Spawned::Created { claimed: true });
        }
        runs
    }

    /// Spawns one task that runs under worker 1.
    pub(crate) async fn run_one(&self, n: u128) -> (TaskId, RunId) {
        self.run([make::new_task(n)]).await[0]
    }

    pub(crate) async fn info(&self, n: u128) -> TaskInfo {
        self.find(n).await.unwrap_or_else(|| panic!("there is no task {n}"))
    }

    pub(crate) async fn find(&self, n: u128) -> Option<TaskInfo> {
        self.0.task(task_id(n)).await.expect("the store fails")
    }

    pub(crate) async fn state(&self, n: u128) -> TaskState {
        self.info(n).await.state
    }

    pub(crate) async fn list_of(&self, state: TaskState) -> Vec<TaskInfo> {
        self.list(TaskFilter { state: Some(state), limit: 1_000, ..TaskFilter::default() }).await
    }

    pub(crate) async fn count(&self, state: TaskState) -> usize {
        self.list_of(state).await.len()
    }

    pub(crate) async fn queues(&self) -> Vec<QueueInfo> {
        self.0.queues().await.expect("the store fails")
    }

    pub(crate) async fn journal(&self, n: u128) -> Vec<Entry> {
        self.0.journal(task_id(n)).await.expect("the store fails")
    }

    pub(crate) async fn list(&self, filter: TaskFilter) -> Vec<TaskInfo> {
        self.page(filter).await.items
    }

    pub(crate) async fn page(&self, filter: TaskFilter) -> Page<TaskInfo> {
        self.0.tasks(filter).await.expect("the store fails")
    }

    /// Returns every task.
    pub(crate) async fn all(&self) -> Vec<TaskInfo> {
        self.list(TaskFilter { limit: 100_000, ..TaskFilter::default() }).await
    }

    /// Returns everything that can be seen of the tasks. Two pictures are equal when nothing has
    /// changed in between.
    pub(crate) async fn picture(&self) -> String {
        let tasks = self.all().await;
        let mut picture = format!("{tasks:#?}");
        for task in tasks {
            let journal = self.0.journal(task.task_id).await.expect("the store fails");
            picture += &format!("\n{}: {journal:#?}", task.task_id);
        }
        picture
    }
}

/// Returns a claimed task's id and run.
pub(crate) fn of(task: &ClaimedTask) -> (TaskId, RunId) {
    (task.task_id, task.run_id)
}

/// Returns the payloads of the messages, in their order.
pub(crate) fn payloads(facts: &Facts) -> Vec<Payload> {
    facts.messages.iter().map(|message| message.payload.clone()).collect()
}
