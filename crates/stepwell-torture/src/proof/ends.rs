//! The checks of ends. No accepted task is lost, each task has exactly one end, and the end is the
//! expected one. What a task did is undone where it must be.

use std::collections::{BTreeMap, HashMap, HashSet};

use stepwell::{Kind as Entry, Outcome, TICK_HEADER, TaskId, TaskState};

use super::life::Life;
use super::{History, Proof};
use crate::ledger::What;
use crate::place::Event;
use crate::work::{Kind, Seen};

pub(super) fn check(life: &Life<'_>, history: &History, proof: &mut Proof) {
    let (task, kind) = (life.task(), life.ended.work.kind);
    let state = life.ended.info.state;
    let expected: &[TaskState] = match kind {
        Kind::Saga => match life.ended.work.number % 3 {
            0 => &[TaskState::Completed],
            1 => &[TaskState::Failed],
            _ => &[TaskState::Cancelled],
        },
        Kind::Later => &[TaskState::Cancelled],
        // A cancelled task may complete if it was about to.
        Kind::Family if history.cancelled.contains(&task) => {
            &[TaskState::Completed, TaskState::Cancelled]
        }
        Kind::Errand
            if life.ended.info.parent.is_some_and(|parent| history.cancelled.contains(&parent)) =>
        {
            &[TaskState::Completed, TaskState::Cancelled]
        }
        _ => &[TaskState::Completed],
    };
    if !expected.contains(&state) {
        let failure = &life.ended.info.failure;
        proof.fail("ends", format_args!("task {task} ({kind:?}) is {state}: {failure:?}"));
    }
    let ends: Vec<_> = life.rows.iter().filter(|row| row.what.is_end()).collect();
    let failed = Event::State("failed".into());
    let ends_again = ends.iter().filter(|row| kind != Kind::Flaky || row.what != failed).count();
    if ends_again != 1 {
        proof.fail("ends", format_args!("task {task} ({kind:?}) has ended {ends_again} times"));
    }
    // The last entries are journaled after the end, in its own transaction.
    let last = life.rows.iter().rfind(|row| matches!(row.what, Event::State(_)));
    if last.is_some_and(|row| !row.what.is_end()) {
        proof.fail("ends", format_args!("task {task} ({kind:?}) went on after its end"));
    }
    if life.rows.iter().any(|row| row.what == Event::PausedClaim) {
        proof.fail("paused", format_args!("task {task} was claimed while it was paused"));
    }
    if let (TaskState::Completed, Some(output)) = (state, &life.ended.info.output) {
        output_of(life, output.decode().unwrap_or_default(), history, proof);
    }
    undone(life, proof);
}

/// Checks that the output is what was journaled, together with the children's outputs.
fn output_of(life: &Life<'_>, seen: Seen, history: &History, proof: &mut Proof) {
    let (task, kind) = (life.task(), life.ended.work.kind);
    let results: BTreeMap<_, _> =
        life.done.iter().map(|done| (&*done.name, done.value.as_ref())).collect();
    if kind != Kind::Sorted && !results.into_values().flatten().eq(&seen.steps) {
        proof.fail(
            "output",
            format_args!("the output of task {task} ({kind:?}) is not what was journaled"),
        );
    }
    if kind != Kind::Family {
        return;
    }
    let mut children: Vec<_> = Vec::new();
    for entry in life.ended.journal.iter().filter(|entry| entry.key.kind == Entry::Child) {
        let id =
            entry.key.name.as_str().rsplit(':').next().and_then(|id| id.parse::<TaskId>().ok());
        let child =
            id.and_then(|id| history.ended.get(&id)).and_then(|child| child.info.output.as_ref());
        children.extend(child.and_then(|output| output.decode::<Seen>().ok()));
    }
    let same = children.len() == 2 && seen.children.iter().all(|child| children.contains(child));
    if !same {
        proof
            .fail("children", format_args!("task {task} was given what its children did not give"));
    }
}

/// Checks that each recorded step is undone once, in reverse order, with the step's result.
fn undone(life: &Life<'_>, proof: &mut Proof) {
    if life.ended.work.kind != Kind::Saga {
        return;
    }
    let task = life.task();
    let undone: Vec<_> =
        life.done.iter().filter(|done| done.value.is_none()).map(|done| &*done.name).collect();
    let done: Vec<_> = life.done.iter().filter(|done| done.value.is_some()).collect();
    let expected: Vec<_> = match life.ended.info.state {
        TaskState::Completed => Vec::new(),
        _ => done.iter().rev().map(|done| done.name.replace("step", "undo")).collect(),
    };
    if undone != expected {
        proof.fail(
            "undone",
            format_args!("task {task} had to undo {expected:?}, and has undone {undone:?}"),
        );
    }
    let gave = |name: &str| {
        done.iter().find(|done| done.name == name).and_then(|done| done.value.as_deref())
    };
    for (_, line) in life.starts.iter().filter(|(_, line)| line.what == What::Undo) {
        if gave(&line.name.replace("undo", "step")) != Some(&*line.value) {
            proof.fail(
                "undone",
                format_args!("{} of task {task} was given another result", line.name),
            );
        }
    }
    let failed = life.ended.journal.iter().any(|entry| {
        entry.key.kind == Entry::Compensated && !matches!(entry.outcome, Outcome::Done(_))
    });
    if failed {
        proof.fail("undone", format_args!("a compensation of task {task} failed"));
    }
}

/// Checks that every accepted task exists, and that no other task exists and none exists twice.
pub(super) fn check_origins(history: &History, proof: &mut Proof) {
    for (task, work) in &history.spawned {
        if !history.ended.contains_key(task) {
            proof.fail(
                "lost",
                format_args!("task {task} ({:?}) was accepted, and is gone", work.kind),
            );
        }
    }
    let mut answers: HashMap<(&str, &str), TaskId> = HashMap::new();
    for line in history.lines.iter().filter(|line| line.what == What::Answered) {
        if !history.ended.contains_key(&line.task) {
            proof.fail(
                "lost",
                format_args!("task {} was accepted by a client, and is gone", line.task),
            );
        }
        let mut parts = line.name.split(':');
        let (Some(turn), Some("0"), Some(place)) = (parts.next(), parts.next(), parts.next())
        else {
            continue;
        };
        if *answers.entry((turn, place)).or_insert(line.task) != line.task {
            proof.fail(
                "twice",
                format_args!("the spawns of one key ({}) were answered with two tasks", line.name),
            );
        }
    }
    let (mut numbers, mut ticks) = (HashSet::new(), HashSet::new());
    for (task, ended) in &history.ended {
        let (kind, number) = (ended.work.kind, ended.work.number);
        if kind == Kind::Tick {
            if !ticks.insert(ended.info.headers.get(TICK_HEADER).map(ToString::to_string)) {
                proof.fail("twice", format_args!("task {task} is of a tick that has another task"));
            }
        } else if !numbers.insert((kind, number)) {
            proof.fail(
                "twice",
                format_args!("two tasks ({kind:?} {number}) were spawned in the place of one"),
            );
        }
    }
}
