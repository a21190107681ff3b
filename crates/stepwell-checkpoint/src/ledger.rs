//! The record of a checkpoint that this process owns: its content, and the writes to it.
//!
//! New entries are put in order in memory first, and then wait for a write that includes them.
//! There is one write at a time, made by one of the waiting calls. All entries that become ready
//! during a write are included in the next one.
//!
//! # Fencing
//!
//! A plain key-value store knows no owners, so the head record is the fence: each write replaces
//! the head that this process wrote last, and no other. A process that takes a checkpoint over
//! replaces the head. Every later write of the previous owner is refused, however long that process
//! was paused. The previous owner may have written a segment before, under a key that no other
//! process uses and no head names; it removes the segment when it learns that it is no longer the
//! owner.
//!
//! # Writes whose outcome is unknown
//!
//! A write that failed, or was dropped half-way, may have been applied all the same. The head that
//! it would have made is remembered. When a later write is refused, and the stored head is one of
//! these, the record continues from there. Invariant: no two heads of a checkpoint have the same
//! text, so the text identifies the write.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use stepwell_core::{
    CancellationToken, Entry, Key, Kind, Name, Outcome, Payload, Timestamp, after, from_micros,
};

use crate::error::CheckpointError;
use crate::key_value::KeyValueStore;
use crate::record::{Completed, Head, Owner, head_key, segment_key};

/// The maximum number of tries of a write that was refused because an earlier write of this process
/// had been applied.
const TRIES: u32 = 3;

pub(crate) struct Ledger {
    pub(crate) store: Arc<dyn KeyValueStore>,
    pub(crate) id: String,
    lease: Duration,
    memory: Mutex<Memory>,
    writer: tokio::sync::Mutex<Writer>,
    /// The time at which the lease ends, in microseconds since 1970.
    until: AtomicI64,
    /// The token that is cancelled when this process no longer owns the checkpoint; then `end` has
    /// the reason.
    ended: CancellationToken,
    end: OnceLock<CheckpointError>,
}

/// The entries that are recorded, or about to be.
#[derive(Default)]
pub(crate) struct Memory {
    last_seq: u64,
    /// The entries that no head is known to include.
    unwritten: Vec<Entry>,
    pub(crate) steps: HashMap<Key, Payload>,
    pub(crate) items: HashMap<Key, Vec<Payload>>,
    /// The outstanding cleanups by the numbers of their entries, and so in the order of their
    /// registration.
    pub(crate) cleanups: BTreeMap<u64, (Key, Payload)>,
    /// The number of each outstanding cleanup's entry, by its name and ordinal.
    registered: HashMap<(Name, u32), u64>,
    /// The number of calls of the code for each name.
    asked: HashMap<(Kind, Name), u32>,
}

struct Writer {
    head: Head,
    /// The text of the stored head; `None` when no head is stored.
    text: Option<String>,
    /// The number of the last entry that is durable.
    durable: u64,
    /// The writes that followed `head` and may have been applied.
    attempts: Vec<Attempt>,
    /// The segments that may have been written and that no head names.
    litter: Vec<String>,
}

struct Attempt {
    head: Head,
    text: Option<String>,
    /// The number of the unwritten entries that the write includes.
    entries: usize,
    last_seq: u64,
}

/// The effect of a write beside adding entries.
enum Change {
    Renew,
    /// Releases the lease.
    Release,
    /// Ends the work. With `last`, no segment remains: the head is stored until the result expires,
    /// or removed when no result is kept.
    Complete {
        completed: Completed,
        last: bool,
    },
}

impl Memory {
    pub(crate) fn new(entries: Vec<Entry>) -> Self {
        let mut memory = Self::default();
        for entry in entries {
            memory.last_seq = memory.last_seq.max(entry.seq);
            memory.note(&entry);
            // The cleanups of a later run are new ones, but its steps are the same.
            if entry.key.kind == Kind::Compensate {
                memory.asked.insert((Kind::Compensate, entry.key.name), entry.key.ordinal);
            }
        }
        memory
    }

    fn note(&mut self, entry: &Entry) {
        let key = entry.key.clone();
        match (key.kind, &entry.outcome) {
            (Kind::Step, Outcome::Done(result)) => _ = self.steps.insert(key, result.clone()),
            (Kind::Items, Outcome::Done(chunk)) => {
                self.items.entry(key).or_default().push(chunk.clone());
            }
            (Kind::Compensate, Outcome::Done(payload)) => {
                self.registered.insert((key.name.clone(), key.ordinal), entry.seq);
                self.cleanups.insert(entry.seq, (key, payload.clone()));
            }
            (Kind::Compensated, _) => {
                if let Some(seq) = self.registered.remove(&(key.name, key.ordinal)) {
                    self.cleanups.remove(&seq);
                }
            }
            _ => {}
        }
    }
}

