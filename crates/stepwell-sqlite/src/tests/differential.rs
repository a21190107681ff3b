//! The store does what the reference model does, whatever is asked of it.

use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::*;
use stepwell_core::store::{Command, NewEvent, NewMessage, TaskFilter, TaskState, Wait};
use stepwell_core::{Failure, FailureKind, MemoryStore, after};

use super::*;

#[derive(Clone, Debug)]
enum Op {
    Spawn(Spawn, Option<usize>),
    Transition { run: usize, does: Vec<Does>, next: NextOp },
    Claim { worker: u128, queues: Vec<usize>, types: Vec<usize>, limit: usize },
    Command(usize, usize),
    Emit(Event),
    Send(usize, usize),
    Register(u128, u64),
    Heartbeat(u128, u64),
    Deregister(u128),
    Advance(u64),
}

#[derive(Clone, Debug)]
struct Spawn {
    task_type: usize,
    queue: usize,
    priority: i32,
    attempts: u32,
    delay: Option<u64>,
    key: Option<usize>,
    max_delay: Option<u64>,
    max_duration: Option<u64>,
    claim_by: Option<u128>,
}

#[derive(Clone, Debug)]
struct Event {
    event: usize,
    queue: Option<usize>,
}

#[derive(Clone, Debug)]
enum Does {
    Entry(usize),
    Child(Spawn),
    Emit(Event),
    Send(usize, usize),
    Receive(i64),
    Await(WaitOp),
    Drop(WaitOp),
}

#[derive(Clone, Debug)]
enum WaitOp {
    Timer(usize, u64),
    Event(usize, u32),
    Message(usize, u32),
    Child(usize),
}

#[derive(Clone, Debug)]
enum NextOp {
    Continue(bool),
    Suspend(Option<u64>),
    Complete,
    Retry(u64),
    Fail,
    Cancel,
    Release,
}

fn spawn_op() -> impl Strategy<Value = Spawn> {
    (
        (0..3_usize, 0..2_usize, -1..2_i32, 1..3_u32),
        (
            of(0..4_u64),
            prop::option::weighted(0.3, 0..3_usize),
            prop::option::weighted(0.2, 0..4_u64),
            prop::option::weighted(0.2, 0..4_u64),
            of(0..3_u128),
        ),
    )
        .prop_map(
            |((task_type, queue, priority, attempts), (delay, key, max_delay, max_duration, claim_by))| {
                Spawn {
                    task_type,
                    queue,
                    priority,
                    attempts,
                    delay: delay.filter(|_| key.is_none()),
                    key,
                    max_delay,
                    max_duration,
                    claim_by,
                }
            },
        )
}

fn event_op() -> impl Strategy<Value = Event> {
    (0..3_usize, of(0..2_usize)).prop_map(|(event, queue)| Event { event, queue })
}

