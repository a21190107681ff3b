//! The replay of a journal, and the ways in which code differs from it.

use hashbrown::HashSet;

use crate::base::journal::{Compensation, Entry, Key, Kind, Outcome, Replay, to_payload};
use crate::base::name::Name;
use crate::base::payload::Payload;
use crate::base::time::Timestamp;
use crate::engine::run::state::{Effect, RunState};
use crate::engine::task_error::TaskError;

impl RunState {
    pub(crate) fn is_replaying(&self) -> bool {
        !self.replay.entries.is_empty() || self.replay.compensation.is_some()
    }

    /// Returns whether the code is replayed only for the closures of its compensations.
    pub(crate) fn is_only_replayed(&self) -> bool {
        self.replay.compensation.is_some()
    }

    /// Replaces the operations of the code, which was replayed for its compensations and is gone,
    /// by those of the compensations.
    pub(crate) fn begin_compensation(&mut self) -> Option<Compensation> {
        let mut compensation = self.replay.compensation.take()?;
        let replay = Replay {
            entries: std::mem::take(&mut compensation.entries),
            progress: self.replay.progress,
            last_seq: self.replay.last_seq,
            ..Replay::default()
        };
        *self = Self {
            control: self.control,
            ..Self::new(replay, std::mem::take(&mut self.compensation_waits))
        };
        Some(compensation)
    }

    /// Returns whether the journal's next entry is of a step that the code asks for with another
    /// input.
    ///
    /// The step runs again in that case. Results that were delivered from there on are kept by
    /// name, and an entry of the journal records the change.
    pub(crate) fn input_changed(&mut self, at: Timestamp) -> bool {
        let Some(entry) = self.replay.entries.front().filter(|_| !self.is_only_replayed()) else {
            return false;
        };
        let asked = self.operations.keys().filter(|key| key.differs_by_input(&entry.key)).min();
        let Some(name) = asked.map(|asked| asked.name.clone()) else { return false };
        let from = to_payload(&entry.seq);
        self.replay.keep_from(Some(0), &HashSet::new());
        let key = Key { kind: Kind::Changed, name, ordinal: 1 };
        self.written.write(key, Outcome::Done(from), at);
        // Operations that are registered already find their results now.
        let is_kept = |key: &&Key| self.replay.kept.contains_key(*key);
        let mut found: Vec<_> = self.operations.keys().filter(is_kept).cloned().collect();
        found.sort_unstable();
        for key in found {
            if let Some(Entry { outcome, .. }) = self.replay.kept.remove(&key) {
                self.finish(&key, outcome, Effect::None);
            }
        }
        true
    }

    /// Returns the error that names the journal's next entry, and the operations that the code asks
    /// for instead.
    pub(crate) fn divergence(&self, finished: bool) -> TaskError {
        let next = self.replay.entries.front();
        let seq = next.map_or(0, |entry| entry.seq);
        let expected = next.map_or_else(|| "nothing".into(), |entry| entry.key.to_string());
        let in_journal = |key: &Key| self.replay.entries.iter().any(|entry| entry.key == *key);
        let mut asked: Vec<_> = self.operations.keys().filter(|key| !in_journal(key)).collect();
        asked.sort_unstable();
        let asked = match asked.as_slice() {
            _ if finished => "came to its end".into(),
            [] => "waits for something that is not in its context".into(),
            [key] => format!("asked for {key}"),
            keys => {
                let keys: Vec<_> = keys.iter().take(5).map(ToString::to_string).collect();
                format!("asked for {}", keys.join(", "))
            }
        };
        TaskError::Diverged { seq, expected, asked }
    }

    /// Returns whether the task runs the changed code.
    ///
    /// It does unless it came past this point before the change. The first answer stands, and is
    /// journaled when it is `true`.
    pub(crate) fn patched(&mut self, name: Name, at: Timestamp) -> bool {
        if let Some(known) = self.patches.get(&name) {
            return *known;
        }
        let patched = !self.is_replaying();
        if patched {
            let key = Key { kind: Kind::Patch, name: name.clone(), ordinal: 1 };
            self.written.write(key, Outcome::Done(Payload::null()), at);
        }
        self.patches.insert(name, patched);
        patched
    }

    /// Takes the journal's chunks of a step over many items.
    pub(crate) fn take_items(&mut self, key: &Key) -> Vec<(u64, Payload)> {
        self.replay.items.remove(key).unwrap_or_default()
    }
}
