//! The journal: what was delivered to a task, in order.
//!
//! A journal only grows. Where an attempt is ended by the failure of a step, a [`Kind::Attempt`]
//! entry says so, and names that failure's entry. Reading the journal *rewinds* it to there, so
//! that the next attempt tries the failed step again. A failure that the code has handled is
//! replayed like any other outcome:
//!
//! ```text
//!   written:   a failed | b ok | c failed | d ok | attempt failed by c       (the task ran c and d side by side)
//!   replayed:  a failed | b ok                                               then the task goes on live:
//!   kept:      d ok                                                          c runs again; d is taken from here
//! ```
//!
//! Outcomes behind the failure no longer have a fixed order (the step may now succeed, and the code
//! take another way), so they are kept by name: a step that finds its outcome there journals it
//! once more and does not run.
//!
//! Where a task failed for good, or was cancelled, and has compensations, a [`Kind::Compensating`]
//! entry says so. The code is replayed up to there as it ran, for its compensations' closures, and
//! then these run:
//!
//! ```text
//!   written:   compensate a | a ok | compensate b | b failed | compensating | compensated b | compensated a
//!              ╰──────── replayed, as far as it goes ───────╯               ╰──── then these, as they are left ────╯
//! ```
//!
//! A task that is run again after that begins anew: what is before the end of its compensation no
//! longer counts.

use std::collections::{BTreeMap, VecDeque};
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

/// What sort of thing was delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A step's result, or its failure.
    Step,
    /// A sleep that ended.
    Timer,
    /// A [`timeout`](crate::TaskContext::timeout) that passed.
    Timeout,
    /// The pause between two tries of a step that ended.
    Backoff,
    /// An event, or the end of the time to wait for it.
    Event,
    /// A message, or the end of the time to wait for it.
    Message,
    /// A child task's result or failure.
    Child,
    /// A value of `now`, `uuid` or `random`.
    Value,
    /// A child task was spawned.
    Spawn,
    /// An event was emitted.
    Emit,
    /// A message was sent.
    Send,
    /// An approval was asked for, or escalated.
    Approval,
    /// Not a delivery: here an attempt failed, or the task was run again after it had been
    /// compensated.
    Attempt,
    /// Not a delivery: a line of the task's log; the number is that of the attempt.
    Log,
    /// Not a delivery: how far the task has come, in the place of an earlier such entry.
    Progress,
    /// Not a delivery: results of some of many items: a chunk of an
    /// [`ItemProgress`](crate::ItemProgress).
    Items,
    /// Not a delivery: from the start, or since then, the task runs code that was
    /// [`patched`](crate::TaskContext::patched).
    Patch,
    /// Not a delivery: a step's input is another one than before; what was delivered from the entry
    /// of that number on is kept by name.
    Changed,
    /// A compensation was recorded: of the step with this name and number, or a cleanup of this
    /// name.
    Compensate,
    /// Not a delivery: from here on, the task is compensated.
    Compensating,
    /// A compensation's end, or that it is no longer needed.
    Compensated,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 21] = [
        Self::Step,
        Self::Timer,
        Self::Timeout,
        Self::Backoff,
        Self::Event,
        Self::Message,
        Self::Child,
        Self::Value,
        Self::Spawn,
        Self::Emit,
        Self::Send,
        Self::Approval,
        Self::Attempt,
        Self::Log,
        Self::Progress,
        Self::Items,
        Self::Patch,
        Self::Changed,
        Self::Compensate,
        Self::Compensating,
        Self::Compensated,
    ];

    /// The kind's word in stores and exports.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Step => "step",
            Self::Timer => "timer",
            Self::Timeout => "timeout",
            Self::Backoff => "backoff",
            Self::Event => "event",
            Self::Message => "message",
            Self::Child => "child",
            Self::Value => "value",
            Self::Spawn => "spawn",
            Self::Emit => "emit",
            Self::Send => "send",
            Self::Approval => "approval",
            Self::Attempt => "attempt",
            Self::Log => "log",
            Self::Progress => "progress",
            Self::Items => "items",
            Self::Patch => "patch",
            Self::Changed => "changed",
            Self::Compensate => "compensate",
            Self::Compensating => "compensating",
            Self::Compensated => "compensated",
        }
    }

    /// Returns whether an entry shows that a run got further, which a line of a log does not.
    pub const fn is_progress(self) -> bool {
        !matches!(self, Self::Log | Self::Progress)
    }

    /// Whether the value of an entry is one of the application's as it is, and not a document of
    /// the engine's.
    pub(crate) const fn is_of_application(self) -> bool {
        matches!(self, Self::Step | Self::Event | Self::Message | Self::Child)
    }

    /// The kind of that word.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == word)
    }
}