fn wait_op() -> impl Strategy<Value = WaitOp> {
    prop_oneof![
        (0..3_usize, 0..5_u64).prop_map(|(n, s)| WaitOp::Timer(n, s)),
        (0..3_usize, 1..3_u32).prop_map(|(n, o)| WaitOp::Event(n, o)),
        (0..3_usize, 1..3_u32).prop_map(|(n, o)| WaitOp::Message(n, o)),
        any::<usize>().prop_map(WaitOp::Child),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let does = prop_oneof![
        3 => (0..5_usize).prop_map(Does::Entry),
        1 => spawn_op().prop_map(Does::Child),
        1 => event_op().prop_map(Does::Emit),
        1 => (any::<usize>(), 0..3_usize).prop_map(|(task, topic)| Does::Send(task, topic)),
        1 => (1..12_i64).prop_map(Does::Receive),
        3 => wait_op().prop_map(Does::Await),
        1 => wait_op().prop_map(Does::Drop),
    ];
    let next = prop_oneof![
        3 => any::<bool>().prop_map(NextOp::Continue),
        5 => of(0..5_u64).prop_map(NextOp::Suspend),
        2 => Just(NextOp::Complete),
        1 => (0..4_u64).prop_map(NextOp::Retry),
        1 => Just(NextOp::Fail),
        1 => Just(NextOp::Cancel),
        1 => Just(NextOp::Release),
    ];
    prop_oneof![
        4 => (spawn_op(), of(any::<usize>())).prop_map(|(spawn, parent)| Op::Spawn(spawn, parent)),
        10 => (any::<usize>(), vec(does, 0..5), next)
            .prop_map(|(run, does, next)| Op::Transition { run, does, next }),
        6 => (0..3_u128, vec(0..2_usize, 0..3), vec(0..3_usize, 0..5), 0..5_usize)
            .prop_map(|(worker, queues, types, limit)| Op::Claim { worker, queues, types, limit }),
        3 => (0..4_usize, any::<usize>()).prop_map(|(command, task)| Op::Command(command, task)),
        2 => event_op().prop_map(Op::Emit),
        3 => (any::<usize>(), 0..3_usize).prop_map(|(task, topic)| Op::Send(task, topic)),
        3 => (0..3_u128, 1..4_u64).prop_map(|(worker, lease)| Op::Register(worker, lease)),
        1 => (0..3_u128, 1..4_u64).prop_map(|(worker, lease)| Op::Heartbeat(worker, lease)),
        1 => (0..3_u128).prop_map(Op::Deregister),
        3 => (0..3_u64).prop_map(Op::Advance),
    ]
}

/// What the test knows of the tasks that it made.
struct World {
    now: Timestamp,
    tasks: Vec<TaskId>,
    runs: Vec<(TaskId, RunId)>,
    counter: u64,
}

impl World {
    fn task(&self, n: usize) -> TaskId {
        self.tasks[n % self.tasks.len()]
    }

    fn count(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }

    fn at(&self, seconds: u64) -> Timestamp {
        after(self.now, Duration::from_secs(seconds))
    }

    fn new_task(&mut self, op: &Spawn, parent: Option<TaskId>) -> NewTask {
        let mut new = new_task(self.count().into());
        self.tasks.push(new.task_id);
        self.runs.push((new.task_id, new.run_id));
        new.task_type = name(&format!("type{}", op.task_type));
        new.queue = name(&format!("queue{}", op.queue));
        new.priority = op.priority;
        new.max_attempts = op.attempts;
        new.start_at = op.delay.map(|seconds| self.at(seconds));
        new.idempotency_key = op.key.map(|key| name(&format!("key{key}")));
        new.cancellation.max_delay = op.max_delay.map(Duration::from_secs);
        new.cancellation.max_duration = op.max_duration.map(Duration::from_secs);
        new.claim_by = op.claim_by.map(worker_id);
        new.headers.insert("n".into(), self.counter.into());
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
            WaitOp::Timer(n, seconds) => (Kind::Timer, format!("timer{n}"), 1, Some(self.at(seconds))),
            WaitOp::Event(n, ordinal) => (Kind::Event, format!("event{n}"), ordinal, None),
            WaitOp::Message(n, ordinal) => (Kind::Message, format!("topic{n}"), ordinal, Some(self.at(9))),
            WaitOp::Child(n) => (Kind::Child, self.task(n).to_string(), 1, None),
        };
        let target = (kind != Kind::Timer).then(|| name(&text));
        Wait { key: Key { kind, name: name(&text), ordinal }, target, due_at }
    }

    fn entry(&mut self, n: usize) -> Entry {
        let failure = Failure::new(FailureKind::Error, "no");
        let outcome = match n {
            0 => Outcome::Failed(failure),
            1 => Outcome::Retrying { failure, at: self.at(1) },
            _ => Outcome::Done(json(&format!("[{}]", self.counter))),
        };
        Entry { outcome, ..step(self.count(), json("0")) }
    }

    fn transition(&mut self, run: usize, does: &[Does], next: &NextOp) -> Transition {
        let (task_id, run_id) = self.runs[run % self.runs.len()];
        let failure = Failure::new(FailureKind::Panic, format!("failure {}", self.count()));
        let next = match next {
            NextOp::Continue(collect) => Next::Continue { collect: *collect },
            NextOp::Suspend(seconds) => Next::Suspend { wake_at: seconds.map(|seconds| self.at(seconds)) },
            NextOp::Complete => Next::Complete(json("\"output\"")),
            NextOp::Retry(seconds) => Next::Retry { failure, at: self.at(*seconds) },
            NextOp::Fail => Next::Fail(failure.permanent()),
            NextOp::Cancel => Next::Cancel,
            NextOp::Release => Next::Release,
        };
        let mut transition = transition(task_id, run_id, next);
        for does in does {
            match does {
                Does::Entry(n) => transition.entries.push(self.entry(*n)),
                Does::Child(spawn) => transition.spawns.push(self.new_task(spawn, Some(task_id))),
                Does::Emit(event) => transition.events.push(self.event(event)),
                Does::Send(task, topic) => transition.messages.push(self.message(*task, *topic)),
                Does::Receive(id) => transition.received.push(*id),
                Does::Await(wait) => transition.waits_added.push(self.wait(wait)),
                Does::Drop(wait) => transition.waits_removed.push(self.wait(wait).key),
            }
        }
        transition
    }

    fn batch(&mut self, ops: &[Op]) -> Batch {
        let mut batch = Batch::default();
        for op in ops {
            match op {
                Op::Spawn(spawn, parent) => {
                    let parent = parent.map(|parent| self.task(parent));
                    batch.spawns.push(self.new_task(spawn, parent));
                }
                Op::Transition { run, does, next } => {
                    batch.transitions.push(self.transition(*run, does, next));
                }
                Op::Claim { worker, queues, types, limit } => batch.claims.push(Claim {
                    worker_id: worker_id(*worker),
                    queues: queues.iter().map(|queue| name(&format!("queue{queue}"))).collect(),
                    task_types: types.iter().map(|n| name(&format!("type{n}"))).collect(),
                    limit: *limit,
                }),
                Op::Command(command, task) => {
                    let command = [Command::Cancel, Command::Retry, Command::Delete, Command::Wake][*command];
                    batch.commands.push(command(self.task(*task)));
                }
                Op::Emit(event) => batch.events.push(self.event(event)),
                Op::Send(task, topic) => batch.messages.push(self.message(*task, *topic)),
                Op::Register(worker, lease) => batch.workers.push(WorkerSignal::Register {
                    worker_id: worker_id(*worker),
                    name: "host".into(),
                    lease: lease_of(*worker, *lease),
                }),
                Op::Heartbeat(worker, lease) => batch.workers.push(WorkerSignal::Heartbeat {
                    worker_id: worker_id(*worker),
                    lease: lease_of(*worker, *lease),
                }),
                Op::Deregister(worker) => {
                    batch.workers.push(WorkerSignal::Deregister { worker_id: worker_id(*worker) });
                }
                Op::Advance(_) => {}
            }
        }
        batch
    }
}

