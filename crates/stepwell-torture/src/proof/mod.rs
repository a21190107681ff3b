//! The proof from the ledger, the chronicle and the journals together.
//!
//! A worker's lease may run out without the worker's knowledge, when the worker was stopped or the
//! server was away. Such a worker may still start a closure before it learns that another worker
//! owns its task. The *last* start of a step is therefore not always the one that counts. The exact
//! guarantees are stated in terms of **runs, in the order of their claims**, which the database
//! records.

mod ends;
mod life;
mod queues;
mod steps;
#[cfg(test)]
mod tests;
mod told;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

use stepwell::TaskId;

use crate::ledger::{Line, What};
use crate::load::Ended;
use crate::place::Row;
use crate::work::Work;
use life::Life;

/// The maximum number of violations that a verdict lists.
const TOLD: usize = 20;

/// The records of a window.
#[derive(Default)]
pub(crate) struct History {
    pub(crate) lines: Vec<Line>,
    pub(crate) rows: Vec<Row>,
    pub(crate) ended: BTreeMap<TaskId, Ended>,
    /// The tasks that the host has spawned, in the order of the answers.
    pub(crate) spawned: Vec<(TaskId, Work)>,
    /// The tasks that the host has cancelled at random.
    pub(crate) cancelled: HashSet<TaskId>,
    /// Tells whether some processes had wrong clocks.
    pub(crate) fake_clocks: bool,
    /// Tells whether the last commits may have been lost with a server.
    pub(crate) lossy: bool,
}

/// The counts of what was proven, and of how often it mattered.
#[derive(Clone, Debug, Default)]
pub(crate) struct Proof {
    pub(crate) tasks: usize,
    /// The number of journaled results of steps and ends of compensations.
    pub(crate) journaled: usize,
    /// The number of steps that ran again, because they were not journaled.
    pub(crate) again: usize,
    /// The number of steps that a run started after a later run had already started some.
    pub(crate) late: usize,
    pub(crate) lines: usize,
    violations: Vec<String>,
}

impl Proof {
    /// Checks a history.
    pub(crate) fn of(history: &History) -> Self {
        let mut proof =
            Self { tasks: history.ended.len(), lines: history.lines.len(), ..Self::default() };
        let mut lives: BTreeMap<TaskId, Life<'_>> =
            history.ended.iter().map(|(task, ended)| (*task, Life::new(ended))).collect();
        let mut rows: HashMap<TaskId, Vec<&Row>> = HashMap::new();
        history.rows.iter().for_each(|row| rows.entry(row.task).or_default().push(row));
        for (task, rows) in rows {
            match lives.get_mut(&task) {
                Some(life) => life.remember(rows),
                // The spawn of the task may have been lost.
                None if history.lossy => {}
                None => proof.fail("lost", format_args!("task {task} was there, and is gone")),
            }
        }
        for (place, line) in
            history.lines.iter().enumerate().filter(|(_, line)| line.what != What::Answered)
        {
            match lives.get_mut(&line.task) {
                Some(life) => life.starts.push((place, line)),
                None if history.lossy => {}
                None => proof.fail("lost", format_args!("task {} ran, and is gone", line.task)),
            }
        }
        for life in lives.values_mut() {
            life.read(&mut proof);
            steps::check(life, history, &mut proof);
            ends::check(life, history, &mut proof);
            told::check(life, &mut proof);
        }
        ends::check_origins(history, &mut proof);
        queues::check(&lives, history, &mut proof);
        proof
    }

    fn fail(&mut self, check: &str, text: impl fmt::Display) {
        self.violations.push(format!("{check}: {text}"));
    }

    /// Returns an error when a check has failed.
    pub(crate) fn verdict(&self) -> anyhow::Result<()> {
        let told =
            self.violations.iter().take(TOLD).map(|one| format!("\n  {one}")).collect::<String>();
        anyhow::ensure!(self.violations.is_empty(), "{} violations:{told}", self.violations.len());
        Ok(())
    }
}
