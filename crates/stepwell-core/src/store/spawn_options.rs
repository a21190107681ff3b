//! The options of spawns.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::base::invalid_options::InvalidOptions;
use crate::base::retry::RetryStrategy;
use crate::base::time::Timestamp;
use crate::store::headers;
use crate::store::scope::Scope;
use crate::store::{CancellationPolicy, Coalesce, Headers};

/// Defines the setters of spawn options for a type that has the options in the field `$at`, or that
/// is the options.
macro_rules! spawn_setters {
    ($($at:tt)*) => {
            /// Sets the queue of the task.
            pub fn queue(mut self, queue: impl Into<String>) -> Self {
                self$($at)*.queue = Some(queue.into());
                self
            }

            /// Sets the maximum number of attempts, the first one included; at least 1.
            pub fn max_attempts(mut self, attempts: u32) -> Self {
                self$($at)*.max_attempts = Some(attempts.max(1));
                self
            }

            /// Sets the retry strategy: the delays after failed attempts.
            pub fn retry(mut self, strategy: $crate::base::retry::RetryStrategy) -> Self {
                self$($at)*.retry = Some(strategy);
                self
            }

            /// Adds a header: a small value that travels with the task, and that the task reads as
            /// `ctx.headers`.
            ///
            /// All headers of a task together have at most
            /// [`MAX_HEADERS_BYTES`](crate::MAX_HEADERS_BYTES). The spawn is refused with
            /// [`InvalidOptions`](crate::InvalidOptions) when the value could not be read back, as
            /// a NaN.
            pub fn header(mut self, name: impl Into<String>, value: impl serde::Serialize) -> Self {
                let name = name.into();
                match $crate::base::strict::to_value(&value) {
                    Ok(value) => _ = self$($at)*.headers.insert(name, value),
                    Err(error) => {
                        let reason = format!("\"{name}\": {error}");
                        let invalid =
                            $crate::base::invalid_options::InvalidOptions::Headers { reason };
                        self$($at)*.invalid.get_or_insert(invalid);
                    }
                }
                self
            }

            /// Adds a label, by which [tasks are listed](crate::TaskFilter::labels): a tenant, a
            /// customer.
            ///
            /// A label is a header whose name and value are texts of 1 to 512 bytes. A longer text,
            /// or a text in another header, finds no task. A task has at most
            /// [`MAX_LABELS`](crate::MAX_LABELS).
            pub fn label(self, name: impl Into<String>, value: impl Into<String>) -> Self {
                self.header(name, value.into().as_str())
            }

            /// Puts the task into a scope: sets the scope's queue and labels, in place of earlier
            /// ones, and makes the task's keys the scope's own.
            ///
            /// Default: no scope. All tasks without a scope share their keys.
            ///
            /// ```
            /// # use stepwell_core::{Scope, SpawnOptions};
            /// let acme = Scope::default().label("tenant", "acme");
            /// let options = SpawnOptions::new().idempotency_key("order 7").scope(acme);
            /// ```
            pub fn scope(mut self, scope: $crate::store::scope::Scope) -> Self {
                let options = &mut self$($at)*;
                if let Some(queue) = scope.only_queue() {
                    options.queue = Some(queue.to_string());
                }
                options.put_within(scope);
                self
            }

            /// Sets the priority of the task, of which a higher one is claimed first; default: 0.
            pub fn priority(mut self, priority: i32) -> Self {
                self$($at)*.priority = priority;
                self
            }

            /// Delays the start of the task by at least this time from now.
            pub fn delay(mut self, delay: std::time::Duration) -> Self {
                self$($at)*.start = $crate::store::spawn_options::Start::After(delay);
                self
            }

            /// Delays the start of the task until this time or later.
            pub fn start_at(mut self, at: $crate::base::time::Timestamp) -> Self {
                self$($at)*.start = $crate::store::spawn_options::Start::At(at);
                self
            }

            /// Sets the idempotency key: only the first spawn of a task type with this key makes a
            /// task.
            ///
            /// Each further spawn returns that task, until the task is deleted.
            pub fn idempotency_key(mut self, key: impl Into<String>) -> Self {
                self$($at)*.idempotency_key = Some(key.into());
                self
            }

            /// Sets the concurrency key: tasks with the same key, of any type and queue, run one at
            /// a time.
            ///
            /// The tasks run in the order of their spawns, and each starts when the one before has
            /// ended. Use the key for work that must not overlap: the syncs of one account, say.
            pub fn concurrency_key(mut self, key: impl Into<String>) -> Self {
                self$($at)*.concurrency_key = Some(key.into());
                self
            }

            /// Sets a [concurrency key](SpawnOptions::concurrency_key), and how this spawn
            /// coalesces with a waiting task of the same type and key.
            ///
            /// Many requests for the same work become one while the work has not begun. Tasks that
            /// have begun are left alone, so that work that was requested after their start is done
            /// after them. A waiting task that is reused does not take over the idempotency key of
            /// the spawn.
            ///
            /// ```
            /// # use stepwell_core::{Coalesce, SpawnOptions};
            /// // Whatever changes while the index is being rebuilt, one rebuild more does for it.
            /// let options = SpawnOptions::new().coalesced("rebuild-index", Coalesce::Reuse);
            /// ```
            pub fn coalesced(
                mut self,
                key: impl Into<String>,
                how: $crate::store::Coalesce,
            ) -> Self {
                self$($at)*.coalesce = Some(how);
                self.concurrency_key(key)
            }

            /// Pins the task to a version of the code: only workers with the same
            /// [`code_version`](crate::WorkerOptions::code_version) claim it.
            pub fn code_version(mut self, version: impl Into<String>) -> Self {
                self$($at)*.code_version = Some(version.into());
                self
            }

            /// Sets the rule by which the store cancels the task by itself.
            pub fn cancellation(mut self, policy: $crate::store::CancellationPolicy) -> Self {
                self$($at)*.cancellation = Some(policy);
                self
            }
    };
}
pub(crate) use spawn_setters;

/// The options of a spawn; an option that is not set has the value that the client was built with.
///
/// ```
/// # use std::time::Duration;
/// # use stepwell_core::{RetryStrategy, SpawnOptions};
/// let options = SpawnOptions::new()
///     .queue("reports")
///     .max_attempts(3)
///     .retry(RetryStrategy::fixed(Duration::from_secs(10)))
///     .delay(Duration::from_secs(3600))
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
    /// Returns options of which none is set.
    pub fn new() -> Self {
        Self::default()
    }

    spawn_setters!();

    /// Returns the scope that the task is put into.
    pub fn in_scope(&self) -> &Scope {
        &self.scope
    }

    /// Puts the task into a scope, without the scope's queue.
    pub(crate) fn put_within(&mut self, scope: Scope) {
        for (name, value) in scope.labels() {
            self.headers.insert(name.clone(), value.clone().into());
        }
        self.scope = scope;
    }

    /// Checks the options, all but their names.
    pub(crate) fn check(&self) -> Result<(), InvalidOptions> {
        if let Some(invalid) = &self.invalid {
            return Err(invalid.clone());
        }
        headers::check(&self.headers)?;
        self.retry.iter().try_for_each(RetryStrategy::check)?;
        self.cancellation.iter().try_for_each(CancellationPolicy::check)
    }
}
