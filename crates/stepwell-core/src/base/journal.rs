//! The journal: the ordered list of what was delivered to a task.
//!
//! A journal only grows, apart from entries that [later ones
//! replace](crate::store::Transition::superseded). When the failure of a step ends an attempt, a
//! [`Kind::Attempt`] entry says so, and names the entry of that failure. Reading the journal
//! *rewinds* it to that entry, so that the next attempt tries the failed step again. A failure that
//! the code has handled is replayed like any other outcome:
//!
//! ```text
//!   written:   a failed | b ok | c failed | d ok | attempt failed by c   (c and d side by side)
//!   replayed:  a failed | b ok                                           then the task is live:
//!   kept:      d ok                                           c runs again; d is taken from here
//! ```
//!
//! Outcomes after the failure no longer have a fixed order, because the step may now succeed, and
//! the code may take another path. The journal keeps these outcomes by name: a step that finds its
//! outcome there journals it once more and does not run.
//!
//! When a task with compensations failed for good, or was cancelled, a [`Kind::Compensating`] entry
//! says so. The code is replayed up to that entry as it ran, for the closures of its compensations,
//! and then the compensations run:
//!
//! ```text
//!   written:   compensate a | a ok | compensate b | b failed | compensating
//!              ╰──────── replayed, as far as it goes ───────╯
//!              | compensated b | compensated a
//!              ╰── then these, as they are left ─╯
//! ```
//!
//! A task that runs again after its compensation starts as with an empty journal: the entries
//! before the end of the compensation no longer count.

mod compensation;

use std::collections::VecDeque;
use std::fmt;

use hashbrown::{HashMap, HashSet};
use serde::{Deserialize, Serialize};

use crate::base::failure::Failure;
use crate::base::ids::TaskId;
use crate::base::input_hash::InputHash;
use crate::base::name::{InvalidName, Name};
use crate::base::payload::Payload;
use crate::base::time::Timestamp;
use crate::base::unreadable::UnknownWord;

pub(crate) use crate::base::journal::compensation::Compensation;
pub use crate::base::kind::Kind;

/// The key of one operation of a task: the `ordinal`-th call (from 1) of its kind with its name.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
pub struct Key {
    /// The kind of the operation.
    pub kind: Kind,
    /// The name that the code gave the operation.
    pub name: Name,
    /// The number of the call among those with this kind and name, from 1.
    pub ordinal: u32,
}

impl Key {
    /// Returns the name for people to read: `fetch`, and `fetch#2` for a second call.
    ///
    /// The hash of an [input](crate::Step::input) is left out.
    pub fn label(&self) -> String {
        let name = self.split_input().map_or(self.name.as_str(), |(name, _)| name);
        if self.ordinal == 1 { name.to_string() } else { format!("{name}#{}", self.ordinal) }
    }

    /// Returns the key of the same operation with the hash of its input in the name.
    pub(crate) fn with_input(self, input: InputHash) -> Result<Self, InvalidName> {
        let name = Name::new(format!("{}@{input}", self.name))?;
        Ok(Self { name, ..self })
    }

    /// Returns the id of the child that is joined, which is the end of the name.
    pub(crate) fn child(&self) -> Option<TaskId> {
        let id = self.name.as_str().rsplit(':').next().filter(|_| self.kind == Kind::Child);
        id.and_then(|id| id.parse().ok())
    }

    fn split_input(&self) -> Option<(&str, &str)> {
        self.name.as_str().rsplit_once('@').filter(|(_, hash)| hash.parse::<InputHash>().is_ok())
    }

    /// Returns whether the other key names the same operation with another input.
    pub(crate) fn differs_by_input(&self, other: &Self) -> bool {
        let (Some((name, input)), Some((other_name, other_input))) =
            (self.split_input(), other.split_input())
        else {
            return false;
        };
        (self.kind, self.ordinal, name) == (other.kind, other.ordinal, other_name)
            && input != other_input
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} \"{}\"", self.kind.as_str(), self.label())
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An entry of a journal: one delivery, or a mark.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(try_from = "FlatEntry", into = "FlatEntry")]
pub struct Entry {
    /// The place of the entry in the journal, from 1.
    pub seq: u64,
    /// The operation that the outcome was delivered to.
    pub key: Key,
    /// The outcome that was delivered.
    pub outcome: Outcome,
    /// The time of the delivery, by the store's clock.
    pub at: Timestamp,
}

/// An entry in the form of a JSON document.
#[derive(Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
struct FlatEntry {
    seq: u64,
    #[serde(flatten)]
    key: Key,
    outcome: String,
    value: Payload,
    at: Timestamp,
}

