//! Tasks as documents, which hold everything that a store keeps of a task.
//!
//! A document can be read elsewhere, and its task can go on in another store.
//!
//! ```text
//!   {"format": "stepwell task", "version": 1, "checksum": "…", "body": {
//!       "exported_at": …, "metadata": {…}, "record": {
//!           "info": {…}, "journal": [{"seq": 1, "kind": "step", "name": "charge", …}],
//!           "waits": […], "messages": […]}}}
//! ```
//!
//! The checksum is the [`InputHash`] of the body. It detects a document that was cut off or changed
//! by hand.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::base::failure::Failure;
use crate::base::input_hash::InputHash;
use crate::base::invalid_options::InvalidOptions;
use crate::base::journal::Outcome;
use crate::base::payload::{Payload, PayloadError};
use crate::base::strict;
use crate::base::time::{Timestamp, from_micros};
use crate::client::error::Error;
use crate::codec::Place;
use crate::codec::payloads::{self, Held};
use crate::store::TaskInfo;
use crate::store::headers;
use crate::store::record::TaskRecord;

const FORMAT: &str = "stepwell task";
/// The version of the documents that this program writes, and the newest version that it reads.
const VERSION: u32 = 1;
/// The deepest nesting of a document: that of a payload, and of what encloses it.
const MAX_DEPTH: usize = Payload::MAX_DEPTH + 20;

/// The highest entry number that an import accepts, which leaves room for all later entries.
const LAST_SEQ: u64 = 1 << 62;

impl TaskRecord {
    /// Refuses what a spawn or a step would not have accepted, and cuts failures to their limits.
    pub(crate) fn check(&mut self, limit: usize) -> Result<(), Error> {
        headers::check(&self.info.headers)?;
        self.info.scope.check::<Error>()?;
        self.info.retry.check()?;
        if let Some(limit) = self.info.max_duration {
            InvalidOptions::check_duration("max_duration", limit)?;
        }
        self.check_order()?;
        self.times().for_each(|at| *at = from_micros(at.as_microsecond()));
        self.info.failure.iter_mut().for_each(Failure::bound);
        for entry in &mut self.journal {
            if let Outcome::Failed(failure) | Outcome::Retrying { failure, .. } = &mut entry.outcome
            {
                failure.bound();
            }
        }
        let mut refused = None;
        payloads::record(self, &mut |held, place| {
            let Held::Payload(payload) = held else { return };
            let checked = match place {
                // The engine's own documents may hold payloads.
                Place::Entry { key, .. } if !key.kind.is_of_application() => {
                    payload.check(MAX_DEPTH, usize::MAX)
                }
                _ => payload.check(Payload::MAX_DEPTH, limit),
            };
            if let Err(source) = checked {
                refused.get_or_insert(Error::Payload { what: place.to_string(), source });
            }
        });
        refused.map_or(Ok(()), Err)
    }

    /// Refuses entries that are not numbered in their order, and two waits for the same.
    fn check_order(&self) -> Result<(), ImportError> {
        let damaged = |reason: &str| Err(ImportError::Damaged { reason: reason.into() });
        let seqs: Vec<_> = self.journal.iter().map(|entry| entry.seq).collect();
        if !seqs.is_sorted_by(|a, b| a < b) || !seqs.iter().all(|seq| (1..=LAST_SEQ).contains(seq))
        {
            return damaged("the entries of its journal are not numbered in their order");
        }
        let keys: BTreeSet<_> = self.waits.iter().map(|wait| &wait.key).collect();
        if keys.len() < self.waits.len() {
            return damaged("it waits twice for the same");
        }
        Ok(())
    }

    /// Returns all times, which stores keep in microseconds.
    fn times(&mut self) -> impl Iterator<Item = &mut Timestamp> {
        let TaskInfo { spawned_at, started_at, finished_at, due_at, cancel_at, .. } =
            &mut self.info;
        let info = [started_at, finished_at, due_at, cancel_at].into_iter().flatten();
        let waits = self.waits.iter_mut().filter_map(|wait| wait.due_at.as_mut());
        let journal = self.journal.iter_mut().map(|entry| &mut entry.at);
        std::iter::once(spawned_at).chain(info).chain(waits).chain(journal)
    }
}

