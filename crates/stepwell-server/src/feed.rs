//! The live history, which one reader of the store shares among all streams.
//!
//! ```text
//!   store ──▶ tail (one, while anybody listens) ──▶ ring ──▶ follower ──▶ client
//!     └──────────── what came before, and what a follower was too slow for ──▲
//! ```
//!
//! Events have increasing numbers. When a reader has read up to a number, no new event appears
//! below it. A follower knows the number of the last event that it sent. A follower therefore
//! misses nothing, whether it reads on in the ring or in the store.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::future::select;
use serde::de::Error as _;
use stepwell::{CancellationToken, HistoryEntry, HistoryFilter, Lifecycle, Payload, Scope, TaskId};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, broadcast, mpsc};
use tokio::time::Instant;

use crate::app::{App, Known};
use crate::counts::{Counted, Counts};
use crate::history::end_of_history;
use crate::problem::Problem;

/// The maximum number of events that are read at once.
const PAGE: usize = 1_000;
/// The number of pages that a follower may lag behind before it reads from the store again.
const RING: usize = 64;
/// The interval at which the store is asked for new events.
const POLL: Duration = Duration::from_millis(50);
/// The maximum time that a stream lasts. The client of an ended stream connects again, and is
/// authenticated again.
const LIFE: Duration = Duration::from_secs(600);
/// The maximum number of chunks that wait for a client.
const BUFFERED: usize = 4;

/// An event in the form in which it is sent.
pub(crate) struct Frame {
    id: u64,
    task_id: TaskId,
    text: Bytes,
}

/// Events in consecutive order.
pub(crate) struct Page {
    frames: Vec<Frame>,
    /// The text of all frames, for followers that want every event.
    all: Bytes,
}

impl Page {
    fn new(entries: &[HistoryEntry]) -> Self {
        let frames: Vec<_> = entries.iter().map(Frame::new).collect();
        let mut all = BytesMut::with_capacity(frames.iter().map(|frame| frame.text.len()).sum());
        frames.iter().for_each(|frame| all.extend_from_slice(&frame.text));
        Self { frames, all: all.freeze() }
    }
}

/// The members of an object, as JSON text.
type Members = BTreeMap<String, Payload>;

/// Returns the name of an event and its fields.
///
/// The members stay text, so that no number in them is rounded.
fn told(event: &Lifecycle) -> Result<Members, serde_json::Error> {
    // The event is an object with one member. The member has the event's name, and its value holds
    // the event's fields.
    let named = serde_json::to_string(event)?;
    let told = serde_json::from_str::<BTreeMap<String, Members>>(&named)?;
    told.into_values().next().ok_or_else(|| serde_json::Error::custom("it has no member"))
}

fn text(value: &str) -> Payload {
    Payload::from_json(serde_json::Value::from(value).to_string())
}

/// Returns an object as JSON text.
fn object(members: &Members) -> String {
    let member =
        |(name, value): (&String, &Payload)| format!("{}:{}", text(name).as_str(), value.as_str());
    format!("{{{}}}", members.iter().map(member).collect::<Vec<_>>().join(","))
}

impl Frame {
    fn new(entry: &HistoryEntry) -> Self {
        let HistoryEntry { id, at, task_id, event } = entry;
        let told = match event {
            Ok(event) => told(event).map(|data| (event.name(), data)).map_err(|e| e.to_string()),
            Err(error) => Err(error.to_string()),
        };
        let (name, mut data) = told.unwrap_or_else(|reason| {
            ("unreadable", Members::from([("reason".to_owned(), text(&reason))]))
        });
        data.extend([
            ("id".to_owned(), Payload::from_json(id.to_string())),
            ("at".to_owned(), text(&at.to_string())),
            ("task_id".to_owned(), text(&task_id.to_string())),
            ("event".to_owned(), text(name)),
        ]);
        let data = object(&data);
        let text = format!("id: {id}\nevent: {name}\ndata: {data}\n\n");
        Self { id: *id, task_id: *task_id, text: text.into() }
    }
}

/// The shared reader of the history.
#[derive(Default)]
pub(crate) struct Feed {
    /// The sender of new pages, which exists while a task reads the end of the history.
    ring: Mutex<Option<broadcast::Sender<Arc<Page>>>>,
}