impl From<Entry> for FlatEntry {
    fn from(Entry { seq, key, outcome, at }: Entry) -> Self {
        let (word, value) = outcome.to_columns();
        Self { seq, key, outcome: word.into(), value, at }
    }
}

impl TryFrom<FlatEntry> for Entry {
    type Error = String;

    fn try_from(FlatEntry { seq, key, outcome, value, at }: FlatEntry) -> Result<Self, String> {
        let read = Outcome::from_columns(&outcome, value);
        let outcome = read.map_err(|error| format!("no outcome: {error}"))?;
        Ok(Self { seq, key, outcome, at })
    }
}

/// The outcome of an operation.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// The operation has this value.
    Done(Payload),
    /// The operation failed.
    Failed(Box<Failure>),
    /// A try of a step failed, and the next one starts at the given time.
    Retrying {
        /// The failure of the try.
        failure: Box<Failure>,
        /// The time at which the next try is due.
        at: Timestamp,
    },
}

#[derive(Serialize, Deserialize)]
struct Retrying {
    failure: Box<Failure>,
    at: Timestamp,
}

impl Outcome {
    /// Returns the outcome of an operation that failed.
    pub fn failed(failure: Failure) -> Self {
        Self::Failed(Box::new(failure))
    }

    /// Returns the outcome as two columns: its word and its JSON.
    pub fn to_columns(&self) -> (&'static str, Payload) {
        match self {
            Self::Done(value) => ("done", value.clone()),
            Self::Failed(failure) => ("failed", to_payload(failure)),
            Self::Retrying { failure, at } => {
                ("retrying", to_payload(&Retrying { failure: failure.clone(), at: *at }))
            }
        }
    }

    /// Returns the outcome that two columns hold.
    ///
    /// # Errors
    /// [`UnknownWord`], or the error of the JSON; either can become an
    /// [`Unreadable`](crate::Unreadable).
    pub fn from_columns(
        word: &str,
        json: Payload,
    ) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        match word {
            "done" => Ok(Self::Done(json)),
            "failed" => Ok(Self::Failed(serde_json::from_str(json.as_str())?)),
            "retrying" => {
                let Retrying { failure, at } = serde_json::from_str(json.as_str())?;
                Ok(Self::Retrying { failure, at })
            }
            word => Err(UnknownWord(word.to_owned()).into()),
        }
    }
}

/// Serialises a type of the engine, whose JSON cannot fail.
///
/// If it failed all the same, the payload would say so, and would not decode as the type: null
/// could be taken for a value.
pub(crate) fn to_payload<T: Serialize>(value: &T) -> Payload {
    Payload::document(value).unwrap_or_else(|error| {
        let text = serde_json::json!({ "$not_serialised": error.to_string() }).to_string();
        Payload::from_json(text)
    })
}

/// A journal in the form that the executor replays.
#[derive(Debug, Default)]
pub(crate) struct Replay {
    /// The entries that are delivered in this order.
    pub(crate) entries: VecDeque<Entry>,
    /// The outcomes after a failure that is tried again, by operation.
    pub(crate) kept: HashMap<Key, Entry>,
    /// The finished chunks of steps over many items, by their keys of the kind [`Kind::Items`].
    pub(crate) items: HashMap<Key, Vec<(u64, Payload)>>,
    /// The number of the latest [`Kind::Progress`] entry.
    pub(crate) progress: Option<u64>,
    /// The changes of the code that the task has seen.
    pub(crate) patches: Vec<Name>,
    /// The compensation, when the task is being compensated.
    pub(crate) compensation: Option<Compensation>,
    /// The last sequence number in use.
    pub(crate) last_seq: u64,
}

