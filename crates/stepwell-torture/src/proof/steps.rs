//! The checks of steps, items and compensations:
//!
//! - A run starts each operation once.
//! - The run that owned the task when a result was journaled has started that result, and results
//!   come from runs in the order of their claims.
//! - Of all runs that started an operation, the run that was claimed last has its result in the
//!   journal. A later run would have found the result there, and an earlier run no longer owned the
//!   task.
//! - A start after the first start of a later run never has its result in the journal.
//! - A run starts an operation only after the result that the operation follows. That result came
//!   from this run or an earlier one, and had been started before.

use std::collections::HashSet;

use super::life::Life;
use super::{History, Proof};
use crate::ledger::What;
use crate::work::{ITEMS, Kind, NAP, Seen};

pub(super) fn check(life: &Life<'_>, history: &History, proof: &mut Proof) {
    let task = life.task();
    let mut last_writer = 0;
    for done in &life.done {
        let Some((_, start)) = done.start else {
            proof.fail(
                "ledger",
                format_args!("{} of task {task} has a result and never started", done.name),
            );
            continue;
        };
        if done.owner != Some(start.run) && !(history.lossy && done.owner.is_none()) {
            let owner = done.owner.map_or_else(|| "nobody".to_owned(), |owner| owner.to_string());
            let text = format_args!(
                "{} of task {task} (entry {}) is of run {}, and was journaled when {owner} owned \
                 the task",
                done.name, done.seq, start.run
            );
            proof.fail("owner", text);
        }
        if let Some(writer) = life.claimed(start.run) {
            if writer < last_writer {
                let text = format_args!(
                    "a run of task {task} has journaled {} after a later run had journaled \
                     something",
                    done.name
                );
                proof.fail("owner", text);
            }
            last_writer = last_writer.max(writer);
        }
    }
    starts(life, history, proof);
    order(life, history, proof);
    items(life, history, proof);
    if life.ended.work.naps() && !history.fake_clocks {
        nap(life, proof);
    }
}

/// Checks each start in the ledger.
fn starts(life: &Life<'_>, history: &History, proof: &mut Proof) {
    let task = life.task();
    let (mut begun, mut last_run) = (HashSet::new(), 0);
    let completed = life.ended.info.output.is_some();
    for &(place, line) in &life.starts {
        // A run that continues after its last entries were lost repeats the operations of these
        // entries.
        if !begun.insert((line.run, &line.name)) && !history.lossy {
            proof.fail("once", format_args!("a run of task {task} started {} twice", line.name));
        }
        let Some(claimed) = life.claimed(line.run) else {
            if !history.lossy {
                let text = format_args!(
                    "run {} of task {task} started {} and never owned it",
                    line.run, line.name
                );
                proof.fail("owner", text);
            }
            continue;
        };
        let late = claimed < last_run;
        proof.late += usize::from(late);
        last_run = last_run.max(claimed);
        let Some(done) = life.done(&line.name) else {
            if completed && !line.name.starts_with("item:") {
                proof.fail("journal", format_args!("{} of task {task} has no result", line.name));
            }
            continue;
        };
        let is_result = done.start.is_some_and(|(of, _)| of == place);
        if !is_result {
            proof.again += 1;
        }
        if late && is_result {
            let text = format_args!(
                "{} of task {task} is of a run that had lost the task before",
                line.name
            );
            proof.fail("owner", text);
        }
        let writer = done.start.and_then(|(_, start)| life.claimed(start.run));
        if !history.lossy && writer.is_none_or(|writer| claimed > writer) {
            let text = format_args!(
                "{} of task {task} ran again after its result was journaled",
                line.name
            );
            proof.fail("once", text);
        }
    }
}

/// Checks that operations come in their order.
fn order(life: &Life<'_>, history: &History, proof: &mut Proof) {
    let task = life.task();
    let undone: Vec<_> =
        life.done.iter().filter(|done| done.value.is_none()).map(|done| &*done.name).collect();
    let steps = life.ended.work.follows().iter().copied();
    let undos = undone.windows(2).map(|two| (two[0], two[1]));
    let pairs: Vec<_> = steps.chain(undos).collect();
    for &(place, line) in &life.starts {
        let result =
            life.done(&line.name).and_then(|done| done.start).is_some_and(|(of, _)| of == place);
        // Of a history whose end was lost, only the final results are known.
        if history.lossy && !result {
            continue;
        }
        for (before, _) in pairs.iter().filter(|(_, after)| *after == line.name) {
            let durable =
                life.done(before).and_then(|done| done.start).is_some_and(|(of, start)| {
                    let (first, second) = (life.claimed(start.run), life.claimed(line.run));
                    of < place && (history.lossy || first <= second)
                });
            if !durable {
                let text = format_args!(
                    "{} of task {task} began before the end of {before} was durable",
                    line.name
                );
                proof.fail("barrier", text);
            }
        }
    }
}

/// Checks that no item starts again in a later run than the one that produced its result.
fn items(life: &Life<'_>, history: &History, proof: &mut Proof) {
    if life.ended.work.kind != Kind::Sorted {
        return;
    }
    let task = life.task();
    let seen = life.ended.info.output.as_ref().and_then(|output| output.decode::<Seen>().ok());
    let results = seen.unwrap_or_default().steps;
    if results.len() != ITEMS {
        proof.fail(
            "items",
            format_args!("task {task} has {} results of {ITEMS} items", results.len()),
        );
    }
    for (item, result) in results.iter().enumerate() {
        let name = format!("item:{item}");
        let own: Vec<_> = life.starts.iter().filter(|(_, line)| line.name == name).collect();
        let Some((_, start)) = own.iter().find(|(_, line)| line.value == *result) else {
            proof.fail("items", format_args!("{name} of task {task} has a result of no start"));
            continue;
        };
        proof.journaled += 1;
        proof.again += own.len() - 1;
        let writer = life.claimed(start.run);
        if !history.lossy && own.iter().any(|(_, line)| life.claimed(line.run) > writer) {
            proof.fail("items", format_args!("{name} of task {task} ran again after it was done"));
        }
    }
}

/// Checks that no sleep ends early. A step after the sleep starts at least that much later than the
/// step before it.
fn nap(life: &Life<'_>, proof: &mut Proof) {
    let starts: Vec<_> = life.starts.iter().filter(|(_, line)| line.what == What::Step).collect();
    let began = |name: &str| {
        let own = starts.iter().filter(|(_, line)| line.name == name);
        own.map(|(_, line)| line.millis).min()
    };
    let (Some(before), Some(after)) = (began("step:0"), began("step:3")) else { return };
    let took = after.saturating_sub(before);
    if u128::from(took) < NAP.as_millis() {
        proof.fail("timers", format_args!("a nap of task {} took {took} ms", life.task()));
    }
}
