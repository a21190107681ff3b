//! `Durable`: the client, as applications make it.

use std::any::Any;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use stepwell_core::{
    CancellationPolicy, Client, Codec, Error, Name, RetryStrategy, Runtime, Settings, State, Store,
};

use crate::tokio_runtime::TokioRuntime;

/// The environment variable with the URL of the database, where the builder is given none.
pub const DATABASE_URL_VARIABLE: &str = "DURABLE_DATABASE_URL";
/// The database where neither the builder nor the environment names one.
pub const DEFAULT_DATABASE_URL: &str = "sqlite://stepwell.db";

/// The client: spawns tasks, talks to them, waits for them and starts workers. Cheap to clone. Its
/// methods are those of [`Client`].
///
/// ```
/// use stepwell::{Durable, SpawnOptions, TaskContext, WorkerOptions};
///
/// # #[tokio::main]
/// # async fn main() -> anyhow::Result<()> {
/// let client = Durable::builder().database_url("sqlite::memory:").build().await?;
/// client.register_fn("double", |n: u64, ctx: TaskContext| async move {
///     ctx.step("multiply", || async { Ok(n * 2) }).await
/// }).await?;
/// let worker = client.start_worker(WorkerOptions::default()).await;
///
/// let task = client.spawn_named("double", &21, SpawnOptions::new()).await?;
/// let doubled: u64 = client.wait(task.task_id).await?;
/// assert_eq!(doubled, 42);
/// worker.shutdown().await;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Durable(Client);

impl Durable {
    /// Begins to build a client.
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
    /// The database: `sqlite://path/to/file.db`, `sqlite::memory:`, or with the feature `postgres`
    /// `postgres://user:password@host/database`. Default: the environment variable
    /// `DURABLE_DATABASE_URL`, else `sqlite://stepwell.db`.
    pub fn database_url(mut self, url: impl Into<String>) -> Self {
        self.database_url = Some(url.into());
        self
    }

    /// A store, in place of a database's URL.
    pub fn store(mut self, store: Arc<dyn Store>) -> Self {
        self.store = Some(store);
        self
    }

    /// The clock, timers, randomness and place of execution. Default: the tokio runtime in which
    /// [`build`](Self::build) is called.
    pub fn runtime(mut self, runtime: Arc<dyn Runtime>) -> Self {
        self.runtime = Some(runtime);
        self
    }

    /// The queue of tasks and workers that name no other. Default: `default`.
    pub fn queue_name(mut self, queue: impl Into<String>) -> Self {
        self.queue = Some(queue.into());
        self
    }

    /// How many attempts a task has, the first one included; at least 1. Default: 5.
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.max_attempts = Some(attempts.max(1));
        self
    }

    /// When a failed attempt is followed by another. Default: [`RetryStrategy::exponential`].
    pub fn retry(mut self, strategy: RetryStrategy) -> Self {
        self.retry = Some(strategy);
        self
    }

    /// When tasks are cancelled by themselves. Default: never.
    pub fn cancellation(mut self, policy: CancellationPolicy) -> Self {
        self.cancellation = Some(policy);
        self
    }

    /// The longest payload (parameters, results, events, messages), in bytes of JSON, before a
    /// codec is applied. Default: 4 MiB.
    pub fn max_payload_bytes(mut self, bytes: usize) -> Self {
        self.max_payload_bytes = Some(bytes);
        self
    }

    /// How long this client waits for each answer of the store, to what it writes and to what it
    /// asks, before that is the error
    /// [`StoreError::Unanswered`](crate::StoreError::Unanswered). Workers wait for as long as it
    /// takes, and so does this client with [`Duration::MAX`]. Default: 30 seconds.
    pub fn answer_timeout(mut self, time: Duration) -> Self {
        self.answer_timeout = Some(time);
        self
    }

    /// How long tasks are kept after they have ended: each worker of this client removes older
    /// ones, once a minute and in small batches. Default: until they are
    /// [purged](Client::purge) or deleted.
    pub fn retention(mut self, time: Duration) -> Self {
        self.retention = Some(time);
        self
    }

    /// Keeps the [lifecycle events](crate::Lifecycle) of this client and its workers in the
    /// database, for [`Client::history`]. It costs a row for each, beside the tasks and not in
    /// their way. Default: they are told to subscribers and forgotten.
    pub fn keep_history(mut self) -> Self {
        self.keep_history = true;
        self
    }

    /// Gives counts and times to the recorder of the [`metrics`](https://docs.rs/metrics) facade that the program has installed:
    /// `stepwell_tasks_spawned_total`, `stepwell_attempts_ended_total`, `stepwell_task_seconds`,
    /// `stepwell_step_seconds`, `stepwell_commit_seconds` and others. Default: nothing is
    /// measured.
    ///
    /// ```no_run
    /// # use stepwell::{Durable, Error};
    /// # async fn example() -> Result<(), Error> {
    /// // Before it: `metrics_exporter_prometheus::PrometheusBuilder::new().install()?`, which serves them at port 9000.
    /// let client = Durable::builder().measure().build().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn measure(mut self) -> Self {
        self.measure = true;
        self
    }

    /// Takes the database as it is: it is an error when it is not there, or its tables are not of
    /// this version. For programs that only look, and for those that may not change tables.
    /// Default: [`build`](Self::build) makes the tables, and brings them up to date.
    pub fn without_migration(mut self) -> Self {
        self.existing = true;
        self
    }

    /// Has payloads encoded before the database keeps them: compressed, encrypted. Codecs that are
    /// given one after the other are applied in that order. All clients of a database that work
    /// on the same tasks need the same ones; what was written without one stays readable.
    /// Default: none.
    ///
    /// The module `stepwell::codec` has those that there are, under the features `compression` and
    /// `encryption`.
    pub fn codec(mut self, codec: impl Codec) -> Self {
        self.codecs.push(Arc::new(codec));
        self
    }

    /// Application state that tasks get by [`TaskContext::state`](crate::TaskContext::state): a
    /// connection pool, a client of some service. One value of each type.
    pub fn state<S: Any + Send + Sync>(mut self, state: S) -> Self {
        self.state.insert(state);
        self
    }

    /// Opens the database, and migrates it when it is older.
    ///
    /// # Errors
    /// [`Error::Url`] for a URL of no known kind, [`Error::Store`] when the database cannot be
    /// opened, [`Error::Name`] for an invalid queue, [`Error::Options`] for a retry strategy or
    /// a cancellation policy that cannot be used.
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

/// A URL of any kind as errors show it.
fn without_password(url: &str) -> String {
    match url.rsplit_once('@') {
        Some((_, rest)) => format!("…@{rest}"),
        None => url.to_owned(),
    }
}
