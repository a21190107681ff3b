//! The checks of queues. Tasks of one concurrency key run one at a time, in the order of their
//! spawns. A limited queue never runs more tasks than its limit.

use std::collections::{BTreeMap, HashMap};

use stepwell::TaskId;

use super::life::Life;
use super::{History, Proof};
use crate::work::{Kind, WIDTH};

pub(super) fn check(lives: &BTreeMap<TaskId, Life<'_>>, history: &History, proof: &mut Proof) {
    turns(lives, history, proof);
    narrow(lives, proof);
}

/// Checks that the first start of a task comes after the last start of the key's previous task that
/// counts. The previous task has ended between the two.
fn turns(lives: &BTreeMap<TaskId, Life<'_>>, history: &History, proof: &mut Proof) {
    let mut last: HashMap<String, (usize, TaskId)> = HashMap::new();
    // The spawns are in order, because each one was answered before the next one was made.
    for (task, work) in history.spawned.iter().filter(|(_, work)| work.kind == Kind::Turn) {
        let Some(life) = lives.get(task) else { continue };
        let counts = |place: &usize| {
            life.done.iter().any(|done| done.start.is_some_and(|(of, _)| of == *place))
        };
        // Starts of runs whose claims were lost may be anywhere.
        let starts = || {
            life.starts
                .iter()
                .map(|(place, _)| *place)
                .filter(|place| !history.lossy || counts(place))
        };
        let (Some(first), Some(end)) = (starts().min(), starts().filter(counts).max()) else {
            continue;
        };
        if let Some((before, other)) = last.insert(work.turn(), (end, *task))
            && first < before
        {
            let text =
                format_args!("task {task} began before task {other} of the same key had ended");
            proof.fail("turns", text);
        }
    }
}

/// Checks the limit of the narrow queue. A task was running between two results of one run that
/// have no pause between them.
fn narrow(lives: &BTreeMap<TaskId, Life<'_>>, proof: &mut Proof) {
    let mut changes = Vec::new();
    for life in lives.values().filter(|life| life.ended.work.kind == Kind::Narrow) {
        let starts: Vec<_> = life.done.iter().filter_map(|done| done.start).collect();
        if let [(first, one), (second, other)] = starts.as_slice()
            && one.run == other.run
        {
            changes.extend([(*first, 1), (*second, -1)]);
        }
    }
    changes.sort_unstable();
    let mut running = 0;
    for (place, change) in changes {
        running += change;
        if running > i64::from(WIDTH) {
            proof.fail("limits", format_args!("{running} tasks of the queue ran at line {place}"));
        }
    }
}
