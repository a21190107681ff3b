//! A history before it is played: data that follow from a seed, and of which parts can be left out.

use std::fmt;
use std::time::Duration;

use stepwell::Coalesce;
use stepwell::testing::{Dice, Fault};

use crate::script::{self, EVENTS, Isolation, Script, TOPICS};

/// How many versions of the code there are at the same time.
pub const VERSIONS: u8 = 2;

/// How many ways there are to damage a task's row.
pub const DAMAGES: usize = 14;

/// A whole history.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The seed, which also decides what the plan does not say: pauses, turns, ids.
    pub seed: u64,
    /// What the world is like.
    pub setup: Setup,
    /// What happens in it, in order.
    pub steps: Vec<Step>,
}

/// What the world is like.
#[derive(Clone, Debug)]
pub struct Setup {
    /// How many processes there are.
    pub processes: usize,
    /// How many tasks each of them runs at the same time.
    pub concurrency: usize,
    /// How many suspended tasks each keeps in memory.
    pub in_memory: usize,
    /// The workers' lease.
    pub lease: Duration,
    /// By how many millionths the store's clock is too fast.
    pub drift: i64,
    /// Whether the store is SQLite, in memory.
    pub sqlite: bool,
    /// Whether the processes have versions of the code by turns, to which tasks may be pinned.
    pub versions: bool,
}

/// Something that happens.
#[derive(Clone, Debug)]
pub struct Step {
    /// When, from the beginning of the world.
    pub at: Duration,
    /// What.
    pub action: Action,
}

/// What happens. Tasks are named by their place among those that the history spawns.
#[derive(Clone, Debug)]
pub enum Action {
    /// A client spawns a task.
    Spawn(Spawn),
    /// A client sends the next message of a topic to a task.
    Send(usize, u8),
    /// A client emits an event.
    Emit(u8),
    /// A client cancels a task.
    Cancel(usize),
    /// A client has a task run again.
    Retry(usize),
    /// A client spawns a task once more.
    Retrigger(usize),
    /// A client pauses a task.
    Pause(usize),
    /// A client lets it go on.
    Resume(usize),
    /// A client deletes a task.
    Delete(usize),
    /// A client removes all tasks that have ended.
    Purge,
    /// A client exports a task, and puts it in again once it has deleted it.
    Move(usize),
    /// A client pauses the queue.
    PauseQueue,
    /// A client lets it go on.
    ResumeQueue,
    /// A client limits the queue: to so many tasks at a time, and so many starts a second.
    Limit(Option<u32>, Option<u32>),
    /// A client makes a schedule that ticks so often.
    Schedule(Duration),
    /// A client deletes the schedule.
    Unschedule,
    /// A user spawns a task in a transaction of his own, where the store has such.
    Transact(Transact),
    /// Somebody damages the row of a task that does not run, in the way of that number, where the
    /// store has rows.
    Damage(usize, usize),
    /// A process is told to stop, and another one begins.
    Deploy(usize),
    /// The changed code takes the place of the old one in all processes, which are killed for that.
    Change,
    /// Something goes wrong.
    Fault(Fault),
}

/// A transaction of a user.
#[derive(Clone, Debug)]
pub struct Transact {
    /// The task that it spawns.
    pub spawn: Spawn,
    /// Its isolation level.
    pub isolation: Isolation,
    /// How long it stays open behind that, where others need not wait for it.
    pub open: Duration,
    /// Whether it commits; otherwise it is rolled back.
    pub commits: bool,
}

/// What a task that is spawned does.
#[derive(Clone, Debug)]
pub enum Work {
    /// What a script says.
    Script(Script),
    /// It is a workflow; one that fails at its end, where that is said.
    Flow(bool),
    /// Its parameters are nonsense, which no task can be run with.
    Nonsense,
}

/// A task, as a client spawns it.
#[derive(Clone, Debug)]
pub struct Spawn {
    /// Its place among those that the history spawns.
    pub number: usize,
    /// What it does.
    pub work: Work,
    /// How many attempts it has.
    pub attempts: u32,
    /// Its idempotency key, by which others may be spawned as well.
    pub once: Option<u8>,
    /// Its concurrency key, and what is to become of it while another one of that key waits to
    /// start.
    pub key: Option<(u8, Option<Coalesce>)>,
    /// The version of the code that it is pinned to.
    pub version: Option<u8>,
    /// Its priority.
    pub priority: i32,
    /// How long it is not to begin.
    pub delay: Option<Duration>,
    /// After how long it is cancelled by itself.
    pub limit: Option<Duration>,
}

