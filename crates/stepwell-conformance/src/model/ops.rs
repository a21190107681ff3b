//! The operations on a store, drawn at random.

use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::*;
use stepwell_core::Coalesce;

/// One item of a batch, or time that passes before the batch. Numbers stand for things that the
/// [`World`](super::World) knows.
#[derive(Clone, Debug)]
pub(super) enum Op {
    Spawn(Spawn, Option<usize>),
    Transition {
        run: usize,
        does: Vec<Does>,
        next: NextOp,
    },
    Claim {
        worker: u128,
        queues: Vec<usize>,
        types: Vec<usize>,
        limit: usize,
        version: Option<usize>,
        suspect: u32,
    },
    Command(usize, usize),
    Queue(usize, QueueOp),
    Schedule(usize, ScheduleOp),
    Emit(Event),
    Send(usize, usize),
    Register(u128),
    Heartbeat(u128),
    DeclareDead(u128, u64),
    Deregister(u128),
    Advance(u64),
    /// Purges the tasks that ended before this moment, after the batch.
    Purge,
}

#[derive(Clone, Debug)]
pub(super) struct Spawn {
    pub(super) task_type: usize,
    pub(super) queue: usize,
    pub(super) priority: i32,
    pub(super) attempts: u32,
    pub(super) delay: Option<u64>,
    pub(super) key: Option<usize>,
    pub(super) turn: Option<usize>,
    pub(super) coalesce: Option<Coalesce>,
    pub(super) version: Option<usize>,
    pub(super) scope: usize,
    pub(super) max_delay: Option<u64>,
    pub(super) max_duration: Option<u64>,
    pub(super) claim_by: Option<u128>,
}

#[derive(Clone, Debug)]
pub(super) enum QueueOp {
    Pause,
    Resume,
    Limit(Option<u32>, Option<u32>, Option<u32>),
}

#[derive(Clone, Debug)]
pub(super) enum ScheduleOp {
    Create(Option<u64>),
    Replace { seen: usize, next_at: Option<u64>, spawns: Vec<Spawn>, unless_running: bool },
    Delete,
}

#[derive(Clone, Debug)]
pub(super) struct Event {
    pub(super) event: usize,
    pub(super) queue: Option<usize>,
}

/// A part of a transition.
#[derive(Clone, Debug)]
pub(super) enum Does {
    Entry(usize),
    Compensation,
    Supersede(u64),
    Child(Spawn),
    /// A child with a key, which the store may have already.
    Keyed(Spawn),
    Emit(Event),
    Send(usize, usize),
    Receive(usize),
    Await(WaitOp),
    Drop(WaitOp),
}

#[derive(Clone, Debug)]
pub(super) enum WaitOp {
    Timer(usize, u64),
    Event(usize, u32),
    Message(usize, u32),
    Child(usize),
}

#[derive(Clone, Debug)]
pub(super) enum NextOp {
    Continue(bool),
    Suspend(Option<u64>),
    Complete,
    Retry(u64),
    Fail,
    Cancel,
    Release,
}

/// Draws a sequence of batches.
pub(super) fn batches() -> impl Strategy<Value = Vec<Vec<Op>>> {
    vec(vec(op(), 1..6), 1..40)
}

fn spawn() -> impl Strategy<Value = Spawn> {
    let small = || prop::option::weighted(0.2, 0..4_u64);
    let what = (0..3_usize, 0..2_usize, -1..2_i32, 1..3_u32);
    let when =
        (of(0..4_u64), prop::option::weighted(0.3, 0..3_usize), small(), small(), of(0..3_u128));
    let coalesce =
        prop_oneof![Just(Coalesce::Reuse), Just(Coalesce::Replace), Just(Coalesce::Reject)];
    let turn = (0..2_usize, prop::option::weighted(0.4, coalesce));
    let who =
        (prop::option::weighted(0.3, turn), prop::option::weighted(0.1, 0..2_usize), 0..3_usize);
    (what, when, who).prop_map(
        |(
            (task_type, queue, priority, attempts),
            (delay, key, max_delay, max_duration, claim_by),
            (turn, version, scope),
        )| Spawn {
            task_type,
            queue,
            priority,
            attempts,
            delay: delay.filter(|_| key.is_none()),
            key,
            turn: turn.map(|(key, _)| key),
            coalesce: turn.and_then(|(_, coalesce)| coalesce),
            version,
            scope,
            max_delay,
            max_duration,
            claim_by,
        },
    )
}

