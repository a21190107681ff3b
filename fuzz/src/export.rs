//! Exports: documents of tasks. An input is a document, or the body of one, for which the checksum
//! is made here.

use std::sync::Arc;

use serde_json::value::RawValue;
use stepwell::sqlite::{Location, SqliteStore};
use stepwell::testing::{Harness, Process};
use stepwell::{Entry, Error, Export, ImportError, InputHash, Store, TaskFilter, TaskState};

use crate::{in_virtual_time, said};

pub(crate) fn run(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    for text in [Some(text.to_owned()), around(text)].into_iter().flatten() {
        match Export::from_json(&text) {
            Ok(export) => read(&export, text.len()),
            Err(error) => _ = said(error, text.len()),
        }
    }
}

/// The document with that body.
fn around(body: &str) -> Option<String> {
    let body = serde_json::from_str::<&RawValue>(body).ok()?;
    let checksum = InputHash::of(body).ok()?;
    Some(format!(
        r#"{{"format":"stepwell task","version":1,"checksum":"{checksum}","body":{body}}}"#
    ))
}

fn read(export: &Export, input: usize) {
    let json = export.to_json().expect("what was read can be written");
    let again = Export::from_json(&json).expect("what was written can be read");
    assert_eq!(again.to_json().unwrap(), json);
    in_virtual_time(async {
        let harness = Harness::new();
        let memory = is_taken_in(&harness, Arc::new(harness.store()), export, input).await;
        let Some(memory) = memory else { return };
        let sqlite = SqliteStore::open(Location::Memory, harness.runtime()).await.unwrap();
        let sqlite = is_taken_in(&harness, Arc::new(sqlite), export, input).await;
        assert_eq!(sqlite, Some(memory), "SQLite has made something else of it");
    });
}

/// Puts the task into a store, where it is as it was, or is not. Returns how it is seen there.
async fn is_taken_in(
    harness: &Harness,
    store: Arc<dyn Store>,
    export: &Export,
    input: usize,
) -> Option<String> {
    let process = harness.start_on(store, |builder| builder).await.unwrap();
    let task_id = export.record.info.task_id;
    let listed =
        async |process: &Process| process.tasks(TaskFilter::default()).await.unwrap().items.len();
    match process.import(export.clone()).await {
        Ok(imported) => assert_eq!(imported, task_id),
        Err(error) => {
            said(error, input);
            assert_eq!(listed(&process).await, 0);
            return None;
        }
    }
    let again = process.import(export.clone()).await;
    assert!(matches!(again, Err(Error::Import(ImportError::Exists))), "{again:?}");
    assert_eq!(listed(&process).await, 1);
    let there = process.export(task_id).await.unwrap();
    let (was, mut record) = (&export.record, there.record);
    // Stores keep microseconds of the times.
    let kept = |entry: &Entry| (entry.seq, entry.key.clone(), entry.outcome.clone());
    assert!(
        record.journal.iter().map(kept).eq(was.journal.iter().map(kept)),
        "{:?}",
        record.journal
    );
    assert_eq!((&record.info.params, &record.info.headers), (&was.info.params, &was.info.headers));
    if was.info.state.is_finished() {
        assert_eq!(record.info.state, was.info.state);
    } else {
        assert!(matches!(record.info.state, TaskState::Pending | TaskState::Compensating));
        assert_eq!(record.messages.len(), was.messages.len());
    }
    record.waits.sort_by(|a, b| a.key.cmp(&b.key));
    let seen = serde_json::to_string(&record).unwrap();
    process.kill().await;
    Some(seen)
}