/// Names one operation of a task: the `ordinal`-th call (from 1) of its kind with its name.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
pub struct Key {
    /// What sort of operation it is.
    pub kind: Kind,
    /// The name that the code gave it.
    pub name: Name,
    /// Which of the calls with this name it is, from 1.
    pub ordinal: u32,
}

impl Key {
    /// The name as it is shown: `fetch`, and for a further call `fetch#2`. The hash of an
    /// [input](crate::Step::input) is not.
    pub fn label(&self) -> String {
        let name = self.split_input().map_or(self.name.as_str(), |(name, _)| name);
        if self.ordinal == 1 { name.to_string() } else { format!("{name}#{}", self.ordinal) }
    }

    /// The same operation with the hash of its input in its name.
    pub(crate) fn with_input(self, input: InputHash) -> Result<Self, InvalidName> {
        let name = Name::new(format!("{}@{input}", self.name))?;
        Ok(Self { name, ..self })
    }

    /// The child that is joined: its id is the end of the name.
    pub(crate) fn child(&self) -> Option<TaskId> {
        let id = self.name.as_str().rsplit(':').next().filter(|_| self.kind == Kind::Child);
        id.and_then(|id| id.parse().ok())
    }

    fn split_input(&self) -> Option<(&str, &str)> {
        self.name.as_str().rsplit_once('@').filter(|(_, hash)| hash.parse::<InputHash>().is_ok())
    }

    /// Whether it is the same operation with another input.
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

/// One delivery, as it is kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(try_from = "FlatEntry", into = "FlatEntry")]
pub struct Entry {
    /// Its place in the journal, from 1.
    pub seq: u64,
    /// The operation that it was delivered to.
    pub key: Key,
    /// What was delivered.
    pub outcome: Outcome,
    /// When, by the store's clock.
    pub at: Timestamp,
}

/// An entry as a document has it.
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

/// What was delivered to an operation.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// A value.
    Done(Payload),
    /// A failure.
    Failed(Box<Failure>),
    /// A step's try failed; the next one starts then.
    Retrying {
        /// Why the try failed.
        failure: Box<Failure>,
        /// When the next try is due.
        at: Timestamp,
    },
}

#[derive(Serialize, Deserialize)]
struct Retrying {
    failure: Box<Failure>,
    at: Timestamp,
}

impl Outcome {
    /// Returns the outcome of something that failed.
    pub fn failed(failure: Failure) -> Self {
        Self::Failed(Box::new(failure))
    }

    /// The outcome as two columns: its word, and its JSON.
    pub fn to_columns(&self) -> (&'static str, Payload) {
        match self {
            Self::Done(value) => ("done", value.clone()),
            Self::Failed(failure) => ("failed", to_payload(failure)),
            Self::Retrying { failure, at } => {
                ("retrying", to_payload(&Retrying { failure: failure.clone(), at: *at }))
            }
        }
    }

    /// The outcome of two columns.
    ///
    /// # Errors
    /// [`UnknownWord`], or that of the JSON, for an [`Unreadable`](crate::Unreadable).
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

/// Serialises the engine's own types, whose JSON cannot fail.
pub(crate) fn to_payload<T: Serialize>(value: &T) -> Payload {
    Payload::document(value).unwrap_or_else(|_| Payload::null())
}

/// A journal as the executor reads it.
#[derive(Debug, Default)]
pub(crate) struct Replay {
    /// To be delivered in this order.
    pub(crate) entries: VecDeque<Entry>,
    /// Outcomes behind a failure that is tried again, by operation.
    pub(crate) kept: HashMap<Key, Entry>,
    /// What is done of steps over many items, by their keys, which are of the kind
    /// [`Kind::Items`].
    pub(crate) items: HashMap<Key, Vec<(u64, Payload)>>,
    /// Where the latest [`Kind::Progress`] entry is.
    pub(crate) progress: Option<u64>,
    /// Changes of the code that the task has seen.
    pub(crate) patches: Vec<Name>,
    /// What is to be undone, when the task is being compensated.
    pub(crate) compensation: Option<Compensation>,
    /// The last sequence number in use.
    pub(crate) last_seq: u64,
}

/// What a task that has failed, or was cancelled, leaves to be undone.
#[derive(Debug)]
pub(crate) struct Compensation {
    /// How the task will have ended.
    pub(crate) failure: Failure,
    /// The attempt in which it did.
    pub(crate) attempt: u32,
    /// What was recorded and not done yet when it began, the oldest first: a step, or a cleanup
    /// with its payload.
    pub(crate) recorded: Vec<(Key, Payload)>,
    /// Steps' results.
    pub(crate) results: BTreeMap<Key, Payload>,
    /// What has been delivered to it.
    pub(crate) entries: VecDeque<Entry>,
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