impl Plan {
    /// Draws the plan of a seed.
    pub fn draw(seed: u64) -> Self {
        let dice = Dice::new(seed);
        let lease = Duration::from_millis([100, 400, 2_000, 10_000][index(&dice, 4)]);
        let processes = 1 + index(&dice, 3);
        let setup = Setup {
            processes,
            versions: processes > 1 && dice.one_in(5),
            concurrency: 1 + index(&dice, 4),
            in_memory: index(&dice, 4),
            lease,
            drift: if dice.one_in(4) {
                i64::try_from(dice.roll(2_000)).unwrap_or(0) - 1_000
            } else {
                0
            },
            sqlite: dice.one_in(50),
        };
        let within = u64::try_from((lease * 6).as_millis()).unwrap_or(1_000);
        let moment = || Duration::from_millis(dice.roll(within));
        let tasks = 2 + index(&dice, 4);
        let mut steps: Vec<_> = (0..tasks)
            .map(|number| Step {
                at: if dice.one_in(2) { Duration::ZERO } else { moment() / 2 },
                action: Action::Spawn(spawn(&dice, number, &setup)),
            })
            .collect();
        for number in tasks..tasks + index(&dice, 12) {
            let action = match dice.roll(22) {
                0 => Action::Damage(index(&dice, tasks), index(&dice, DAMAGES)),
                1 => Action::Transact(transact(&dice, number, &setup)),
                _ => ask(&dice, tasks),
            };
            steps.push(Step { at: moment(), action });
        }
        for _ in 0..1 + dice.roll(4) {
            steps.push(Step {
                at: moment(),
                action: Action::Fault(Fault::draw(&dice, setup.processes, lease)),
            });
        }
        if dice.one_in(3) {
            steps.push(Step { at: moment(), action: Action::Change });
        }
        steps.sort_by_key(|step| step.at);
        Self { seed, setup, steps }
    }
}

fn index(dice: &Dice, below: usize) -> usize {
    usize::try_from(dice.roll(below as u64)).unwrap_or(0)
}

fn byte(dice: &Dice, below: u8) -> u8 {
    u8::try_from(dice.roll(below.into())).unwrap_or(0)
}

fn spawn(dice: &Dice, number: usize, setup: &Setup) -> Spawn {
    let lease = setup.lease;
    let coalesce = |dice: &Dice| match dice.roll(6) {
        0 => Some(Coalesce::Reuse),
        1 => Some(Coalesce::Replace),
        2 => Some(Coalesce::Reject),
        _ => None,
    };
    Spawn {
        number,
        work: match dice.roll(24) {
            0..2 => Work::Flow(dice.one_in(3)),
            2 => Work::Nonsense,
            _ => Work::Script(script::draw(dice, 2)),
        },
        attempts: if dice.one_in(4) { 1 + u32::from(byte(dice, 3)) } else { 1_000 },
        once: dice.one_in(6).then(|| byte(dice, 2)),
        key: dice.one_in(4).then(|| (byte(dice, 2), coalesce(dice))),
        version: (setup.versions && dice.one_in(2)).then(|| byte(dice, VERSIONS)),
        priority: i32::from(byte(dice, 3)),
        delay: dice.one_in(6).then(|| Fault::time(dice, lease) / 4),
        limit: dice.one_in(10).then(|| Fault::time(dice, lease)),
    }
}

fn transact(dice: &Dice, number: usize, setup: &Setup) -> Transact {
    // What the answer means with these is decided behind the commit.
    let spawn = Spawn { once: None, key: None, ..spawn(dice, number, setup) };
    let open = if dice.one_in(2) { Fault::time(dice, setup.lease) / 4 } else { Duration::ZERO };
    Transact { spawn, isolation: Isolation::draw(dice), open, commits: !dice.one_in(3) }
}

fn ask(dice: &Dice, tasks: usize) -> Action {
    let task = index(dice, tasks);
    match dice.roll(40) {
        0..9 => Action::Send(task, byte(dice, TOPICS)),
        9..15 => Action::Emit(byte(dice, EVENTS)),
        15..18 => Action::Cancel(task),
        18..21 => Action::Retry(task),
        21 => Action::Retrigger(task),
        22..24 => Action::Pause(task),
        24..26 => Action::Resume(task),
        26 | 27 => Action::Delete(task),
        28 => Action::Purge,
        29 => Action::Move(task),
        30 => Action::PauseQueue,
        31 => Action::ResumeQueue,
        32..34 => {
            let limit = |dice: &Dice| dice.one_in(2).then(|| 1 + u32::from(byte(dice, 3)));
            Action::Limit(limit(dice), limit(dice))
        }
        34..36 => Action::Schedule(Duration::from_millis(200 + dice.roll(3_000))),
        36 => Action::Unschedule,
        _ => Action::Deploy(index(dice, 3)),
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>10.3} s  ", self.at.as_secs_f64())?;
        match &self.action {
            Action::Fault(fault) => write!(f, "{fault}"),
            action => write!(f, "{action:?}"),
        }
    }
}
