//! The store in memory, for tests and simulation, and the reference model of a store's behaviour.

mod circles;
mod limits;
mod schedules;
mod waits;
mod workers;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::base::failure::Failure;
use crate::base::ids::{RunId, TaskId, WorkerId};
use crate::base::journal::{Entry, Kind};
use crate::base::name::Name;
use crate::base::payload::Payload;
use crate::base::runtime::{BoxFuture, Runtime};
use crate::base::time::{Timestamp, after};
use crate::memory::limits::{Place, Queue};
use crate::memory::waits::{Mail, Target, Waits};
use crate::memory::workers::Registered;
use crate::store::headers::have_labels;
use crate::store::page::{Page, Room};
use crate::store::queue::QueueInfo;
use crate::store::record::TaskRecord;
use crate::store::rules::circle::blocked;
use crate::store::rules::crash::SUSPECT_CRASHES;
use crate::store::rules::ending::{attempt_to_undo, compensating, retry_entry};
use crate::store::rules::{
    Arrival, Cancellation, Claims, Counts, Course, Effect, Ending, Found, GivenBack, Leaving, Live,
    Position, Queueing, Registration, Start, Started, Suspension, Turn, Undo, Verdict, WakeAt,
    given_back, is_waiting, on_arrival, on_cancel, on_command, on_end, on_suspension,
    starts_with_spawn,
};
use crate::store::scope::Scope;
use crate::store::*;

/// A store in memory, which lives until its last handle is dropped.
///
/// Each handle counts as a process of its own. [`MemoryStore::connect`] makes a second handle on
/// the same tasks, and the first handle learns of the second one's writes by [`Store::changed`].
pub struct MemoryStore {
    shared: Arc<Shared>,
    /// The latest version that this handle has seen.
    seen: AtomicU64,
}

struct Shared {
    runtime: Arc<dyn Runtime>,
    state: Mutex<State>,
    version: AtomicU64,
    changed: Notify,
}

impl MemoryStore {
    /// Returns an empty store that uses the runtime's clock.
    pub fn new(runtime: Arc<dyn Runtime>) -> Self {
        let shared = Shared {
            runtime,
            state: Mutex::default(),
            version: AtomicU64::new(0),
            changed: Notify::new(),
        };
        Self { shared: Arc::new(shared), seen: AtomicU64::new(0) }
    }

    /// Returns a second handle on the same tasks, as another process would have.
    pub fn connect(&self) -> Self {
        Self {
            shared: self.shared.clone(),
            seen: AtomicU64::new(self.shared.version.load(Ordering::SeqCst)),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store for MemoryStore {
    fn now(&self) -> Timestamp {
        self.shared.runtime.now()
    }

    fn commit(&self, batch: Arc<Batch>) -> BoxFuture<'static, Result<Committed, StoreError>> {
        let batch = Arc::unwrap_or_clone(batch);
        let only_claims = batch.has_only_claims();
        let committed = self.state().commit(&*self.shared.runtime, batch);
        let News { ready, poked, finished } = &committed.news;
        let got_none = committed.claims.iter().all(|claimed| claimed.tasks.is_empty());
        // An idle claim does not count as a change, because two idle workers would keep each other
        // busy with it.
        if !(only_claims && got_none && ready.is_empty() && poked.is_empty() && finished.is_empty())
        {
            let version = self.shared.version.fetch_add(1, Ordering::SeqCst);
            // A handle is not notified of its own write, unless it has missed an earlier write.
            let _ = self.seen.compare_exchange(
                version,
                version + 1,
                Ordering::SeqCst,
                Ordering::SeqCst,
            );
            self.shared.changed.notify_waiters();
        }
        Box::pin(std::future::ready(Ok(committed)))
    }

    fn transact(&self, transition: Transition) -> Result<Transacting, Transition> {
        Err(transition)
    }

    fn task(&self, task_id: TaskId) -> BoxFuture<'static, Result<Option<TaskInfo>, StoreError>> {
        let info = self.state().tasks.get(&task_id).map(Task::info);
        Box::pin(std::future::ready(Ok(info)))
    }

    fn tasks(&self, filter: TaskFilter) -> BoxFuture<'static, Result<Page<TaskInfo>, StoreError>> {
        let state = self.state();
        let tasks = state.tasks.values().rev().filter(|task| {
            have_labels(&task.new.headers, &filter.labels)
                && task.is_in(&filter.scope)
                && filter.before.is_none_or(|before| task.new.task_id < before)
                && filter.state.is_none_or(|state| task.position().state() == state)
                && filter.queue.as_ref().is_none_or(|queue| task.new.queue == *queue)
                && filter
                    .task_type
                    .as_ref()
                    .is_none_or(|task_type| task.new.task_type == *task_type)
                && filter.parent.is_none_or(|parent| task.new.parent == Some(parent))
        });
        let page = Page::of(tasks.map(Task::info), filter.limit);
        Box::pin(std::future::ready(Ok(page)))
    }

