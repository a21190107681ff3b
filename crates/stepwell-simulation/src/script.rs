//! What a simulated task does, as data: it is drawn from a seed, and travels as the task's
//! parameters.

use serde::{Deserialize, Serialize};
use stepwell::testing::Dice;

/// What a task does, one after the other.
pub type Script = Vec<Op>;

/// Something that a task does.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Op {
    /// A step that takes so many milliseconds.
    Step {
        /// How long its closure works.
        time: u64,
        /// What its closure may do wrong.
        trouble: Trouble,
        /// Whether it is tried again by itself.
        retries: bool,
        /// Whether it is undone when the task fails.
        undone: bool,
    },
    /// A step in a transaction of the store, with a row of the user's; an ordinary one, where the
    /// store has no rows. It may fail behind the row, where that is said.
    Transaction(Isolation, bool),
    /// A step over so many items.
    Items(u64),
    /// A step whose result is so many bytes long.
    Big(usize),
    /// A sleep of so many milliseconds.
    Nap(u64),
    /// Waits so many milliseconds for something that is not in the task's context.
    Foreign(u64),
    /// Waits for an event; for so many milliseconds at most, where that is said.
    Event(u8, Option<u64>),
    /// Emits an event.
    Emit(u8),
    /// Waits for the next message of a topic.
    Message(u8),
    /// Waits for somebody to decide.
    Approval,
    /// A child, which is joined; with an idempotency key, which others may have as well, where that
    /// is said.
    Child(Script, Option<u8>),
    /// Both, at the same time.
    Both(Script, Script),
    /// Both, until one of them has come to its end.
    Race(Script, Script),
    /// A cleanup, for when the task fails; it is discarded at once where that is said.
    Cleanup(bool),
    /// A line in the log, and how far the task has come.
    Notes,
    /// A place at which the code of the task type is changed, while tasks of it are under way.
    Patch,
    /// A panic of the task's own code, while things go wrong.
    Panics,
    /// The task fails for good.
    Fails,
}

/// How a transaction is isolated from others, where the database knows more than one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Isolation {
    /// It sees what was committed when each of its statements began.
    ReadCommitted,
    /// It sees what was committed when it began.
    RepeatableRead,
    /// It is as if nothing had happened beside it.
    Serializable,
}

impl Isolation {
    /// Draws one.
    pub fn draw(dice: &Dice) -> Self {
        match dice.roll(3) {
            0 => Self::ReadCommitted,
            1 => Self::RepeatableRead,
            _ => Self::Serializable,
        }
    }

    /// The SQL that sets it, as the first statement of a transaction.
    pub(crate) const fn sql(self) -> &'static str {
        match self {
            Self::ReadCommitted => "SET TRANSACTION ISOLATION LEVEL READ COMMITTED",
            Self::RepeatableRead => "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ",
            Self::Serializable => "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE",
        }
    }
}

/// What the closure of a step may do wrong, each time that it runs while things go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Trouble {
    /// Nothing.
    None,
    /// It fails.
    Fails,
    /// It panics.
    Panics,
    /// A value of it panics when it is dropped.
    PanicsInDrop,
    /// It kills its process.
    Kills,
    /// It blocks its thread for longer than a lease.
    Blocks,
}

/// How many events there are.
pub const EVENTS: u8 = 4;
/// How many topics there are.
pub const TOPICS: u8 = 2;
/// The longest payload, in bytes.
pub const LIMIT: usize = 8_000;

/// Draws what a task does. `depth` is how deep it may go.
pub fn draw(dice: &Dice, depth: u32) -> Script {
    let length = 1 + dice.roll(4);
    (0..length).map(|_| op(dice, depth)).collect()
}

/// Whether the task's own code may panic.
pub fn panics(script: &[Op]) -> bool {
    script.iter().any(|op| match op {
        Op::Panics => true,
        Op::Both(one, other) | Op::Race(one, other) => panics(one) || panics(other),
        _ => false,
    })
}

/// Whether something in it has a name that others have as well, so that it matters who asks first.
pub fn shares_names(script: &[Op]) -> bool {
    script.iter().any(|op| match op {
        Op::Event(..) | Op::Emit(_) | Op::Message(_) | Op::Cleanup(_) => true,
        Op::Both(one, other) | Op::Race(one, other) => shares_names(one) || shares_names(other),
        _ => false,
    })
}

/// Whether it begins with something that the task waits for, so that it never ends in its first
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

/// Draws two branches. Where both of them ask for something by the same names, it matters who asks
/// first, so neither waits for something that no journal holds: a replay waits for that anew, and
/// the other branch may then ask first.
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
