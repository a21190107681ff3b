//! `Durable`, the client as applications build it.

use std::any::Any;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use stepwell_core::{
    CancellationPolicy, Client, Codec, Error, Name, RetryStrategy, Runtime, Settings, State, Store,
};

use crate::tokio_runtime::TokioRuntime;

/// The environment variable with the URL of the database, for builders without a URL.
pub const DATABASE_URL_VARIABLE: &str = "DURABLE_DATABASE_URL";
/// The URL of the database, when neither the builder nor the environment names one.
pub const DEFAULT_DATABASE_URL: &str = "sqlite://stepwell.db";

/// The client: spawns tasks, sends to them, waits for them and starts workers. A clone is cheap,
/// and shares the store. The methods of a `Durable` are those of [`Client`].
///
/// ```
/// use stepwell::{Durable, TaskContext, WorkerOptions};
///
/// # #[tokio::main]
/// # async fn main() -> anyhow::Result<()> {
/// let client = Durable::builder().database_url("sqlite::memory:").build().await?;
/// client.register_fn("double", |n: u64, ctx: TaskContext| async move {
///     ctx.step("multiply", || async { Ok(n * 2) }).await
/// }).await?;
/// let worker = client.start_worker(WorkerOptions::default()).await;
///
/// let task = client.spawn_named("double", &21).await?;
/// let doubled: u64 = client.wait(task.task_id).await?;
/// assert_eq!(doubled, 42);
/// worker.shutdown().await;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Durable(Client);

impl Durable {
    /// Returns a builder of a client.
    pub fn builder() -> DurableBuilder {
        DurableBuilder::default()
    }
}

impl Deref for Durable {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.0
    }
}

/// Builds a [`Durable`]. Every option has a default.
#[derive(Default)]
pub struct DurableBuilder {
    database_url: Option<String>,
    store: Option<Arc<dyn Store>>,
    runtime: Option<Arc<dyn Runtime>>,
    queue: Option<String>,
    max_attempts: Option<u32>,
    retry: Option<RetryStrategy>,
    cancellation: Option<CancellationPolicy>,
    max_payload_bytes: Option<usize>,
    answer_timeout: Option<Duration>,
    retention: Option<Duration>,
    keep_history: bool,
    measure: bool,
    existing: bool,
    codecs: Vec<Arc<dyn Codec>>,
    state: State,
}

impl DurableBuilder {
    /// Sets the URL of the database: `sqlite://path/to/file.db`, `sqlite::memory:`, or with the
    /// feature `postgres` `postgres://user:password@host/database`. Default: the value of the
    /// environment variable `DURABLE_DATABASE_URL`; if it is not set, `sqlite://stepwell.db`.
    pub fn database_url(mut self, url: impl Into<String>) -> Self {
        self.database_url = Some(url.into());
        self
    }

    /// Sets the store, which replaces the URL of a database.
    pub fn store(mut self, store: Arc<dyn Store>) -> Self {
        self.store = Some(store);
        self
    }

    /// Sets the source of time, timers and randomness, and the executor of tasks. Default: the
    /// tokio runtime in which [`build`](Self::build) is called.
    pub fn runtime(mut self, runtime: Arc<dyn Runtime>) -> Self {
        self.runtime = Some(runtime);
        self
    }

    /// Sets the queue of tasks and workers that name no queue. Default: `default`.
    pub fn queue_name(mut self, queue: impl Into<String>) -> Self {
        self.queue = Some(queue.into());
        self
    }