impl Feed {
    /// Returns a receiver of all events that are not in the store yet.
    async fn listen(&self, app: &Arc<App>) -> Result<broadcast::Receiver<Arc<Page>>, Problem> {
        let mut ring = self.ring.lock().await;
        if let Some(sender) = &*ring {
            return Ok(sender.subscribe());
        }
        let end = end_of_history(&app.client).await?;
        let (sender, receiver) = broadcast::channel(RING);
        *ring = Some(sender.clone());
        tokio::spawn(tail(app.clone(), sender, end));
        Ok(receiver)
    }
}

/// Reads new events while a follower listens.
async fn tail(app: Arc<App>, ring: broadcast::Sender<Arc<Page>>, mut last: u64) {
    loop {
        if ring.receiver_count() == 0 {
            let mut shared = app.feed.ring.lock().await;
            if ring.receiver_count() == 0 {
                *shared = None;
                return;
            }
        }
        let next = HistoryFilter { task_id: None, after: last, limit: PAGE };
        let entries = app.client.history(next).await.unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot read the history; trying again");
            Default::default()
        });
        match entries.items.last() {
            Some(entry) => last = entry.id,
            None if app.closing.is_cancelled() => return,
            None => {
                tokio::time::sleep(POLL).await;
                continue;
            }
        }
        let _ = ring.send(Arc::new(Page::new(&entries.items)));
    }
}

/// The selection of the events that a stream follows.
pub(crate) struct Follow {
    pub(crate) task_id: Option<TaskId>,
    /// The number after which the events begin; from now on when it is `None`.
    pub(crate) after: Option<u64>,
    pub(crate) which: Which,
    /// The token that ends the stream.
    pub(crate) until: CancellationToken,
}

/// The limit of open streams.
pub(crate) struct Streams {
    all: Arc<Semaphore>,
    of_scopes: Counts<Scope>,
    per_scope: usize,
}

/// The place that one stream takes within the limit.
struct Place {
    _of_all: OwnedSemaphorePermit,
    _of_scope: Option<Counted<Scope>>,
}

impl Streams {
    pub(crate) fn new(all: usize) -> Self {
        let per_scope = all.div_ceil(4);
        Self { all: Arc::new(Semaphore::new(all)), of_scopes: Counts::default(), per_scope }
    }

    /// Takes a place for a stream of a caller in a scope, when one is free.
    fn enter(&self, scope: &Scope) -> Option<Place> {
        let of_scope = match scope.is_all() {
            true => None,
            false => Some(self.of_scopes.enter(scope.clone(), self.per_scope)?),
        };
        Some(Place { _of_all: self.all.clone().try_acquire_owned().ok()?, _of_scope: of_scope })
    }
}

/// The tasks whose events pass.
pub(crate) enum Which {
    All,
    Those(Box<dyn Fn(&Known) -> bool + Send + Sync>),
}

impl Which {
    async fn passes(&self, app: &App, task_id: TaskId) -> Result<bool, Problem> {
        match self {
            Self::All => Ok(true),
            Self::Those(pass) => Ok(app.known(task_id).await?.is_some_and(|task| pass(&task))),
        }
    }
}

/// The end of a stream because the client stopped reading or the store stopped answering. In both
/// cases the client connects again, with the number of the last event that it has seen.
struct Gone;

impl From<Problem> for Gone {
    fn from(_: Problem) -> Self {
        Self
    }
}

impl From<stepwell::Error> for Gone {
    fn from(_: stepwell::Error) -> Self {
        Self
    }
}

/// Begins a stream; the receiver returns chunks that are sent unchanged.
pub(crate) async fn follow(
    app: &Arc<App>,
    scope: &Scope,
    follow: Follow,
) -> Result<mpsc::Receiver<Bytes>, Problem> {
    let place = app.streams.enter(scope);
    let place = place
        .ok_or_else(|| Problem::busy("too many streams of events are open: try again later"))?;
    // The listener exists before the store is read, so no event is lost between the two.
    let live = app.feed.listen(app).await?;
    let last = match follow.after {
        Some(after) => after,
        None => end_of_history(&app.client).await?,
    };
    let (sender, receiver) = mpsc::channel(BUFFERED);
    let app = app.clone();
    tokio::spawn(async move {
        let _place = place;
        let (closing, until, reader) = (app.closing.clone(), follow.until.clone(), sender.clone());
        let sign_every = app.patience * 3 / 4;
        let mut follower = Follower { app, follow, last, sender, sent: Instant::now(), sign_every };
        let following = tokio::time::timeout(LIFE, follower.run(live));
        let following = closing.run_until_cancelled(until.run_until_cancelled(following));
        // The stream ends when the client is gone, even if there is nothing to send.
        let _ = select(pin!(following), pin!(reader.closed())).await;
    });
    Ok(receiver)
}