impl Ledger {
    /// Makes the record for a head that this process has just written.
    pub(crate) fn new(
        store: Arc<dyn KeyValueStore>,
        lease: Duration,
        head: Head,
        text: String,
        memory: Memory,
    ) -> Self {
        let until = head.owner.as_ref().map_or(0, |owner| owner.until.as_microsecond());
        Self {
            store,
            id: head.id.clone(),
            lease,
            writer: tokio::sync::Mutex::new(Writer {
                head,
                text: Some(text),
                durable: memory.last_seq,
                attempts: Vec::new(),
                litter: Vec::new(),
            }),
            memory: Mutex::new(memory),
            until: AtomicI64::new(until),
            ended: CancellationToken::new(),
            end: OnceLock::new(),
        }
    }

    pub(crate) fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the key of the next call of a kind with a name.
    pub(crate) fn next_key(&self, kind: Kind, name: Name) -> Key {
        let mut memory = self.memory();
        let ordinal = memory.asked.entry((kind, name.clone())).or_default();
        *ordinal += 1;
        Key { kind, ordinal: *ordinal, name }
    }

    /// Records outcomes in one write. The outcomes are durable when this call returns.
    pub(crate) async fn record(
        &self,
        outcomes: impl IntoIterator<Item = (Key, Outcome)>,
    ) -> Result<(), CheckpointError> {
        let last = {
            let mut memory = self.memory();
            for (key, outcome) in outcomes {
                memory.last_seq += 1;
                let entry = Entry { seq: memory.last_seq, key, outcome, at: now() };
                // A process calls `items` once for a name, and the call keeps the progress itself.
                if entry.key.kind != Kind::Items {
                    memory.note(&entry);
                }
                memory.unwritten.push(entry);
            }
            memory.last_seq
        };
        let mut writer = self.writer.lock().await;
        if writer.durable >= last { Ok(()) } else { self.write(&mut writer, Change::Renew).await }
    }

    /// Checks that this process still owns the checkpoint. When the lease has ended (the process
    /// was paused, or could not reach the store), the check renews it.
    pub(crate) async fn check_owned(&self) -> Result<(), CheckpointError> {
        if let Some(end) = self.end.get() {
            return Err(end.clone());
        }
        if now() < from_micros(self.until.load(Ordering::Acquire)) {
            return Ok(());
        }
        self.write(&mut *self.writer.lock().await, Change::Renew).await
    }

    /// Runs a future while this process owns the checkpoint.
    pub(crate) async fn while_owned<T>(
        &self,
        future: impl Future<Output = T>,
    ) -> Result<T, CheckpointError> {
        let done = self.ended.run_until_cancelled(future).await;
        done.ok_or_else(|| {
            self.end.get().cloned().unwrap_or_else(|| CheckpointError::Ended(self.id.clone()))
        })
    }

    /// Renews the lease before it ends, until this process no longer owns the checkpoint.
    pub(crate) async fn keep_renewing(self: Arc<Self>) {
        let ledger = Arc::downgrade(&self);
        let (pause, ended) = (self.lease / 3, self.ended.clone());
        drop(self);
        while ended.run_until_cancelled(tokio::time::sleep(pause)).await.is_some() {
            let Some(ledger) = ledger.upgrade() else { return };
            // A write since the last renewal has renewed the lease too.
            let renewed =
                after(now(), pause * 2).as_microsecond() < ledger.until.load(Ordering::Acquire);
            if renewed {
                continue;
            }
            if let Err(error) = ledger.write(&mut *ledger.writer.lock().await, Change::Renew).await
            {
                tracing::warn!(checkpoint = %ledger.id, %error, "the lease could not be renewed");
            }
        }
    }

    /// Writes the unwritten entries and releases the lease.
    pub(crate) async fn release(&self) -> Result<(), CheckpointError> {
        let mut writer = self.writer.lock().await;
        self.write(&mut writer, Change::Release).await?;
        self.end(CheckpointError::Ended(self.id.clone()));
        Ok(())
    }

    /// Removes all entries, and keeps only the result if there is one to keep.
    pub(crate) async fn complete(
        &self,
        kept: Option<(Payload, Timestamp)>,
    ) -> Result<(), CheckpointError> {
        let completed = Completed { at: now(), kept };
        let mut writer = self.writer.lock().await;
        if !writer.head.segments.is_empty() || !writer.attempts.is_empty() {
            let completed = completed.clone();
            self.write(&mut writer, Change::Complete { completed, last: false }).await?;
            // After this write, a process that loads the checkpoint continues the removal.
            for segment in &writer.head.segments {
                self.store.delete(&segment_key(&self.id, segment)).await?;
            }
        }
        self.write(&mut writer, Change::Complete { completed, last: true }).await?;
        self.end(CheckpointError::Ended(self.id.clone()));
        Ok(())
    }

