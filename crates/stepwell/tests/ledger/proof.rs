//! What the ledger proves.
//!
//! A worker whose lease has run out without its knowledge (it was stopped, or the server was away)
//! may still start a closure, before it hears that its task is another's. So the *last* start of a
//! step is not always the one that counts. What holds exactly is said in terms of **runs, in the
//! order of their claims**:
//!
//! - A run belongs to one process, and starts each step once.
//! - Of all runs that started a step, it is the last claimed one whose result is in the journal: a
//!   later run would have found the result there, and an earlier one no longer owned the task.
//! - A start after the first start of a later run is never the one whose result is in the journal.
//! - The results in a journal come from runs in the order of their claims.
//! - No run starts a step unless the result that the step follows came from this run or an earlier
//!   one.
//!
//! The order of claims is that of the attempts: each claim after a death counts as one. A run that
//! suspends and is followed by another process's keeps its attempt; but then nothing of it ran any
//! more, so that all its lines come before those of the other.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use stepwell::{Durable, Entry, Kind, Outcome, RunId, TaskId};
use uuid::Uuid;

use super::answered;

/// Pairs of steps of which the second follows the first.
const FOLLOWS: [(u32, u32); 4] = [(0, 1), (0, 2), (1, 3), (2, 3)];

/// The start of a step's closure.
struct Start {
    /// Its place in the ledger.
    place: usize,
    step: u32,
    run: RunId,
    attempt: u32,
    process: Uuid,
    nonce: String,
}

/// What was proven, and how often it mattered.
#[derive(Default)]
pub struct Proof {
    /// The journaled results of each task that ran, by step.
    pub results: HashMap<TaskId, BTreeMap<u32, String>>,
    /// The run that made each of them, with the result's place in the journal.
    pub writers: Vec<(TaskId, u64, RunId)>,
    /// Steps that ran again, since they were not journaled.
    pub again: usize,
    /// Steps that were started by a run when a later one had already started some.
    pub late: usize,
}

/// Compares the ledger with the journals of all tasks in it.
pub async fn prove(client: &Durable, folder: &Path) -> Proof {
    let mut proof = Proof::default();
    for (task_id, starts) in read(folder) {
        let journal = answered(|| client.journal(task_id)).await;
        proof.add(task_id, &starts, &journal);
    }
    proof
}

fn read(folder: &Path) -> HashMap<TaskId, Vec<Start>> {
    let mut tasks: HashMap<TaskId, Vec<Start>> = HashMap::new();
    for (place, line) in std::fs::read_to_string(folder.join("ledger")).unwrap().lines().enumerate()
    {
        let words: Vec<_> = line.split_whitespace().collect();
        let [task, step, run, attempt, process, nonce] = words.as_slice() else {
            panic!("a broken line: {line:?}")
        };
        tasks.entry(task.parse().unwrap()).or_default().push(Start {
            place,
            step: step.parse().unwrap(),
            run: run.parse().unwrap(),
            attempt: attempt.parse().unwrap(),
            process: process.parse().unwrap(),
            nonce: nonce.to_string(),
        });
    }
    tasks
}

impl Proof {
    fn add(&mut self, task_id: TaskId, starts: &[Start], journal: &[Entry]) {
        let runs = runs(task_id, starts);
        let claimed = |start: &Start| runs.iter().position(|run| *run == start.run).unwrap();
        let mut journaled: BTreeMap<u32, &Start> = BTreeMap::new();
        let mut last_writer = 0;
        for (seq, step, nonce) in results(task_id, journal) {
            let start = starts.iter().find(|start| start.nonce == nonce && start.step == step);
            let start = start.unwrap_or_else(|| {
                panic!("task {task_id}: the result of step {step} is of no start")
            });
            assert!(
                claimed(start) >= last_writer,
                "task {task_id}: a run has journaled step {step} after a later run had journaled \
                 something"
            );
            last_writer = claimed(start);
            self.writers.push((task_id, seq, start.run));
            assert!(
                journaled.insert(step, start).is_none(),
                "task {task_id}: step {step} is journaled twice"
            );
        }
        for start in starts {
            let result = journaled.get(&start.step).unwrap_or_else(|| {
                panic!("task {task_id}: step {} was started, and has no result", start.step)
            });
            assert!(
                claimed(start) <= claimed(result),
                "task {task_id}: step {} ran again after its result was journaled, or the result \
                 is of a run that no longer owned the task",
                start.step
            );
            for (before, _) in FOLLOWS.iter().filter(|(_, after)| *after == start.step) {
                let before_started =
                    journaled.get(before).map(|result| (claimed(result), result.place));
                assert!(
                    before_started
                        .is_some_and(|(run, place)| run <= claimed(start) && place < start.place),
                    "task {task_id}: step {} began before the result of {before} was durable",
                    start.step
                );
            }
        }
        let mut last_run = 0;
        for start in starts.iter() {
            let late = claimed(start) < last_run;
            assert!(
                !late || !std::ptr::eq(journaled[&start.step], start),
                "task {task_id}: the result of step {} is of a run that had lost the task before \
                 it started the step",
                start.step
            );
            self.late += usize::from(late);
            last_run = last_run.max(claimed(start));
        }
        self.again += starts.len() - journaled.len();
        let results = journaled.into_iter().map(|(step, start)| (step, start.nonce.clone()));
        self.results.insert(task_id, results.collect());
    }
}

/// The runs that started steps, in the order of their claims.
fn runs(task_id: TaskId, starts: &[Start]) -> Vec<RunId> {
    let mut runs: Vec<&Start> = Vec::new();
    let mut started = HashSet::new();
    for start in starts {
        assert!(
            started.insert((start.run, start.step)),
            "task {task_id}: a run started step {} twice",
            start.step
        );
        match runs.iter().find(|run| run.run == start.run) {
            Some(run) => assert_eq!(
                (run.attempt, run.process),
                (start.attempt, start.process),
                "task {task_id}: a run was in two processes"
            ),
            None => runs.push(start),
        }
    }
    // A stable sort: runs of one attempt stay in the order of their first lines.
    runs.sort_by_key(|run| run.attempt);
    for two in runs.windows(2).filter(|two| two[0].attempt == two[1].attempt) {
        let mut lines = starts.iter().filter(|start| start.run == two[0].run);
        assert!(
            lines.all(|start| start.place < two[1].place),
            "task {task_id}: two runs of attempt {} were at work at once",
            two[0].attempt
        );
    }
    runs.into_iter().map(|run| run.run).collect()
}

/// The results of steps, in the order in which they were journaled: place, step and nonce.
fn results(task_id: TaskId, journal: &[Entry]) -> Vec<(u64, u32, String)> {
    assert!(
        journal.iter().map(|entry| entry.seq).eq(1..=journal.len() as u64),
        "task {task_id}: the journal has a gap"
    );
    let steps = journal.iter().filter(|entry| entry.key.kind == Kind::Step);
    let result = |entry: &Entry| {
        let Outcome::Done(nonce) = &entry.outcome else { panic!("task {task_id}: {entry:?}") };
        let (_, step) = entry.key.name.as_str().split_once(':').unwrap();
        (entry.seq, step.parse().unwrap(), nonce.decode().unwrap())
    };
    steps.map(result).collect()
}
