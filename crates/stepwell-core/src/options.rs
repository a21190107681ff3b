//! Options of clients, spawns and workers.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::codec::Codec;
use crate::headers;
use crate::name::{InvalidName, MAX_NAME_BYTES, Name};
use crate::notes::cut_off;
use crate::payload::Payload;
use crate::retry::RetryStrategy;
use crate::scope::Scope;
use crate::store::{CancellationPolicy, Coalesce, Headers};
use crate::strict;
use crate::time::Timestamp;

/// What holds for a client's tasks where [`SpawnOptions`] say nothing else.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The queue of spawned tasks and of workers. Default: `default`.
    pub queue: Name,
    /// How many attempts a task has. Default: 5.
    pub max_attempts: u32,
    /// When a failed attempt is followed by another. Default: [`RetryStrategy::exponential`].
    pub retry: RetryStrategy,
    /// When a task is cancelled by itself. Default: never.
    pub cancellation: CancellationPolicy,
    /// The longest payload, in bytes of JSON. Default: 4 MiB.
    pub max_payload_bytes: usize,
    /// How long a client waits for the store's answer, to what it writes and to what it asks; [`Duration::MAX`] is for as long
    /// as it takes. Default: 30 seconds.
    pub answer_timeout: Duration,
    /// How long tasks are kept after they have ended. Default: until they are purged or deleted.
    pub retention: Option<Duration>,
    /// Whether lifecycle events are kept in the store's history. Default: no.
    pub keep_history: bool,
    /// Whether counts and times go to the recorder of the `metrics` facade. Default: no.
    pub measure: bool,
    /// What payloads are encoded with, in this order. Default: nothing.
    pub codecs: Vec<Arc<dyn Codec>>,
}

impl Settings {
    /// Whether tasks can be spawned with them.
    ///
    /// # Errors
    /// [`InvalidOptions`] when they cannot.
    pub fn check(&self) -> Result<(), InvalidOptions> {
        self.retry.check()?;
        self.cancellation.check()
    }

    /// The defaults, with this queue.
    pub fn new(queue: Name) -> Self {
        Self {
            queue,
            max_attempts: 5,
            retry: RetryStrategy::default(),
            cancellation: CancellationPolicy::default(),
            max_payload_bytes: Payload::DEFAULT_LIMIT,
            answer_timeout: Duration::from_secs(30),
            retention: None,
            keep_history: false,
            measure: false,
            codecs: Vec::new(),
        }
    }
}

/// How a task is spawned. What is not set is as the client was built.
///
/// ```
/// # use std::time::Duration;
/// # use stepwell_core::{RetryStrategy, SpawnOptions};
/// let options = SpawnOptions::new()
///     .queue("reports")
///     .max_attempts(3)
///     .retry(RetryStrategy::fixed(Duration::from_secs(10)))
///     .start_after(Duration::from_secs(3600))
///     .idempotency_key("report-2026-11");
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct SpawnOptions {
    pub(crate) queue: Option<String>,
    pub(crate) max_attempts: Option<u32>,
    pub(crate) retry: Option<RetryStrategy>,
    #[serde(deserialize_with = "headers::exact")]
    pub(crate) headers: Headers,
    #[serde(skip)]
    pub(crate) invalid: Option<InvalidOptions>,
    #[serde(skip_serializing_if = "Scope::is_all")]
    pub(crate) scope: Scope,
    pub(crate) priority: i32,
    pub(crate) start: Start,
    pub(crate) idempotency_key: Option<String>,
    pub(crate) concurrency_key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) coalesce: Option<Coalesce>,
    pub(crate) code_version: Option<String>,
    pub(crate) cancellation: Option<CancellationPolicy>,
}

/// Why a task cannot be spawned, or a step tried again, with these options.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidOptions {
    /// A header cannot be read back, or they are too large together.
    #[error("the headers cannot be kept: {reason}")]
    Headers {
        /// What is wrong with them.
        reason: String,
    },
    /// A scope has a label that the engine gives to tasks by itself, and by which no task is found.
    #[error(
        "the scope's label \"{name}\" is a header that the engine sets by itself: give the label another name"
    )]
    Scope {
        /// The label's name.
        name: String,
    },
    /// A number of a retry strategy is none that it can have.
    #[error("a retry strategy cannot have the {field} {value}: it has to be {range}")]
    Retry {
        /// The field.
        field: &'static str,
        /// Its value.
        value: String,
        /// What it may be.
        range: &'static str,
    },
    /// A duration is over 1,000 years, which not every store can add to a date.
    #[error("the {field} of {duration:?} is too long: it may be 1,000 years at most")]
    TooLong {
        /// The field.
        field: &'static str,
        /// The duration.
        duration: Duration,
    },
}

