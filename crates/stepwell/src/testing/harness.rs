//! A world for a test that decides itself what happens, and when.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use stepwell_core::{Error, MemoryStore, Runtime, Store, Timestamp, WorkerOptions};

use super::dice::Dice;
use super::runtime::{Clock, TestRuntime};
use crate::durable::{Durable, DurableBuilder};

/// A world for a test: a clock, and a store that outlives the processes that use it. The test needs
/// a paused clock: `#[tokio::test(start_paused = true)]`.
pub struct Harness {
    clock: Arc<Clock>,
    store: MemoryStore,
}

impl Default for Harness {
    fn default() -> Self {
        Self::new()
    }
}

impl Harness {
    /// Makes an empty world, whose clock starts on 1 January 2026.
    pub fn new() -> Self {
        let clock = Arc::new(Clock::new());
        let store = MemoryStore::new(runtime(&clock));
        Self { clock, store }
    }

    /// Starts a process on the store, with the default options.
    pub async fn start(&self) -> Process {
        // `build` fails only for a database that cannot be opened and for invalid values, and the
        // defaults have neither.
        match self.start_with(|builder| builder).await {
            Ok(process) => process,
            Err(error) => unreachable!("{error}"),
        }
    }

    /// Starts a process on the store, with options.
    ///
    /// # Errors
    /// The errors of [`DurableBuilder::build`].
    pub async fn start_with(
        &self,
        build: impl FnOnce(DurableBuilder) -> DurableBuilder,
    ) -> Result<Process, Error> {
        self.start_on(Arc::new(self.store.connect()), build).await
    }

    /// Starts a process on another store, such as one that wraps the harness's store to inject
    /// faults.
    ///
    /// # Errors
    /// The errors of [`DurableBuilder::build`].
    pub async fn start_on(
        &self,
        store: Arc<dyn Store>,
        build: impl FnOnce(DurableBuilder) -> DurableBuilder,
    ) -> Result<Process, Error> {
        let runtime = runtime(&self.clock);
        let builder = Durable::builder().store(store).runtime(runtime.clone());
        // A store that answers from another thread takes no virtual time, and the clock would pass
        // the timeout before the answer.
        let builder = builder.answer_timeout(Duration::MAX);
        Ok(Process { client: build(builder).build().await?, runtime })
    }

    /// Returns another connection to the store.
    pub fn store(&self) -> MemoryStore {
        self.store.connect()
    }

    /// Returns a runtime on the harness's clock, for a store that the test opens itself.
    pub fn runtime(&self) -> Arc<dyn Runtime> {
        runtime(&self.clock)
    }

    /// Returns the time of the harness's clock.
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Sets the wall clock forward, or back for a negative number, as an administrator might.
    /// Timers in progress do not change.
    pub fn jump(&self, micros: i64) {
        self.clock.jump(micros);
    }
}

/// Returns the runtime of a process. The seed of the runtime is random, because two processes must
/// not make the same ids.
fn runtime(clock: &Arc<Clock>) -> Arc<TestRuntime> {
    Arc::new(TestRuntime::new(clock.clone(), Dice::new(rand::random())))
}

/// Returns options for a worker in virtual time. The worker polls once an hour, and its lease is a
/// day, so that months of virtual time pass quickly.
pub fn worker_options() -> WorkerOptions {
    const HOUR: Duration = Duration::from_secs(3600);
    WorkerOptions::new().poll_interval(HOUR).lease(24 * HOUR).claim_timeout(10_000 * HOUR)
}

/// A process of a harness: a client that can be killed.
pub struct Process {
    client: Durable,
    runtime: Arc<TestRuntime>,
}

impl Process {
    /// Ends the process as `kill -9` does: all that it runs stops where it is, and the store
    /// receives no further call. What the process has committed stays.
    pub async fn kill(self) {
        self.runtime.life().end();
        self.runtime.life().ended().await;
    }

    /// Returns the client of the process.
    pub fn client(&self) -> &Durable {
        &self.client
    }
}

impl Deref for Process {
    type Target = Durable;

    fn deref(&self) -> &Durable {
        &self.client
    }
}
