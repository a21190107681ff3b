//! Options of workers.

use std::time::Duration;

use crate::base::name::{InvalidName, MAX_NAME_BYTES, Name};
use crate::base::text::cut_off;

/// The options of a worker.
///
/// ```
/// # use std::time::Duration;
/// # use stepwell_core::WorkerOptions;
/// let options = WorkerOptions::new().concurrency(20).queues(["payments", "emails"])?;
/// # Ok::<_, stepwell_core::InvalidName>(())
/// ```
#[derive(Clone, Debug)]
pub struct WorkerOptions {
    pub(crate) concurrency: usize,
    pub(crate) queues: Vec<Name>,
    pub(crate) poll_interval: Duration,
    pub(crate) lease: Duration,
    pub(crate) claim_timeout: Duration,
    pub(crate) max_in_memory: usize,
    pub(crate) grace: Duration,
    pub(crate) shutdown_timeout: Duration,
    pub(crate) name: Option<String>,
    pub(crate) code_version: Option<Name>,
}

impl Default for WorkerOptions {
    fn default() -> Self {
        Self {
            concurrency: 256,
            queues: Vec::new(),
            poll_interval: Duration::from_secs(1),
            lease: Duration::from_secs(30),
            claim_timeout: Duration::from_secs(300),
            max_in_memory: 10_000,
            grace: Duration::from_secs(10),
            shutdown_timeout: Duration::from_secs(30),
            name: None,
            code_version: None,
        }
    }
}

impl WorkerOptions {
    /// Returns the default options.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the number of tasks that run at the same time, at least 1.
    ///
    /// Suspended tasks do not count. The default suits tasks that wait for I/O most of the time.
    /// Choose a lower number for tasks that compute, or that share a small connection pool.
    /// Default: 256.
    pub fn concurrency(mut self, tasks: usize) -> Self {
        self.concurrency = tasks.max(1);
        self
    }

    /// Sets the queues to claim from, in the order in which the worker looks at them.
    ///
    /// Without queues, the worker claims from the client's queue. Default: no queues.
    ///
    /// # Errors
    /// [`InvalidName`] when a name is empty, too long, or holds a NUL character.
    pub fn queues<Q: AsRef<str>>(
        mut self,
        queues: impl IntoIterator<Item = Q>,
    ) -> Result<Self, InvalidName> {
        self.queues = queues.into_iter().map(Name::new).collect::<Result<_, _>>()?;
        Ok(self)
    }

    /// Sets the interval at which the worker asks the store for work when it was not notified of
    /// any.
    ///
    /// The poll is a safety net: a worker is notified of work at once, and wakes for timers when
    /// they are due. Default: 1 second; at least 1 millisecond.
    pub fn poll_interval(mut self, interval: Duration) -> Self {
        self.poll_interval = interval.max(Duration::from_millis(1));
        self
    }

    /// Sets the time after which other workers declare this one dead if they have seen no heartbeat
    /// of it.
    ///
    /// The worker sends three heartbeats in that time. It sends a heartbeat again at once when the
    /// store refuses it. Times in which the store is away do not count, and neither do jumps of a
    /// clock. Default: 30 seconds; at least 10 milliseconds.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = lease.max(Duration::from_millis(10));
        self
    }

    /// Sets the time without a sign of life after which a run is stopped as stuck.
    ///
    /// A journaled step is a sign of life, and so is a
    /// [`heartbeat`](crate::TaskContext::heartbeat). The attempt of a run that was stopped has
    /// failed. Default: 5 minutes.
    pub fn claim_timeout(mut self, timeout: Duration) -> Self {
        self.claim_timeout = timeout;
        self
    }

    /// Sets the number of suspended tasks that are kept in memory, where they go on when they wake.
    ///
    /// Other tasks are replayed from their journals. Default: 10,000.
    pub fn max_in_memory(mut self, tasks: usize) -> Self {
        self.max_in_memory = tasks;
        self
    }

    /// Sets the time for which the closures of a cancelled task may go on before they are dropped.
    ///
    /// The same time holds for a replayed task that waits for something outside its context: after
    /// it, the task counts as diverged. Default: 10 seconds.
    pub fn grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// Sets the time for which [`Worker::shutdown`](crate::Worker::shutdown) waits for running
    /// tasks.
    ///
    /// The shutdown then releases the tasks that still run. Default: 30 seconds.
    pub fn shutdown_timeout(mut self, timeout: Duration) -> Self {
        self.shutdown_timeout = timeout;
        self
    }

    /// Sets the version of the worker's code, for tasks that are pinned to it.
    ///
    /// A worker without a version claims no pinned tasks. A worker with a version claims the tasks
    /// that are pinned to it and those that are not pinned. Default: none.
    ///
    /// # Errors
    /// [`InvalidName`] when it is empty, too long, or holds a NUL character.
    pub fn code_version(mut self, version: impl AsRef<str>) -> Result<Self, InvalidName> {
        self.code_version = Some(Name::new(version)?);
        Ok(self)
    }

    /// Sets the name by which people know the worker. Default: `worker`.
    ///
    /// A name of more than 512 bytes is cut to its first 512 bytes.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        let mut name = name.into();
        cut_off(&mut name, MAX_NAME_BYTES);
        self.name = Some(name);
        self
    }
}