    /// Sets the maximum number of attempts of a task, the first one included; at least 1. Default:
    /// 5.
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.max_attempts = Some(attempts.max(1));
        self
    }

    /// Sets the strategy that decides when a failed attempt is retried. Default:
    /// [`RetryStrategy::exponential`].
    pub fn retry(mut self, strategy: RetryStrategy) -> Self {
        self.retry = Some(strategy);
        self
    }

    /// Sets the policy that cancels tasks after a time. Default: tasks are not cancelled.
    pub fn cancellation(mut self, policy: CancellationPolicy) -> Self {
        self.cancellation = Some(policy);
        self
    }

    /// Sets the maximum length of a payload (parameters, results, events, messages), in bytes of
    /// JSON before a codec is applied. Default: 4 MiB.
    pub fn max_payload_bytes(mut self, bytes: usize) -> Self {
        self.max_payload_bytes = Some(bytes);
        self
    }

    /// Sets the time for which this client waits for each answer of the store, to writes and to
    /// reads. After that time, the call fails with
    /// [`StoreError::Unanswered`](crate::StoreError::Unanswered). Workers wait without a limit, and
    /// so does this client with [`Duration::MAX`]. Default: 30 seconds.
    pub fn answer_timeout(mut self, time: Duration) -> Self {
        self.answer_timeout = Some(time);
        self
    }

    /// Sets the retention of ended tasks. Each worker of this client removes older tasks, once a
    /// minute and in small batches. Default: tasks are kept until they are [purged](Client::purge)
    /// or deleted.
    pub fn retention(mut self, time: Duration) -> Self {
        self.retention = Some(time);
        self
    }

    /// Keeps the [lifecycle events](crate::Lifecycle) of this client and its workers in the
    /// database, for [`Client::history`]. Each event costs a row, which is written apart from the
    /// tasks. Default: events go to subscribers only.
    pub fn keep_history(mut self) -> Self {
        self.keep_history = true;
        self
    }

    /// Records counts and times with the recorder of the [`metrics`](https://docs.rs/metrics)
    /// facade that the program has installed: `stepwell_tasks_spawned_total`,
    /// `stepwell_attempts_ended_total`, `stepwell_task_seconds`, `stepwell_step_seconds`,
    /// `stepwell_commit_seconds` and others. Default: nothing is measured.
    ///
    /// ```no_run
    /// # use stepwell::{Durable, Error};
    /// # async fn example() -> Result<(), Error> {
    /// // Before it: `metrics_exporter_prometheus::PrometheusBuilder::new().install()?`, which
    /// // serves them at port 9000.
    /// let client = Durable::builder().measure().build().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn measure(mut self) -> Self {
        self.measure = true;
        self
    }

    /// Uses the database as it is: [`build`](Self::build) fails when the database does not exist,
    /// or when its tables have another version. The option is for programs that only read, and for
    /// programs that may not change tables. Default: [`build`](Self::build) creates the tables and
    /// migrates them.
    pub fn without_migration(mut self) -> Self {
        self.existing = true;
        self
    }

    /// Adds a codec, which encodes payloads before the database keeps them. Codecs are applied in
    /// the order of the calls. All clients that work on the same tasks of a database need the same
    /// codecs. Payloads that were written without a codec stay readable, unless the codec
    /// [requires](crate::Codec::is_required) that they are encoded. Default: no codec.
    ///
    /// The module `stepwell::codec` has a codec for compression and one for encryption, under the
    /// features `compression` and `encryption`.
    pub fn codec(mut self, codec: impl Codec) -> Self {
        self.codecs.push(Arc::new(codec));
        self
    }

    /// Adds application state, such as a connection pool, which tasks get with
    /// [`TaskContext::state`](crate::TaskContext::state). There is one value of each type.
    pub fn state<S: Any + Send + Sync>(mut self, state: S) -> Self {
        self.state.insert(state);
        self
    }

    /// Opens the database, migrates it when its tables are older, and returns the client.
    ///
    /// # Errors
    /// [`Error::Url`] for a URL of an unknown kind, [`Error::Store`] when the database cannot be
    /// opened, [`Error::Name`] for an invalid queue, [`Error::Options`] for an invalid retry
    /// strategy or cancellation policy.
    pub async fn build(self) -> Result<Durable, Error> {
        let mut settings = Settings::new(Name::new(self.queue.as_deref().unwrap_or("default"))?);
        settings.max_attempts = self.max_attempts.unwrap_or(settings.max_attempts);
        settings.retry = self.retry.unwrap_or(settings.retry);
        settings.cancellation = self.cancellation.unwrap_or(settings.cancellation);
        settings.codecs = self.codecs;
        settings.retention = self.retention;
        settings.keep_history = self.keep_history;
        settings.measure = self.measure;
        settings.max_payload_bytes = self.max_payload_bytes.unwrap_or(settings.max_payload_bytes);
        settings.answer_timeout = self.answer_timeout.unwrap_or(settings.answer_timeout);
        settings.check()?;
        let runtime = self.runtime.unwrap_or_else(|| Arc::new(TokioRuntime::current()));
        let store = match self.store {
            Some(store) => store,
            None => {
                let url = self.database_url.or_else(|| std::env::var(DATABASE_URL_VARIABLE).ok());
                connect(
                    url.as_deref().unwrap_or(DEFAULT_DATABASE_URL),
                    self.existing,
                    runtime.clone(),
                )
                .await?
            }
        };
        Ok(Durable(Client::new(store, runtime, settings, self.state)))
    }
}

async fn connect(
    url: &str,
    existing: bool,
    runtime: Arc<dyn Runtime>,
) -> Result<Arc<dyn Store>, Error> {
    let unknown =
        |reason: &str| Error::Url { url: without_password(url), reason: reason.to_owned() };
    match url.split_once(':').map(|(scheme, _)| scheme) {
        #[cfg(feature = "sqlite")]
        Some("sqlite") => {
            let location = stepwell_sqlite::Location::parse(url)?;
            Ok(Arc::new(match existing {
                true => stepwell_sqlite::SqliteStore::open_existing(location, runtime).await?,
                false => stepwell_sqlite::SqliteStore::open(location, runtime).await?,
            }))
        }
        #[cfg(not(feature = "sqlite"))]
        Some("sqlite") => {
            drop((existing, runtime));
            Err(unknown("this program was built without the feature `sqlite`"))
        }
        #[cfg(feature = "postgres")]
        Some("postgres" | "postgresql") => {
            let options = stepwell_postgres::PostgresOptions::parse(url)?;
            Ok(Arc::new(match existing {
                true => stepwell_postgres::PostgresStore::connect_existing(options).await?,
                false => stepwell_postgres::PostgresStore::connect(options).await?,
            }))
        }
        #[cfg(not(feature = "postgres"))]
        Some("postgres" | "postgresql") => Err(unknown(
            "this program was built without the feature `postgres`: add it to `stepwell` in \
             Cargo.toml",
        )),
        Some(scheme) => Err(unknown(&format!("the scheme `{scheme}` is unknown"))),
        None => Err(unknown("it has no scheme")),
    }
}

/// Returns a URL of any kind without the part that may hold a password, for error messages.
fn without_password(url: &str) -> String {
    match url.rsplit_once('@') {
        Some((_, rest)) => format!("…@{rest}"),
        None => url.to_owned(),
    }
}

/// The examples of the page that crates.io shows.
#[cfg(all(doctest, feature = "sqlite"))]
#[doc = include_str!("../README.md")]
struct Readme;
