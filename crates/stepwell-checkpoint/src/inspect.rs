//! The inspection of a checkpoint without owning it.

use std::collections::{BTreeMap, BTreeSet};

use stepwell_core::{Entry, ItemCounts, ItemProgress, Kind, Name, Outcome, Payload, Timestamp};

use crate::error::CheckpointError;
use crate::key_value::KeyValueStore;
use crate::ledger::{Memory, now};
use crate::record::{Head, damaged, head_key};

/// The stored state of a checkpoint.
#[derive(Clone, Debug)]
pub struct Inspection {
    /// The summary of the state.
    pub status: Status,
    /// The recorded entries in their order, as entries of the engine's journal.
    pub entries: Vec<Entry>,
    /// The result that was kept.
    pub result: Option<Payload>,
}

/// A summary of a checkpoint's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The checkpoint's id.
    pub id: String,
    /// The time of the first load.
    pub started_at: Timestamp,
    /// The number of loads.
    pub loads: u64,
    /// The name of the owner, and the time at which its lease ends if it is not renewed.
    pub owner: Option<(String, Timestamp)>,
    /// The time of the completion, if the result is kept.
    pub completed_at: Option<Timestamp>,
    /// The steps whose result is recorded.
    pub done: BTreeSet<String>,
    /// The steps that failed and have no result.
    pub failed: BTreeSet<String>,
    /// The progress of items, by their names.
    pub items: BTreeMap<String, ItemCounts>,
    /// The cleanups that would run at the next load, the latest last.
    pub cleanups: Vec<String>,
}

impl Inspection {
    pub(crate) async fn read(
        store: &dyn KeyValueStore,
        id: &str,
    ) -> Result<Option<Self>, CheckpointError> {
        Name::new(id)?;
        let mut before = None;
        loop {
            let Some(text) = store.get(&head_key(id)).await? else { return Ok(None) };
            let head = Head::parse(id, &text)?;
            let entries = match head.completed {
                Some(_) => Vec::new(),
                None => match head.entries(store).await? {
                    Ok(entries) => entries,
                    // The checkpoint was completed just now, unless the head is the same as before.
                    Err(missing) if before.as_ref() == Some(&text) => {
                        return Err(damaged(id, &missing.0, "it is missing"));
                    }
                    Err(_) => {
                        before = Some(text);
                        continue;
                    }
                },
            };
            return Ok(Some(Self::of(head, entries)?));
        }
    }

    fn of(head: Head, entries: Vec<Entry>) -> Result<Self, CheckpointError> {
        let memory = Memory::new(entries.clone());
        let mut items = BTreeMap::new();
        for (key, chunks) in &memory.items {
            let broken =
                |error: stepwell_core::ItemError| damaged(&head.id, &head_key(&head.id), error);
            let mut progress: Option<ItemProgress> = None;
            for chunk in chunks {
                match &mut progress {
                    None => progress = Some(ItemProgress::from_chunk(chunk).map_err(broken)?),
                    Some(progress) => progress.absorb(chunk).map_err(broken)?,
                }
            }
            items.extend(progress.map(|progress| (key.label(), progress.counts())));
        }
        let failed = entries.iter().filter(|entry| {
            let failed =
                entry.key.kind == Kind::Step && matches!(entry.outcome, Outcome::Failed(_));
            failed && !memory.steps.contains_key(&entry.key)
        });
        let status = Status {
            failed: failed.map(|entry| entry.key.label()).collect(),
            done: memory.steps.keys().map(stepwell_core::Key::label).collect(),
            items,
            cleanups: memory.cleanups.values().map(|(key, _)| key.label()).collect(),
            started_at: head.started_at,
            loads: head.epoch,
            owner: head
                .owner
                .filter(|owner| owner.until > now())
                .map(|owner| (owner.name, owner.until)),
            completed_at: head.completed.as_ref().map(|completed| completed.at),
            id: head.id,
        };
        let result = head.completed.and_then(|completed| Some(completed.kept?.0));
        Ok(Self { status, entries, result })
    }
}
