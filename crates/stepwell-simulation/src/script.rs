//! The scripts of simulated tasks, as data. A script is drawn from a seed, and is passed as the
//! task's parameters.

use serde::{Deserialize, Serialize};
use stepwell::testing::Dice;

/// The operations of a task, in sequence.
pub type Script = Vec<Op>;

/// An operation of a task.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Op {
    /// A step that takes a time in milliseconds.
    Step {
        /// The time that its closure works, in milliseconds.
        time: u64,
        /// The misbehaviour of its closure.
        trouble: Trouble,
        /// Retries the step by itself.
        retries: bool,
        /// Undoes the step when the task fails.
        undone: bool,
    },
    /// A step in a transaction of the store, with a row of the user. Where the store has no rows,
    /// the step is an ordinary one. The step fails after the row when the flag is set.
    Transaction(Isolation, bool),
    /// A step over this number of items.
    Items(u64),
    /// A step whose result has this number of bytes.
    Big(usize),
    /// A sleep of this number of milliseconds.
    Nap(u64),
    /// A wait of this number of milliseconds for something outside of the task's context.
    Foreign(u64),
    /// A wait for an event, with an optional timeout in milliseconds.
    Event(u8, Option<u64>),
    /// The emission of an event.
    Emit(u8),
    /// A wait for the next message of a topic.
    Message(u8),
    /// A wait for a decision.
    Approval,
    /// A child that is joined. The idempotency key of the child, if there is one, may be shared
    /// with other tasks.
    Child(Script, Option<u8>),
    /// Two scripts at the same time.
    Both(Script, Script),
    /// Two scripts, until one of them has ended.
    Race(Script, Script),
    /// A cleanup for a failure of the task, which is discarded at once when the flag is set.
    Cleanup(bool),
    /// A line in the log, and the progress of the task.
    Notes,
    /// A place at which the code of the task type is changed while its tasks are under way.
    Patch,
    /// A panic of the task's own code, while things go wrong.
    Panics,
    /// A permanent failure of the task.
    Fails,
}

/// The isolation level of a transaction, where the database has several.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Isolation {
    /// Each statement sees what was committed when it began.
    ReadCommitted,
    /// The transaction sees what was committed when it began.
    RepeatableRead,
    /// The transaction behaves as if it ran alone.
    Serializable,
}

impl Isolation {
    /// Draws an isolation level.
    pub fn draw(dice: &Dice) -> Self {
        match dice.roll(3) {
            0 => Self::ReadCommitted,
            1 => Self::RepeatableRead,
            _ => Self::Serializable,
        }
    }

    /// Returns the SQL that sets the level, as the first statement of a transaction.
    pub(crate) const fn sql(self) -> &'static str {
        match self {
            Self::ReadCommitted => "SET TRANSACTION ISOLATION LEVEL READ COMMITTED",
            Self::RepeatableRead => "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ",
            Self::Serializable => "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE",
        }
    }
}

/// The misbehaviour of a step's closure, which may occur each time that the closure runs while
/// things go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Trouble {
    /// The closure succeeds.
    None,
    /// The closure fails.
    Fails,
    /// The closure panics.
    Panics,
    /// A value of the closure panics when it is dropped.
    PanicsInDrop,
    /// The closure kills its process.
    Kills,
    /// The closure blocks its thread for longer than a lease.
    Blocks,
}

/// The number of events.
pub const EVENTS: u8 = 4;
/// The number of topics.
pub const TOPICS: u8 = 2;
/// The longest payload, in bytes.
pub const LIMIT: usize = 8_000;

/// Draws a script. `depth` is the depth to which scripts may nest.
pub fn draw(dice: &Dice, depth: u32) -> Script {
    let length = 1 + dice.roll(4);
    (0..length).map(|_| op(dice, depth)).collect()
}

/// Returns whether the task's own code may panic.
pub fn panics(script: &[Op]) -> bool {
    script.iter().any(|op| match op {
        Op::Panics => true,
        Op::Both(one, other) | Op::Race(one, other) => panics(one) || panics(other),
        _ => false,
    })
}