fn queue_op() -> impl Strategy<Value = QueueOp> {
    prop_oneof![
        1 => Just(QueueOp::Pause),
        2 => Just(QueueOp::Resume),
        3 => (of(0..4_u32), of(1..3_u32), of(1..4_u32))
            .prop_map(|(all, one, rate)| QueueOp::Limit(all, one, rate)),
    ]
}

fn schedule_op() -> impl Strategy<Value = ScheduleOp> {
    // Tasks of schedules have none of these properties.
    let spawn = spawn().prop_map(|spawn| Spawn { key: None, claim_by: None, ..spawn });
    prop_oneof![
        2 => of(0..4_u64).prop_map(ScheduleOp::Create),
        6 => (0..3_usize, of(0..4_u64), vec(spawn, 0..3), any::<bool>())
            .prop_map(|(seen, next_at, spawns, unless_running)| {
                ScheduleOp::Replace { seen, next_at, spawns, unless_running }
            }),
        1 => Just(ScheduleOp::Delete),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    (0..3_usize, of(0..2_usize)).prop_map(|(event, queue)| Event { event, queue })
}

fn wait() -> impl Strategy<Value = WaitOp> {
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
        1 => Just(Does::Compensation),
        1 => (0..12_u64).prop_map(Does::Supersede),
        1 => spawn().prop_map(Does::Child),
        1 => spawn().prop_map(Does::Keyed),
        1 => event().prop_map(Does::Emit),
        1 => (any::<usize>(), 0..3_usize).prop_map(|(task, topic)| Does::Send(task, topic)),
        1 => any::<usize>().prop_map(Does::Receive),
        3 => wait().prop_map(Does::Await),
        1 => wait().prop_map(Does::Drop),
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
        4 => (spawn(), of(any::<usize>())).prop_map(|(spawn, parent)| Op::Spawn(spawn, parent)),
        10 => (any::<usize>(), vec(does, 0..5), next)
            .prop_map(|(run, does, next)| Op::Transition { run, does, next }),
        6 => (
            0..3_u128,
            vec(0..2_usize, 0..3),
            vec(0..3_usize, 0..5),
            0..5_usize,
            of(0..2_usize),
            0..5_u32,
        )
            .prop_map(|(worker, queues, types, limit, version, suspect)| {
                Op::Claim { worker, queues, types, limit, version, suspect }
            }),
        1 => (0..2_usize, queue_op()).prop_map(|(queue, change)| Op::Queue(queue, change)),
        2 => (0..2_usize, schedule_op())
            .prop_map(|(schedule, change)| Op::Schedule(schedule, change)),
        4 => (0..6_usize, any::<usize>()).prop_map(|(command, task)| Op::Command(command, task)),
        2 => event().prop_map(Op::Emit),
        3 => (any::<usize>(), 0..3_usize).prop_map(|(task, topic)| Op::Send(task, topic)),
        3 => (0..3_u128).prop_map(Op::Register),
        1 => (0..3_u128).prop_map(Op::Heartbeat),
        2 => (0..3_u128, 0..2_u64)
            .prop_map(|(worker, heartbeats)| Op::DeclareDead(worker, heartbeats)),
        1 => (0..3_u128).prop_map(Op::Deregister),
        3 => (0..3_u64).prop_map(Op::Advance),
        1 => Just(Op::Purge),
    ]
}
