//! The [`Runtime`] of tests: a clock that tests set, and a process that can freeze and die.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use stepwell_core::{BoxFuture, Runtime, Timestamp, from_micros};
use tokio::runtime::{Handle, Id};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::dice::Dice;

pub(super) struct Clock {
    /// The tokio runtime in which time is virtual.
    runtime: Option<Id>,
    start: Instant,
    /// The sum of all jumps, in microseconds, which is added to the time that has passed.
    jumped: AtomicI64,
    /// The rate by which the clock is too fast, in millionths.
    drift: AtomicI64,
    /// The time that had passed, in microseconds, at the last read within the runtime of virtual
    /// time.
    read: AtomicI64,
    /// The latest time that the clock has shown.
    latest: AtomicI64,
}

impl Clock {
    pub(super) fn new() -> Self {
        let zero = || AtomicI64::new(0);
        let runtime = Handle::try_current().ok().map(|handle| handle.id());
        Self {
            runtime,
            start: Instant::now(),
            jumped: zero(),
            drift: zero(),
            read: zero(),
            latest: zero(),
        }
    }

    /// Returns how long the world has existed.
    pub(super) fn passed(&self) -> Duration {
        Duration::from_micros(u64::try_from(self.read()).unwrap_or(0))
    }

    /// Returns how many microseconds have passed. A store's thread, which is outside of the runtime
    /// or in another one, gets the time of the last read within the runtime.
    fn read(&self) -> i64 {
        if Handle::try_current().map(|handle| handle.id()).ok() != self.runtime {
            return self.read.load(Ordering::SeqCst);
        }
        let passed = i64::try_from(self.start.elapsed().as_micros()).unwrap_or(i64::MAX);
        self.read.store(passed, Ordering::SeqCst);
        passed
    }

    pub(super) fn now(&self) -> Timestamp {
        const START_OF_2026: i64 = 1_767_225_600_000_000;
        let passed = self.read();
        let drifted = passed / 1_000_000 * self.drift.load(Ordering::Relaxed);
        let now =
            (START_OF_2026 + passed + drifted).saturating_add(self.jumped.load(Ordering::SeqCst));
        self.latest.fetch_max(now, Ordering::SeqCst);
        from_micros(now)
    }

    pub(super) fn latest(&self) -> Timestamp {
        self.now();
        from_micros(self.latest.load(Ordering::SeqCst))
    }

    pub(super) fn jump(&self, micros: i64) {
        // The time until now counts among the times that the clock has shown.
        self.now();
        self.jumped.fetch_add(micros, Ordering::SeqCst);
        self.now();
    }

    pub(super) fn set_drift(&self, millionths: i64) {
        self.drift.store(millionths, Ordering::Relaxed);
    }
}

/// The state of a process: alive, frozen or dead.
#[derive(Default)]
pub(super) struct Life {
    killed: CancellationToken,
    dead: AtomicBool,
    tracker: TaskTracker,
    /// The number of freezes that are not over.
    frozen: AtomicUsize,
    waiting: Mutex<Vec<Waker>>,
}

impl Life {
    pub(super) fn is_dead(&self) -> bool {
        self.dead.load(Ordering::SeqCst)
    }

    /// Ends all that the process runs, at the latest when it is polled next.
    pub(super) fn end(&self) {
        self.dead.store(true, Ordering::SeqCst);
        self.killed.cancel();
        self.wake();
        self.tracker.close();
    }

    pub(super) async fn ended(&self) {
        self.tracker.wait().await;
    }

    pub(super) fn freeze(&self) {
        self.frozen.fetch_add(1, Ordering::SeqCst);
    }

    pub(super) fn thaw(&self) {
        if self.frozen.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.wake();
        }
    }

    fn wake(&self) {
        let waiting =
            std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        waiting.into_iter().for_each(Waker::wake);
    }

    fn holds_up(&self, waker: &Waker) -> bool {
        let frozen = self.frozen.load(Ordering::SeqCst) > 0;
        if frozen {
            self.waiting.lock().unwrap_or_else(PoisonError::into_inner).push(waker.clone());
        }
        frozen
    }
}

/// The runtime of one process.
pub(super) struct TestRuntime {
    clock: Arc<Clock>,
    random: Dice,
    life: Arc<Life>,
    /// The difference of the process's own clock, in microseconds.
    offset: i64,
    /// The dice that decide which futures yield their turn.
    turns: Option<Arc<Dice>>,
}

impl TestRuntime {
    pub(super) fn new(clock: Arc<Clock>, random: Dice) -> Self {
        Self { clock, random, life: Arc::default(), offset: 0, turns: None }
    }

    /// Returns a runtime whose clock has an offset, and whose futures sometimes yield their turn.
    pub(super) fn simulated(
        clock: Arc<Clock>,
        random: Dice,
        offset: i64,
        turns: Arc<Dice>,
    ) -> Self {
        Self { offset, turns: Some(turns), ..Self::new(clock, random) }
    }

    pub(super) fn life(&self) -> &Arc<Life> {
        &self.life
    }
}

impl Runtime for TestRuntime {
    fn now(&self) -> Timestamp {
        from_micros(self.clock.now().as_microsecond().saturating_add(self.offset))
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(duration))
    }

    fn spawn(&self, future: BoxFuture<'static, ()>) {
        let (killed, turns, life) =
            (self.life.killed.clone(), self.turns.clone(), self.life.clone());
        let future = async move {
            let future = Turns { future, life, turns };
            killed.run_until_cancelled(future).await.unwrap_or_default();
        };
        self.life.tracker.spawn(tokio::task::unconstrained(future));
    }

    fn random(&self) -> u64 {
        self.random.any()
    }
}

/// A future that sometimes yields to others, and stops while its process is frozen.
struct Turns {
    future: BoxFuture<'static, ()>,
    life: Arc<Life>,
    turns: Option<Arc<Dice>>,
}

/// The number of polls of which one, on average, yields instead.
const GIVES_UP: u64 = 5;

impl Future for Turns {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.life.holds_up(cx.waker()) {
            return Poll::Pending;
        }
        if self.turns.as_ref().is_some_and(|turns| turns.one_in(GIVES_UP)) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.future.as_mut().poll(cx)
    }
}