impl Replay {
    pub(crate) fn new(journal: Vec<Entry>) -> Self {
        let mut replay = Self::default();
        let mut failed: Option<Box<Failure>> = None;
        for entry in journal {
            replay.last_seq = replay.last_seq.max(entry.seq);
            match (entry.key.kind, entry.outcome) {
                (Kind::Log, _) => {}
                (Kind::Progress, _) => replay.progress = Some(entry.seq),
                // The attempt that is compensated is replayed as it was.
                (Kind::Compensating, Outcome::Failed(failure)) => {
                    failed = None;
                    replay.compensation = Some(replay.compensation(*failure, entry.key.ordinal));
                }
                (kind, outcome) => {
                    let entry = Entry { outcome, ..entry };
                    if let Some(compensation) = &mut replay.compensation {
                        if matches!(kind, Kind::Compensated | Kind::Backoff) {
                            compensation.entries.push_back(entry);
                            continue;
                        }
                        replay = Self {
                            last_seq: replay.last_seq,
                            progress: replay.progress,
                            ..Self::default()
                        };
                    }
                    if let Some(failure) = failed.take() {
                        replay.rewind(failure.sources.as_slice());
                    }
                    match kind {
                        Kind::Attempt => {
                            if let Outcome::Failed(failure) = entry.outcome {
                                failed = Some(failure);
                            }
                        }
                        Kind::Patch => replay.patches.push(entry.key.name),
                        Kind::Items => {
                            if let Outcome::Done(chunk) = entry.outcome {
                                replay.items.entry(entry.key).or_default().push((entry.seq, chunk));
                            }
                        }
                        Kind::Changed => {
                            if let Outcome::Done(seq) = entry.outcome
                                && let Ok(seq) = seq.decode::<u64>()
                            {
                                let first =
                                    replay.entries.iter().position(|entry| entry.seq >= seq);
                                replay.keep_from(first, &HashSet::new());
                            }
                        }
                        _ => {
                            replay.kept.remove(&entry.key);
                            replay.entries.push_back(entry);
                        }
                    }
                }
            }
        }
        if let Some(failure) = failed {
            replay.rewind(failure.sources.as_slice());
        }
        replay
    }

    /// Cuts the order back to the first of the failures that ended an attempt, and keeps the other
    /// entries after it by name.
    fn rewind(&mut self, sources: &[u64]) {
        let sources: HashSet<u64> = sources.iter().copied().collect();
        let first = self.entries.iter().position(|entry| sources.contains(&entry.seq));
        let ended = self.keep_from(first, &sources);
        // A step that is tried again has all of its tries again. A step whose outcome is kept needs
        // no try. The code never saw the failed tries of either.
        let Self { entries, kept, .. } = self;
        entries.retain(|Entry { key, outcome, .. }| {
            let of_a_try = matches!(outcome, Outcome::Retrying { .. }) || key.kind == Kind::Backoff;
            let step = || Key { kind: Kind::Step, ..key.clone() };
            !(of_a_try && (ended.contains(&step()) || kept.contains_key(&step())))
        });
    }

    /// Keeps the entries from that place on by name, except these, and returns the keys of the
    /// exceptions.
    pub(crate) fn keep_from(
        &mut self,
        first: Option<usize>,
        except: &HashSet<u64>,
    ) -> HashSet<Key> {
        let mut excepted = HashSet::new();
        for entry in self.entries.drain(first.unwrap_or(self.entries.len())..) {
            // A result stays a result, even if an attempt names it as its failure.
            if except.contains(&entry.seq) && !matches!(entry.outcome, Outcome::Done(_)) {
                excepted.insert(entry.key);
                continue;
            }
            // The tries of a step say nothing about its next ones, and the request of an approval
            // changes.
            let of_a_try = matches!(entry.outcome, Outcome::Retrying { .. })
                || entry.key.kind == Kind::Backoff;
            if !of_a_try && entry.key.kind != Kind::Approval {
                self.kept.insert(entry.key.clone(), entry);
            }
        }
        excepted
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::failure::FailureKind;

    fn entry(seq: u64, kind: Kind, name: &str, outcome: Outcome) -> Entry {
        let name = Name::new(name).unwrap();
        Entry { seq, key: Key { kind, name, ordinal: 1 }, outcome, at: Timestamp::UNIX_EPOCH }
    }

    fn failed() -> Outcome {
        Outcome::failed(Failure::new(FailureKind::Error, "no"))
    }

    fn ended_by(sources: &[u64]) -> Outcome {
        Outcome::failed(Failure {
            sources: sources.to_vec().into(),
            ..Failure::new(FailureKind::Error, "no")
        })
    }

    fn done() -> Outcome {
        Outcome::Done(Payload::null())
    }

    fn names(replay: &Replay) -> (Vec<&str>, Vec<&str>) {
        let mut kept: Vec<_> = replay.kept.keys().map(|key| key.name.as_str()).collect();
        kept.sort_unstable();
        (replay.entries.iter().map(|entry| entry.key.name.as_str()).collect(), kept)
    }

    #[test]
    fn what_does_not_serialise_is_not_null() {
        struct Never;

        impl Serialize for Never {
            fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
                Err(serde::ser::Error::custom("no"))
            }
        }

        let payload = to_payload(&Never);
        assert!(payload.as_str().contains("no"), "{payload:?}");
        assert!(payload.decode::<Option<u64>>().is_err(), "it would be a value");
        assert_eq!(to_payload(&7_u64).as_str(), "7");
    }

