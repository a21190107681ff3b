//! A world for a test that says itself what happens in it, and when.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use stepwell_core::{Error, MemoryStore, Runtime, Store, Timestamp, WorkerOptions};

use super::dice::Dice;
use super::runtime::{Clock, TestRuntime};
use crate::durable::{Durable, DurableBuilder};

/// A world for a test: a clock, and a store that outlives the processes that use it. To be used in
/// a test with a paused clock: `#[tokio::test(start_paused = true)]`.
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
    /// An empty world, on 1 January 2026.
    pub fn new() -> Self {
        let clock = Arc::new(Clock::new());
        let store = MemoryStore::new(runtime(&clock));
        Self { clock, store }
    }

    /// A new process on the store, with the defaults.
    pub async fn start(&self) -> Process {
        // Only a database that cannot be opened and invalid names are errors, and there are none.
        match self.start_with(|builder| builder).await {
            Ok(process) => process,
            Err(error) => unreachable!("{error}"),
        }
    }

    /// A new process on the store.
    ///
    /// # Errors
    /// As [`DurableBuilder::build`].
    pub async fn start_with(
        &self,
        build: impl FnOnce(DurableBuilder) -> DurableBuilder,
    ) -> Result<Process, Error> {
        self.start_on(Arc::new(self.store.connect()), build).await
    }

    /// A new process on another store, such as one that wraps the harness's own to inject faults.
    ///
    /// # Errors
    /// As [`DurableBuilder::build`].
    pub async fn start_on(
        &self,
        store: Arc<dyn Store>,
        build: impl FnOnce(DurableBuilder) -> DurableBuilder,
    ) -> Result<Process, Error> {
        let runtime = runtime(&self.clock);
        let builder = Durable::builder().store(store).runtime(runtime.clone());
        // A store that answers from another thread takes no time, and the clock does not wait for
        // it.
        let builder = builder.answer_timeout(Duration::MAX);
        Ok(Process { client: build(builder).build().await?, runtime })
    }

    /// A handle on the store.
    pub fn store(&self) -> MemoryStore {
        self.store.connect()
    }

    /// A runtime on the harness's clock, for a store that is opened by hand.
    pub fn runtime(&self) -> Arc<dyn Runtime> {
        runtime(&self.clock)
    }

    /// The time.
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Sets the wall clock forward, or back, as an administrator might. Timers in progress are not
    /// moved.
    pub fn jump(&self, micros: i64) {
        self.clock.jump(micros);
    }
}

/// A process's runtime. Processes must not make the same ids.
fn runtime(clock: &Arc<Clock>) -> Arc<TestRuntime> {
    Arc::new(TestRuntime::new(clock.clone(), Dice::new(rand::random())))
}

/// Options for a worker in virtual time. It polls and shows that it is alive so rarely (its lease
/// is a day) that months pass quickly.
pub fn worker_options() -> WorkerOptions {
    const HOUR: Duration = Duration::from_secs(3600);
    WorkerOptions::new().poll_interval(HOUR).lease(24 * HOUR).claim_timeout(10_000 * HOUR)
}

/// A process of a test's world: a client that can be killed.
pub struct Process {
    client: Durable,
    runtime: Arc<TestRuntime>,
}

impl Process {
    /// Ends the process as `kill -9` does: everything that it runs stops where it is, and nothing
    /// is told. What its store has committed stays.
    pub async fn kill(self) {
        self.runtime.life().end();
        self.runtime.life().ended().await;
    }

    /// The client.
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