    fn ends(&self, tasks: Vec<TaskId>) -> BoxFuture<'static, Result<Ends, StoreError>> {
        let state = self.state();
        let end = |task_id: TaskId| Some((task_id, state.tasks.get(&task_id)?.finish()));
        let tasks = BTreeSet::from_iter(tasks);
        let ends = Page::of(tasks.into_iter().filter_map(end), usize::MAX);
        Box::pin(std::future::ready(Ok(ends)))
    }

    fn journal(&self, task_id: TaskId) -> BoxFuture<'static, Result<Vec<Entry>, StoreError>> {
        let journal =
            self.state().tasks.get(&task_id).map(|task| task.journal.clone()).unwrap_or_default();
        Box::pin(std::future::ready(Ok(journal)))
    }

    fn waits(
        &self,
        scope: Scope,
        prefix: String,
        behind: Option<TaskId>,
        limit: usize,
    ) -> BoxFuture<'static, Result<Page<TaskWaits>, StoreError>> {
        let state = self.state();
        let fits = |wait: &&Wait| {
            wait.target.as_ref().is_some_and(|target| target.as_str().starts_with(&prefix))
        };
        let tasks = state.tasks.iter().filter(|(task_id, task)| {
            behind.is_none_or(|behind| **task_id > behind) && task.is_in(&scope)
        });
        let waits = tasks
            .map(|(task_id, task)| (*task_id, task.waits.all().filter(fits).cloned().collect()));
        let page = Page::of(waits.filter(|(_, waits): &(_, Vec<_>)| !waits.is_empty()), limit);
        Box::pin(std::future::ready(Ok(page)))
    }

    fn waits_of(&self, task_id: TaskId) -> BoxFuture<'static, Result<Vec<Wait>, StoreError>> {
        let state = self.state();
        let waits = state.tasks.get(&task_id).map(|task| task.waits.all().cloned().collect());
        Box::pin(std::future::ready(Ok(waits.unwrap_or_default())))
    }

    fn messages(
        &self,
        task_id: TaskId,
        behind: Option<MessageId>,
    ) -> BoxFuture<'static, Result<Page<ArrivedMessage>, StoreError>> {
        let state = self.state();
        let messages = state.tasks.get(&task_id).into_iter().flat_map(|task| task.mail.all());
        let messages = messages.filter(|message| behind.is_none_or(|behind| message.id > behind));
        let page = Page::of(messages.cloned(), usize::MAX);
        Box::pin(std::future::ready(Ok(page)))
    }

    fn import(&self, record: TaskRecord) -> BoxFuture<'static, Result<bool, StoreError>> {
        let imported = self.state().import(self.now(), record);
        self.shared.version.fetch_add(1, Ordering::SeqCst);
        self.shared.changed.notify_waiters();
        Box::pin(std::future::ready(Ok(imported)))
    }

    fn queues(&self) -> BoxFuture<'static, Result<Vec<QueueInfo>, StoreError>> {
        let infos = self.state().queue_infos();
        Box::pin(std::future::ready(Ok(infos)))
    }

    fn workers(&self) -> BoxFuture<'static, Result<Vec<WorkerInfo>, StoreError>> {
        let infos = self.state().worker_infos(self.now());
        Box::pin(std::future::ready(Ok(infos)))
    }

    fn schedules(
        &self,
        which: ScheduleFilter,
    ) -> BoxFuture<'static, Result<Page<Scheduled>, StoreError>> {
        let schedules = self.state().schedules(which);
        Box::pin(std::future::ready(Ok(schedules)))
    }

    fn waiting_types(
        &self,
        queues: Vec<Name>,
    ) -> BoxFuture<'static, Result<Vec<Name>, StoreError>> {
        let types = self.state().waiting_types(&queues);
        Box::pin(std::future::ready(Ok(types)))
    }

    fn describe(&self, info: TaskTypeInfo) -> BoxFuture<'static, Result<(), StoreError>> {
        self.state().task_types.insert(info.task_type.clone(), info);
        Box::pin(std::future::ready(Ok(())))
    }

    fn task_types(&self) -> BoxFuture<'static, Result<Vec<TaskTypeInfo>, StoreError>> {
        let types = self.state().task_types.values().cloned().collect();
        Box::pin(std::future::ready(Ok(types)))
    }

    fn record(&self, happenings: Vec<Happening>) -> BoxFuture<'static, Result<(), StoreError>> {
        let mut state = self.state();
        for happening in happenings {
            state.happened += 1;
            let id = state.happened;
            state.history.insert(id, happening);
        }
        Box::pin(std::future::ready(Ok(())))
    }

    fn history(
        &self,
        which: HistoryFilter,
    ) -> BoxFuture<'static, Result<Page<(u64, Happening)>, StoreError>> {
        let state = self.state();
        let after = state.history.range(which.after.saturating_add(1)..);
        let of = after.filter(|(_, happening)| {
            which.task_id.is_none_or(|task_id| happening.task_id == task_id)
        });
        let page = Page::of(of.map(|(id, happening)| (*id, happening.clone())), which.limit);
        Box::pin(std::future::ready(Ok(page)))
    }

    fn purge(&self, purge: Purge) -> BoxFuture<'static, Result<usize, StoreError>> {
        let purged = self.state().purge(&purge);
        Box::pin(std::future::ready(Ok(purged)))
    }

    fn changed(&self) -> BoxFuture<'_, Changed> {
        Box::pin(async {
            loop {
                let changed = self.shared.changed.notified();
                let version = self.shared.version.load(Ordering::SeqCst);
                if self.seen.swap(version, Ordering::SeqCst) != version {
                    return Changed::ANYTHING;
                }
                changed.await;
            }
        })
    }
}

#[derive(Default)]
struct State {
    tasks: BTreeMap<TaskId, Task>,
    /// The claimable tasks of each queue, in the order in which they are claimed.
    ready: HashMap<Name, BTreeSet<Place>>,
    /// The tasks that become claimable at these times.
    due: BTreeSet<(Timestamp, TaskId)>,
    /// The tasks that are cancelled at these times.
    deadlines: BTreeSet<(Timestamp, TaskId)>,
    /// The tasks with an idempotency key, by type, scope and key.
    idempotency: HashMap<(Name, Scope, Name), TaskId>,
    queues: BTreeMap<Name, Queue>,
    /// The unfinished tasks of each concurrency key, in the order of their turns.
    keys: HashMap<(Scope, Name), BTreeSet<(u64, TaskId)>>,
    places: u64,
    events: HashMap<(Name, Option<Name>), Payload>,
    /// The tasks that await each event, and each child.
    awaiting: HashMap<Target, BTreeSet<TaskId>>,
    /// The tasks that other spawns were answered with, each with the task of that spawn.
    needs: BTreeSet<(TaskId, TaskId)>,
    workers: BTreeMap<WorkerId, Registered>,
    schedules: BTreeMap<Name, Scheduled>,
    messages: i64,
    task_types: BTreeMap<Name, TaskTypeInfo>,
    history: BTreeMap<u64, Happening>,
    happened: u64,
    /// The cancelled tasks whose children are still to be cancelled.
    doomed: Vec<TaskId>,
}

