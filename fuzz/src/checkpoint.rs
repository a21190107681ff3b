//! Checkpoints: what is stored of one. An input is the head, and a segment in each further line.

use std::collections::BTreeSet;
use std::sync::Mutex;

use stepwell_checkpoint::key_value::{KeyValueStore as _, Memory};
use stepwell_checkpoint::{Checkpoint, CheckpointError};

use crate::{in_virtual_time, said};

pub(crate) fn run(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    in_virtual_time(async {
        let store = Memory::new();
        for (number, line) in text.lines().enumerate() {
            let key = if number == 0 { "head".into() } else { format!("1.{number}") };
            store.set(&format!("checkpoint/fuzz/{key}"), line, None).await.unwrap();
        }
        let done = match Checkpoint::inspect(&store, "fuzz").await {
            Ok(found) => found.map(|found| found.status.done).unwrap_or_default(),
            Err(error) => {
                said(error, text.len());
                // What it holds of items is read when they are asked for.
                BTreeSet::new()
            }
        };
        script(&store, &done, text.len()).await;
    });
}

/// Runs a script twice on what is there: what is recorded does not run, and what has run is
/// recorded.
async fn script(store: &Memory, done: &BTreeSet<String>, input: usize) {
    let (ran, mut done) = (Mutex::new(Vec::new()), done.clone());
    for _ in 0..2 {
        let outcome = script_once(store, &ran).await;
        let ran = std::mem::take(&mut *ran.lock().unwrap());
        for step in &ran {
            assert!(!done.contains(*step), "{step} ran, though it is recorded");
        }
        done.extend(ran.into_iter().map(str::to_owned));
        if let Err(error) = outcome {
            said(error, input);
            return;
        }
    }
}

async fn script_once(
    store: &Memory,
    ran: &Mutex<Vec<&'static str>>,
) -> Result<(), CheckpointError> {
    let load =
        Checkpoint::load(store, "fuzz").on_cleanup("undo", |_: serde_json::Value| async { Ok(()) });
    let checkpoint = load.await?;
    let note = |step| {
        ran.lock().unwrap().push(step);
        async { Ok(7_u64) }
    };
    checkpoint.step("a", || note("a")).await?;
    let undo = checkpoint.cleanup("undo", &"x").await?;
    checkpoint.step("b", || note("b")).discharges(&undo).await?;
    checkpoint.items("rows", vec![1_u64, 2, 3]).each(|row| async move { Ok(row * 2) }).await?;
    checkpoint.step("a", || note("a#2")).await?;
    let status = checkpoint.status().await?;
    assert!(["a", "a#2", "b"].iter().all(|step| status.done.contains(*step)), "{status:?}");
    checkpoint.release().await
}