/// The model takes workers that are dead in no certain order, and that order can be seen. So that no two die at the same
/// time, all else happens at multiples of three seconds, and each worker dies in a second of its own.
fn lease_of(worker: u128, lease: u64) -> Duration {
    Duration::from_secs(lease * 3 + worker as u64)
}

fn seconds_in(ops: &[Op]) -> u64 {
    ops.iter().map(|op| if let Op::Advance(thrice) = op { thrice * 3 } else { 0 }).sum()
}

/// The order in which news are told says nothing.
fn shown(mut committed: Committed) -> Committed {
    committed.news.ready.sort_unstable();
    committed.news.poked.sort_unstable();
    committed.news.finished.sort_by_key(|(task_id, _)| *task_id);
    committed
}

/// A batch whose items fit those of another one, made twice: batches cannot be cloned.
fn play(ops: &[Vec<Op>], path: Option<&Path>) {
    let clocks = [Manual::new(), Manual::new()];
    let memory = MemoryStore::new(clocks[0].clone());
    let location = path.map_or(Location::Memory, |path| Location::File(path.to_owned()));
    // Of a file, two handles take turns.
    let handles = if path.is_some() { 2 } else { 1 };
    let stores: Vec<_> =
        (0..handles).map(|_| wait(SqliteStore::open(location.clone(), clocks[1].clone())).unwrap()).collect();
    let world = |clock: &Manual| World {
        now: clock.now(),
        tasks: vec![task_id(999_999)],
        runs: vec![(task_id(999_999), Uuid::from_u128(1).into())],
        counter: 0,
    };
    let (mut a, mut b) = (world(&clocks[0]), world(&clocks[0]));
    for (ops, store) in ops.iter().zip(stores.iter().cycle()) {
        for _ in 0..seconds_in(ops) {
            clocks.iter().for_each(|clock| clock.advance(Duration::from_secs(1)));
            let expected = wait(memory.commit(claim(0, 0))).unwrap();
            similar(&shown(expected), &shown(commit(store, claim(0, 0))));
        }
        (a.now, b.now) = (clocks[0].now(), clocks[0].now());
        let expected = wait(memory.commit(a.batch(ops))).unwrap();
        let got = commit(store, b.batch(ops));
        for claim in &expected.claims {
            for task in &claim.tasks {
                a.runs.push((task.task_id, task.run_id));
                b.runs.push((task.task_id, task.run_id));
            }
        }
        similar(&shown(expected), &shown(got));
        let all = || TaskFilter { limit: 1_000, ..TaskFilter::default() };
        let expected = wait(memory.tasks(all())).unwrap();
        similar(&expected, &wait(store.tasks(all())).unwrap());
    }
    for task_id in &a.tasks {
        assert_eq!(wait(memory.journal(*task_id)).unwrap(), wait(stores[0].journal(*task_id)).unwrap());
        similar(&wait(memory.task(*task_id)).unwrap(), &wait(stores[0].task(*task_id)).unwrap());
    }
    for state in [None].into_iter().chain(TaskState::ALL.map(Some)) {
        for (queue, task_type, parent) in [
            (None, None, None),
            (Some(name("queue1")), Some(name("type1")), None),
            (None, None, Some(a.task(1))),
        ] {
            let mut filter = TaskFilter { state, queue, task_type, parent, before: None, limit: 2 };
            loop {
                let expected = wait(memory.tasks(filter.clone())).unwrap();
                let got = wait(stores[0].tasks(filter.clone())).unwrap();
                similar(&expected, &got);
                filter.before = expected.last().map(|task| task.task_id);
                if filter.before.is_none() {
                    break;
                }
            }
        }
    }
}

fn similar(expected: &impl std::fmt::Debug, got: &impl std::fmt::Debug) {
    if format!("{expected:?}") != format!("{got:?}") {
        panic!("it differs; expected:\n{expected:#?}\ngot:\n{got:#?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn in_memory_it_does_what_the_model_does(ops in vec(vec(op(), 1..6), 1..40)) {
        play(&ops, None);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn two_handles_on_a_file_do_what_the_model_does(ops in vec(vec(op(), 1..6), 1..40)) {
        let folder = tempfile::tempdir().unwrap();
        play(&ops, Some(&folder.path().join("differential.db")));
    }
}