/// A transition that has written its changes.
struct Written {
    task_id: TaskId,
    run_id: RunId,
    applied: Applied,
    look: Option<Look>,
}

fn idempotency_key(task: &NewTask) -> Option<(Name, Scope, Name)> {
    let key = task.idempotency_key.clone()?;
    Some((task.task_type.clone(), task.scope.clone(), key))
}

fn concurrency_key(task: &NewTask) -> Option<(Scope, Name)> {
    Some((task.scope.clone(), task.concurrency_key.clone()?))
}

/// The second part of a transition, which follows when all transitions have written.
enum Look {
    Only,
    Suspend { wake_at: Option<Timestamp> },
}

struct Task {
    new: NewTask,
    state: TaskState,
    run_id: RunId,
    counts: Counts,
    /// The worker that runs the task, or that ran the task before it was suspended.
    worker_id: Option<WorkerId>,
    journal: Vec<Entry>,
    waits: Waits,
    mail: Mail,
    output: Option<Payload>,
    failure: Option<Failure>,
    cancellation: Cancellation,
    course: Course,
    /// The number of the last entry that showed progress at the latest crash.
    progress_at_crash: u64,
    poked: bool,
    /// The place of the task among those of its concurrency key.
    place: u64,
    claims: Claims,
    spawned_at: Timestamp,
    ready_at: Timestamp,
    started_at: Option<Timestamp>,
    finished_at: Option<Timestamp>,
    due_at: Option<Timestamp>,
    cancel_at: Option<Timestamp>,
}

impl Task {
    fn info(&self) -> TaskInfo {
        TaskInfo {
            task_id: self.new.task_id,
            run_id: self.run_id,
            task_type: self.new.task_type.clone(),
            queue: self.new.queue.clone(),
            state: self.position().state(),
            params: self.new.params.clone(),
            output: self.output.clone(),
            failure: self.failure.clone(),
            headers: self.new.headers.clone(),
            scope: self.new.scope.clone(),
            priority: self.new.priority,
            attempt: self.counts.attempt,
            max_attempts: self.new.max_attempts,
            retry: self.new.retry.clone(),
            max_duration: self.new.cancellation.max_duration,
            cancel_at: self.cancel_at,
            parent: self.new.parent,
            idempotency_key: self.new.idempotency_key.clone(),
            concurrency_key: self.new.concurrency_key.clone(),
            code_version: self.new.code_version.clone(),
            cancel_requested: self.cancellation == Cancellation::Requested,
            paused: self.claims == Claims::Paused,
            spawned_at: self.spawned_at,
            started_at: self.started_at,
            finished_at: self.finished_at,
            due_at: self.due_at,
        }
    }

    fn is_in(&self, scope: &Scope) -> bool {
        scope.has(&self.new.queue, &self.new.headers, &self.new.scope)
    }

    fn position(&self) -> Position {
        Position::of(self.state, self.course, self.cancellation, self.claims)
    }

    /// Returns what is left to be undone before the task ends.
    fn undo(&self) -> Undo {
        let last = |kind| {
            let entry = self.journal.iter().rfind(|entry| entry.key.kind == kind);
            entry.map(|entry| entry.seq)
        };
        Undo::of(last(Kind::Compensate), last(Kind::Compensating))
    }

    fn finish(&self) -> Option<Finish> {
        Finish::of(self.state, self.output.clone(), self.failure.clone())
    }
}

impl State {
    fn commit(&mut self, runtime: &dyn Runtime, batch: Batch) -> Committed {
        let now = runtime.now();
        let mut news = News::default();
        let written: Vec<_> =
            batch.transitions.into_iter().map(|t| self.write(now, t, &mut news)).collect();
        self.cancel_doomed(now, &mut news);
        let mut room = Room::default();
        let transitions = self.look_all(now, written, &mut room, &mut news);
        let commands =
            batch.commands.into_iter().map(|c| self.command(now, c, &mut news)).collect();
        let events =
            batch.events.into_iter().map(|event| self.emit(now, event, &mut news)).collect();
        let messages = batch.messages.into_iter().map(|m| self.send(now, m, &mut news)).collect();
        let spawns =
            batch.spawns.into_iter().map(|task| self.spawn(now, task, &mut news)).collect();
        let schedules =
            batch.schedules.into_iter().map(|c| self.change_schedule(now, c, &mut news)).collect();
        batch.queues.into_iter().for_each(|change| self.change_queue(change, &mut news));
        let workers =
            batch.workers.into_iter().map(|signal| self.signal(now, signal, &mut news)).collect();
        let claims = batch
            .claims
            .into_iter()
            .map(|c| self.claim(runtime, now, &c, &mut room, &mut news))
            .collect();
        Committed {
            transitions,
            commands,
            events,
            messages,
            spawns,
            schedules,
            workers,
            claims,
            news,
        }
    }

