//! Options of workers.

use std::time::Duration;

use crate::base::name::{InvalidName, MAX_NAME_BYTES, Name};
use crate::base::text::cut_off;

/// How a worker works.
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
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many tasks run at the same time, at least 1; suspended ones do not count. Most tasks
    /// wait for I/O most of the time; give fewer to those that compute, or that share a small
    /// connection pool. Default: 256.
    pub fn concurrency(mut self, tasks: usize) -> Self {
        self.concurrency = tasks.max(1);
        self
    }

    /// The queues to claim from, in the order in which to look. Default, and that of no queues: the
    /// client's queue.
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

    /// How often the store is asked for work when nothing was heard of any. It is a safety net: a
    /// worker hears of work at once, and wakes for timers when they are due. Default: 1 second.
    pub fn poll_interval(mut self, interval: Duration) -> Self {
        self.poll_interval = interval.max(Duration::from_millis(1));
        self
    }

    /// Sets the time after which other workers declare this one dead if they have seen no heartbeat
    /// of it. It sends three in that time, and each again at once when the store refuses it. Times
    /// in which the store is away do not count, nor do jumps of a clock. Default: 30 seconds;
    /// at least 10 milliseconds.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = lease.max(Duration::from_millis(10));
        self
    }

    /// After how long without a journaled step or a [`heartbeat`](crate::TaskContext::heartbeat) a
    /// run is stopped as stuck, and its attempt has failed. Default: 5 minutes.
    pub fn claim_timeout(mut self, timeout: Duration) -> Self {
        self.claim_timeout = timeout;
        self
    }

    /// How many suspended tasks are kept in memory, to go on in place when they wake; the others
    /// are replayed from their journals. Default: 10,000.
    pub fn max_in_memory(mut self, tasks: usize) -> Self {
        self.max_in_memory = tasks;
        self
    }

    /// How long the closures of a cancelled task may go on before they are dropped, and how long a
    /// replayed task may wait for something that is not in its context before it is taken for
    /// diverged. Default: 10 seconds.
    pub fn grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// How long [`Worker::shutdown`](crate::Worker::shutdown) waits for running tasks before it
    /// releases them. Default: 30 seconds.
    pub fn shutdown_timeout(mut self, timeout: Duration) -> Self {
        self.shutdown_timeout = timeout;
        self
    }

    /// The version of the worker's code, for tasks that are pinned to it. A worker without one
    /// claims no pinned tasks; one with a version also claims those that are not pinned.
    /// Default: none.
    ///
    /// # Errors
    /// [`InvalidName`] when it is empty, too long, or holds a NUL character.
    pub fn code_version(mut self, version: impl AsRef<str>) -> Result<Self, InvalidName> {
        self.code_version = Some(Name::new(version)?);
        Ok(self)
    }

    /// What people know the worker by; of a longer text, its first 512 bytes. Default: `worker`.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        let mut name = name.into();
        cut_off(&mut name, MAX_NAME_BYTES);
        self.name = Some(name);
        self
    }
}
