//! The exhaustive crash test: a script that dies or fails at each of its writes, before and after,
//! and is run again.

#![allow(clippy::panic, clippy::unwrap_used, missing_docs, reason = "a test ends by a panic")]

mod support;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use stepwell_checkpoint::key_value::{KeyValueStore as _, Memory};
use stepwell_checkpoint::{Checkpoint, CheckpointError, Inspection, Kind, Outcome};
use support::{Fault, Faulty};

const ID: &str = "file-123";
/// As short as it can be: the process after a dead one has to wait for it.
const LEASE: Duration = Duration::from_millis(10);
const ROWS: usize = 6;

/// What really ran, and how often.
#[derive(Clone, Default)]
struct Ran(Arc<Mutex<BTreeMap<String, u32>>>);

impl Ran {
    fn note(&self, what: impl Into<String>) {
        *self.0.lock().unwrap().entry(what.into()).or_default() += 1;
    }

    fn times(&self, what: &str) -> u32 {
        self.0.lock().unwrap().get(what).copied().unwrap_or(0)
    }
}

async fn load(store: &Faulty, ran: &Ran) -> Result<Checkpoint, CheckpointError> {
    let cleaned = ran.clone();
    loop {
        let cleaned = cleaned.clone();
        let load =
            Checkpoint::load(store, ID).lease(LEASE).on_cleanup("undo", move |what: String| {
                cleaned.note(format!("undo {what}"));
                async { Ok(()) }
            });
        match load.await {
            Err(CheckpointError::InUse { .. }) => {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            result => return result,
        }
    }
}

/// Steps of all sorts, items, and cleanups that are discharged in each way.
async fn script(store: &Faulty, ran: &Ran) -> Result<u64, CheckpointError> {
    let cp = load(store, ran).await?;
    let step = |name: &'static str, value: String| {
        let ran = ran.clone();
        move || async move {
            ran.note(name);
            Ok(value)
        }
    };
    let first = cp.step("first", step("first", "1".into())).await?;
    let one = cp.cleanup("undo", "one").await?;
    let two = cp.cleanup("undo", "two").await?;
    cp.step("risky", step("risky", "2".into())).input(&first).discharges(&two).await?;
    one.done().await?;
    // More than stays in the head.
    let large = cp.step("large", step("large", "x".repeat(10_000))).await?;
    let (twin, other) = tokio::join!(
        cp.step("twin", step("twin", "3".into())),
        cp.step("twin", step("twin#2", "4".into())),
    );
    let rows = cp.items("rows", (0..ROWS as u64).collect()).concurrency(2).each(|row| {
        let ran = ran.clone();
        async move {
            ran.note(format!("row {row}"));
            tokio::task::yield_now().await;
            Ok(row * 10)
        }
    });
    let rows: u64 = rows.await?.results.values().sum();
    let _outstanding = cp.cleanup("undo", "three").await?;
    cp.step("last", step("last", "5".into())).await?;
    cp.complete().await?;
    let numbers = [first, twin?, other?].map(|text| text.parse::<u64>().unwrap());
    Ok(numbers.iter().sum::<u64>() + rows + large.len() as u64)
}

const RESULT: u64 = 1 + 3 + 4 + 150 + 10_000;

/// The steps and rows that are recorded, by their names in [`Ran`].
fn recorded(inspection: Option<&Inspection>) -> Vec<String> {
    let mut recorded = Vec::new();
    for entry in inspection.iter().flat_map(|inspection| &inspection.entries) {
        let Outcome::Done(payload) = &entry.outcome else { panic!("{entry:?}") };
        match entry.key.kind {
            // Without the hash of its input.
            Kind::Step => recorded.push(entry.key.label().split(':').next().unwrap().to_owned()),
            Kind::Items => {
                let progress = stepwell_core::ItemProgress::from_chunk(payload).unwrap();
                let rows = (0..ROWS).filter(|row| progress.is_done(*row));
                recorded.extend(rows.map(|row| format!("row {row}")));
            }
            _ => {}
        }
    }
    recorded
}

