//! The beginning of a point: an empty database, and handles on it.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use stepwell_core::{Runtime as _, Timestamp, after};
use tokio::sync::Barrier;

use crate::backend::Backend;
use crate::clock::Clock;
use crate::handle::Handle;

/// An empty database and its clock.
pub(crate) struct Setup<'a, B: Backend> {
    backend: &'a B,
    /// The only handle, where a database cannot have more. The handle is dropped before its
    /// database.
    only: Option<Handle>,
    database: B::Database,
    pub(crate) clock: Arc<Clock>,
}

impl<'a, B: Backend> Setup<'a, B> {
    pub(crate) async fn new(backend: &'a B) -> Self {
        let mut setup =
            Self { backend, only: None, database: backend.create().await, clock: Clock::new() };
        if !backend.is_shared() {
            setup.only = Some(setup.handle().await);
        }
        setup
    }

    /// Creates a database, and returns it with its first handle.
    pub(crate) async fn with_handle(backend: &'a B) -> (Self, Handle) {
        let setup = Self::new(backend).await;
        let handle = setup.handle().await;
        (setup, handle)
    }

    /// Returns a further handle, where the backend allows it.
    pub(crate) async fn handle(&self) -> Handle {
        match &self.only {
            Some(only) => only.clone(),
            None => Handle(self.backend.connect(&self.database, self.clock.clone()).await),
        }
    }

    pub(crate) async fn handles(&self, count: usize) -> Vec<Handle> {
        let mut handles = Vec::new();
        for _ in 0..count {
            handles.push(self.handle().await);
        }
        handles
    }

    pub(crate) fn advance(&self, duration: Duration) {
        self.clock.advance(duration);
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Returns the moment that is this far from now.
    pub(crate) fn at(&self, duration: Duration) -> Timestamp {
        after(self.now(), duration)
    }
}

/// Starts all futures at once, on several threads, and returns their results in the same order.
pub(crate) async fn together<T, F>(futures: impl IntoIterator<Item = F>) -> Vec<T>
where
    T: Send + 'static,
    F: Future<Output = T> + Send + 'static,
{
    let futures: Vec<_> = futures.into_iter().collect();
    let barrier = Arc::new(Barrier::new(futures.len()));
    let begin = |future: F| {
        let barrier = barrier.clone();
        tokio::spawn(async move {
            barrier.wait().await;
            future.await
        })
    };
    let running: Vec<_> = futures.into_iter().map(begin).collect();
    let mut results = Vec::new();
    for task in running {
        match task.await {
            Ok(result) => results.push(result),
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
    results
}

/// Returns the rounds of a race: 200 with a fast store, and with a slow one as many as fit into
/// five seconds, but at least 15.
pub(crate) fn rounds() -> impl Iterator<Item = u128> {
    let begin = Instant::now();
    (0..200).take_while(move |round| *round < 15 || begin.elapsed() < Duration::from_secs(5))
}
