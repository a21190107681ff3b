//! The translation of drawn operations into batches, for one of the two sides.

use std::time::Duration;

use stepwell_core::store::{
    Batch, Claim, Command, Committed, KeyedSpawn, MessageId, NewEvent, NewMessage, NewTask, Next,
    ScheduleAction, ScheduleChange, SchedulePlan, Transition, Wait, WorkerSignal,
};
use stepwell_core::{
    Entry, Failure, FailureKind, Key, Kind, Outcome, QueueAction, QueueChange, QueueLimits,
    RateLimit, RunId, ScheduleVersion, Scope, TaskId, Timestamp, after,
};

use super::ops::{Does, Event, NextOp, Op, QueueOp, ScheduleOp, Spawn, WaitOp};
use crate::make::{self, json, name, step, task_id, worker_id};

/// The knowledge of one side about the tasks that it made. Both sides make the same batches from
/// the same operations, except for the ids that their stores chose.
pub(super) struct World {
    pub(super) now: Timestamp,
    pub(super) tasks: Vec<TaskId>,
    runs: Vec<(TaskId, RunId)>,
    /// The number of runs that were known before the batch.
    known_runs: usize,
    /// The messages that have been seen, in the order in which they appeared.
    pub(super) messages: Vec<MessageId>,
    /// The versions that each schedule was meant to have.
    versions: [Vec<ScheduleVersion>; 2],
    counter: u64,
}

impl World {
    pub(super) fn new(now: Timestamp) -> Self {
        let nobody = task_id(999_999);
        Self {
            now,
            tasks: vec![nobody],
            runs: vec![(nobody, make::run_id(999_999))],
            known_runs: 1,
            messages: Vec::new(),
            versions: Default::default(),
            counter: 0,
        }
    }

    pub(super) fn task(&self, n: usize) -> TaskId {
        self.tasks[n % self.tasks.len()]
    }

    /// Records the runs that were claimed.
    pub(super) fn learn_runs(&mut self, committed: &Committed) {
        let claimed = committed.claims.iter().flat_map(|claimed| &claimed.tasks);
        self.runs.extend(claimed.map(|task| (task.task_id, task.run_id)));
    }

    fn count(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }

    fn at(&self, seconds: u64) -> Timestamp {
        after(self.now, Duration::from_secs(seconds))
    }

    fn new_task(&mut self, op: &Spawn, parent: Option<TaskId>) -> NewTask {
        let mut new = make::new_task(self.count().into());
        self.tasks.push(new.task_id);
        self.runs.push((new.task_id, new.run_id));
        new.task_type = name(&format!("type{}", op.task_type));
        new.queue = name(&format!("queue{}", op.queue));
        new.priority = op.priority;
        new.max_attempts = op.attempts;
        new.start_at = op.delay.map(|seconds| self.at(seconds));
        new.idempotency_key = op.key.map(|key| name(&format!("key{key}")));
        new.concurrency_key = op.turn.map(|key| name(&format!("turn{key}")));
        new.code_version = op.version.map(|version| name(&format!("v{version}")));
        new.cancellation.max_delay = op.max_delay.map(Duration::from_secs);
        new.cancellation.max_duration = op.max_duration.map(Duration::from_secs);
        new.claim_by = op.claim_by.map(worker_id);
        new.headers.insert("n".into(), self.counter.into());
        new.headers.insert("tenant".into(), if op.priority == 0 { "a".into() } else { "b".into() });
        new.scope = scopes()[op.scope].clone();
        new.parent = parent;
        new
    }

    fn event(&mut self, op: &Event) -> NewEvent {
        NewEvent {
            name: name(&format!("event{}", op.event)),
            queue: op.queue.map(|queue| name(&format!("queue{queue}"))),
            payload: json(&self.count().to_string()),
        }
    }

    fn message(&mut self, task: usize, topic: usize) -> NewMessage {
        let payload = json(&self.count().to_string());
        NewMessage { task_id: self.task(task), topic: name(&format!("topic{topic}")), payload }
    }