/// The cleanups that are outstanding, as the status has them.
fn outstanding(inspection: Option<&Inspection>) -> Vec<String> {
    let Some(inspection) = inspection else { return Vec::new() };
    let payload = |label: &String| {
        let mut entries = inspection.entries.iter().rev();
        let entry =
            entries.find(|entry| entry.key.kind == Kind::Compensate && entry.key.label() == *label);
        let Outcome::Done(payload) = &entry.unwrap().outcome else { panic!() };
        format!("undo {}", payload.decode::<String>().unwrap())
    };
    inspection.status.cleanups.iter().map(payload).collect()
}

/// The script dies at a write; the next process dies at another one, or not. What was recorded when
/// one died does not run in any process after it.
async fn dies(first: (u64, Fault), second: (u64, Fault)) -> bool {
    let memory = Memory::new();
    let mut died = false;
    for (at, fault) in [first, second, (0, Fault::DiesBefore)] {
        let before = Checkpoint::inspect(&memory, ID).await.unwrap();
        let (store, ran) = (Faulty::new(&memory, at, fault), Ran::default());
        let result = store.run(script(&store, &ran)).await;
        let context = format!("{first:?}, {second:?}, now at {at} {fault:?}");
        for done in recorded(before.as_ref()) {
            assert_eq!(ran.times(&done), 0, "{done} ran again: {context}");
        }
        let expected = outstanding(before.as_ref());
        for cleanup in ["undo one", "undo two", "undo three"] {
            let times = u32::from(expected.iter().any(|expected| expected == cleanup));
            match &result {
                Some(_) => assert_eq!(ran.times(cleanup), times, "{cleanup}: {context}"),
                None => assert!(ran.times(cleanup) <= times, "{cleanup}: {context}"),
            }
        }
        if let Some(result) = result {
            assert_eq!(result.unwrap(), RESULT, "{context}");
            assert_eq!(memory.keys("*").await.unwrap(), Vec::<String>::new(), "{context}");
            return died;
        }
        died = true;
    }
    panic!("the last process does not die");
}

#[tokio::test]
async fn no_recorded_step_runs_again_and_each_due_cleanup_does_once_whenever_the_process_dies() {
    for fault in [Fault::DiesBefore, Fault::DiesAfter] {
        let mut at = 1;
        while dies((at, fault), (0, fault)).await {
            at += 1;
        }
        assert!(at > 15, "there were only {at} writes");
    }
}

#[tokio::test]
async fn nor_when_the_next_process_dies_as_well() {
    for first in (1..20).step_by(2) {
        for second in (1..12).step_by(2) {
            dies((first, Fault::DiesAfter), (second, Fault::DiesBefore)).await;
            dies((first, Fault::DiesBefore), (second, Fault::DiesAfter)).await;
        }
    }
}

#[tokio::test]
async fn a_write_that_fails_is_an_error_once_whether_it_was_applied_or_not() {
    for fault in [Fault::FailsBefore, Fault::FailsAfter] {
        for at in 1.. {
            let memory = Memory::new();
            let (store, ran) = (Faulty::new(&memory, at, fault), Ran::default());
            let mut errors = Vec::new();
            let result = loop {
                match script(&store, &ran).await {
                    Ok(result) => break result,
                    Err(error) => errors.push(error),
                }
                assert!(errors.len() < 3, "{at} {fault:?}: {errors:?}");
            };
            assert_eq!(result, RESULT);
            assert!(
                errors.iter().all(|error| matches!(error, CheckpointError::Store(_))),
                "{at} {fault:?}: {errors:?}"
            );
            assert_eq!(memory.keys("*").await.unwrap(), Vec::<String>::new(), "{at} {fault:?}");
            assert!(ran.0.lock().unwrap().values().all(|times| *times <= 2), "{at} {fault:?}");
            if store.writes() < at {
                break;
            }
        }
    }
}
