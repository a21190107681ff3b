//! The settings of a client.

use std::sync::Arc;
use std::time::Duration;

use crate::base::invalid_options::InvalidOptions;
use crate::base::name::Name;
use crate::base::payload::Payload;
use crate::base::retry::RetryStrategy;
use crate::codec::Codec;
use crate::store::CancellationPolicy;
use crate::store::spawn_options::SpawnOptions;

/// The settings that hold for a client's tasks when their [`SpawnOptions`] leave them open.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The queue of spawned tasks and of workers. Default: `default`.
    pub queue: Name,
    /// The number of attempts that a task has. Default: 5.
    pub max_attempts: u32,
    /// The delays between a failed attempt and the next one. Default:
    /// [`RetryStrategy::exponential`].
    pub retry: RetryStrategy,
    /// The limits after which a task is cancelled automatically. Default: none.
    pub cancellation: CancellationPolicy,
    /// The size limit of a payload, in bytes of JSON. Default: 4 MiB.
    pub max_payload_bytes: usize,
    /// The longest time that a client waits for the store's answer to a read or a write. Default:
    /// 30 seconds.
    ///
    /// With [`Duration::MAX`], the client waits without a limit.
    pub answer_timeout: Duration,
    /// The time for which ended tasks are kept. Default: until they are purged or deleted.
    pub retention: Option<Duration>,
    /// Makes the store's history keep lifecycle events. Default: no.
    pub keep_history: bool,
    /// Makes the engine report counts and times to the recorder of the `metrics` facade. Default:
    /// no.
    pub measure: bool,
    /// The codecs that encode payloads, in this order. Default: none.
    pub codecs: Vec<Arc<dyn Codec>>,
}

impl Settings {
    /// Checks that tasks can be spawned with these settings.
    ///
    /// # Errors
    /// [`InvalidOptions`] when a setting is not valid.
    pub fn check(&self) -> Result<(), InvalidOptions> {
        self.retry.check()?;
        self.cancellation.check()
    }

    /// Returns the default settings, with the queue.
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
    /// Sets the options that are not set to the client's settings.
    pub(crate) fn filled(mut self, settings: &Settings) -> Self {
        self.queue.get_or_insert_with(|| settings.queue.to_string());
        self.max_attempts.get_or_insert(settings.max_attempts);
        self.retry.get_or_insert_with(|| settings.retry.clone());
        self.cancellation.get_or_insert_with(|| settings.cancellation.clone());
        self
    }
}