    /// Writes the changes of a transition, all but the suspension, which depends on the facts of
    /// the second round.
    fn write(
        &mut self,
        now: Timestamp,
        transition: Transition,
        news: &mut News,
    ) -> Result<Written, Refused> {
        let Transition { task_id, run_id, next, .. } = transition;
        let task = self
            .tasks
            .get_mut(&task_id)
            .filter(|task| task.run_id == run_id && task.state == TaskState::Running)
            .ok_or(Refused)?;
        let last = task.journal.last().map_or(0, |entry| entry.seq);
        if transition.after.is_some_and(|after| after != last) {
            self.give_back(now, task_id, Leaving::Released, None, news);
            return Err(Refused);
        }
        let applied = Applied {
            cancel_requested: task.cancellation == Cancellation::Requested,
            transaction: transition.transaction.map(|_| {
                Err(anyhow::anyhow!(
                    "the store in memory has no transactions: use SQLite or PostgreSQL"
                ))
            }),
            ..Applied::default()
        };
        if !transition.superseded.is_empty() {
            task.journal.retain(|entry| !transition.superseded.contains(&entry.seq));
        }
        task.journal.extend(transition.entries);
        transition.received.iter().for_each(|id| task.mail.remove(*id));
        for key in &transition.waits_removed {
            self.remove_wait(task_id, key);
        }
        for wait in transition.waits_added {
            self.add_wait(task_id, wait);
        }
        for task in transition.spawns {
            self.spawn(now, task, news);
        }
        let keyed = transition.keyed.map(|keyed| self.spawn_keyed(now, task_id, *keyed, news));
        for event in transition.events {
            self.emit(now, event, news);
        }
        for message in transition.messages {
            self.send(now, message, news);
        }
        let applied = Applied { keyed, ..applied };
        let mut written = Written { task_id, run_id, applied, look: None };
        match next {
            Next::Continue { collect } => written.look = collect.then_some(Look::Only),
            Next::Suspend { wake_at } => written.look = Some(Look::Suspend { wake_at }),
            Next::Complete(output) => self.finish(now, task_id, Finish::Completed(output), news),
            Next::Fail(failure) => self.finish(now, task_id, Finish::Failed(failure), news),
            Next::Cancel => self.finish(now, task_id, Finish::Cancelled, news),
            Next::Retry { failure, at } => {
                if let Some(task) = self.tasks.get_mut(&task_id) {
                    task.failure = Some(failure);
                }
                self.drop_waits(task_id);
                self.give_back(now, task_id, Leaving::Failed, Some(at), news);
            }
            Next::Release => self.give_back(now, task_id, Leaving::Released, None, news),
            Next::Leave { until } => {
                self.give_back(now, task_id, Leaving::Released, Some(until), news);
            }
        }
        Ok(written)
    }

    /// Spawns the child with a key. The entry is only for a child that did not exist.
    fn spawn_keyed(
        &mut self,
        now: Timestamp,
        parent: TaskId,
        keyed: KeyedSpawn,
        news: &mut News,
    ) -> Spawned {
        let KeyedSpawn { task, entry } = keyed;
        let spawned = self.spawn(now, task, news);
        match &spawned {
            Spawned::Created { .. } => {
                if let Some(task) = self.tasks.get_mut(&parent) {
                    task.journal.push(entry);
                }
            }
            Spawned::Existing { task_id: other, .. } | Spawned::Waiting { task_id: other, .. } => {
                self.needs.insert((*other, parent));
            }
        }
        spawned
    }

    /// Looks for what has arrived for transitions, in the order of their tasks' ids.
    fn look_all(
        &mut self,
        now: Timestamp,
        written: Vec<Result<Written, Refused>>,
        room: &mut Room,
        news: &mut News,
    ) -> Vec<Result<Applied, Refused>> {
        let mut written: Vec<_> = written.into_iter().enumerate().collect();
        written.sort_by_key(|(_, written)| {
            written.as_ref().map_or_else(|_| None, |written| Some(written.task_id))
        });
        let looked = written.into_iter().map(|(place, written)| {
            (place, written.map(|written| self.look(now, written, room, news)))
        });
        looked.collect::<BTreeMap<_, _>>().into_values().collect()
    }

    /// Returns what a transition finds when all transitions of its batch have written.
    fn look(
        &mut self,
        now: Timestamp,
        written: Written,
        room: &mut Room,
        news: &mut News,
    ) -> Applied {
        let Written { task_id, run_id, mut applied, look } = written;
        let Some(look) = look else { return applied };
        let mut facts = self.facts(task_id, room);
        let owned = |task: &&mut Task| task.run_id == run_id && task.state == TaskState::Running;
        let Some(task) = self.tasks.get_mut(&task_id).filter(owned) else { return applied };
        task.poked = false;
        applied.cancel_requested = task.cancellation == Cancellation::Requested;
        if let Look::Suspend { wake_at } = look {
            let found = if facts.is_empty() { Found::Nothing } else { Found::Something };
            let blocking = match on_suspension(task.cancellation, found, WakeAt::of(wake_at, now)) {
                Suspension::StaysRunning => {
                    applied.facts = facts;
                    return applied;
                }
                Suspension::Suspends => None,
                Suspension::SuspendsUnlessInCircle => self.blocked(task_id),
            };
            match blocking {
                Some(child) => facts.children.push((child, Finish::Failed(blocked()))),
                None => {
                    self.suspend(task_id, wake_at, news);
                    applied.suspended = true;
                }
            }
        }
        applied.facts = facts;
        applied
    }

    fn suspend(&mut self, task_id: TaskId, wake_at: Option<Timestamp>, news: &mut News) {
        let Some(task) = self.tasks.get_mut(&task_id) else { return };
        task.state = TaskState::Suspended;
        task.counts = task.counts.left(Leaving::Suspended);
        if self.queues.get(&task.new.queue).is_some_and(Queue::counts_running) {
            news.ready.push((task.new.queue.clone(), 1));
        }
        self.set_due(task_id, wake_at, news);
    }

    /// Takes a running task from its owner.
    fn give_back(
        &mut self,
        now: Timestamp,
        task_id: TaskId,
        leaving: Leaving,
        due_at: Option<Timestamp>,
        news: &mut News,
    ) {
        let Some(task) = self.tasks.get_mut(&task_id) else { return };
        task.worker_id = None;
        task.counts = task.counts.left(leaving);
        match (given_back(task.cancellation), Start::of(due_at, now)) {
            (GivenBack::EndsAsCancelled, _) => {
                self.finish(now, task_id, Finish::Cancelled, news);
            }
            (GivenBack::Pending, Start::Later) => {
                task.state = TaskState::Pending;
                self.set_due(task_id, due_at, news);
            }
            (GivenBack::Pending, Start::Now) => self.make_ready(now, task_id, news),
        }
    }

    fn make_ready(&mut self, now: Timestamp, task_id: TaskId, news: &mut News) {
        self.set_due(task_id, None, news);
        let Some(task) = self.tasks.get_mut(&task_id) else { return };
        task.state = TaskState::Pending;
        task.ready_at = now;
        self.offer(task_id, news);
    }