    fn end(&self, why: CheckpointError) -> CheckpointError {
        let why = self.end.get_or_init(|| why).clone();
        self.ended.cancel();
        why
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.ended.is_cancelled()
    }

    async fn write(&self, writer: &mut Writer, change: Change) -> Result<(), CheckpointError> {
        if let Some(end) = self.end.get() {
            return Err(end.clone());
        }
        if writer.head.completed.is_some() && !matches!(change, Change::Complete { .. }) {
            return Err(CheckpointError::Ended(self.id.clone()));
        }
        for _ in 0..TRIES {
            let (attempt, ttl) = self.attempt(writer, &change).await?;
            let new = attempt.text.clone();
            // The attempt is noted before the write, because this future may be dropped during the
            // write.
            writer.attempts.push(attempt);
            let key = head_key(&self.id);
            let applied = self
                .store
                .compare_and_set(&key, writer.text.as_deref(), new.as_deref(), ttl)
                .await?;
            let found = if applied { new.clone() } else { self.store.get(&key).await? };
            let Some(number) = writer.attempts.iter().position(|attempt| attempt.text == found)
            else {
                return Err(self.lose(writer, found).await);
            };
            self.adopt(writer, number).await;
            // Otherwise an earlier write had been applied, and this write is tried again after it.
            if writer.text == new {
                return Ok(());
            }
        }
        let reason = format!("the head of checkpoint {:?} changes all the time", self.id);
        Err(crate::key_value::KeyValueError::failed("the store", "compare and set", reason).into())
    }

    /// Makes the next head, with all unwritten entries. A segment that the head names is stored
    /// first.
    async fn attempt(
        &self,
        writer: &mut Writer,
        change: &Change,
    ) -> Result<(Attempt, Option<Duration>), CheckpointError> {
        let unwritten = self.memory().unwritten.clone();
        let mut attempt = Attempt {
            entries: unwritten.len(),
            last_seq: unwritten.last().map_or(writer.durable, |entry| entry.seq),
            head: writer.head.clone(),
            text: None,
        };
        let head = &mut attempt.head;
        head.writes = writer.attempts.last().map_or(head.writes, |attempt| attempt.head.writes) + 1;
        let mut ttl = None;
        match change {
            Change::Renew | Change::Release => {
                if let Some(segment) = head.add(unwritten)? {
                    writer.litter.push(segment.name.clone());
                    self.store
                        .set(&segment_key(&self.id, &segment.name), &segment.text, None)
                        .await?;
                }
            }
            Change::Complete { completed, last } => {
                head.tail.clear();
                if *last {
                    head.segments.clear();
                    ttl = completed.kept.as_ref().map(|(_, end)| stepwell_core::until(now(), *end));
                }
                head.completed = Some(completed.clone());
            }
        }
        match (change, &mut head.owner) {
            (Change::Renew, Some(owner)) => owner.until = after(now(), self.lease),
            (_, owner) => *owner = None,
        }
        let removed = match change {
            Change::Complete { completed, last: true } => completed.kept.is_none(),
            _ => false,
        };
        if !removed {
            attempt.text = Some(head.to_text()?);
        }
        Ok((attempt, ttl))
    }

    /// Continues from a write that was applied. The other attempts can never be applied afterwards.
    async fn adopt(&self, writer: &mut Writer, number: usize) {
        let attempt = writer.attempts.swap_remove(number);
        writer.attempts.clear();
        self.memory().unwritten.drain(..attempt.entries);
        writer.litter.retain(|segment| !attempt.head.segments.contains(segment));
        writer.durable = attempt.last_seq;
        let until = attempt.head.owner.as_ref().map_or(0, |owner| owner.until.as_microsecond());
        self.until.store(until, Ordering::Release);
        writer.head = attempt.head;
        writer.text = attempt.text;
        self.remove_litter(writer).await;
    }

    /// Handles a head that another process has written: this process is no longer the owner.
    async fn lose(&self, writer: &mut Writer, found: Option<String>) -> CheckpointError {
        let head = found.and_then(|text| Head::parse(&self.id, &text).ok());
        let by = match head {
            Some(Head { owner: Some(Owner { name, .. }), .. }) => name,
            Some(_) => "another process, which has let go of it again".into(),
            None => "another process, which has completed it".into(),
        };
        self.remove_litter(writer).await;
        self.end(CheckpointError::Lost { id: self.id.clone(), by })
    }

    async fn remove_litter(&self, writer: &mut Writer) {
        while let Some(segment) = writer.litter.last() {
            if let Err(error) = self.store.delete(&segment_key(&self.id, segment)).await {
                // A segment that stays takes space, and has no other effect.
                tracing::debug!(checkpoint = %self.id, %error, "a segment that is not needed could \
                                                                not be removed");
                return;
            }
            writer.litter.pop();
        }
    }
}

pub(crate) fn now() -> Timestamp {
    from_micros(Timestamp::now().as_microsecond())
}
