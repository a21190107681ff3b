//! The corpus of formats: records of checkpoints that released versions have written, with which
//! today's code goes on.
//!
//! `docs/how-it-is-tested.md` says when an entry is added.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "a test ends by a panic"
)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use stepwell_checkpoint::key_value::{KeyValueStore as _, Memory};
use stepwell_checkpoint::{Checkpoint, CheckpointError, ErrorPolicy};

/// The entry of the format that is written today.
const CURRENT: &str = "0.1";
/// Longer than any of this will be of interest.
const FOR_EVER: Duration = Duration::from_secs(1_000 * 365 * 24 * 3600);

/// What a store had, and what comes of it.
#[derive(Serialize, Deserialize)]
struct Entry {
    /// The values by their keys.
    stored: BTreeMap<String, String>,
    /// What is recorded of the script that was left half done.
    recorded: Vec<String>,
    /// What ran to bring it to its end.
    ran: Vec<String>,
    /// What it gave.
    result: u64,
}

#[derive(Default)]
struct Ran(Mutex<Vec<String>>);

impl Ran {
    fn note(&self, what: impl Into<String>) {
        self.0.lock().unwrap().push(what.into());
    }
}

/// A script with a step that fails, so many results that there are segments, items, and something
/// to clean up.
async fn script(store: &Memory, ran: &'static Ran, leaves: bool) -> Result<u64, CheckpointError> {
    let checkpoint = Checkpoint::load(store, "orders")
        .lease(Duration::from_millis(10))
        .owner("somebody")
        .on_cleanup("undo", move |what: String| async move {
            ran.note(format!("undo {what}"));
            Ok(())
        })
        .await?;
    let failed = checkpoint.step("flaky", || async move {
        ran.note("flaky");
        if leaves { anyhow::bail!("not yet") } else { Ok(7_u64) }
    });
    let mut sum = failed.await.unwrap_or_default();
    for number in 0..20_u64 {
        let step = checkpoint.step("add", || async move {
            ran.note(format!("add {number}"));
            Ok((number, "ä".repeat(200)))
        });
        sum += step.input(&("number", number, 0.1)).await?.0;
    }
    let _files = checkpoint.cleanup("undo", "files").await?;
    let items =
        checkpoint.items("rows", (0..6_u64).collect()).concurrency(1).on_error(ErrorPolicy::Stop);
    let report = items
        .each(|item| async move {
            anyhow::ensure!(!leaves || item < 3, "left");
            ran.note(format!("item {item}"));
            Ok(item * 10)
        })
        .await;
    if leaves {
        // As a crash would: nobody gives it free.
        std::mem::forget(checkpoint);
        return report.map(|_| 0);
    }
    sum += report?.results.into_values().sum::<u64>();
    checkpoint.complete().keep(&sum, FOR_EVER).await?;
    Ok(sum)
}

fn ran() -> &'static Ran {
    Box::leak(Box::default())
}

async fn recorded(store: &Memory) -> Vec<String> {
    let found = Checkpoint::inspect(store, "orders").await.unwrap().unwrap();
    let shown =
        found.entries.iter().map(|entry| format!("{} {}", entry.key, entry.outcome.to_columns().0));
    shown.collect()
}

/// Goes on with what is stored. Once its lease is over, which it is where the entry is not of
/// today.
async fn go_on(stored: &BTreeMap<String, String>) -> Entry {
    let (store, ran) = (Memory::new(), ran());
    for (key, value) in stored {
        store.set(key, value, None).await.unwrap();
    }
    let recorded = recorded(&store).await;
    let result = loop {
        match script(&store, ran, false).await {
            Err(CheckpointError::InUse { .. }) => {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            result => break result.unwrap(),
        }
    };
    assert_eq!(Checkpoint::result::<u64>(&store, "orders").await.unwrap(), Some(result));
    Entry { stored: stored.clone(), recorded, ran: ran.0.lock().unwrap().clone(), result }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus")
}

#[tokio::test]
async fn checkpoints_of_each_version_are_read_and_finished() {
    let mut entries = 0;
    for file in std::fs::read_dir(folder()).unwrap() {
        let file = file.unwrap().path();
        let entry: Entry = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        let found = go_on(&entry.stored).await;
        assert_eq!(found.recorded, entry.recorded, "{}", file.display());
        assert_eq!((found.ran, found.result), (entry.ran, entry.result), "{}", file.display());
        entries += 1;
    }
    assert!(entries > 0);
}

/// Writes the entry of today's format. Only for one that is not released yet.
#[tokio::test]
#[ignore = "it writes into the source tree"]
async fn write_the_current_entry() {
    let store = Memory::new();
    let left = script(&store, ran(), true).await.unwrap_err();
    assert!(matches!(left, CheckpointError::Item { .. }), "{left}");
    let mut stored = BTreeMap::new();
    for key in store.keys("*").await.unwrap() {
        let value = store.get(&key).await.unwrap().unwrap();
        stored.insert(key, value);
    }
    assert!(stored.len() > 1, "there is no segment");
    let entry = go_on(&stored).await;
    std::fs::create_dir_all(folder()).unwrap();
    let json = serde_json::to_string_pretty(&entry).unwrap();
    std::fs::write(folder().join(format!("{CURRENT}.json")), json + "\n").unwrap();
}