    /// Lets a pending task be claimed, unless its time or turn has yet to come, or it is paused.
    fn offer(&mut self, task_id: TaskId, news: &mut News) {
        let claimable = |task: &&Task| {
            let start = if task.due_at.is_none() { Start::Now } else { Start::Later };
            let turn = if self.has_turn(&task.new) { Turn::Free } else { Turn::Taken };
            matches!(task.position(), Position::Live(live) if live.is_claimable(start, turn))
        };
        let Some(task) = self.tasks.get(&task_id).filter(claimable) else { return };
        let place = (Reverse(task.new.priority), task.ready_at, task_id);
        self.ready.entry(task.new.queue.clone()).or_default().insert(place);
        news.ready.push((task.new.queue.clone(), 1));
    }

    /// Removes a task from the claimable ones, if it is among them.
    fn withdraw(&mut self, task_id: TaskId) {
        let Some(task) = self.tasks.get(&task_id) else { return };
        if let Some(ready) = self.ready.get_mut(&task.new.queue) {
            ready.remove(&(Reverse(task.new.priority), task.ready_at, task_id));
        }
    }

    fn set_due(&mut self, task_id: TaskId, due_at: Option<Timestamp>, news: &mut News) {
        let Some(task) = self.tasks.get_mut(&task_id) else { return };
        if let Some(old) = task.due_at.take() {
            self.due.remove(&(old, task_id));
        }
        if let Some(due_at) = due_at {
            task.due_at = Some(due_at);
            self.due.insert((due_at, task_id));
            news.ready.push((task.new.queue.clone(), 1));
        }
    }

    fn set_deadline(&mut self, task_id: TaskId, cancel_at: Option<Timestamp>) {
        let Some(task) = self.tasks.get_mut(&task_id) else { return };
        if let Some(old) = task.cancel_at.take() {
            self.deadlines.remove(&(old, task_id));
        }
        if let Some(cancel_at) = cancel_at {
            task.cancel_at = Some(cancel_at);
            self.deadlines.insert((cancel_at, task_id));
        }
    }

    /// Notifies a task that something has arrived for it: wakes a suspended task, and marks a
    /// running one.
    fn notify(&mut self, now: Timestamp, task_id: TaskId, news: &mut News) {
        let Some(task) = self.tasks.get_mut(&task_id) else { return };
        match on_arrival(task.position()) {
            Arrival::Wakes => self.make_ready(now, task_id, news),
            Arrival::Notifies => {
                task.poked = true;
                news.poked.push(task_id);
            }
            Arrival::Nothing => {}
        }
    }

    /// Ends a task, or starts its compensation first.
    fn finish(&mut self, now: Timestamp, task_id: TaskId, finish: Finish, news: &mut News) {
        let Some(task) = self.tasks.get(&task_id) else { return };
        // The journal of a task that has succeeded is not read.
        let undo = match finish {
            Finish::Completed(_) => Undo::Nothing,
            Finish::Failed(_) | Finish::Cancelled => task.undo(),
        };
        match on_end((&finish).into(), task.course, undo) {
            Ending::CompensatesFirst => self.compensate(now, task_id, finish, news),
            Ending::Ends(_) => self.end(now, task_id, finish, news),
        }
    }

    fn compensate(&mut self, now: Timestamp, task_id: TaskId, finish: Finish, news: &mut News) {
        self.drop_waits(task_id);
        self.set_deadline(task_id, None);
        self.withdraw(task_id);
        let Some(task) = self.tasks.get_mut(&task_id) else { return };
        let seq = task.journal.last().map_or(1, |entry| entry.seq + 1);
        let Position::Live(live) = task.position() else { return };
        let attempt = attempt_to_undo(task.counts.attempt, live.activity);
        let (entry, failure) = compensating(seq, attempt, finish, now);
        task.journal.push(entry);
        task.failure = Some(failure);
        let Live { course, cancellation, .. } = live.compensating();
        (task.course, task.cancellation) = (course, cancellation);
        task.counts = task.counts.compensating();
        task.worker_id = None;
        task.poked = false;
        self.make_ready(now, task_id, news);
    }

    fn end(&mut self, now: Timestamp, task_id: TaskId, finish: Finish, news: &mut News) {
        self.drop_waits(task_id);
        self.set_due(task_id, None, news);
        self.set_deadline(task_id, None);
        self.withdraw(task_id);
        let Some(task) = self.tasks.get_mut(&task_id) else { return };
        if task.state == TaskState::Running
            && self.queues.get(&task.new.queue).is_some_and(Queue::counts_running)
        {
            news.ready.push((task.new.queue.clone(), 1));
        }
        task.worker_id = None;
        task.claims = Claims::Open;
        // A retry may follow any other end, and receives the accepted messages.
        if matches!(finish, Finish::Completed(_)) {
            task.mail = Mail::default();
        }
        task.finished_at = Some(now);
        news.finished.push((task_id, finish.clone()));
        let cancelled = finish == Finish::Cancelled;
        (task.state, task.output, task.failure) = match finish {
            Finish::Completed(output) => (TaskState::Completed, Some(output), None),
            Finish::Failed(failure) => (TaskState::Failed, None, Some(failure)),
            Finish::Cancelled => (TaskState::Cancelled, None, task.failure.take()),
        };
        let (key, place) = (concurrency_key(&task.new), task.place);
        let known =
            task.new.parent.is_some() || task.new.idempotency_key.is_some() || key.is_some();
        if let Some(key) = key {
            self.end_turn(now, &key, (place, task_id), news);
        }
        // No other task can have been spawned by a task that awaits it, or have answered a spawn of
        // such a task.
        let target =
            Name::new(task_id.to_string()).ok().filter(|_| known).map(|child| (Kind::Child, child));
        let awaiting = target.as_ref().and_then(|target| self.awaiting.get(target)).cloned();
        for waiting in awaiting.into_iter().flatten() {
            target.iter().for_each(|target| self.arrive(now, waiting, target.clone(), news));
        }
        if cancelled {
            self.doomed.push(task_id);
        }
    }

    /// Cancels the descendants of tasks that were cancelled.
    fn cancel_doomed(&mut self, now: Timestamp, news: &mut News) {
        while let Some(parent) = self.doomed.pop() {
            let children: Vec<_> = self
                .tasks
                .values()
                .filter(|child| child.new.parent == Some(parent) && !child.state.is_finished())
                .map(|child| child.new.task_id)
                .collect();
            children.into_iter().for_each(|child| self.cancel(now, child, news));
        }
    }