    #[test]
    fn a_result_is_kept_though_an_attempt_names_it() {
        let journal = vec![
            entry(1, Kind::Step, "a", done()),
            entry(2, Kind::Step, "b", failed()),
            entry(3, Kind::Attempt, "attempt", ended_by(&[1, 2])),
        ];
        assert_eq!(names(&Replay::new(journal)), (vec![], vec!["a"]));
    }

    #[test]
    fn an_attempt_rewinds_to_the_failure_that_ended_it_and_keeps_all_other_outcomes() {
        let journal = vec![
            entry(1, Kind::Step, "a", failed()),
            entry(2, Kind::Step, "b", failed()),
            entry(3, Kind::Step, "c", done()),
            entry(4, Kind::Step, "d", failed()),
            entry(5, Kind::Timeout, "limit", failed()),
            entry(6, Kind::Approval, "asked", done()),
            entry(7, Kind::Attempt, "attempt", ended_by(&[2, 5])),
        ];
        let replay = Replay::new(journal.clone());
        assert_eq!(names(&replay), (vec!["a"], vec!["c", "d"]));
        assert_eq!(replay.last_seq, 7);

        let again =
            [journal, vec![entry(8, Kind::Step, "b", done()), entry(9, Kind::Step, "c", done())]];
        assert_eq!(names(&Replay::new(again.concat())), (vec!["a", "b", "c"], vec!["d"]));
    }

    #[test]
    fn a_failure_that_the_task_survived_is_replayed_as_it_was() {
        let journal = vec![entry(1, Kind::Step, "a", failed()), entry(2, Kind::Step, "b", done())];
        assert_eq!(names(&Replay::new(journal)), (vec!["a", "b"], vec![]));
    }

    #[test]
    fn tries_of_a_step_that_succeeded_in_the_end_are_no_failure() {
        let retrying = Outcome::Retrying {
            failure: Failure::new(FailureKind::Error, "no").into(),
            at: Timestamp::UNIX_EPOCH,
        };
        let mut journal = vec![
            entry(1, Kind::Step, "a", retrying.clone()),
            entry(2, Kind::Backoff, "a", done()),
            entry(3, Kind::Step, "b", done()),
            entry(4, Kind::Step, "a", done()),
            entry(5, Kind::Step, "c", failed()),
            entry(6, Kind::Attempt, "attempt", ended_by(&[5])),
        ];
        assert_eq!(names(&Replay::new(journal.clone())).0, ["a", "a", "b", "a"]);
        let mut kept = journal.clone();
        kept.swap(3, 4);
        assert_eq!(
            names(&Replay::new(kept)),
            (vec!["b"], vec!["a"]),
            "its result is there, behind the failure"
        );
        journal[3] = entry(4, Kind::Step, "a", failed());
        journal[5] = entry(6, Kind::Attempt, "attempt", ended_by(&[4, 5]));
        assert_eq!(
            names(&Replay::new(journal)),
            (vec!["b"], vec![]),
            "it has all of its tries again"
        );
    }

    /// The order also holds for entries that were kept of an earlier attempt and not reached again.
    #[test]
    fn what_is_to_be_undone_is_in_the_order_of_its_records() {
        let record = |seq, name| entry(seq, Kind::Compensate, name, done());
        let journal = vec![
            record(1, "d"),
            entry(2, Kind::Step, "fails", failed()),
            record(3, "c"),
            record(4, "b"),
            entry(5, Kind::Compensated, "d", done()),
            entry(6, Kind::Attempt, "attempt", ended_by(&[2])),
            entry(7, Kind::Step, "fails", done()),
            record(8, "a"),
            entry(9, Kind::Compensating, "compensating", failed()),
        ];
        let recorded = Replay::new(journal).compensation.unwrap().recorded;
        let names: Vec<_> = recorded.iter().map(|(key, _)| key.name.as_str()).collect();
        assert_eq!(names, ["d", "c", "b", "a"]);
    }

    #[test]
    fn outcomes_survive_their_columns() {
        let at = crate::base::time::from_micros(1_700_000_000_123_456);
        let retrying =
            Outcome::Retrying { failure: Failure::new(FailureKind::Panic, "ouch").into(), at };
        for outcome in [done(), failed(), retrying] {
            let (word, json) = outcome.to_columns();
            assert_eq!(Outcome::from_columns(word, json).unwrap(), outcome);
        }
        assert!(Kind::ALL.iter().all(|kind| Kind::parse(kind.as_str()) == Some(*kind)));
    }
}
