//! A store that encodes payloads before another store keeps them, and decodes them on their way
//! back.
//!
//! A payload that cannot be decoded becomes a [`Payload`] that says so. It fails the code that
//! reads it, and nothing else.

use std::num::NonZeroUsize;
use std::sync::Arc;

use serde_json::value::RawValue;

use crate::base::codec_error::CodecError;
use crate::base::ids::TaskId;
use crate::base::journal::{Entry, Kind};
use crate::base::name::Name;
use crate::base::payload::Payload;
use crate::base::runtime::BoxFuture;
use crate::base::time::Timestamp;
use crate::codec::envelope::Codecs;
use crate::codec::payloads::{self, Each, Held};
use crate::codec::{Codec, Place};
use crate::store::page::{Listed, Page, Room};
use crate::store::queue::QueueInfo;
use crate::store::record::TaskRecord;
use crate::store::scope::Scope;
use crate::store::*;

/// A store that keeps the encoded form of payloads and of the texts of failures.
///
/// Names, headers and all other data are kept as they are. Applications pass their codecs to
/// `Durable::builder().codec(..)`, and need not name this type.
pub struct Encoded {
    inner: Arc<dyn Store>,
    codecs: Codecs,
}

impl Encoded {
    /// Returns the store with these codecs, or the store itself when there are none.
    pub fn over(inner: Arc<dyn Store>, codecs: &[Arc<dyn Codec>]) -> Arc<dyn Store> {
        match Codecs::new(codecs) {
            Some(codecs) => Arc::new(Self { inner, codecs }),
            None => inner,
        }
    }

    fn decoding<T: Send + 'static>(
        &self,
        asked: BoxFuture<'static, Result<T, StoreError>>,
        walk: impl FnOnce(&mut T, Each<'_>) + Send + 'static,
    ) -> BoxFuture<'static, Result<T, StoreError>> {
        let codecs = self.codecs.clone();
        Box::pin(async move {
            let mut answer = asked.await?;
            codecs.decode(|each| walk(&mut answer, each));
            Ok(answer)
        })
    }

    /// Decodes a page as [`decoding`](Self::decoding) does an answer, and cuts it to the room of an
    /// answer after that.
    fn decoding_page<T: Listed + Send + 'static>(
        &self,
        asked: BoxFuture<'static, Result<Page<T>, StoreError>>,
        mut walk: impl FnMut(&mut T, Each<'_>) + Send + 'static,
    ) -> BoxFuture<'static, Result<Page<T>, StoreError>>
    where
        T::Cursor: Send,
    {
        let codecs = self.codecs.clone();
        Box::pin(async move {
            let mut page = asked.await?;
            page.change(|item| codecs.decode(|each| walk(item, each)));
            Ok(page)
        })
    }
}

/// Returns whether stores write this value by themselves: the mark that a client started a task
/// again.
fn is_of_the_store(place: &Place<'_>) -> bool {
    matches!(place, Place::Entry { key, .. } if key.kind == Kind::Attempt)
}

/// Refuses decoded text that is not JSON, because anyone with access to the database can write such
/// an envelope, and lists could not show it.
fn checked(opened: Option<String>) -> Result<Option<String>, CodecError> {
    if let Some(json) = &opened {
        serde_json::from_str::<&RawValue>(json)
            .map_err(|error| CodecError::Damaged(error.to_string()))?;
    }
    Ok(opened)
}