impl InvalidOptions {
    /// Refuses a duration that a store could not add to a date.
    pub(crate) fn check_duration(field: &'static str, duration: Duration) -> Result<(), Self> {
        const LONGEST: Duration = Duration::from_secs(1_000 * 366 * 24 * 3_600);
        if duration > LONGEST { Err(Self::TooLong { field, duration }) } else { Ok(()) }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub(crate) enum Start {
    #[default]
    Now,
    After(Duration),
    At(Timestamp),
}

impl SpawnOptions {
    /// Nothing set.
    pub fn new() -> Self {
        Self::default()
    }

    /// The task's queue.
    pub fn queue(mut self, queue: impl Into<String>) -> Self {
        self.queue = Some(queue.into());
        self
    }

    /// How many attempts the task has, the first one included; at least 1.
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.max_attempts = Some(attempts.max(1));
        self
    }

    /// When a failed attempt is followed by another.
    pub fn retry(mut self, strategy: RetryStrategy) -> Self {
        self.retry = Some(strategy);
        self
    }

    /// Adds a header: a small value that travels with the task and is there as `ctx.headers`. All headers of a task have
    /// at most [`MAX_HEADERS_BYTES`](crate::MAX_HEADERS_BYTES).
    ///
    /// The spawn is refused with [`InvalidOptions`] when the value could not be read back: a NaN, say.
    pub fn header(mut self, name: impl Into<String>, value: impl Serialize) -> Self {
        let name = name.into();
        match strict::to_value(&value) {
            Ok(value) => _ = self.headers.insert(name, value),
            Err(error) => {
                let reason = format!("\"{name}\": {error}");
                self.invalid.get_or_insert(InvalidOptions::Headers { reason });
            }
        }
        self
    }

    /// Adds a label, by which [tasks are listed](crate::TaskFilter::labels): a tenant, a customer. A label is a header whose
    /// name and value are texts of 1 to 512 bytes; by a longer one, or one in another header, no task is found. A task has at
    /// most [`MAX_LABELS`](crate::MAX_LABELS).
    pub fn label(self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.header(name, value.into().as_str())
    }

    /// Puts the task into a scope: gives it the scope's queue and labels, in place of those that were set before, and makes
    /// its keys the scope's own. Default: none, where the keys of all such tasks meet.
    ///
    /// ```
    /// # use stepwell_core::{Scope, SpawnOptions};
    /// let acme = Scope::default().label("tenant", "acme");
    /// let options = SpawnOptions::new().idempotency_key("order 7").scope(acme);
    /// ```
    pub fn scope(mut self, scope: Scope) -> Self {
        if let Some(queue) = scope.only_queue() {
            self.queue = Some(queue.to_string());
        }
        self.within(scope)
    }

    /// The scope that the task is put into.
    pub fn in_scope(&self) -> &Scope {
        &self.scope
    }

    /// Puts the task into a scope, but for the queue.
    pub(crate) fn within(mut self, scope: Scope) -> Self {
        for (name, value) in scope.labels() {
            self.headers.insert(name.clone(), value.clone().into());
        }
        self.scope = scope;
        self
    }

    /// Tasks of a higher priority are claimed first. Default: 0.
    pub fn priority(mut self, priority: i32) -> Self {
        self.priority = priority;
        self
    }

    /// The task starts no earlier than this long from now.
    pub fn start_after(mut self, delay: Duration) -> Self {
        self.start = Start::After(delay);
        self
    }

    /// The task starts no earlier than at this time.
    pub fn start_at(mut self, at: Timestamp) -> Self {
        self.start = Start::At(at);
        self
    }

    /// Only the first spawn of a task type with this key makes a task; each further one answers with that task, as long
    /// as it has not been deleted.
    pub fn idempotency_key(mut self, key: impl Into<String>) -> Self {
        self.idempotency_key = Some(key.into());
        self
    }

    /// Tasks with the same key, of whatever type and queue, run one at a time, in the order in which they were spawned: each
    /// starts when the one before has ended. Use it for what must not overlap: the syncs of one account, say.
    pub fn concurrency_key(mut self, key: impl Into<String>) -> Self {
        self.concurrency_key = Some(key.into());
        self
    }

    /// A [concurrency key](SpawnOptions::concurrency_key), and what becomes of this spawn when a task of the same type and key
    /// is waiting to start: many requests for the same work, while it has not begun, are one. Tasks that have begun are left
    /// alone, so that what was asked for after their start is done after them. A waiting task that is reused does not take
    /// over the idempotency key of the spawn.
    ///
    /// ```
    /// # use stepwell_core::{Coalesce, SpawnOptions};
    /// // Whatever changes while the index is being rebuilt, one more rebuild does for all of it.
    /// let options = SpawnOptions::new().coalesced("rebuild-index", Coalesce::Reuse);
    /// ```
    pub fn coalesced(mut self, key: impl Into<String>, how: Coalesce) -> Self {
        self.coalesce = Some(how);
        self.concurrency_key(key)
    }

    /// Pins the task to a version of the code: only workers with the same
    /// [`code_version`](WorkerOptions::code_version) claim it.
    pub fn code_version(mut self, version: impl Into<String>) -> Self {
        self.code_version = Some(version.into());
        self
    }

    /// When the task is cancelled by itself.
    pub fn cancellation(mut self, policy: CancellationPolicy) -> Self {
        self.cancellation = Some(policy);
        self
    }

    /// Finds what is wrong with the options, but for their names.
    pub(crate) fn check(&self) -> Result<(), InvalidOptions> {
        if let Some(invalid) = &self.invalid {
            return Err(invalid.clone());
        }
        headers::check(&self.headers)?;
        self.retry.iter().try_for_each(RetryStrategy::check)?;
        self.cancellation.iter().try_for_each(CancellationPolicy::check)
    }

    /// Sets what is not set as a client was built.
    pub(crate) fn filled(mut self, settings: &Settings) -> Self {
        self.queue.get_or_insert_with(|| settings.queue.to_string());
        self.max_attempts.get_or_insert(settings.max_attempts);
        self.retry.get_or_insert_with(|| settings.retry.clone());
        self.cancellation.get_or_insert_with(|| settings.cancellation.clone());
        self
    }
}

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