    /// Cancels a task that has not ended.
    fn cancel(&mut self, now: Timestamp, task_id: TaskId, news: &mut News) {
        let Some(task) = self.tasks.get(&task_id) else { return };
        if let Some(effect) = on_cancel(task.position()) {
            self.apply(now, task_id, effect, news);
        }
    }

    fn command(&mut self, now: Timestamp, command: Command, news: &mut News) -> CommandOutcome {
        let task_id = command.task_id();
        let Some(task) = self.tasks.get(&task_id) else { return CommandOutcome::NotFound };
        let effect = match on_command(task.position(), command.into()) {
            Verdict::Allowed(effect) => effect,
            Verdict::NotAllowed(state) => return CommandOutcome::NotAllowed(state),
        };
        if effect == Effect::Remove
            && let Some(by) = self.needed_by(task)
        {
            return CommandOutcome::Needed { by };
        }
        self.apply(now, task_id, effect, news);
        self.cancel_doomed(now, news);
        CommandOutcome::Done
    }

    /// Carries out the effect of a command or a cancellation; the children of a cancelled task are
    /// cancelled later.
    fn apply(&mut self, now: Timestamp, task_id: TaskId, effect: Effect, news: &mut News) {
        let Some(task) = self.tasks.get_mut(&task_id) else { return };
        match effect {
            Effect::AskToEnd => {
                task.cancellation = Cancellation::Requested;
                self.notify(now, task_id, news);
            }
            Effect::EndAsCancelled => self.finish(now, task_id, Finish::Cancelled, news),
            Effect::RunAgain => {
                task.counts = Counts::default();
                let Live { course, cancellation, claims, .. } = Live::NEW;
                (task.course, task.cancellation, task.claims) = (course, cancellation, claims);
                if task.journal.iter().any(|entry| entry.key.kind == Kind::Compensating) {
                    let seq = task.journal.last().map_or(1, |entry| entry.seq + 1);
                    task.journal.push(retry_entry(seq, now));
                }
                task.finished_at = None;
                self.line_up(task_id);
                self.make_ready(now, task_id, news);
            }
            Effect::Remove => self.delete(task_id),
            Effect::Wake => self.make_ready(now, task_id, news),
            Effect::Pause => {
                task.claims = Claims::Paused;
                self.withdraw(task_id);
            }
            Effect::Resume => {
                task.claims = Claims::Open;
                self.offer(task_id, news);
            }
            Effect::Nothing => {}
        }
    }

    /// Returns the task that may still have to learn how this one ended.
    fn needed_by(&self, task: &Task) -> Option<TaskId> {
        let task_id = task.new.task_id;
        self.parent_to_go_on(task).or_else(|| {
            let target = Name::new(task_id.to_string()).ok();
            let awaiting = target
                .and_then(|target| self.awaiting.get(&(Kind::Child, target))?.first().copied());
            let lives = |by: &TaskId| self.tasks.get(by).is_some_and(|by| !by.state.is_finished());
            let answered = self.answered_to_go_on(task_id);
            let answered = answered.filter(|by| lives(by) || !self.is_kept_for(*by, task_id));
            awaiting.into_iter().chain(answered).min()
        })
    }

    /// Returns whether a task has not completed: it goes on, or may be tried again.
    fn may_go_on(&self, task_id: TaskId) -> bool {
        self.tasks.get(&task_id).is_some_and(|task| task.state != TaskState::Completed)
    }

    fn parent_to_go_on(&self, task: &Task) -> Option<TaskId> {
        task.new.parent.filter(|parent| self.may_go_on(*parent))
    }

    /// Returns the tasks that were answered with this one and may go on.
    fn answered_to_go_on(&self, task_id: TaskId) -> impl Iterator<Item = TaskId> {
        let lowest = (task_id, TaskId::from(uuid::Uuid::nil()));
        let answered = self.needs.range(lowest..).take_while(move |(needed, _)| *needed == task_id);
        answered.map(|(_, by)| *by).filter(|by| self.may_go_on(*by))
    }

    /// Returns whether a task is the other one, or is kept for it, directly or through others.
    fn is_kept_for(&self, task_id: TaskId, other: TaskId) -> bool {
        let (mut seen, mut left) = (BTreeSet::new(), vec![task_id]);
        while let Some(task_id) = left.pop() {
            if task_id == other {
                return true;
            }
            if seen.insert(task_id) {
                left.extend(self.tasks.get(&task_id).and_then(|task| self.parent_to_go_on(task)));
                left.extend(self.answered_to_go_on(task_id));
            }
        }
        false
    }

    /// Removes finished tasks that no task needs, and repeats this while that makes further tasks
    /// needless.
    fn purge(&mut self, purge: &Purge) -> usize {
        let mut purged = 0;
        loop {
            let purged_before = purged;
            for task_id in self.tasks.keys().copied().collect::<Vec<_>>() {
                if purged == purge.limit {
                    return purged;
                }
                let fits = |task: &&Task| {
                    task.finished_at.is_some_and(|at| at < purge.before)
                        && task.state.is_finished()
                        && purge.state.is_none_or(|wanted| task.state == wanted)
                        && self.needed_by(task).is_none()
                };
                if self.tasks.get(&task_id).filter(fits).is_some() {
                    self.delete(task_id);
                    purged += 1;
                }
            }
            if purged == purged_before {
                return purged;
            }
        }
    }

    fn delete(&mut self, task_id: TaskId) {
        let Some(task) = self.tasks.remove(&task_id) else { return };
        self.history.retain(|_, happening| happening.task_id != task_id);
        self.needs.retain(|(needed, by)| *needed != task_id && *by != task_id);
        if let Some(key) = idempotency_key(&task.new) {
            self.idempotency.remove(&key);
        }
    }