impl Codecs {
    /// Encodes all parts that the walk visits, and returns the first error.
    pub(crate) fn encode(&self, walk: impl FnOnce(Each<'_>)) -> Result<(), StoreError> {
        let mut failed = None;
        walk(&mut |held, place| {
            let encoded = match held {
                Held::Payload(payload) => {
                    let sealed = self.sealed(payload, &place);
                    let sealed = sealed.or_else(|error| {
                        self.again(error, &place, || self.sealed(payload, &place))
                    });
                    sealed.map(|sealed| *payload = sealed)
                }
                Held::Text(text, _) => {
                    let sealed = self.seal(text, &place);
                    let sealed = sealed
                        .or_else(|error| self.again(error, &place, || self.seal(text, &place)));
                    sealed.map(|sealed| *text = sealed.unwrap_or_else(|| std::mem::take(text)))
                }
            };
            if let Err(error) = encoded {
                failed.get_or_insert(error);
            }
        });
        failed.map_or(Ok(()), Err)
    }

    /// Finds out whether the codec cannot work just now or does not take this payload.
    ///
    /// If the codec can encode something else, it is called once more.
    fn again<T>(
        &self,
        error: CodecError,
        place: &Place<'_>,
        encode: impl FnOnce() -> Result<T, CodecError>,
    ) -> Result<T, StoreError> {
        let said = |error| format!("{place} cannot be encoded: {error}");
        match error {
            error @ CodecError::Panicked { .. } => Err(StoreError::NotEncodable(said(error))),
            error if self.seal("null", place).is_err() => Err(StoreError::Encode(said(error))),
            _ => encode().map_err(|error| StoreError::NotEncodable(said(error))),
        }
    }

    fn sealed(&self, payload: &Payload, place: &Place<'_>) -> Result<Payload, CodecError> {
        // A payload that could not be read keeps its stored form.
        if let Some(kept) = payload.kept() {
            return Ok(kept.clone());
        }
        Ok(self.seal(payload.as_str(), place)?.map_or_else(|| payload.clone(), Payload::from_json))
    }

    /// Decodes all parts that the walk visits.
    pub(crate) fn decode(&self, walk: impl FnOnce(Each<'_>)) {
        walk(&mut |held, place| match held {
            Held::Payload(payload) if payload.unreadable().is_some() => {}
            Held::Payload(payload) if payload.as_str() == "null" && is_of_the_store(&place) => {}
            Held::Payload(payload) => match self.open(payload.as_str(), &place).and_then(checked) {
                Ok(Some(json)) => *payload = Payload::from_json(json),
                Ok(None) => {}
                Err(reason) => {
                    *payload = Payload::not_readable(payload.clone(), place.to_string(), reason);
                }
            },
            Held::Text(text, refused) => match self.open(text, &place) {
                Ok(Some(opened)) => *text = opened,
                Ok(None) => {}
                // Stores also fail and cancel tasks, with messages of their own.
                Err(CodecError::Plain(_)) if matches!(place, Place::Failure(_)) => {}
                Err(reason) => {
                    *text = format!("{place} cannot be read: {reason}");
                    *refused = Some(reason);
                }
            },
        });
    }

    /// Has the result of the transition's transaction encoded when it exists.
    fn encode_result(&self, transition: &Transition) {
        let task_id = transition.task_id;
        if let Some(transaction) = &transition.transaction {
            let (codecs, key, seq) = (self.clone(), transaction.key.clone(), transaction.seq);
            transaction.seal(Box::new(move |result| {
                codecs.sealed(result, &Place::Entry { task_id, seq, key: &key })
            }));
        }
    }
}

impl Store for Encoded {
    fn now(&self) -> Timestamp {
        self.inner.now()
    }

    fn commit(&self, batch: Arc<Batch>) -> BoxFuture<'static, Result<Committed, StoreError>> {
        let (inner, codecs) = (self.inner.clone(), self.codecs.clone());
        // The future does this work, because its caller may hold a lock.
        Box::pin(async move {
            let mut batch = Arc::unwrap_or_clone(batch);
            let tasks: Vec<_> =
                batch.transitions.iter().map(|transition| transition.task_id).collect();
            codecs.encode(|each| payloads::batch(&mut batch, each))?;
            batch.transitions.iter().for_each(|transition| codecs.encode_result(transition));
            let mut committed = inner.commit(Arc::new(batch)).await?;
            codecs.decode(|each| payloads::committed(&tasks, &mut committed, each));
            Ok(committed)
        })
    }

    fn lanes(&self) -> NonZeroUsize {
        self.inner.lanes()
    }

    fn transact(&self, mut transition: Transition) -> Result<Transacting, Transition> {
        let task_id = transition.task_id;
        if let Err(error) = self.codecs.encode(|each| payloads::transition(&mut transition, each)) {
            return Ok(Box::pin(std::future::ready(Err(error))));
        }
        self.codecs.encode_result(&transition);
        match self.inner.transact(transition) {
            Ok(transacting) => Ok(self.decoding(transacting, move |result, each| {
                payloads::applied(task_id, result, &mut Room::default(), each);
            })),
            Err(mut back) => {
                self.codecs.decode(|each| payloads::transition(&mut back, each));
                Err(back)
            }
        }
    }

    fn task(&self, task_id: TaskId) -> BoxFuture<'static, Result<Option<TaskInfo>, StoreError>> {
        self.decoding(self.inner.task(task_id), |task, each| {
            task.iter_mut().for_each(|task| payloads::info(task, each));
        })
    }