struct Follower {
    app: Arc<App>,
    follow: Follow,
    /// The number of the last event that was examined.
    last: u64,
    sender: mpsc::Sender<Bytes>,
    /// The time at which something was last sent.
    sent: Instant,
    /// The time after which a silent stream sends a sign of life.
    sign_every: Duration,
}

impl Follower {
    async fn run(&mut self, mut live: broadcast::Receiver<Arc<Page>>) -> Result<(), Gone> {
        // A client that connects again before the first event needs to know where to begin.
        self.send(Bytes::from(format!("retry: 1000\nid: {}\n\n", self.last))).await?;
        loop {
            // The store has the events up to those that come live.
            while live.is_empty() && self.read_on().await? {}
            let mut joined = false;
            loop {
                match tokio::time::timeout_at(self.sent + self.sign_every, live.recv()).await {
                    Ok(Ok(page)) => {
                        let first = page.frames.first().map_or(0, |frame| frame.id);
                        while !joined && self.last < first && self.read_on().await? {}
                        joined = true;
                        self.give(&page).await?;
                    }
                    Ok(Err(broadcast::error::RecvError::Lagged(_))) => break,
                    Ok(Err(broadcast::error::RecvError::Closed)) => return Err(Gone),
                    Err(_) => self.sign().await?,
                }
            }
        }
    }

    /// Sends a page of events from the store, and returns whether there were any. A page that is
    /// not full may still have a successor, because the store leaves out the events that it cannot
    /// read.
    async fn read_on(&mut self) -> Result<bool, Gone> {
        let filter = HistoryFilter { task_id: self.follow.task_id, after: self.last, limit: PAGE };
        let entries = self.app.client.history(filter).await?.items;
        self.give(&Page::new(&entries)).await?;
        if self.sent.elapsed() > self.sign_every {
            self.sign().await?;
        }
        Ok(!entries.is_empty())
    }

    /// Sends a sign of life, so that proxies do not close the connection. The sign carries the
    /// number of the last event that was examined. A client that connects again goes on there, even
    /// when none of the examined events was for that client.
    async fn sign(&mut self) -> Result<(), Gone> {
        self.send(Bytes::from(format!("id: {}\n\n", self.last))).await
    }

    async fn give(&mut self, page: &Page) -> Result<(), Gone> {
        let (Some(first), Some(last)) = (page.frames.first(), page.frames.last()) else {
            return Ok(());
        };
        let mut chunk = BytesMut::new();
        if first.id > self.last
            && self.follow.task_id.is_none()
            && matches!(self.follow.which, Which::All)
        {
            self.send(page.all.clone()).await?;
        } else {
            for frame in page.frames.iter().filter(|frame| frame.id > self.last) {
                if self.follow.task_id.is_none_or(|task_id| task_id == frame.task_id)
                    && self.follow.which.passes(&self.app, frame.task_id).await?
                {
                    chunk.extend_from_slice(&frame.text);
                }
            }
        }
        self.last = self.last.max(last.id);
        match chunk.is_empty() {
            true => Ok(()),
            false => self.send(chunk.freeze()).await,
        }
    }

    async fn send(&mut self, chunk: Bytes) -> Result<(), Gone> {
        self.sender.send_timeout(chunk, self.app.patience).await.map_err(|_| Gone)?;
        self.sent = Instant::now();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_has_the_members_of_its_event_as_they_are() {
        let members = Members::from([
            ("a \"b\"".to_owned(), text("line\nfeed")),
            ("n".to_owned(), Payload::from_json("12345678901234567890")),
        ]);
        let json = object(&members);
        assert_eq!(json, "{\"a \\\"b\\\"\":\"line\\nfeed\",\"n\":12345678901234567890}");
        assert_eq!(serde_json::from_str::<Members>(&json).unwrap(), members);
    }
}