    fn emit(&mut self, now: Timestamp, event: NewEvent, news: &mut News) -> bool {
        let key = (event.name.clone(), event.queue.clone());
        if self.events.contains_key(&key) {
            return false;
        }
        self.events.insert(key, event.payload);
        let target = (Kind::Event, event.name);
        for task_id in self.awaiting.get(&target).cloned().unwrap_or_default() {
            let sees =
                |task: &Task| event.queue.as_ref().is_none_or(|queue| task.new.queue == *queue);
            if self.tasks.get(&task_id).is_some_and(sees) {
                self.arrive(now, task_id, target.clone(), news);
            }
        }
        true
    }

    fn send(&mut self, now: Timestamp, message: NewMessage, news: &mut News) -> bool {
        let Some(task) =
            self.tasks.get_mut(&message.task_id).filter(|task| !task.state.is_finished())
        else {
            return false;
        };
        self.messages += 1;
        let NewMessage { task_id, topic, payload } = message;
        let target = (Kind::Message, topic.clone());
        task.mail.add(ArrivedMessage { id: self.messages, topic, payload });
        if task.waits.awaits(&target) {
            self.arrive(now, task_id, target, news);
        }
        true
    }

    fn spawn(&mut self, now: Timestamp, new: NewTask, news: &mut News) -> Spawned {
        let key = idempotency_key(&new);
        let existing = key.as_ref().and_then(|key| self.idempotency.get(key));
        if let Some(task) = existing.and_then(|task_id| self.tasks.get(task_id)) {
            return Spawned::Existing {
                task_id: task.new.task_id,
                run_id: task.run_id,
                attempt: task.counts.attempt,
            };
        }
        if let Some(waiting) = self.coalesce(now, &new, news) {
            return waiting;
        }
        self.idempotency.extend(key.map(|key| (key, new.task_id)));
        let (task_id, start_at) = (new.task_id, new.start_at.filter(|start_at| *start_at > now));
        let claim_by = new.claim_by.filter(|worker_id| self.starts_now(now, &new, *worker_id));
        let CancellationPolicy { max_delay, max_duration } = new.cancellation;
        let limit = if claim_by.is_some() { max_duration } else { max_delay };
        let claimed = claim_by.is_some();
        let task = Task {
            state: if claimed { TaskState::Running } else { TaskState::Pending },
            run_id: new.run_id,
            counts: if claimed { Counts::default().claimed() } else { Counts::default() },
            worker_id: claim_by,
            journal: Vec::new(),
            waits: Waits::default(),
            mail: Mail::default(),
            output: None,
            failure: None,
            cancellation: Cancellation::NotRequested,
            course: Course::Ordinary,
            claims: Claims::Open,
            progress_at_crash: 0,
            poked: false,
            place: 0,
            spawned_at: now,
            ready_at: now,
            started_at: claimed.then_some(now),
            finished_at: None,
            due_at: None,
            cancel_at: None,
            new,
        };
        self.tasks.insert(task_id, task);
        self.line_up(task_id);
        self.set_deadline(task_id, limit.map(|limit| after(now, limit)));
        match (claimed, start_at) {
            (true, _) => {}
            (false, Some(_)) => self.set_due(task_id, start_at, news),
            (false, None) => self.make_ready(now, task_id, news),
        }
        Spawned::Created { claimed }
    }

    /// Returns whether a worker gets a task in the commit that spawns it.
    fn starts_now(&self, now: Timestamp, new: &NewTask, worker_id: WorkerId) -> bool {
        let Ok(starts) = starts_with_spawn::<Infallible>(
            Start::of(new.start_at, now),
            if new.concurrency_key.is_none() { Turn::Free } else { Turn::Taken },
            || {
                Ok(match self.workers.contains_key(&worker_id) {
                    true => Registration::Registered,
                    false => Registration::Unknown,
                })
            },
            || {
                Ok(match self.queues.get(&new.queue).is_some_and(Queue::restricts) {
                    true => Queueing::Restricted,
                    false => Queueing::Free,
                })
            },
        );
        starts
    }

    /// Returns the waiting task that takes the place of a spawn, if there is one.
    fn coalesce(&mut self, now: Timestamp, new: &NewTask, news: &mut News) -> Option<Spawned> {
        let (coalesce, key) = (new.coalesce?, concurrency_key(new)?);
        let waits = |task: &&Task| {
            let started = if task.started_at.is_none() { Started::Never } else { Started::Once };
            task.new.task_type == new.task_type
                && matches!(task.position(), Position::Live(live) if is_waiting(live, started))
        };
        let line =
            self.keys.get(&key)?.iter().rev().filter_map(|(_, task_id)| self.tasks.get(task_id));
        let waiting: Vec<_> =
            line.filter(waits).map(|task| (task.new.task_id, task.run_id)).collect();
        let (task_id, run_id) = *waiting.first()?;
        if coalesce != Coalesce::Replace {
            return Some(Spawned::Waiting { task_id, run_id });
        }
        // The tasks that other transitions of the batch have cancelled are handled later.
        let others = std::mem::take(&mut self.doomed);
        for (task_id, _) in waiting {
            self.cancel(now, task_id, news);
            self.cancel_doomed(now, news);
        }
        self.doomed = others;
        None
    }

    fn import(&mut self, now: Timestamp, record: TaskRecord) -> bool {
        let TaskRecord { info, journal, waits, messages, needs } = record;
        let key = info.idempotency_key.clone();
        let key = key.map(|key| (info.task_type.clone(), info.scope.clone(), key));
        if self.tasks.contains_key(&info.task_id)
            || key.as_ref().is_some_and(|key| self.idempotency.contains_key(key))
        {
            return false;
        }
        let task_id = info.task_id;
        self.idempotency.extend(key.map(|key| (key, task_id)));
        let mut mail = Mail::default();
        for (topic, payload) in messages.into_iter().filter(|_| info.state != TaskState::Completed)
        {
            self.messages += 1;
            mail.add(ArrivedMessage { id: self.messages, topic, payload });
        }
        let (state, due_at, cancel_at) = (info.state, info.due_at, info.cancel_at);
        let task = imported(now, info, journal, mail);
        let ended = task.state.is_finished();
        self.needs.extend(needs.into_iter().map(|needed| (needed, task_id)));
        self.tasks.insert(task_id, task);
        if ended {
            return true;
        }
        for wait in waits {
            self.add_wait(task_id, wait);
        }
        self.line_up(task_id);
        self.set_deadline(task_id, cancel_at);
        let mut news = News::default();
        match due_at.filter(|due_at| state == TaskState::Pending && *due_at > now) {
            Some(due_at) => self.set_due(task_id, Some(due_at), &mut news),
            None => self.make_ready(now, task_id, &mut news),
        }
        true
    }