    fn tasks(&self, filter: TaskFilter) -> BoxFuture<'static, Result<Page<TaskInfo>, StoreError>> {
        self.decoding_page(self.inner.tasks(filter), payloads::info)
    }

    fn ends(&self, tasks: Vec<TaskId>) -> BoxFuture<'static, Result<Ends, StoreError>> {
        self.decoding_page(self.inner.ends(tasks), payloads::end)
    }

    fn journal(&self, task_id: TaskId) -> BoxFuture<'static, Result<Vec<Entry>, StoreError>> {
        self.decoding(self.inner.journal(task_id), move |journal, each| {
            payloads::entries(task_id, journal, each);
        })
    }

    fn waits(
        &self,
        scope: Scope,
        prefix: String,
        behind: Option<TaskId>,
        limit: usize,
    ) -> BoxFuture<'static, Result<Page<TaskWaits>, StoreError>> {
        self.inner.waits(scope, prefix, behind, limit)
    }

    fn waits_of(&self, task_id: TaskId) -> BoxFuture<'static, Result<Vec<Wait>, StoreError>> {
        self.inner.waits_of(task_id)
    }

    fn messages(
        &self,
        task_id: TaskId,
        behind: Option<MessageId>,
    ) -> BoxFuture<'static, Result<Page<ArrivedMessage>, StoreError>> {
        self.decoding_page(self.inner.messages(task_id, behind), move |message, each| {
            payloads::message(task_id, message, each);
        })
    }

    fn schedules(
        &self,
        filter: ScheduleFilter,
    ) -> BoxFuture<'static, Result<Page<Scheduled>, StoreError>> {
        self.decoding_page(self.inner.schedules(filter), payloads::schedule)
    }

    fn import(&self, mut record: TaskRecord) -> BoxFuture<'static, Result<bool, StoreError>> {
        let encoded = self.codecs.encode(|each| payloads::record(&mut record, each));
        match encoded {
            Ok(()) => self.inner.import(record),
            Err(error) => Box::pin(std::future::ready(Err(error))),
        }
    }

    fn queues(&self) -> BoxFuture<'static, Result<Vec<QueueInfo>, StoreError>> {
        self.inner.queues()
    }

    fn workers(&self) -> BoxFuture<'static, Result<Vec<WorkerInfo>, StoreError>> {
        self.inner.workers()
    }

    fn waiting_types(
        &self,
        queues: Vec<Name>,
    ) -> BoxFuture<'static, Result<Vec<Name>, StoreError>> {
        self.inner.waiting_types(queues)
    }

    fn describe(&self, info: TaskTypeInfo) -> BoxFuture<'static, Result<(), StoreError>> {
        self.inner.describe(info)
    }

    fn task_types(&self) -> BoxFuture<'static, Result<Vec<TaskTypeInfo>, StoreError>> {
        self.inner.task_types()
    }

    fn record(&self, mut happenings: Vec<Happening>) -> BoxFuture<'static, Result<(), StoreError>> {
        let encoded = self.codecs.encode(|each| {
            happenings.iter_mut().for_each(|happening| payloads::happening(happening, each));
        });
        match encoded {
            Ok(()) => self.inner.record(happenings),
            Err(error) => Box::pin(std::future::ready(Err(error))),
        }
    }

    fn history(
        &self,
        which: HistoryFilter,
    ) -> BoxFuture<'static, Result<Page<(u64, Happening)>, StoreError>> {
        self.decoding_page(self.inner.history(which), |(_, happening), each| {
            payloads::happening(happening, each);
        })
    }

    fn purge(&self, purge: Purge) -> BoxFuture<'static, Result<usize, StoreError>> {
        self.inner.purge(purge)
    }

    fn changed(&self) -> BoxFuture<'_, Changed> {
        self.inner.changed()
    }
}