    fn wait(&self, op: &WaitOp) -> Wait {
        let (kind, text, ordinal, due_at) = match *op {
            WaitOp::Timer(n, seconds) => {
                (Kind::Timer, format!("timer{n}"), 1, Some(self.at(seconds)))
            }
            WaitOp::Event(n, ordinal) => (Kind::Event, format!("event{n}"), ordinal, None),
            WaitOp::Message(n, ordinal) => {
                (Kind::Message, format!("topic{n}"), ordinal, Some(self.at(9)))
            }
            WaitOp::Child(n) => (Kind::Child, self.task(n).to_string(), 1, None),
        };
        let target = (kind != Kind::Timer).then(|| name(&text));
        Wait { key: Key { kind, name: name(&text), ordinal }, target, due_at }
    }

    fn entry(&mut self, n: usize) -> Entry {
        let failure = Failure::new(FailureKind::Error, "no");
        let outcome = match n {
            0 => Outcome::failed(failure),
            1 => Outcome::Retrying { failure: failure.into(), at: self.at(1) },
            _ => Outcome::Done(json(&format!("[{}]", self.counter))),
        };
        // The numbers grow, with room for the store's own entries, because it is not known yet
        // which of a task's transitions will be accepted.
        Entry { outcome, ..step(self.count() * 4, json("0")) }
    }

    fn compensation(&mut self) -> Entry {
        let key = Key { kind: Kind::Compensate, name: name("step"), ordinal: 1 };
        Entry { key, ..self.entry(2) }
    }

    fn transition(&mut self, run: usize, does: &[Does], next: &NextOp) -> Transition {
        // A run that the batch itself begins is not known yet.
        let (task_id, run_id) = self.runs[run % self.known_runs];
        let failure = Failure::new(FailureKind::Panic, format!("failure {}", self.count()));
        let next = match next {
            NextOp::Continue(collect) => Next::Continue { collect: *collect },
            NextOp::Suspend(seconds) => {
                Next::Suspend { wake_at: seconds.map(|seconds| self.at(seconds)) }
            }
            NextOp::Complete => Next::Complete(json("\"output\"")),
            NextOp::Retry(seconds) => Next::Retry { failure, at: self.at(*seconds) },
            NextOp::Fail => Next::Fail(failure.permanent()),
            NextOp::Cancel => Next::Cancel,
            NextOp::Release => Next::Release,
        };
        let mut transition = Transition::new(task_id, run_id, next);
        for does in does {
            match does {
                Does::Entry(n) => transition.entries.push(self.entry(*n)),
                Does::Compensation => transition.entries.push(self.compensation()),
                // The entry is one of the last ones, of this task or of another one.
                Does::Supersede(back) => {
                    transition.superseded.push(self.counter.saturating_sub(*back) * 4);
                }
                Does::Child(spawn) => transition.spawns.push(self.new_task(spawn, Some(task_id))),
                Does::Keyed(_) => {}
                Does::Emit(event) => transition.events.push(self.event(event)),
                Does::Send(task, topic) => transition.messages.push(self.message(*task, *topic)),
                Does::Receive(n) if self.messages.is_empty() => _ = n,
                Does::Receive(n) => {
                    transition.received.push(self.messages[n % self.messages.len()]);
                }
                Does::Await(wait) => transition.waits_added.push(self.wait(wait)),
                Does::Drop(wait) => transition.waits_removed.push(self.wait(wait).key),
            }
        }
        // A transition has at most one keyed child, whose entry comes after all others.
        let keyed = does
            .iter()
            .find_map(|does| if let Does::Keyed(spawn) = does { Some(spawn) } else { None });
        transition.keyed = keyed.map(|spawn| {
            let new = self.new_task(spawn, Some(task_id));
            let task = NewTask { coalesce: spawn.coalesce, claim_by: None, ..new };
            Box::new(KeyedSpawn { task, entry: self.entry(2) })
        });
        transition
    }

