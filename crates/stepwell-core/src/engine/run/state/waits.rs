//! Waits: for a time, an event, a message, a child.
//!
//! A wait is known to the store from the first commit after its beginning until the first one after
//! its end, so that whatever arrives while the task is suspended wakes it. The due time of a wait
//! is fixed when the wait begins, and a later run of the task inherits it.

use std::collections::{BTreeMap, BTreeSet};

use hashbrown::hash_map;
use hashbrown::{HashMap, HashSet};

use crate::base::failure::{Failure, FailureKind};
use crate::base::journal::{Key, Kind, Outcome};
use crate::base::name::Name;
use crate::base::payload::Payload;
use crate::base::time::Timestamp;
use crate::engine::run::child;
use crate::engine::run::state::stage::Operation;
use crate::engine::run::state::written::Unsent;
use crate::engine::run::state::{Awaited, Effect, RunState};
use crate::store::{ArrivedMessage, Facts, MessageId, Wait};

/// The indexes of the waits.
#[derive(Default)]
pub(super) struct Waits {
    /// The due times of waits.
    pub(super) timers: BTreeSet<(Timestamp, Key)>,
    /// The operations that wait for each target.
    pub(super) awaited: HashMap<(Kind, Name), BTreeSet<Key>>,
    /// Waits that the store keeps.
    stored: HashSet<Key>,
    /// Waits that an earlier run began and this one has not come to yet, with their due times.
    inherited: BTreeMap<Key, Option<Timestamp>>,
    /// Messages that were assigned to a waiter, and are still in the store's mailbox.
    taken: HashSet<MessageId>,
    /// Set when a wait was registered since the store was last asked for arrivals.
    look: bool,
}

impl Waits {
    /// Returns the waits of a run that follows on an earlier one.
    pub(super) fn inherited(waits: Vec<Wait>) -> Self {
        let inherited = waits.into_iter().map(|wait| (wait.key, wait.due_at)).collect();
        Self { inherited, ..Self::default() }
    }

    pub(super) fn begin(
        &mut self,
        key: &Key,
        target: Option<&Name>,
        due_at: Option<Timestamp>,
        unsent: &mut Unsent,
    ) {
        self.look |= target.is_some();
        if let Some(due_at) = due_at {
            self.timers.insert((due_at, key.clone()));
        }
        if let Some(target) = target {
            self.awaited.entry((key.kind, target.clone())).or_default().insert(key.clone());
        }
        if self.inherited.remove(key).is_some() {
            self.stored.insert(key.clone());
        } else {
            let wait = Wait { key: key.clone(), target: target.cloned(), due_at };
            unsent.waits_added.insert(key.clone(), wait);
        }
    }

    pub(super) fn no_longer_awaits(&mut self, key: &Key, target: Option<Name>) {
        let Some(target) = target else { return };
        if let hash_map::Entry::Occupied(mut waiting) = self.awaited.entry((key.kind, target)) {
            waiting.get_mut().remove(key);
            if waiting.get().is_empty() {
                waiting.remove();
            }
        }
    }

    /// Removes the wait of an operation, which `waited` until now or has finished before.
    pub(super) fn end(
        &mut self,
        key: &Key,
        (target, due_at): Awaited,
        waited: bool,
        unsent: &mut Unsent,
    ) {
        if waited {
            self.no_longer_awaits(key, target);
        }
        if let Some(due_at) = due_at {
            self.timers.remove(&(due_at, key.clone()));
        }
        if self.stored.remove(key) {
            unsent.waits_removed.push(key.clone());
        } else {
            unsent.waits_added.remove(key);
        }
    }

    /// Notes that the store keeps the waits that are sent now, and removes those that a suspending
    /// run never came to.
    pub(super) fn sent(&mut self, suspending: bool, unsent: &mut Unsent) {
        if suspending {
            unsent.waits_removed.extend(std::mem::take(&mut self.inherited).into_keys());
        }
        self.stored.extend(unsent.waits_added.keys().cloned());
    }