    /// How many tasks run at the same time, at least 1; suspended ones do not count. Most tasks wait for I/O most of the
    /// time; give fewer to those that compute, or that share a small connection pool. Default: 256.
    pub fn concurrency(mut self, tasks: usize) -> Self {
        self.concurrency = tasks.max(1);
        self
    }

    /// The queues to claim from, in the order in which to look. Default, and that of no queues: the client's queue.
    ///
    /// # Errors
    /// [`InvalidName`] when a name is empty, too long, or holds a NUL character.
    pub fn queues<Q: AsRef<str>>(mut self, queues: impl IntoIterator<Item = Q>) -> Result<Self, InvalidName> {
        self.queues = queues.into_iter().map(Name::new).collect::<Result<_, _>>()?;
        Ok(self)
    }

    /// How often the store is asked for work when nothing was heard of any. It is a safety net: a worker hears of
    /// work at once, and wakes for timers when they are due. Default: 1 second.
    pub fn poll_interval(mut self, interval: Duration) -> Self {
        self.poll_interval = interval.max(Duration::from_millis(1));
        self
    }

    /// Sets the time after which other workers declare this one dead if they have seen no heartbeat
    /// of it. It sends three in that time, and each again at once when the store refuses it. Times in
    /// which the store is away do not count, nor do jumps of a clock. Default: 30 seconds; at least 10 milliseconds.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = lease.max(Duration::from_millis(10));
        self
    }

    /// After how long without a journaled step or a [`heartbeat`](crate::TaskContext::heartbeat) a run is stopped as
    /// stuck, and its attempt has failed. Default: 5 minutes.
    pub fn claim_timeout(mut self, timeout: Duration) -> Self {
        self.claim_timeout = timeout;
        self
    }

    /// How many suspended tasks are kept in memory, to go on in place when they wake; the others are replayed from
    /// their journals. Default: 10,000.
    pub fn max_in_memory(mut self, tasks: usize) -> Self {
        self.max_in_memory = tasks;
        self
    }

    /// How long the closures of a cancelled task may go on before they are dropped, and how long a replayed task may
    /// wait for something that is not in its context before it is taken for diverged. Default: 10 seconds.
    pub fn grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// How long [`Worker::shutdown`](crate::Worker::shutdown) waits for running tasks before it releases them. Default:
    /// 30 seconds.
    pub fn shutdown_timeout(mut self, timeout: Duration) -> Self {
        self.shutdown_timeout = timeout;
        self
    }

    /// The version of the worker's code, for tasks that are pinned to it. A worker without one claims no pinned tasks; one
    /// with a version also claims those that are not pinned. Default: none.
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