    fn schedule(&mut self, schedule: usize, op: &ScheduleOp) -> ScheduleChange {
        let number = self.count();
        let plan = |world: &mut Self, seconds: Option<u64>| {
            let version = uuid::Uuid::from_u128(number.into()).into();
            world.versions[schedule].push(version);
            let next_at = seconds.map(|seconds| world.at(seconds));
            SchedulePlan { version, definition: json(&number.to_string()), next_at }
        };
        let action = match op {
            ScheduleOp::Create(next_at) => ScheduleAction::Create(plan(self, *next_at)),
            ScheduleOp::Replace { seen, next_at, spawns, unless_running } => {
                // The version is one of the last that the schedule may have. Whether the schedule
                // has it is not known.
                let nobody = uuid::Uuid::nil().into();
                let seen =
                    self.versions[schedule].iter().rev().nth(*seen).copied().unwrap_or(nobody);
                ScheduleAction::Replace {
                    seen,
                    plan: plan(self, *next_at),
                    spawns: spawns.iter().map(|spawn| self.new_task(spawn, None)).collect(),
                    unless_running: *unless_running,
                }
            }
            ScheduleOp::Delete => ScheduleAction::Delete,
        };
        ScheduleChange { name: name(&format!("schedule{schedule}")), action }
    }

    /// Returns the batch of these operations.
    pub(super) fn batch(&mut self, ops: &[Op]) -> Batch {
        let mut batch = Batch::default();
        self.known_runs = self.runs.len();
        for op in ops {
            match op {
                Op::Spawn(spawn, parent) => {
                    let parent = parent.map(|parent| self.task(parent));
                    let new = self.new_task(spawn, parent);
                    batch.spawns.push(NewTask { coalesce: spawn.coalesce, ..new });
                }
                Op::Transition { run, does, next } => {
                    let transition = self.transition(*run, does, next);
                    // A batch holds at most one transition of each run.
                    let is_of = |other: &Transition| (other.task_id, other.run_id);
                    if batch.transitions.iter().all(|other| is_of(other) != is_of(&transition)) {
                        batch.transitions.push(transition);
                    }
                }
                Op::Claim { worker, queues, types, limit, version, suspect } => {
                    batch.claims.push(Claim {
                        worker_id: worker_id(*worker),
                        queues: queues.iter().map(|queue| name(&format!("queue{queue}"))).collect(),
                        task_types: types.iter().map(|n| name(&format!("type{n}"))).collect(),
                        code_version: version.map(|version| name(&format!("v{version}"))),
                        limit: *limit,
                        suspect: *suspect,
                    });
                }
                Op::Command(command, task) => {
                    let command = [
                        Command::Cancel,
                        Command::Retry,
                        Command::Delete,
                        Command::Wake,
                        Command::Pause,
                        Command::Resume,
                    ][*command];
                    batch.commands.push(command(self.task(*task)));
                }
                Op::Schedule(schedule, change) => {
                    batch.schedules.push(self.schedule(*schedule, change));
                }
                Op::Queue(queue, change) => batch.queues.push(queue_change(*queue, change)),
                Op::Emit(event) => batch.events.push(self.event(event)),
                Op::Send(task, topic) => batch.messages.push(self.message(*task, *topic)),
                Op::Register(worker) => batch.workers.push(make::register(*worker)),
                Op::Heartbeat(worker) => batch.workers.push(make::heartbeat(*worker)),
                Op::DeclareDead(worker, heartbeats) => {
                    batch.workers.push(make::declare_dead(*worker, *heartbeats));
                }
                Op::Deregister(worker) => {
                    batch.workers.push(WorkerSignal::Deregister { worker_id: worker_id(*worker) });
                }
                Op::Advance(_) | Op::Purge => {}
            }
        }
        batch
    }
}

fn queue_change(queue: usize, op: &QueueOp) -> QueueChange {
    let action = match *op {
        QueueOp::Pause => QueueAction::Pause,
        QueueOp::Resume => QueueAction::Resume,
        QueueOp::Limit(max_running, max_running_per_worker, rate) => {
            let rate = rate.map(|starts| RateLimit { starts, per: Duration::from_secs(6) });
            QueueAction::Limit(QueueLimits { max_running, max_running_per_worker, rate })
        }
    };
    QueueChange { queue: name(&format!("queue{queue}")), action }
}

/// Returns the scopes that tasks are spawned in.
pub(super) fn scopes() -> [Scope; 3] {
    let all = Scope::default();
    [all.clone(), all.clone().label("tenant", "a"), all.queue(name("queue1"))]
}

/// Returns how many seconds pass before the batch of these operations.
pub(super) fn seconds_in(ops: &[Op]) -> u64 {
    ops.iter().map(|op| if let Op::Advance(thrice) = op { thrice * 3 } else { 0 }).sum()
}