    fn waiting_types(&self, queues: &[Name]) -> Vec<Name> {
        let ready = queues.iter().filter_map(|queue| self.ready.get(queue)).flatten();
        let tasks = ready.filter_map(|place| self.tasks.get(&place.2));
        let types = tasks
            .filter(|task| task.counts.crashes < SUSPECT_CRASHES)
            .map(|task| task.new.task_type.clone());
        types.collect::<BTreeSet<_>>().into_iter().collect()
    }

    fn running_under(&self, worker_id: WorkerId) -> Vec<TaskId> {
        let runs =
            |task: &&Task| task.worker_id == Some(worker_id) && task.state == TaskState::Running;
        self.tasks.values().filter(runs).map(|task| task.new.task_id).collect()
    }

    fn claim(
        &mut self,
        runtime: &dyn Runtime,
        now: Timestamp,
        claim: &Claim,
        room: &mut Room,
        news: &mut News,
    ) -> Claimed {
        self.do_what_is_due(now, news);
        let poked = self
            .running_under(claim.worker_id)
            .into_iter()
            .filter(|task_id| self.tasks.get(task_id).is_some_and(|task| task.poked))
            .collect();
        let (mut tasks, mut due) = (Vec::new(), Vec::new());
        if self.workers.contains_key(&claim.worker_id) {
            let mut suspect = claim.suspect;
            for queue in &claim.queues {
                let left = claim.limit - tasks.len();
                let (places, next) = self.pick(now, claim, queue, left, &mut suspect);
                due.extend(next);
                for (_, _, task_id) in places {
                    tasks.extend(self.start(runtime, now, task_id, claim.worker_id, room));
                }
            }
        }
        let next = [self.due.first(), self.deadlines.first()];
        due.extend(next.into_iter().flatten().map(|(at, _)| *at));
        Claimed { tasks, poked, next_due: due.into_iter().min() }
    }

    fn start(
        &mut self,
        runtime: &dyn Runtime,
        now: Timestamp,
        task_id: TaskId,
        worker_id: WorkerId,
        room: &mut Room,
    ) -> Option<ClaimedTask> {
        let facts = self.facts(task_id, room);
        let task = self.tasks.get_mut(&task_id)?;
        let had_it = task.worker_id == Some(worker_id);
        if !had_it {
            task.run_id = RunId::new(runtime);
        }
        task.state = TaskState::Running;
        task.counts = task.counts.claimed();
        task.worker_id = Some(worker_id);
        task.poked = false;
        let claimed = ClaimedTask {
            task_id,
            run_id: task.run_id,
            attempt: task.counts.attempt,
            max_attempts: task.new.max_attempts.saturating_add(task.counts.lost),
            crashes: task.counts.crashes,
            task_type: task.new.task_type.clone(),
            queue: task.new.queue.clone(),
            params: task.new.params.clone(),
            headers: task.new.headers.clone(),
            scope: task.new.scope.clone(),
            concurrency_key: task.new.concurrency_key.clone(),
            retry: task.new.retry.clone(),
            journal: (!had_it).then(|| task.journal.clone()),
            waits: if had_it { Vec::new() } else { task.waits.all().cloned().collect() },
            facts,
            unreadable: None,
        };
        if task.started_at.is_none() {
            task.started_at = Some(now);
            let limit = task.new.cancellation.max_duration;
            self.set_deadline(task_id, limit.map(|limit| after(now, limit)));
        }
        Some(claimed)
    }

    fn do_what_is_due(&mut self, now: Timestamp, news: &mut News) {
        while let Some((_, task_id)) = self.deadlines.first().copied().filter(|(at, _)| *at <= now)
        {
            self.set_deadline(task_id, None);
            self.cancel(now, task_id, news);
            self.cancel_doomed(now, news);
        }
        while let Some((_, task_id)) = self.due.first().copied().filter(|(at, _)| *at <= now) {
            self.make_ready(now, task_id, news);
        }
    }
}

/// Returns a task as an import makes it, without its waits.
fn imported(now: Timestamp, info: TaskInfo, journal: Vec<Entry>, mail: Mail) -> Task {
    let counts = Counts { attempt: info.attempt, ..Counts::default() };
    Task {
        state: if info.state.is_finished() { info.state } else { TaskState::Pending },
        run_id: info.run_id,
        counts: match info.state {
            TaskState::Running => counts.left(Leaving::Released),
            _ => counts,
        },
        worker_id: None,
        journal,
        waits: Waits::default(),
        mail,
        output: info.output,
        failure: info.failure,
        cancellation: Cancellation::NotRequested,
        course: Course::of(info.state == TaskState::Compensating),
        claims: Claims::Open,
        progress_at_crash: 0,
        poked: false,
        place: 0,
        spawned_at: info.spawned_at,
        ready_at: now,
        started_at: info.started_at,
        finished_at: info.finished_at,
        due_at: None,
        cancel_at: None,
        new: NewTask {
            task_id: info.task_id,
            run_id: info.run_id,
            task_type: info.task_type,
            queue: info.queue,
            params: info.params,
            headers: info.headers,
            scope: info.scope,
            priority: info.priority,
            max_attempts: info.max_attempts,
            retry: info.retry,
            start_at: None,
            idempotency_key: info.idempotency_key,
            concurrency_key: info.concurrency_key,
            coalesce: None,
            code_version: info.code_version,
            cancellation: CancellationPolicy { max_delay: None, max_duration: info.max_duration },
            parent: info.parent,
            claim_by: None,
        },
    }
}
