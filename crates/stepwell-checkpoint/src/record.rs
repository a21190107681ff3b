//! The stored form of a checkpoint.
//!
//! ```text
//!   checkpoint/file-123/head   {"stepwell_checkpoint": 1, "owner": …,
//!                               "segments": ["1.40", …], "tail": [entry, …]}
//!   checkpoint/file-123/1.40   [entry, …]
//! ```
//!
//! Invariant: only the segments that the head names are part of the checkpoint. The head holds the
//! youngest entries itself, so that a small step costs one write. When these entries become many,
//! they are written as a *segment*, which never changes afterwards, and the head names it. The size
//! of a new segment grows with the number of segments, so that the size of the head and the number
//! of segments both grow with the square root of the recorded data.

use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use serde::{Deserialize, Serialize};
use stepwell_core::{Entry, ItemProgress, Key, Kind, Name, Outcome, Payload, Timestamp};

use crate::error::CheckpointError;
use crate::key_value::KeyValueStore;

/// The format that this version writes, and the newest that it reads.
const FORMAT: u32 = 1;
/// The prefix of the keys of all checkpoints.
const PREFIX: &str = "checkpoint/";
/// The length of the tail, in bytes, above which it becomes a segment; the second number is added
/// for each segment that exists.
const TAIL_BYTES: usize = 4 << 10;
const TAIL_BYTES_A_SEGMENT: usize = 64;
/// The number of segments that are read at the same time.
const READS: usize = 16;

/// The record that owns a checkpoint. The record is replaced as a whole, by compare-and-set only.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Head {
    stepwell_checkpoint: u32,
    pub(crate) id: String,
    pub(crate) started_at: Timestamp,
    /// The number of loads. An owner names its segments after its epoch.
    pub(crate) epoch: u64,
    /// The number of writes, including those that failed. Invariant: no two heads of a checkpoint
    /// have the same text.
    pub(crate) writes: u64,
    pub(crate) owner: Option<Owner>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) segments: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) tail: Vec<StoredEntry>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) completed: Option<Completed>,
}

/// The owner of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Owner {
    pub(crate) id: uuid::Uuid,
    pub(crate) name: String,
    pub(crate) until: Timestamp,
}

/// The completion of a checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Completed {
    pub(crate) at: Timestamp,
    /// The result, and the time at which it is removed.
    pub(crate) kept: Option<(Payload, Timestamp)>,
}

/// An entry of the engine's journal, with the columns of the engine's stores.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct StoredEntry {
    seq: u64,
    kind: Kind,
    name: Name,
    ordinal: u32,
    outcome: String,
    payload: Payload,
    at: Timestamp,
}

impl StoredEntry {
    pub(crate) fn new(entry: Entry) -> Self {
        let Entry { seq, key: Key { kind, name, ordinal }, outcome, at } = entry;
        let (outcome, payload) = outcome.to_columns();
        Self { seq, kind, name, ordinal, outcome: outcome.to_owned(), payload, at }
    }

    fn read(self) -> Result<Entry, String> {
        let Self { seq, kind, name, ordinal, outcome, payload, at } = self;
        let outcome = Outcome::from_columns(&outcome, payload).map_err(|error| {
            format!("the outcome {outcome:?} of entry {seq} cannot be read: {error}")
        })?;
        Ok(Entry { seq, key: Key { kind, name, ordinal }, outcome, at })
    }
}

impl Head {
    pub(crate) fn new(id: &str, now: Timestamp) -> Self {
        Self {
            stepwell_checkpoint: FORMAT,
            id: id.to_owned(),
            started_at: now,
            epoch: 0,
            writes: 0,
            owner: None,
            segments: Vec::new(),
            tail: Vec::new(),
            completed: None,
        }
    }

    pub(crate) fn parse(id: &str, text: &str) -> Result<Self, CheckpointError> {
        #[derive(Deserialize)]
        struct Format {
            stepwell_checkpoint: u32,
        }
        let key = head_key(id);
        let foreign =
            |reason: String| CheckpointError::Foreign { id: id.into(), key: key.clone(), reason };
        let format: Format =
            serde_json::from_str(text).map_err(|error| foreign(error.to_string()))?;
        let format = format.stepwell_checkpoint;
        if format > FORMAT {
            return Err(CheckpointError::Newer { key, format, known: FORMAT });
        }
        let head: Self = serde_json::from_str(text).map_err(|error| damaged(id, &key, error))?;
        if head.id != id {
            return Err(foreign(format!("it is the checkpoint {:?}", head.id)));
        }
        Ok(head)
    }

