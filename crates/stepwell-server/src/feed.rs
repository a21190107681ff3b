//! The history as it grows, for many at once.
//!
//! ```text
//!   store ──▶ tail (one, while anybody listens) ──▶ ring ──▶ follower ──▶ client
//!     └──────────── what came before, and what a follower was too slow for ──▲
//! ```
//!
//! Events have numbers that grow, and whoever has read up to one never finds anything new below it.
//! So a follower that knows the last number that it gave misses nothing, wherever it reads on: in
//! the ring, or in the store.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::future::select;
use serde::Serialize;
use stepwell::{CancellationToken, HistoryEntry, HistoryFilter, Payload, Scope, TaskId};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, broadcast, mpsc};
use tokio::time::Instant;

use crate::app::{App, Known};
use crate::counts::{Counted, Counts};
use crate::problem::Problem;

/// How many events are read at once.
const PAGE: usize = 1_000;
/// How many pages a follower may be behind before it goes back to the store.
const RING: usize = 64;
/// How often the store is asked for more.
const POLL: Duration = Duration::from_millis(50);
/// How long a stream may last. Its client comes again, and is asked again who it is.
const LIFE: Duration = Duration::from_secs(600);
/// How many chunks wait for a client.
const BUFFERED: usize = 4;

/// An event as it is sent.
pub(crate) struct Frame {
    id: u64,
    task_id: TaskId,
    text: Bytes,
}

/// Events that follow each other.
pub(crate) struct Page {
    frames: Vec<Frame>,
    /// All of them, for those who want all.
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

fn text<T: Serialize + ?Sized>(value: &T) -> Payload {
    serde_json::to_string(value).map_or_else(|_| Payload::null(), Payload::from_json)
}

impl Frame {
    fn new(entry: &HistoryEntry) -> Self {
        let HistoryEntry { id, at, task_id, event } = entry;
        let (name, mut data) = match event {
            // The event is an object of one member, which is called as the event is, and holds what
            // it tells.
            Ok(event) => {
                // Its members stay text, so that no number in them is rounded.
                let named = serde_json::to_string(event).unwrap_or_default();
                let told =
                    serde_json::from_str::<BTreeMap<String, Members>>(&named).unwrap_or_default();
                (event.name(), told.into_values().next().unwrap_or_default())
            }
            Err(error) => {
                ("unreadable", Members::from([("reason".to_owned(), text(&error.to_string()))]))
            }
        };
        data.extend([
            ("id".to_owned(), text(id)),
            ("at".to_owned(), text(at)),
            ("task_id".to_owned(), text(task_id)),
            ("event".to_owned(), text(name)),
        ]);
        let data = text(&data);
        let text = format!("id: {id}\nevent: {name}\ndata: {data}\n\n");
        Self { id: *id, task_id: *task_id, text: text.into() }
    }
}

/// Shares one reader of the history among all who follow it.
#[derive(Default)]
pub(crate) struct Feed {
    /// There while somebody reads the end of the history for it.
    ring: Mutex<Option<broadcast::Sender<Arc<Page>>>>,
}

impl Feed {
    /// What comes from now on: all that is not in the store yet.
    async fn listen(&self, app: &Arc<App>) -> Result<broadcast::Receiver<Arc<Page>>, Problem> {
        let mut ring = self.ring.lock().await;
        if let Some(sender) = &*ring {
            return Ok(sender.subscribe());
        }
        let end = end_of_history(app).await?;
        let (sender, receiver) = broadcast::channel(RING);
        *ring = Some(sender.clone());
        tokio::spawn(tail(app.clone(), sender, end));
        Ok(receiver)
    }
}

/// The number of the last event that there is.
pub(crate) async fn end_of_history(app: &App) -> Result<u64, Problem> {
    last_of_history(app, |_| true).await
}

/// The number of the last event of those that are so: all up to one of them.
pub(crate) async fn last_of_history(
    app: &App,
    is_so: impl Fn(&HistoryEntry) -> bool,
) -> Result<u64, Problem> {
    // The store reads forwards only; what is behind a number is found at once.
    let (mut low, mut high) = (0, i64::MAX.unsigned_abs());
    while low < high {
        let middle = low + (high - low) / 2;
        let behind = HistoryFilter { task_id: None, after: middle, limit: 1 };
        match app.client.history(behind).await?.first() {
            Some(entry) if is_so(entry) => low = entry.id,
            _ => high = middle,
        }
    }
    Ok(low)
}

/// Reads what comes, while anybody listens.
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
            Vec::new()
        });
        match entries.last() {
            Some(entry) => last = entry.id,
            None if app.closing.is_cancelled() => return,
            None => {
                tokio::time::sleep(POLL).await;
                continue;
            }
        }
        let _ = ring.send(Arc::new(Page::new(&entries)));
    }
}

