//! The waker of a task's future, which also wakes the executor.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Wake, Waker};

use futures_util::task::AtomicWaker;

/// Wakes the executor of a run, and remembers that the task's future asked for it.
///
/// A delivery wakes the future within the executor's own poll. Such a wake must not reach the
/// runtime, which would queue the task once more, and mostly wake another thread for it. The
/// executor therefore leaves its waker here only while it sleeps.
#[derive(Default)]
pub(crate) struct RunWaker {
    /// Set when the future has to be polled.
    woken: AtomicBool,
    /// Set when the executor has to look again.
    nudged: AtomicBool,
    executor: AtomicWaker,
}

impl RunWaker {
    pub(crate) fn register(&self, waker: &Waker) {
        self.executor.register(waker);
    }

    /// Takes the executor's waker away, because the executor looks by itself from now on.
    pub(crate) fn take(&self) {
        drop(self.executor.take());
    }

    /// Clears the flag, because the executor is about to see everything that happened until now.
    pub(crate) fn look(&self) {
        self.nudged.swap(false, Ordering::AcqRel);
    }

    /// Returns whether the executor can sleep, because nothing has happened since it began to look.
    ///
    /// The waker wakes it.
    pub(crate) fn can_sleep(&self, waker: &Waker) -> bool {
        self.executor.register(waker);
        !self.nudged.load(Ordering::Acquire)
    }

    pub(crate) fn wake_executor(&self) {
        self.nudged.store(true, Ordering::Release);
        self.executor.wake();
    }

    pub(crate) fn take_woken(&self) -> bool {
        self.woken.swap(false, Ordering::AcqRel)
    }

    pub(crate) fn is_woken(&self) -> bool {
        self.woken.load(Ordering::Acquire)
    }
}

impl Wake for RunWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.woken.swap(true, Ordering::AcqRel) {
            self.wake_executor();
        }
    }
}