/// Returns whether an operation has a name that other operations may share, so that the order of
/// the operations matters.
pub fn shares_names(script: &[Op]) -> bool {
    script.iter().any(|op| match op {
        Op::Event(..) | Op::Emit(_) | Op::Message(_) | Op::Cleanup(_) => true,
        Op::Both(one, other) | Op::Race(one, other) => shares_names(one) || shares_names(other),
        _ => false,
    })
}

/// Returns whether a script begins with a wait of the task, so that it never ends in its first
/// turn.
pub fn begins_with_a_wait(script: &[Op]) -> bool {
    match script.first() {
        Some(Op::Both(one, other) | Op::Race(one, other)) => {
            begins_with_a_wait(one) && begins_with_a_wait(other)
        }
        Some(
            Op::Step { .. }
            | Op::Transaction(..)
            | Op::Items(_)
            | Op::Nap(_)
            | Op::Approval
            | Op::Child(..),
        ) => true,
        _ => false,
    }
}

fn byte(dice: &Dice, below: u8) -> u8 {
    u8::try_from(dice.roll(below.into())).unwrap_or(0)
}

fn op(dice: &Dice, depth: u32) -> Op {
    match dice.roll(if depth > 0 { 43 } else { 35 }) {
        0..14 => step(dice),
        14 => Op::Items(1 + dice.roll(12)),
        15 => Op::Big([100, LIMIT - 2, LIMIT - 1][usize::from(byte(dice, 3))]),
        16 => Op::Foreign(1 + dice.roll(30)),
        17..20 => Op::Nap([1, 20, 300, 1_000][usize::from(byte(dice, 4))]),
        20..23 => Op::Event(byte(dice, EVENTS), dice.one_in(4).then(|| 1 + dice.roll(500))),
        23 | 24 => Op::Emit(byte(dice, EVENTS)),
        25..28 => Op::Message(byte(dice, TOPICS)),
        28 => Op::Approval,
        29 => Op::Cleanup(dice.one_in(2)),
        30 => Op::Notes,
        31 if dice.one_in(2) => Op::Panics,
        31 => Op::Fails,
        32 | 33 => Op::Patch,
        34 => Op::Transaction(Isolation::draw(dice), dice.one_in(3)),
        35..38 => Op::Child(draw(dice, 0), dice.one_in(3).then(|| byte(dice, 3))),
        38..41 => {
            let (one, other) = branches(dice, depth - 1);
            Op::Both(one, other)
        }
        _ => {
            let (mut one, mut other) = branches(dice, depth - 1);
            if waits_outside(&one) && waits_outside(&other) {
                // Which branch comes first would depend on times that no journal holds.
                forget_foreign(&mut one);
                forget_foreign(&mut other);
            }
            Op::Race(one, other)
        }
    }
}

/// Draws two branches. Where both branches use the same names, the order of their operations
/// matters. Such branches wait for nothing that no journal holds, because a replay repeats that
/// wait and the other branch could then be first.
fn branches(dice: &Dice, depth: u32) -> (Script, Script) {
    let (mut one, mut other) = (draw(dice, depth), draw(dice, depth));
    if shares_names(&one) && shares_names(&other) {
        forget_foreign(&mut one);
        forget_foreign(&mut other);
    }
    (one, other)
}

/// Returns whether something in it waits for what is not in the task's context.
fn waits_outside(script: &[Op]) -> bool {
    script.iter().any(|op| match op {
        Op::Foreign(_) => true,
        Op::Both(one, other) | Op::Race(one, other) => waits_outside(one) || waits_outside(other),
        _ => false,
    })
}

fn forget_foreign(script: &mut Script) {
    for op in script {
        match op {
            Op::Foreign(_) => *op = Op::Notes,
            Op::Both(one, other) | Op::Race(one, other) => {
                forget_foreign(one);
                forget_foreign(other);
            }
            _ => {}
        }
    }
}

fn step(dice: &Dice) -> Op {
    let time = match dice.roll(20) {
        0..2 => dice.roll(2_000),
        2..7 => dice.roll(40),
        _ => 0,
    };
    let trouble = match dice.roll(30) {
        0..4 => Trouble::Fails,
        4 => Trouble::Panics,
        5 => Trouble::PanicsInDrop,
        6 => Trouble::Kills,
        7 => Trouble::Blocks,
        _ => Trouble::None,
    };
    Op::Step { time, trouble, retries: dice.one_in(4), undone: dice.one_in(4) }
}
