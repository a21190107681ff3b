//! The entries that this run has written, until they are durable.
//!
//! ```text
//!   journal   1 2 3 4 5 6 7 8 9
//!                     │   │   └ delivered_seq: the last entry that was written
//!                     │   └ the entries from here on are unsent
//!                     └ durable_seq: the last entry that is known to be durable
//! ```
//!
//! Invariant: entries are numbered without gaps, each by its place in the order of deliveries.

use std::collections::BTreeMap;
use std::mem;
use std::task::{Poll, Waker};

use crate::base::journal::{Entry, Key, Kind, Outcome};
use crate::base::name::Name;
use crate::base::payload::Payload;
use crate::base::time::Timestamp;
use crate::engine::run::state::RunState;
use crate::engine::task_error::ControlFlow;
use crate::store::{MessageId, NewEvent, NewMessage, NewTask, Wait};

/// The deliveries and the changes of waits since the last commit.
#[derive(Clone, Default)]
pub(crate) struct Unsent {
    pub(crate) entries: Vec<Entry>,
    pub(crate) spawns: Vec<NewTask>,
    pub(crate) events: Vec<NewEvent>,
    pub(crate) messages: Vec<NewMessage>,
    pub(crate) received: Vec<MessageId>,
    pub(crate) waits_added: BTreeMap<Key, Wait>,
    pub(crate) waits_removed: Vec<Key>,
    /// Entries of the journal that later ones have replaced.
    pub(crate) superseded: Vec<u64>,
}

impl Unsent {
    fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.waits_added.is_empty() && self.waits_removed.is_empty()
    }

    /// Removes an entry that was written and is not sent yet, or has the store remove it.
    fn supersede(&mut self, seq: u64) {
        // The entry is most likely among the last ones.
        match self.entries.iter().rposition(|entry| entry.seq <= seq) {
            Some(place) if self.entries.get(place).is_some_and(|entry| entry.seq == seq) => {
                self.entries.remove(place);
            }
            _ => self.superseded.push(seq),
        }
    }
}

#[derive(Default)]
pub(super) struct Written {
    unsent: Unsent,
    delivered_seq: u64,
    durable_seq: u64,
    /// The wakers of those that wait for an entry to become durable.
    wakers: Vec<Waker>,
}

impl Written {
    /// Returns the state of a run whose journal ends with this entry.
    pub(super) fn after(last_seq: u64) -> Self {
        Self { delivered_seq: last_seq, durable_seq: last_seq, ..Self::default() }
    }

    pub(super) fn delivered_seq(&self) -> u64 {
        self.delivered_seq
    }

    pub(super) fn durable_seq(&self) -> u64 {
        self.durable_seq
    }

    /// Returns the number of the entry that is written next.
    pub(super) fn next_seq(&self) -> u64 {
        self.delivered_seq + 1
    }

    pub(super) fn unsent(&mut self) -> &mut Unsent {
        &mut self.unsent
    }

    pub(super) fn has_unsent(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Writes the next entry, and returns its number.
    #[inline]
    pub(super) fn write(&mut self, key: Key, outcome: Outcome, at: Timestamp) -> u64 {
        let seq = self.next_seq();
        debug_assert!(
            self.unsent.entries.last().is_none_or(|last| last.seq + 1 == seq),
            "entry {seq} follows on the one before it"
        );
        self.delivered_seq = seq;
        self.unsent.entries.push(Entry { seq, key, outcome, at });
        seq
    }

    /// Counts the entry of a work, which the store has journaled right after what is durable, and
    /// returns its number.
    ///
    /// Nothing was delivered meanwhile. Reports that were written from another thread come after
    /// that entry.
    fn journaled_by_the_store(&mut self) -> u64 {
        self.delivered_seq += 1;
        self.durable_seq += 1;
        self.unsent.entries.iter_mut().for_each(|report| report.seq += 1);
        self.durable_seq
    }

    pub(super) fn take_wakers(&mut self) -> Vec<Waker> {
        mem::take(&mut self.wakers)
    }
}

impl RunState {
    /// Counts the entry of a work that the store has journaled, and returns its number.
    pub(super) fn journaled_by_the_store(&mut self) -> u64 {
        let seq = self.written.journaled_by_the_store();
        if let Some(progress) = self.replay.progress.as_mut().filter(|progress| **progress >= seq) {
            *progress += 1;
        }
        seq
    }

    /// Adds a report of the task about itself; `false` when a replay repeats it.
    pub(crate) fn note(
        &mut self,
        kind: Kind,
        name: Name,
        attempt: u32,
        note: Payload,
        at: Timestamp,
    ) -> bool {
        if self.is_replaying()
            || self.control.is_some_and(|control| control != ControlFlow::Cancelled)
        {
            return false;
        }
        let seq = self.written.write(Key { kind, name, ordinal: attempt }, Outcome::Done(note), at);
        if kind == Kind::Progress
            && let Some(earlier) = self.replay.progress.replace(seq)
        {
            self.written.unsent.supersede(earlier);
        }
        true
    }

    /// Journals the progress of a step over many items, in place of earlier entries, and returns
    /// the entry's number.
    pub(crate) fn add_items(
        &mut self,
        key: &Key,
        chunk: Payload,
        at: Timestamp,
        superseded: Vec<u64>,
    ) -> u64 {
        self.written.unsent.superseded.extend(superseded);
        self.written.write(key.clone(), Outcome::Done(chunk), at)
    }

    /// Returns whether the entry is durable; the waker is woken with the next commit if it is not.
    pub(crate) fn poll_durable(&mut self, seq: u64, waker: &Waker) -> Poll<()> {
        if self.written.durable_seq >= seq {
            return Poll::Ready(());
        }
        self.written.wakers.push(waker.clone());
        Poll::Pending
    }

    /// Takes everything that is to be committed now.
    pub(crate) fn take_unsent(&mut self, suspending: bool) -> Unsent {
        let Written { unsent, delivered_seq, .. } = &mut self.written;
        debug_assert!(
            unsent.entries.last().is_none_or(|last| last.seq == *delivered_seq),
            "all entries are sent up to the last one"
        );
        self.waits.sent(suspending, unsent);
        mem::take(unsent)
    }

    /// Discards everything that is not durable, because the store has refused it.
    pub(crate) fn discard_unsent(&mut self) {
        self.written.unsent = Unsent::default();
        self.written.delivered_seq = self.written.durable_seq;
        self.failures.discard_after(self.written.durable_seq);
    }

    /// Returns the number of the last entry that was written.
    pub(crate) fn delivered_seq(&self) -> u64 {
        self.written.delivered_seq
    }

    /// Returns the number of the last durable entry.
    pub(crate) fn durable_seq(&self) -> u64 {
        self.written.durable_seq
    }

    /// Notes that all entries up to `seq` are durable, and returns the wakers of those that wait
    /// for that.
    pub(crate) fn committed(&mut self, seq: u64, received: &[MessageId]) -> Vec<Waker> {
        debug_assert!(seq <= self.written.delivered_seq, "what is durable was written");
        self.written.durable_seq = self.written.durable_seq.max(seq);
        self.waits.received(received);
        self.written.take_wakers()
    }
}
