//! The commits of other connections, for callers that wait for them.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use tokio::sync::watch;

/// A counter of other connections' commits. A change that comes while no call waits is returned to
/// the next call.
pub(crate) struct Changes {
    count: watch::Sender<u64>,
    told: AtomicU64,
    watchers: AtomicUsize,
}

impl Changes {
    pub(crate) fn new() -> Self {
        Self {
            count: watch::Sender::new(0),
            told: AtomicU64::new(0),
            watchers: AtomicUsize::new(0),
        }
    }

    /// Notifies the callers that wait.
    pub(crate) fn tell(&self) {
        self.count.send_modify(|count| *count += 1);
    }

    /// Returns whether a caller waits for a change.
    pub(crate) fn are_watched(&self) -> bool {
        self.watchers.load(Ordering::SeqCst) > 0
    }

    /// Waits for a change since the last call. `wake` makes the writer look for one.
    pub(crate) async fn next(&self, wake: impl FnOnce()) {
        let _watching = Watching::begin(&self.watchers);
        let mut count = self.count.subscribe();
        wake();
        loop {
            let found = *count.borrow_and_update();
            if self.told.swap(found, Ordering::SeqCst) != found {
                return;
            }
            // `self` owns the sender, so it exists.
            if count.changed().await.is_err() {
                return;
            }
        }
    }
}

/// A watcher, which counts until it is dropped.
struct Watching<'a>(&'a AtomicUsize);

impl<'a> Watching<'a> {
    fn begin(watchers: &'a AtomicUsize) -> Self {
        watchers.fetch_add(1, Ordering::SeqCst);
        Self(watchers)
    }
}

impl Drop for Watching<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}
