//! Deliveries: the one result that reaches the task's code next.
//!
//! ```text
//!   the journal ──▶ its next entry ─┐
//!                                   ├──▶ one operation, one waker; what is new is journaled
//!   `ready`, after the journal ─────┘
//! ```

use std::task::Waker;

use crate::base::journal::{Entry, Key, Kind, Outcome};
use crate::base::time::Timestamp;
use crate::engine::run::state::stage::Stage;
use crate::engine::run::state::{RunState, Unsent};
use crate::engine::task_error::TaskError;
use crate::store::{MessageId, NewEvent, NewMessage, NewTask};

/// The effect of a delivery on the store, besides its journal entry.
#[derive(Debug)]
pub(crate) enum Effect {
    None,
    Spawn(Box<NewTask>),
    Emit(NewEvent),
    Send(NewMessage),
    Received(MessageId),
}

impl Effect {
    fn add_to(self, unsent: &mut Unsent) {
        match self {
            Self::None => {}
            Self::Spawn(task) => unsent.spawns.push(*task),
            Self::Emit(event) => unsent.events.push(event),
            Self::Send(message) => unsent.messages.push(message),
            Self::Received(message) => unsent.received.push(message),
        }
    }

    /// Returns the child that the delivery spawns.
    pub(crate) fn child(&self) -> Option<&NewTask> {
        match self {
            Self::Spawn(task) => Some(task),
            _ => None,
        }
    }
}

/// A result that is queued for delivery.
pub(super) struct Ready {
    pub(super) key: Key,
    pub(super) outcome: Outcome,
    pub(super) effect: Effect,
}

/// A new delivery, which is to be [journaled](RunState::journal) before anything else happens.
#[must_use = "the code knows the result, and the journal has to"]
pub(crate) struct Delivered {
    pub(crate) key: Key,
    pub(crate) outcome: Outcome,
    pub(crate) effect: Effect,
    waker: Option<Waker>,
    /// The number that the delivery's entry gets.
    seq: u64,
}

/// The step forward that the run has taken.
pub(crate) enum Delivery {
    New(Delivered),
    /// The journal holds the delivery, or the operation was ended because the run has to stop.
    Known(Option<Waker>),
}

/// The reason why the next result was not delivered.
pub(crate) enum Undelivered {
    /// The result is in the journal, and nobody waits for it.
    NoWaiter,
    /// The result cannot be read.
    ///
    /// The task's code does not learn of the error, and nothing is journaled. The task can go on
    /// from there when the result can be read.
    Unreadable(TaskError),
}

fn readable(key: &Key, outcome: &Outcome) -> Result<(), Undelivered> {
    let Outcome::Done(payload) = outcome else { return Ok(()) };
    payload.unreadable().map_or(Ok(()), |source| {
        Err(Undelivered::Unreadable(TaskError::Payload {
            name: key.label(),
            source: source.clone(),
        }))
    })
}

impl RunState {
    /// Delivers the next result: from the journal, and after its end from the results that are
    /// ready.
    ///
    /// Returns `Ok(None)` when there is nothing to deliver.
    pub(crate) fn deliver_next(&mut self) -> Result<Option<Delivery>, Undelivered> {
        if let Some(entry) = self.replay.entries.front() {
            readable(&entry.key, &entry.outcome)?;
            if !self.operations.waits_for_delivery(&entry.key) {
                return Err(Undelivered::NoWaiter);
            }
            let Some(Entry { seq, key, outcome, .. }) = self.replay.entries.pop_front() else {
                return Ok(None);
            };
            debug_assert!(
                self.replay.entries.front().is_none_or(|next| next.seq > seq),
                "entries are replayed in their order"
            );
            return Ok(self.deliver(seq, &key, outcome).map(Delivery::Known));
        }
        if self.is_replaying() {
            return Ok(None);
        }
        while let Some(Ready { key, outcome, effect }) = self.ready.pop_front() {
            let operation = self.operations.get(&key);
            if !operation.is_some_and(|operation| matches!(operation.stage(), Stage::Finished)) {
                // The journal held the delivery, or its future is gone.
                if let Effect::Received(message) = effect {
                    self.pass_on(key.name, message, outcome);
                }
                continue;
            }
            readable(&key, &outcome)?;
            if self.control.is_some() && !matches!(outcome, Outcome::Done(_)) {
                // The failure probably came because the run had to stop. A retry of the task tries
                // the operation again.
                let waker = self.operations.remove(&key).and_then(|operation| {
                    let (stage, waker, wait) = operation.into_parts();
                    self.left(&key, stage, wait);
                    waker
                });
                return Ok(Some(Delivery::Known(waker)));
            }
            let seq = self.written.next_seq();
            let waker = self.deliver(seq, &key, outcome.clone()).flatten();
            return Ok(Some(Delivery::New(Delivered { key, outcome, effect, waker, seq })));
        }
        Ok(None)
    }

    /// Delivers to one operation, and returns the waker of its future; `None` when it does not wait
    /// for a delivery.
    fn deliver(&mut self, seq: u64, key: &Key, mut outcome: Outcome) -> Option<Option<Waker>> {
        let mut failed = None;
        if let Outcome::Failed(failure) = &mut outcome {
            failure.sources = vec![seq].into();
            failed = Some((**failure).clone());
        }
        let (stage, waker, wait) = self.operations.deliver(key, outcome)?.into_parts();
        if let Some(failure) = failed {
            self.failures.delivered(seq, key, failure);
        }
        self.left(key, stage, wait);
        Some(waker)
    }

    /// Journals a new delivery at its time, and returns the waker of its operation's future.
    #[inline]
    pub(crate) fn journal(&mut self, delivered: Delivered, at: Timestamp) -> Option<Waker> {
        let Delivered { key, outcome, effect, waker, seq } = delivered;
        self.has_compensations |= key.kind == Kind::Compensate;
        let written = self.written.write(key, outcome, at);
        debug_assert_eq!(written, seq, "a delivery is journaled before anything else");
        effect.add_to(self.written.unsent());
        waker
    }

    /// Ends an operation whose work the store has done.
    ///
    /// The outcome is delivered if the store has journaled it, and is queued otherwise.
    pub(crate) fn deliver_work(
        &mut self,
        key: &Key,
        outcome: Outcome,
        journaled: bool,
    ) -> Option<Waker> {
        if journaled {
            let seq = self.journaled_by_the_store();
            return self.deliver(seq, key, outcome).flatten();
        }
        self.finish(key, outcome, Effect::None);
        None
    }
}