/// Which events somebody follows.
pub(crate) struct Follow {
    pub(crate) task_id: Option<TaskId>,
    /// Those that came behind this number; from now on when `None`.
    pub(crate) after: Option<u64>,
    pub(crate) which: Which,
    /// Ends the stream.
    pub(crate) until: CancellationToken,
}

/// How many streams there may be.
pub(crate) struct Streams {
    all: Arc<Semaphore>,
    of_scopes: Counts<Scope>,
    per_scope: usize,
}

/// A stream's place among them.
struct Place {
    _of_all: OwnedSemaphorePermit,
    _of_scope: Option<Counted<Scope>>,
}

impl Streams {
    pub(crate) fn new(all: usize) -> Self {
        let per_scope = all.div_ceil(4);
        Self { all: Arc::new(Semaphore::new(all)), of_scopes: Counts::default(), per_scope }
    }

    /// A place for a stream of somebody in that scope, if there is one.
    fn enter(&self, scope: &Scope) -> Option<Place> {
        let of_scope = match scope.is_all() {
            true => None,
            false => Some(self.of_scopes.enter(scope.clone(), self.per_scope)?),
        };
        Some(Place { _of_all: self.all.clone().try_acquire_owned().ok()?, _of_scope: of_scope })
    }
}

/// Whose events pass.
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

/// Somebody has stopped reading, or the store has stopped answering. Either way the client comes
/// again, with the last number that it has seen.
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

/// Begins to follow; what is received is to be sent as it is.
pub(crate) async fn follow(
    app: &Arc<App>,
    scope: &Scope,
    follow: Follow,
) -> Result<mpsc::Receiver<Bytes>, Problem> {
    let place = app.streams.enter(scope);
    let place = place
        .ok_or_else(|| Problem::busy("too many streams of events are open: try again later"))?;
    // Before the store is read: nothing can come between.
    let live = app.feed.listen(app).await?;
    let last = match follow.after {
        Some(after) => after,
        None => end_of_history(app).await?,
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
        // Until the client is gone, whether there is something for it or not.
        let _ = select(pin!(following), pin!(reader.closed())).await;
    });
    Ok(receiver)
}

struct Follower {
    app: Arc<App>,
    follow: Follow,
    /// The number of the last event that was looked at.
    last: u64,
    sender: mpsc::Sender<Bytes>,
    /// When something was sent last.
    sent: Instant,
    /// How soon a sign of life follows it.
    sign_every: Duration,
}

impl Follower {
    async fn run(&mut self, mut live: broadcast::Receiver<Arc<Page>>) -> Result<(), Gone> {
        // So that a client that comes again before the first event knows from where.
        self.send(Bytes::from(format!("retry: 1000\nid: {}\n\n", self.last))).await?;
        loop {
            // What the store has, up to what comes live.
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

    /// Gives a page of what the store has. Whether there was any: a page that is not full is not
    /// the last, since the store leaves out what it cannot read.
    async fn read_on(&mut self) -> Result<bool, Gone> {
        let filter = HistoryFilter { task_id: self.follow.task_id, after: self.last, limit: PAGE };
        let entries = self.app.client.history(filter).await?;
        self.give(&Page::new(&entries)).await?;
        if self.sent.elapsed() > self.sign_every {
            self.sign().await?;
        }
        Ok(!entries.is_empty())
    }

    /// A sign of life, so that those between do not take the connection for dead. It tells how far
    /// this has come: a client that comes again goes on there, though none of what was looked
    /// at was for it.
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
