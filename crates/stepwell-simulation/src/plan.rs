//! A history before it is played, as data. The data follow from a seed, and parts of them can be
//! left out.

use std::fmt;
use std::time::Duration;

use stepwell::Coalesce;
use stepwell::testing::{Dice, Fault};

use crate::script::{self, EVENTS, Isolation, Script, TOPICS};

/// The number of versions of the code at the same time.
pub const VERSIONS: u8 = 2;

/// The number of ways to damage a task's row.
pub const DAMAGES: usize = 14;

/// A complete history.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The seed, which also decides what the plan does not contain: pauses, turns, ids.
    pub seed: u64,
    /// The properties of the world.
    pub setup: Setup,
    /// The steps of the history, in order.
    pub steps: Vec<Step>,
}

/// The properties of a world.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The number of processes.
    pub processes: usize,
    /// The number of tasks that each process runs at the same time.
    pub concurrency: usize,
    /// The number of suspended tasks that each process keeps in memory.
    pub in_memory: usize,
    /// The workers' lease.
    pub lease: Duration,
    /// The excess speed of the store's clock, in millionths.
    pub drift: i64,
    /// Selects SQLite in memory as the store.
    pub sqlite: bool,
    /// Makes the processes alternate between versions of the code, to which tasks may be pinned.
    pub versions: bool,
}

/// A step of a history.
#[derive(Clone, Debug)]
pub struct Step {
    /// The time of the step, from the beginning of the world.
    pub at: Duration,
    /// The action of the step.
    pub action: Action,
}

/// An action in a history. An action names a task by the task's place among those that the history
/// spawns.
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
    /// A client retries a task.
    Retry(usize),
    /// A client retriggers a task.
    Retrigger(usize),
    /// A client pauses a task.
    Pause(usize),
    /// A client resumes a task.
    Resume(usize),
    /// A client deletes a task.
    Delete(usize),
    /// A client purges all tasks that have ended.
    Purge,
    /// A client exports a task, deletes it, and imports it.
    Move(usize),
    /// A client pauses the queue.
    PauseQueue,
    /// A client resumes the queue.
    ResumeQueue,
    /// A client limits the queue to a number of running tasks, and to a number of starts per
    /// second.
    Limit(Option<u32>, Option<u32>),
    /// A client makes a schedule that ticks at this interval.
    Schedule(Duration),
    /// A client deletes the schedule.
    Unschedule,
    /// A user spawns a task in a transaction of the user, where the store has transactions.
    Transact(Transact),
    /// The row of a task that does not run is damaged in the way with this number, where the store
    /// has rows.
    Damage(usize, usize),
    /// A process is told to stop, and another one begins.
    Deploy(usize),
    /// The changed code replaces the old one in all processes, which are killed for that.
    Change,
    /// Something goes wrong.
    Fault(Fault),
}

/// A transaction of a user.
#[derive(Clone, Debug)]
pub struct Transact {
    /// The task that the transaction spawns.
    pub spawn: Spawn,
    /// The isolation level of the transaction.
    pub isolation: Isolation,
    /// The time for which the transaction stays open after the spawn, where others need not wait
    /// for it.
    pub open: Duration,
    /// Commits the transaction when it is set; otherwise the transaction is rolled back.
    pub commits: bool,
}

/// The work of a task that is spawned.
#[derive(Clone, Debug)]
pub enum Work {
    /// The task runs a script.
    Script(Script),
    /// The task is a workflow, which fails at its end when the flag is set.
    Flow(bool),
    /// The task has nonsense as its parameters, with which it cannot run.
    Nonsense,
}

/// A task, as a client spawns it.
#[derive(Clone, Debug)]
pub struct Spawn {
    /// The place of the task among those that the history spawns.
    pub number: usize,
    /// The work of the task.
    pub work: Work,
    /// The maximum number of attempts of the task.
    pub attempts: u32,
    /// The idempotency key of the task, with which other tasks may be spawned as well.
    pub once: Option<u8>,
    /// The concurrency key of the task, and the way in which it coalesces with a task of the same
    /// key that waits to start.
    pub key: Option<(u8, Option<Coalesce>)>,
    /// The version of the code to which the task is pinned.
    pub version: Option<u8>,
    /// The priority of the task.
    pub priority: i32,
    /// The delay before the task may begin.
    pub delay: Option<Duration>,
    /// The time after which the task is cancelled by itself.
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
    // With these keys, the meaning of the answer would be decided only after the commit.
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