/// A task as a document.
///
/// [`Client::export`](crate::Client::export) makes the document, and
/// [`Client::import`](crate::Client::import) reads it, in the same store or another one.
///
/// ```
/// # use stepwell_core::{Client, Export, TaskId};
/// # async fn migrate(old: Client, new: Client, task_id: TaskId) -> anyhow::Result<()> {
/// let json = old.export(task_id).await?.with("reason", "the old machine is full").to_json()?;
/// let export = Export::from_json(&json)?;
/// assert_eq!(export.metadata["reason"], "the old machine is full");
/// new.import(export).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Export {
    /// The time of the export, by the store's clock.
    pub exported_at: Timestamp,
    /// The values that the user adds to the document.
    pub metadata: BTreeMap<String, Value>,
    /// The task.
    pub record: TaskRecord,
}

/// The reason why a document cannot be imported.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ImportError {
    /// The document is not an exported task.
    #[error("this is no exported task: {reason}")]
    NoTask {
        /// The reason why it is none.
        reason: String,
    },
    /// The document was written by a newer Stepwell.
    #[error(
        "the exported task is of version {found}, this program knows versions up to {VERSION}: \
         import it with a newer build"
    )]
    UnknownVersion {
        /// The document's version.
        found: u32,
    },
    /// The document was changed, or a part of it is missing.
    #[error("the exported task is damaged: {reason}. Export it again")]
    Damaged {
        /// The reason why the document is damaged.
        reason: String,
    },
    /// The store has the task already, or another one of its type with its idempotency key.
    #[error(
        "the store has the task already, or another one of its type with its idempotency key: \
         delete that first, if this one is to take its place"
    )]
    Exists,
}

#[derive(Serialize, Deserialize)]
struct Document<B> {
    format: String,
    version: u32,
    #[serde(default)]
    checksum: Option<InputHash>,
    #[serde(default)]
    body: Option<B>,
}

impl Export {
    /// Adds a value to the metadata.
    pub fn with(mut self, key: impl Into<String>, value: impl Into<Value>) -> Self {
        self.metadata.insert(key.into(), value.into());
        self
    }

    /// Returns the document as JSON.
    ///
    /// # Errors
    /// [`PayloadError::Unreadable`] when the client's codecs could not decode a payload of the
    /// task, because the document would lose that payload.
    pub fn to_json(&self) -> Result<String, PayloadError> {
        let mut unreadable = None;
        payloads::record(&mut self.record.clone(), &mut |held, _| {
            if let Held::Payload(payload) = held
                && let Some(error) = payload.unreadable()
            {
                unreadable.get_or_insert_with(|| error.clone());
            }
        });
        unreadable.map_or(Ok(()), Err)?;
        let body = Payload::document(self)?;
        let body: Box<RawValue> = body.decode()?;
        let checksum = InputHash::of_json(body.get());
        if checksum.is_none() {
            // A store may hold such a payload from a time before it was refused.
            return Err(PayloadError::Encode {
                type_name: std::any::type_name::<TaskRecord>(),
                reason: strict::HALF_A_CHARACTER.into(),
            });
        }
        let document =
            Document { format: FORMAT.into(), version: VERSION, checksum, body: Some(body) };
        Payload::document(&document).map(|json| json.as_str().to_owned())
    }

    /// Reads a document.
    ///
    /// # Errors
    /// [`ImportError`], except [`ImportError::Exists`].
    pub fn from_json(json: &str) -> Result<Self, ImportError> {
        if strict::depth(json) > MAX_DEPTH {
            let reason = format!("it is nested over {MAX_DEPTH} levels deep");
            return Err(ImportError::NoTask { reason });
        }
        let document: Document<Box<RawValue>> = serde_json::from_str(json).map_err(|error| {
            let reason = error.to_string();
            if error.is_eof() {
                ImportError::Damaged { reason }
            } else {
                ImportError::NoTask { reason }
            }
        })?;
        if document.format != FORMAT {
            return Err(ImportError::NoTask {
                reason: format!("its format is {:?}", document.format),
            });
        }
        if document.version != VERSION {
            return Err(ImportError::UnknownVersion { found: document.version });
        }
        let damaged = |reason: String| ImportError::Damaged { reason };
        let body = document.body.ok_or_else(|| damaged("it has no body".into()))?;
        let found = InputHash::of_json(body.get());
        if found.is_none() || document.checksum != found {
            return Err(damaged("its checksum is another one".into()));
        }
        serde_json::from_str(body.get()).map_err(|error| damaged(error.to_string()))
    }
}
