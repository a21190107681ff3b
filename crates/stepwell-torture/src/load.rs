//! The tasks of a window. Tasks are spawned all the time, so that work never runs out. Tasks are
//! collected as they end, so that they may be purged.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use futures_util::future::try_join_all;
use stepwell::{Durable, Entry, Error, QueueLimits, Schedule, TaskId, TaskInfo, TaskState};
use tokio::task::{JoinSet, block_in_place};

use crate::place::{Event, Place};
use crate::programs::answered;
use crate::work::{Kind, NARROW, TALK, WIDTH, Work, tortured};

/// The interval at which the host collects ended tasks and spawns more.
const LOOK: Duration = Duration::from_millis(20);
/// The number of rows of the chronicle that may be committed later than a row with a higher number.
const OVERTAKEN: u64 = 2_000;
/// The name of the schedule.
const SCHEDULE: &str = "ticks";
/// The time for which tasks are kept after their end before they are purged. A client that spawned
/// with an idempotency key may spawn again within this time.
const KEPT: Duration = Duration::from_secs(10);

/// A task that has ended.
#[derive(Clone, Debug)]
pub(crate) struct Ended {
    pub(crate) work: Work,
    pub(crate) info: TaskInfo,
    pub(crate) journal: Vec<Entry>,
}

/// The host's knowledge of the window's tasks.
#[derive(Default)]
pub(crate) struct Books {
    next: u64,
    /// The tasks that the host has spawned, in the order of the answers.
    pub(crate) spawned: Vec<(TaskId, Work)>,
    /// The spawned tasks that have not ended.
    live: HashMap<TaskId, Kind>,
    pub(crate) ended: BTreeMap<TaskId, Ended>,
    /// The tasks that the host has asked to cancel at random.
    pub(crate) cancelled: HashSet<TaskId>,
    pub(crate) purged: u64,
    pub(crate) retried: u64,
    pub(crate) paused: u64,
    /// The place in the chronicle up to which all ends are known, and the time at which that was
    /// so.
    seen: u64,
    known: HashSet<u64>,
    caught_up: Option<Instant>,
    last_end: Option<Instant>,
}

/// The window's tasks.
pub(crate) struct Load {
    client: Durable,
    place: Arc<Place>,
    /// The maximum number of tasks of each kind that may wait or run.
    caps: Vec<(Kind, usize)>,
    over: AtomicBool,
    /// Allows that accepted tasks are lost with a server.
    lossy: bool,
    books: Mutex<Books>,
    /// The lock that is held while ends are collected, or while they must not be.
    collecting: tokio::sync::Mutex<()>,
    /// The calls that run in the background: messages, cancellations, retries, pauses.
    errands: tokio::sync::Mutex<JoinSet<Result<()>>>,
}

impl Load {
    pub(crate) async fn begin(
        client: Durable,
        place: Arc<Place>,
        caps: Vec<(Kind, usize)>,
        lossy: bool,
    ) -> Result<Arc<Self>> {
        let limits = QueueLimits { max_running: Some(WIDTH), ..QueueLimits::default() };
        answered(|| client.queues().limit(NARROW, limits)).await?;
        if caps.iter().any(|(kind, _)| *kind == Kind::Tick) {
            let schedule = || Schedule::every(SCHEDULE, Duration::from_secs(1));
            answered(|| client.schedules().put::<tortured>(schedule(), Work::new(Kind::Tick, 0)))
                .await?;
        }
        let (over, books) = (AtomicBool::new(false), Mutex::default());
        let (collecting, errands) = Default::default();
        Ok(Arc::new(Self { client, place, caps, over, lossy, books, collecting, errands }))
    }

    pub(crate) fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn client(&self) -> &Durable {
        &self.client
    }

