//! The waits of tasks, and what has arrived for them.

use std::collections::{BTreeMap, BTreeSet, btree_map};

use super::{State, Task};
use crate::base::ids::TaskId;
use crate::base::journal::{Key, Kind};
use crate::base::name::Name;
use crate::base::payload::Payload;
use crate::base::time::Timestamp;
use crate::store::page::{Listed as _, Room};
use crate::store::rules::ending::deleted;
use crate::store::{ArrivedMessage, Facts, Finish, MessageId, News, Wait};

/// The target of a wait: an event, a topic, or a child.
pub(super) type Target = (Kind, Name);

/// The waits of one task.
#[derive(Default)]
pub(super) struct Waits {
    by_key: BTreeMap<Key, Wait>,
    /// The number of waits for each target.
    awaited: BTreeMap<Target, usize>,
    /// The targets of which something may have arrived; a look reads these, and no others.
    arrived: BTreeSet<Target>,
}

impl Waits {
    /// Returns the waits by key.
    pub(super) fn all(&self) -> btree_map::Values<'_, Key, Wait> {
        self.by_key.values()
    }

    /// Returns whether there are waits, and all of them are of this kind.
    pub(super) fn are_all(&self, kind: Kind) -> bool {
        // Keys are ordered by their kinds first.
        let ends = [self.by_key.first_key_value(), self.by_key.last_key_value()];
        ends.into_iter().all(|end| end.is_some_and(|(key, _)| key.kind == kind))
    }

    pub(super) fn awaits(&self, target: &Target) -> bool {
        self.awaited.contains_key(target)
    }

    /// Adds a wait, and lets the next look read its target, which may exist already.
    fn add(&mut self, wait: Wait) {
        if let Some(target) = target(&wait) {
            *self.awaited.entry(target.clone()).or_default() += 1;
            self.arrived.insert(target);
        }
        self.by_key.insert(wait.key.clone(), wait);
    }

    /// Removes a wait, and returns its target when that was the last wait for it.
    fn remove(&mut self, key: &Key) -> Option<Target> {
        let target = target(&self.by_key.remove(key)?)?;
        let left = self.awaited.get_mut(&target)?;
        *left -= 1;
        if *left > 0 {
            return None;
        }
        self.awaited.remove(&target);
        self.arrived.remove(&target);
        Some(target)
    }
}

fn target(wait: &Wait) -> Option<Target> {
    Some((wait.key.kind, wait.target.clone()?))
}

/// The messages that one task has not received.
#[derive(Default)]
pub(super) struct Mail {
    by_id: BTreeMap<MessageId, ArrivedMessage>,
    by_topic: BTreeMap<Name, BTreeSet<MessageId>>,
}

impl Mail {
    /// Returns the messages in their order.
    pub(super) fn all(&self) -> btree_map::Values<'_, MessageId, ArrivedMessage> {
        self.by_id.values()
    }

    pub(super) fn add(&mut self, message: ArrivedMessage) {
        self.by_topic.entry(message.topic.clone()).or_default().insert(message.id);
        self.by_id.insert(message.id, message);
    }

    pub(super) fn remove(&mut self, id: MessageId) {
        let Some(message) = self.by_id.remove(&id) else { return };
        if let Some(ids) = self.by_topic.get_mut(&message.topic) {
            ids.remove(&id);
            if ids.is_empty() {
                self.by_topic.remove(&message.topic);
            }
        }
    }

    fn of(&self, topic: &Name) -> impl Iterator<Item = &ArrivedMessage> {
        self.by_topic.get(topic).into_iter().flatten().filter_map(|id| self.by_id.get(id))
    }
}

impl State {
    pub(super) fn add_wait(&mut self, task_id: TaskId, wait: Wait) {
        self.remove_wait(task_id, &wait.key);
        if let Some(target @ (Kind::Event | Kind::Child, _)) = target(&wait) {
            self.awaiting.entry(target).or_default().insert(task_id);
        }
        if let Some(task) = self.tasks.get_mut(&task_id) {
            task.waits.add(wait);
        }
    }

    pub(super) fn remove_wait(&mut self, task_id: TaskId, key: &Key) {
        let target = self.tasks.get_mut(&task_id).and_then(|task| task.waits.remove(key));
        self.no_longer_awaits(task_id, target);
    }

    pub(super) fn drop_waits(&mut self, task_id: TaskId) {
        let Some(task) = self.tasks.get_mut(&task_id) else { return };
        for target in std::mem::take(&mut task.waits).awaited.into_keys() {
            self.no_longer_awaits(task_id, Some(target));
        }
    }

    fn no_longer_awaits(&mut self, task_id: TaskId, target: Option<Target>) {
        let Some(target) = target else { return };
        if let Some(awaiting) = self.awaiting.get_mut(&target) {
            awaiting.remove(&task_id);
            if awaiting.is_empty() {
                self.awaiting.remove(&target);
            }
        }
    }

    /// Notifies a task that something has arrived which it waits for.
    pub(super) fn arrive(
        &mut self,
        now: Timestamp,
        task_id: TaskId,
        target: Target,
        news: &mut News,
    ) {
        if let Some(task) = self.tasks.get_mut(&task_id) {
            task.waits.arrived.insert(target);
        }
        self.notify(now, task_id, news);
    }

    /// Returns what has arrived for a task's waits, up to the room of the answer.
    pub(super) fn facts(&mut self, task_id: TaskId, room: &mut Room) -> Facts {
        let mut facts = Facts::default();
        let Some(task) = self.tasks.get(&task_id) else { return facts };
        let nothing = |target: &&Target| !self.find(task, target, &mut facts, room);
        let empty: Vec<_> = task.waits.arrived.iter().filter(nothing).cloned().collect();
        if let Some(task) = self.tasks.get_mut(&task_id) {
            empty.iter().for_each(|target| _ = task.waits.arrived.remove(target));
        }
        facts
    }

    /// Adds what has arrived of a target, and returns whether there is anything.
    fn find(&self, task: &Task, target: &Target, facts: &mut Facts, room: &mut Room) -> bool {
        let (kind, name) = target;
        match kind {
            Kind::Event => {
                let Some(payload) = self.event(task, name) else { return false };
                if facts.has_room(room, payload.as_str().len()) {
                    facts.events.push((name.clone(), payload.clone()));
                }
                true
            }
            Kind::Message => {
                let waiting = task.waits.awaited.get(target).copied().unwrap_or_default();
                let mut messages = task.mail.of(name).take(waiting).peekable();
                let found = messages.peek().is_some();
                let messages = messages.take_while(|message| facts.has_room(room, message.bytes()));
                let messages: Vec<_> = messages.cloned().collect();
                facts.messages.extend(messages);
                found
            }
            Kind::Child => {
                let Ok(child) = name.as_str().parse::<TaskId>() else { return false };
                let finish = match self.tasks.get(&child) {
                    Some(child) => child.finish(),
                    None => Some(Finish::Failed(deleted())),
                };
                let Some(finish) = finish else { return false };
                if facts.has_room(room, finish.bytes()) {
                    facts.children.push((child, finish));
                }
                true
            }
            _ => false,
        }
    }

    /// Returns an event as the task sees it: an event for all queues comes before one for the
    /// task's queue.
    fn event(&self, task: &Task, name: &Name) -> Option<&Payload> {
        let of = |queue| self.events.get(&(name.clone(), queue));
        of(None).or_else(|| of(Some(task.new.queue.clone())))
    }
}