    /// Notes that these messages have left the store's mailbox.
    pub(super) fn received(&mut self, messages: &[MessageId]) {
        for message in messages {
            self.taken.remove(message);
        }
    }

    /// Returns the first of the operations that wait for a message of the topic.
    fn first_for(&self, topic: Name) -> Option<Key> {
        self.awaited.get(&(Kind::Message, topic)).and_then(BTreeSet::first).cloned()
    }
}

impl RunState {
    /// Returns the due time of a wait that an earlier run began.
    pub(crate) fn stored_due(&self, key: &Key) -> Option<Timestamp> {
        self.waits.inherited.get(key).copied().flatten()
    }

    /// Assigns arrivals to the operations that wait for them.
    pub(crate) fn arrive(&mut self, facts: Facts) {
        let Facts { events, messages, children, more } = facts;
        // Set when another look finds something else. An arrival that is taken now does not come
        // again, and neither does one that is no longer awaited.
        let mut goes_on = events.is_empty() && messages.is_empty() && children.is_empty();
        goes_on |= !self.written.unsent().waits_removed.is_empty();
        for ArrivedMessage { id, topic, payload } in messages {
            if self.waits.taken.contains(&id) {
                continue;
            }
            if let Some(key) = self.waits.first_for(topic) {
                goes_on = true;
                self.waits.taken.insert(id);
                self.finish(&key, Outcome::Done(payload), Effect::Received(id));
            }
        }
        for (name, payload) in events {
            for key in self.waits.awaited.remove(&(Kind::Event, name)).unwrap_or_default() {
                goes_on = true;
                self.finish(&key, Outcome::Done(payload.clone()), Effect::None);
            }
        }
        for (child, finish) in children {
            let Ok(target) = Name::new(child.to_string()) else { continue };
            for key in self.waits.awaited.remove(&(Kind::Child, target)).unwrap_or_default() {
                goes_on = true;
                self.finish(&key, child::outcome(finish.clone()), Effect::None);
            }
        }
        self.waits.look |= more && goes_on;
    }

    /// Passes on a message whose waiter is gone.
    ///
    /// The next waiter receives the message in place of its own, and so on, so that messages come
    /// in their order. The last message goes to a waiter that has none, or stays in the mailbox.
    pub(super) fn pass_on(&mut self, topic: Name, mut message: MessageId, mut outcome: Outcome) {
        for ready in self.ready.iter_mut().filter(|ready| ready.key.name == topic) {
            if let Effect::Received(later) = &mut ready.effect {
                std::mem::swap(later, &mut message);
                std::mem::swap(&mut ready.outcome, &mut outcome);
            }
        }
        match self.waits.first_for(topic) {
            Some(key) => self.finish(&key, outcome, Effect::Received(message)),
            None => _ = self.waits.taken.remove(&message),
        }
    }

    /// Ends the waits that are due.
    pub(crate) fn fire_timers(&mut self, now: Timestamp) {
        while let Some((due_at, key)) =
            self.waits.timers.first().filter(|(due_at, _)| *due_at <= now).cloned()
        {
            self.waits.timers.remove(&(due_at, key.clone()));
            if !self.operations.get(&key).is_some_and(Operation::is_waiting) {
                continue;
            }
            let outcome = match key.kind {
                Kind::Event | Kind::Message | Kind::Child | Kind::Timeout => {
                    let message = format!("{key} did not come in time");
                    Outcome::failed(Failure::new(FailureKind::Timeout, message))
                }
                _ => Outcome::Done(Payload::null()),
            };
            self.finish(&key, outcome, Effect::None);
        }
    }

    /// Returns the earliest due time of all waits.
    pub(crate) fn next_timer(&self) -> Option<Timestamp> {
        self.waits.timers.first().map(|(due_at, _)| *due_at)
    }

    /// Returns whether the store has to be asked for arrivals.
    pub(crate) fn take_look(&mut self) -> bool {
        std::mem::take(&mut self.waits.look)
    }

    /// Returns whether something is to be sent, or the store is to be asked for arrivals.
    pub(crate) fn has_unsent(&self) -> bool {
        self.written.has_unsent() || self.waits.look
    }
}
