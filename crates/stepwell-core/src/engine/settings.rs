//! What a client was built with.

use std::sync::Arc;
use std::time::Duration;

use crate::base::invalid_options::InvalidOptions;
use crate::base::name::Name;
use crate::base::payload::Payload;
use crate::base::retry::RetryStrategy;
use crate::codec::Codec;
use crate::store::CancellationPolicy;
use crate::store::spawn_options::SpawnOptions;

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
    /// How long a client waits for the store's answer, to what it writes and to what it asks;
    /// [`Duration::MAX`] is for as long as it takes. Default: 30 seconds.
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

impl SpawnOptions {
    /// Sets what is not set as a client was built.
    pub(crate) fn filled(mut self, settings: &Settings) -> Self {
        self.queue.get_or_insert_with(|| settings.queue.to_string());
        self.max_attempts.get_or_insert(settings.max_attempts);
        self.retry.get_or_insert_with(|| settings.retry.clone());
        self.cancellation.get_or_insert_with(|| settings.cancellation.clone());
        self
    }
}
