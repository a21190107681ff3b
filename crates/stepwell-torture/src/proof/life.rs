//! The life of a task: its runs in the order of their claims, what they started, and what was
//! journaled of it.

use std::collections::HashMap;

use stepwell::{Kind, Outcome, RunId, TaskId};

use super::Proof;
use crate::ledger::{Line, What};
use crate::load::Ended;
use crate::place::{Event, Row};

/// The journaled end of a step or of a compensation.
pub(crate) struct Done<'a> {
    /// The name, such as `step:1` or `undo:1`.
    pub(crate) name: String,
    pub(crate) seq: u64,
    /// The run that owned the task when the end was journaled; `None` when the chronicle does not
    /// say.
    pub(crate) owner: Option<RunId>,
    /// The result of a step.
    pub(crate) value: Option<String>,
    /// The start that led to this end: its place in the ledger, and its line.
    pub(crate) start: Option<(usize, &'a Line)>,
}

/// A task with everything that was recorded of it.
pub(crate) struct Life<'a> {
    pub(crate) ended: &'a Ended,
    /// The task's rows of the chronicle.
    pub(crate) rows: Vec<&'a Row>,
    /// The task's lines of the ledger, each with its place.
    pub(crate) starts: Vec<(usize, &'a Line)>,
    pub(crate) done: Vec<Done<'a>>,
    /// The place of each run in the order of claims.
    claims: HashMap<RunId, usize>,
}

impl<'a> Life<'a> {
    pub(crate) fn new(ended: &'a Ended) -> Self {
        let (rows, starts, done, claims) = Default::default();
        Self { ended, rows, starts, done, claims }
    }

    pub(crate) fn task(&self) -> TaskId {
        self.ended.info.task_id
    }

    /// Stores the task's rows of the chronicle, in their order.
    pub(crate) fn remember(&mut self, mut rows: Vec<&'a Row>) {
        rows.sort_by_key(|row| row.number);
        for row in rows.iter().filter(|row| row.what == Event::State("running".into())) {
            let next = self.claims.len();
            self.claims.entry(row.run).or_insert(next);
        }
        self.rows = rows;
    }

    /// Returns the place of a run in the order of claims. The place is `None` for a run that never
    /// owned the task, or whose claim was lost.
    pub(crate) fn claimed(&self, run: RunId) -> Option<usize> {
        self.claims.get(&run).copied()
    }

    /// Returns the end of an operation.
    pub(crate) fn done(&self, name: &str) -> Option<&Done<'a>> {
        self.done.iter().find(|done| done.name == name)
    }

    /// Reads the journal, and finds the start of each result.
    pub(crate) fn read(&mut self, proof: &mut Proof) {
        let (task, journal) = (self.task(), &self.ended.journal);
        if !journal.iter().map(|entry| entry.seq).eq(1..=journal.len() as u64) {
            proof.fail("journal", format_args!("the journal of task {task} has a gap"));
        }
        let owners: HashMap<u64, RunId> = self.rows.iter().filter_map(|row| entry(row)).collect();
        for entry in journal {
            let owner = owners.get(&entry.seq).copied();
            let name = entry.key.name.as_str();
            let Outcome::Done(value) = &entry.outcome else { continue };
            let (name, value) = match entry.key.kind {
                Kind::Step if name.starts_with("step:") => {
                    (name.to_owned(), value.decode::<String>().ok())
                }
                Kind::Compensated => (name.replace("step", "undo"), None),
                _ => continue,
            };
            let is_start = |line: &Line| {
                line.name == name
                    && match (line.what, &value) {
                        (What::Step, Some(value)) => line.value == *value,
                        (What::Undo, None) => Some(line.run) == owner,
                        _ => false,
                    }
            };
            let start = self.starts.iter().find(|(_, line)| is_start(line)).copied();
            if self.done(&name).is_some() {
                proof.fail("once", format_args!("{name} of task {task} is journaled twice"));
            }
            self.done.push(Done { name, seq: entry.seq, owner, value, start });
            proof.journaled += 1;
        }
    }
}

fn entry(row: &Row) -> Option<(u64, RunId)> {
    match row.what {
        Event::Entry(seq) => Some((seq, row.run)),
        _ => None,
    }
}