    /// Spawns tasks until the window is over.
    pub(crate) async fn spawn(self: Arc<Self>) -> Result<()> {
        while !self.over.load(Ordering::Relaxed) {
            for &(kind, cap) in self.caps.iter().filter(|(kind, _)| *kind != Kind::Tick) {
                while self.books().live.values().filter(|live| **live == kind).count() < cap {
                    self.spawn_one(kind).await?;
                }
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    async fn spawn_work(&self, work: Work) -> Result<TaskId> {
        // A spawn without an answer may have spawned a task, so the key must be the same.
        let options = || work.options().idempotency_key(format!("{:?}-{}", work.kind, work.number));
        let spawned =
            answered(|| self.client.spawn::<tortured>(work.clone()).options(options())).await?;
        let mut books = self.books();
        books.live.insert(spawned.task_id, work.kind);
        books.spawned.push((spawned.task_id, work));
        Ok(spawned.task_id)
    }

    async fn spawn_one(self: &Arc<Self>, kind: Kind) -> Result<()> {
        let number = {
            let mut books = self.books();
            books.next += 1;
            books.next
        };
        let work = Work::new(kind, number);
        let task = self.spawn_work(work.clone()).await?;
        let own = self.clone();
        match kind {
            Kind::Listener => {
                self.spawn_work(Work { kind: Kind::Teller, whom: Some(task), ..work }).await?;
                self.beside(async move {
                    for number in 0..TALK {
                        let message = ("host", number);
                        answered(|| own.client.send(task, "talk", &message)).await?;
                        tokio::time::sleep(LOOK.mul_f64(rand::random())).await;
                    }
                    Ok(())
                })
                .await;
            }
            Kind::Saga if number % 3 == 2 => {
                self.beside(async move {
                    tokio::time::sleep((LOOK * 20).mul_f64(rand::random())).await;
                    Ok(answered(|| own.client.cancel(task)).await?)
                })
                .await;
            }
            _ => {}
        }
        Ok(())
    }

    async fn beside(&self, errand: impl Future<Output = Result<()>> + Send + 'static) {
        self.errands.lock().await.spawn(errand);
    }

    /// Returns a random task of a kind that has not ended.
    fn any(&self, kind: Kind) -> Option<TaskId> {
        let books = self.books();
        let all: Vec<_> =
            books.live.iter().filter(|(_, live)| **live == kind).map(|(task, _)| *task).collect();
        (!all.is_empty()).then(|| all[rand::random::<u64>() as usize % all.len()])
    }

    /// Pauses a task as a client, and resumes it later.
    pub(crate) async fn pause(self: &Arc<Self>) {
        let (own, Some(task)) = (self.clone(), self.any(Kind::Plain)) else { return };
        self.books().paused += 1;
        self.beside(async move {
            allowed(answered(|| own.client.pause(task)).await)?;
            tokio::time::sleep((LOOK * 20).mul_f64(rand::random())).await;
            allowed(answered(|| own.client.resume(task)).await)
        })
        .await;
    }

    /// Cancels a task that has children, as a client.
    pub(crate) async fn cancel(self: &Arc<Self>) {
        let (own, Some(task)) = (self.clone(), self.any(Kind::Family)) else { return };
        self.books().cancelled.insert(task);
        self.beside(async move { allowed(answered(|| own.client.cancel(task)).await) }).await;
    }

    /// Purges the tasks that completed some time ago and were collected since, as a client.
    pub(crate) async fn purge(&self) -> Result<()> {
        let Some(caught_up) = self.books().caught_up else { return Ok(()) };
        // The time is computed in each try, because nothing is collected while the store is away.
        let purge = || self.client.purge(KEPT + caught_up.elapsed(), Some(TaskState::Completed));
        let purged = answered(purge).await?;
        self.books().purged += purged as u64;
        Ok(())
    }

    /// Collects tasks as they end, until the future is aborted.
    pub(crate) async fn follow(self: Arc<Self>) -> Result<()> {
        loop {
            self.collect().await?;
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Collects the tasks that have ended since the last call.
    async fn collect(self: &Arc<Self>) -> Result<()> {
        let _collecting = self.collecting.lock().await;
        // Ends that an open transaction has written are visible to the next call.
        let open = block_in_place(|| self.place.oldest_transaction())?;
        let begun = Instant::now().checked_sub(open);
        while let Some(errand) = self.errands.lock().await.try_join_next() {
            errand??;
        }
        let from = self.books().seen.saturating_sub(OVERTAKEN);
        let rows = block_in_place(|| self.place.chronicle(from, true))?;
        let new: Vec<_> = {
            let mut books = self.books();
            let books = &mut *books;
            books.seen = rows.last().map_or(books.seen, |row| books.seen.max(row.number));
            let new = rows.into_iter().filter(|row| books.known.insert(row.number)).collect();
            // The next call reads from this number on, because the present rows have been read
            // completely.
            let least = books.seen.saturating_sub(OVERTAKEN);
            books.known.retain(|number| *number >= least);
            new
        };
        for rows in new.chunks(32) {
            let read = rows.iter().map(|row| async move {
                let info = answered(|| self.client.task(row.task)).await?;
                anyhow::Ok((row, info, answered(|| self.client.journal(row.task)).await?))
            });
            for (row, info, journal) in try_join_all(read).await? {
                let Some(info) = info else {
                    anyhow::ensure!(self.lossy, "task {} has ended, and is gone", row.task);
                    continue;
                };
                let work: Work = info.params.decode()?;
                // The task will have another end.
                if work.kind == Kind::Flaky && row.what == Event::State("failed".into()) {
                    self.books().retried += 1;
                    let (own, task) = (self.clone(), row.task);
                    self.beside(async move { allowed(answered(|| own.client.retry(task)).await) })
                        .await;
                    continue;
                }
                let mut books = self.books();
                books.live.remove(&row.task);
                books.last_end = Some(Instant::now());
                books.ended.insert(row.task, Ended { work, info, journal });
            }
        }
        self.books().caught_up = begun;
        Ok(())
    }

    /// Fails when an accepted task that has not ended does not exist.
    pub(crate) async fn find_the_lost(&self) -> Result<()> {
        let live: Vec<_> = self.books().live.iter().map(|(task, kind)| (*task, *kind)).collect();
        for (task, kind) in live {
            let found = answered(|| self.client.task(task)).await?.is_some();
            let wanted = self.books().live.contains_key(&task);
            anyhow::ensure!(found || !wanted, "task {task} ({kind:?}) was accepted, and is gone");
        }
        Ok(())
    }

    /// Returns how long ago the last task has ended.
    pub(crate) fn idle(&self) -> Option<Duration> {
        self.books().last_end.map(|at| at.elapsed())
    }

    /// Prevents the collection of ends while the guard is held.
    pub(crate) async fn hold(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.collecting.lock().await
    }

    /// Reads all tasks again from a server that lacks the last commits. Returns how many accepted
    /// tasks are gone.
    pub(crate) async fn learn_anew(&self) -> Result<usize> {
        let all = {
            let mut books = self.books();
            (books.seen, books.known, books.ended) = Default::default();
            books.spawned.clone()
        };
        let mut gone = HashSet::new();
        for (task, _) in &all {
            if answered(|| self.client.task(*task)).await?.is_none() {
                gone.insert(*task);
            }
        }
        let mut books = self.books();
        books.spawned.retain(|(task, _)| !gone.contains(task));
        books.live.retain(|task, _| !gone.contains(task));
        Ok(gone.len())
    }

    /// Ends the spawning of tasks.
    pub(crate) async fn end(&self) -> Result<()> {
        self.over.store(true, Ordering::Relaxed);
        if self.caps.iter().any(|(kind, _)| *kind == Kind::Tick) {
            answered(|| self.client.schedules().delete(SCHEDULE)).await?;
        }
        Ok(())
    }

    /// Waits for the calls that run in the background.
    pub(crate) async fn join_errands(&self) -> Result<()> {
        let mut errands = self.errands.lock().await;
        while let Some(errand) = errands.join_next().await {
            errand??;
        }
        Ok(())
    }

    /// Returns some of the tasks that have not ended.
    pub(crate) async fn unfinished(&self) -> Result<Vec<TaskInfo>> {
        let mut all = Vec::new();
        for state in TaskState::ALL.into_iter().filter(|state| !state.is_finished()) {
            let filter =
                stepwell::TaskFilter { state: Some(state), limit: 10, ..Default::default() };
            all.extend(answered(|| self.client.tasks(filter.clone())).await?);
        }
        Ok(all)
    }

    /// Returns whether every spawned task has ended and was collected.
    pub(crate) async fn is_done(self: &Arc<Self>) -> Result<bool> {
        self.collect().await?;
        self.join_errands().await?;
        Ok(self.unfinished().await?.is_empty() && {
            self.collect().await?;
            self.errands.lock().await.is_empty() && self.unfinished().await?.is_empty()
        })
    }

    /// Removes all tasks.
    pub(crate) async fn remove_all(&self) -> Result<()> {
        // A purge does not reach tasks that ended within this microsecond, by a clock that may be
        // ahead.
        for _ in 0..50 {
            let purged = answered(|| self.client.purge(Duration::ZERO, None)).await?;
            self.books().purged += purged as u64;
            let left = block_in_place(|| self.place.left())?;
            if left.is_empty() {
                return Ok(());
            }
            tokio::time::sleep(LOOK).await;
        }
        self.delete_rest().await
    }

    /// Deletes the tasks that a purge does not reach, because a wrong clock has ended them in the
    /// future.
    async fn delete_rest(&self) -> Result<()> {
        let filter = stepwell::TaskFilter { limit: 1_000, ..Default::default() };
        loop {
            let tasks = answered(|| self.client.tasks(filter.clone())).await?;
            if tasks.items.is_empty() {
                let left = block_in_place(|| self.place.left())?;
                return if left.is_empty() {
                    Ok(())
                } else {
                    bail!("all tasks are purged, and there is left: {left:?}")
                };
            }
            for task in tasks {
                answered(|| self.client.delete(task.task_id)).await?;
            }
        }
    }
}

/// Accepts the errors of a call whose task may have ended.
fn allowed(answer: Result<(), Error>) -> Result<()> {
    match answer {
        Err(Error::NotAllowed { .. } | Error::NotFound(_)) => Ok(()),
        answer => Ok(answer?),
    }
}