    /// The children that the task has spawned, and whose ends it does not know.
    pub(crate) fn unjoined_children(&self) -> Vec<TaskId> {
        let entries = self.entries.iter().chain(self.kept.values());
        let joined: HashSet<TaskId> =
            entries.clone().filter_map(|entry| entry.key.child()).collect();
        let spawned = entries.filter(|entry| entry.key.kind == Kind::Spawn);
        let mut spawned: Vec<TaskId> = spawned
            .filter_map(|entry| match &entry.outcome {
                Outcome::Done(task_id) => task_id.decode().ok(),
                Outcome::Failed(_) | Outcome::Retrying { .. } => None,
            })
            .filter(|child| !joined.contains(child))
            .collect();
        spawned.sort_unstable();
        spawned
    }

    fn compensation(&self, failure: Failure, attempt: u32) -> Compensation {
        // What was discarded behind a failure may be needed again since; it is asked for again, or
        // not.
        let kept = self.kept.values().filter(|entry| entry.key.kind != Kind::Compensated);
        let mut entries: Vec<_> = kept.chain(&self.entries).collect();
        entries.sort_unstable_by_key(|entry| entry.seq);
        let (mut recorded, mut places) = (BTreeMap::new(), HashMap::new());
        let mut results = BTreeMap::new();
        for Entry { seq, key, outcome, .. } in entries {
            match (key.kind, outcome) {
                (Kind::Compensate, Outcome::Done(payload)) => {
                    places.insert((&key.name, key.ordinal), *seq);
                    recorded.insert(*seq, (key.clone(), payload.clone()));
                }
                (Kind::Compensated, _) => {
                    if let Some(place) = places.get(&(&key.name, key.ordinal)) {
                        recorded.remove(place);
                    }
                }
                (Kind::Step, Outcome::Done(payload)) => {
                    results.insert(key.clone(), payload.clone());
                }
                _ => {}
            }
        }
        let recorded = recorded.into_values().collect();
        Compensation { failure, attempt, recorded, results, entries: VecDeque::new() }
    }

    /// Cuts the order back to the first of the failures that ended an attempt, and keeps what else
    /// is behind it by name.
    fn rewind(&mut self, sources: &[u64]) {
        let sources: HashSet<u64> = sources.iter().copied().collect();
        let first = self.entries.iter().position(|entry| sources.contains(&entry.seq));
        let ended = self.keep_from(first, &sources);
        // A step that is tried again has all of its tries again, and one whose outcome is kept
        // needs none. The code never saw the failed ones.
        let Self { entries, kept, .. } = self;
        entries.retain(|Entry { key, outcome, .. }| {
            let of_a_try = matches!(outcome, Outcome::Retrying { .. }) || key.kind == Kind::Backoff;
            let step = || Key { kind: Kind::Step, ..key.clone() };
            !(of_a_try && (ended.contains(&step()) || kept.contains_key(&step())))
        });
    }

    /// Keeps what is behind that place by name, but for these entries, whose keys it gives.
    pub(crate) fn keep_from(
        &mut self,
        first: Option<usize>,
        except: &HashSet<u64>,
    ) -> HashSet<Key> {
        let mut excepted = HashSet::new();
        for entry in self.entries.drain(first.unwrap_or(self.entries.len())..) {
            // A result stays one, whatever a journal says of it.
            if except.contains(&entry.seq) && !matches!(entry.outcome, Outcome::Done(_)) {
                excepted.insert(entry.key);
                continue;
            }
            // The tries of a step say nothing about its next ones, and what an approval asks for
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

    /// Also what was kept of an earlier attempt, and not come to again: in the order in which it
    /// was recorded.
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