    pub(crate) fn to_text(&self) -> Result<String, CheckpointError> {
        to_json(self, &self.id)
    }

    /// Adds entries, and returns the tail as a segment when it has become too long.
    pub(crate) fn add(&mut self, entries: Vec<Entry>) -> Result<Option<Segment>, CheckpointError> {
        if entries.is_empty() {
            return Ok(None);
        }
        self.tail.extend(entries.into_iter().map(StoredEntry::new));
        merge_items(&mut self.tail);
        let text = to_json(&self.tail, &self.id)?;
        if text.len() <= TAIL_BYTES + TAIL_BYTES_A_SEGMENT * self.segments.len() {
            return Ok(None);
        }
        let name = self.segment_name(self.writes);
        self.tail.clear();
        self.segments.push(name.clone());
        Ok(Some(Segment { name, text }))
    }

    /// Returns the name of the segment that a write of this owner makes, if it makes one.
    pub(crate) fn segment_name(&self, write: u64) -> String {
        format!("{}.{write}", self.epoch)
    }

    /// Reads all entries, in order. The inner error is a segment that does not exist.
    pub(crate) async fn entries(
        &self,
        store: &dyn KeyValueStore,
    ) -> Result<Result<Vec<Entry>, MissingSegment>, CheckpointError> {
        let read = async |name: &String| -> Result<_, CheckpointError> {
            let key = segment_key(&self.id, name);
            let text = store.get(&key).await?;
            let entries =
                text.map(|text| serde_json::from_str::<Vec<StoredEntry>>(&text)).transpose();
            Ok(entries.map_err(|error| damaged(&self.id, &key, error))?.ok_or(MissingSegment(key)))
        };
        let read: Vec<_> =
            stream::iter(self.segments.iter().map(read)).buffered(READS).try_collect().await?;
        let mut entries = Vec::new();
        for segment in read {
            match segment {
                Ok(segment) => entries.extend(segment),
                Err(missing) => return Ok(Err(missing)),
            }
        }
        entries.extend(self.tail.iter().cloned());
        let read = entries.into_iter().map(StoredEntry::read).collect::<Result<_, _>>();
        Ok(Ok(read.map_err(|error| damaged(&self.id, &head_key(&self.id), error))?))
    }
}

/// A segment that is about to be written.
pub(crate) struct Segment {
    pub(crate) name: String,
    pub(crate) text: String,
}

/// The key of a segment that the head names and that does not exist.
pub(crate) struct MissingSegment(pub(crate) String);

/// Merges the chunks of the same items into one chunk.
fn merge_items(tail: &mut Vec<StoredEntry>) {
    let mut merged: Vec<StoredEntry> = Vec::with_capacity(tail.len());
    for entry in tail.drain(..) {
        let same = |other: &&mut StoredEntry| {
            (other.kind, &other.name, other.ordinal) == (Kind::Items, &entry.name, entry.ordinal)
        };
        let earlier = merged.iter_mut().rev().find(same).filter(|_| entry.kind == Kind::Items);
        let both = earlier.and_then(|earlier| {
            let mut progress = ItemProgress::from_chunk(&earlier.payload).ok()?;
            progress.absorb(&entry.payload).ok()?;
            Some((earlier, progress.to_chunk()))
        });
        match both {
            Some((earlier, chunk)) => (earlier.payload, earlier.at) = (chunk, entry.at),
            None => merged.push(entry),
        }
    }
    *tail = merged;
}

pub(crate) fn head_key(id: &str) -> String {
    format!("{PREFIX}{id}/head")
}

pub(crate) fn segment_key(id: &str, name: &str) -> String {
    format!("{PREFIX}{id}/{name}")
}

pub(crate) fn damaged(id: &str, key: &str, reason: impl ToString) -> CheckpointError {
    CheckpointError::Damaged { id: id.into(), key: key.into(), reason: reason.to_string() }
}

fn to_json<T: Serialize>(value: &T, id: &str) -> Result<String, CheckpointError> {
    Payload::document(value)
        .map(|json| json.as_str().to_owned())
        .map_err(|source| CheckpointError::Payload { name: id.into(), source })
}
