//! Checkpoints on each key-value store, and the cache in memory, each beside the bare client doing
//! the same.

use std::hint::black_box;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use aws_sdk_dynamodb::config::{Config, Credentials, Region};
use stepwell::{Payload, StepCache as _, async_trait};
use stepwell_checkpoint::key_value::{
    DynamoDb, Files, KeyValueError, KeyValueStore, Memory, Postgres, Redis, Sqlite,
};
use stepwell_checkpoint::{Checkpoint, MemoryCache};

use crate::backend::temp_folder;
use crate::floor_key_value::Bare;
use crate::plan::{Columns, blocking};
use crate::report::{Figure, Floor, Summary, Target, Unit};
use crate::workloads::rate;

/// How many steps of a script follow each other.
const STEPS: u64 = 1_000;
const HITS: u64 = 2_000_000;
const KEYS: u64 = 1_000;
/// No service of Amazon's: a Python program on this machine. Only the ratio says something.
const LOOK_ALIKE: &str = "DynamoDB (moto, a look-alike)";
const FLOOR: &str =
    "the bare client writing the same heads and segments, one after the other, without comparing";

/// All stores whose servers are installed.
pub(crate) async fn run(dir: &Path, runs: usize) -> Result<Vec<Figure>> {
    let folder = temp_folder(dir)?;
    let path = folder.path().to_owned();
    let postgres = start("PostgreSQL", || throwaway::Postgres::start_in(&path, &[]));
    let redis = start("Redis", || throwaway::Redis::start_in(&path));
    let dynamodb = start("DynamoDB", throwaway::DynamoDb::start);
    let (mut columns, mut floors, mut names) = (Columns::default(), Columns::default(), Vec::new());
    for run in 1..=runs {
        eprintln!("checkpoint, run {run} of {runs}");
        names = vec!["memory"];
        let (mut values, mut bare) = (vec![steps(Memory::new()).await?.0], vec![0.0]);
        let mut measured =
            async |name, store: Arc<dyn KeyValueStore>, client: Bare| -> Result<()> {
                let (value, writes) = steps(store).await?;
                values.push(value);
                bare.push(client.replay(writes).await?);
                names.push(name);
                Ok(())
            };
        let here = folder.path().join(format!("run{run}"));
        measured(
            "files",
            Arc::new(Files::open(here.join("store")).await?),
            Bare::files(here.join("bare"))?,
        )
        .await?;
        measured(
            "SQLite",
            Arc::new(Sqlite::open(here.join("store.db")).await?),
            Bare::sqlite(&here.join("bare.db"))?,
        )
        .await?;
        if let Some(postgres) = &postgres {
            let url = postgres.url();
            measured(
                "PostgreSQL",
                Arc::new(Postgres::connect(&url).await?),
                Bare::postgres(&url).await?,
            )
            .await?;
        }
        if let Some(redis) = &redis {
            let url = redis.url();
            measured("Redis", Arc::new(Redis::connect(&url).await?), Bare::redis(&url).await?)
                .await?;
        }
        if let Some(dynamodb) = &dynamodb {
            let (client, table) = (dynamodb_client(dynamodb.url()), format!("run{run}"));
            let store = DynamoDb::new(client.clone(), table.clone());
            store.create_table().await?;
            measured(LOOK_ALIKE, Arc::new(store), Bare::DynamoDb { client, table }).await?;
        }
        columns.add(values);
        floors.add(bare);
    }
    let figures = names.iter().zip(columns.0).zip(floors.0).map(|((name, values), bare)| {
        let floor = (*name != "memory").then(|| Floor { name: FLOOR, summary: Summary::of(bare) });
        Figure::new(
            "checkpoint",
            format!("steps one by one, {name}"),
            Unit::StepsPerSecond,
            values,
            floor,
            Target::default(),
        )
    });
    let mut figures: Vec<_> = figures.collect();
    figures.push(cache(runs).await?);
    Ok(figures)
}

/// A client of the server in the place of Amazon's.
fn dynamodb_client(url: String) -> aws_sdk_dynamodb::Client {
    let config = Config::builder()
        .endpoint_url(url)
        .region(Region::new("us-east-1"))
        .credentials_provider(Credentials::new("bench", "bench", None, None, "bench"))
        .http_client(aws_smithy_http_client::Builder::new().build_http());
    aws_sdk_dynamodb::Client::from_conf(config.build())
}

/// A server, when it is installed.
fn start<S>(name: &str, start: impl FnOnce() -> Result<S>) -> Option<S> {
    start().inspect_err(|error| eprintln!("{name} is left out: {error:#}")).ok()
}

/// A script of steps, each with a small result. Steps a second, and what was written.
async fn steps(store: impl KeyValueStore + 'static) -> Result<(f64, Vec<Write>)> {
    let store = Recorder { store: Arc::new(store), writes: Arc::default() };
    let cp = Checkpoint::load(&store, "bench").await?;
    let start = Instant::now();
    for step in 0..STEPS {
        let result = cp.step("step", || async { Ok(step) }).await?;
        ensure!(result == step, "step {step} gave {result}");
    }
    let took = start.elapsed();
    let done = cp.status().await?.done.len() as u64;
    ensure!(done == STEPS, "{done} steps are recorded");
    let writes = std::mem::take(&mut *store.writes.lock().unwrap_or_else(PoisonError::into_inner));
    cp.complete().await?;
    // Those of the beginning are no step's.
    Ok((rate(STEPS, took), writes.into_iter().skip(1).collect()))
}

/// A key and its new value.
pub(crate) type Write = (String, String);

/// Remembers what is written.
#[derive(Clone)]
struct Recorder {
    store: Arc<dyn KeyValueStore>,
    writes: Arc<Mutex<Vec<Write>>>,
}

impl Recorder {
    fn note(&self, key: &str, value: &str) {
        let mut writes = self.writes.lock().unwrap_or_else(PoisonError::into_inner);
        writes.push((key.to_owned(), value.to_owned()));
    }
}

#[async_trait]
impl KeyValueStore for Recorder {
    async fn get(&self, key: &str) -> Result<Option<String>, KeyValueError> {
        self.store.get(key).await
    }

    async fn set(
        &self,
        key: &str,
        value: &str,
        ttl: Option<Duration>,
    ) -> Result<(), KeyValueError> {
        self.note(key, value);
        self.store.set(key, value, ttl).await
    }

    async fn delete(&self, key: &str) -> Result<bool, KeyValueError> {
        self.store.delete(key).await
    }

    async fn exists(&self, key: &str) -> Result<bool, KeyValueError> {
        self.store.exists(key).await
    }

    async fn keys(&self, pattern: &str) -> Result<Vec<String>, KeyValueError> {
        self.store.keys(pattern).await
    }

    async fn compare_and_set(
        &self,
        key: &str,
        expected: Option<&str>,
        new: Option<&str>,
        ttl: Option<Duration>,
    ) -> Result<bool, KeyValueError> {
        self.note(key, new.unwrap_or_default());
        self.store.compare_and_set(key, expected, new, ttl).await
    }
}

/// Hits of the cache in memory, on one thread.
async fn cache(runs: usize) -> Result<Figure> {
    let keys: Vec<_> = (0..KEYS).map(|key| format!("user:{key}")).collect();
    let value = Payload::encode("a value", 100)?;
    let cache = MemoryCache::builder().max_entries(KEYS).ttl(Duration::from_secs(3600)).build();
    let bare = moka::sync::Cache::builder()
        .max_capacity(KEYS)
        .time_to_live(Duration::from_secs(3600))
        .build();
    for key in &keys {
        cache.set(key, value.clone()).await?;
        bare.insert(key.clone(), value.clone());
    }
    let (mut values, mut floor) = (Vec::new(), Vec::new());
    for _ in 0..runs {
        let (bare, keys_there) = (bare.clone(), keys.clone());
        let took = blocking(move || {
            let start = Instant::now();
            for key in keys_there.iter().cycle().take(usize::try_from(HITS)?) {
                ensure!(black_box(bare.get(key)).is_some(), "{key} is missing");
            }
            Ok(start.elapsed())
        });
        floor.push(rate(HITS, took.await?));
        let start = Instant::now();
        for key in keys.iter().cycle().take(usize::try_from(HITS)?) {
            ensure!(black_box(cache.get(key).await?).is_some(), "{key} is missing");
        }
        values.push(rate(HITS, start.elapsed()));
    }
    let floor = Floor { name: "bare moka, the same hits", summary: Summary::of(floor) };
    Ok(Figure::new(
        "cache",
        "hits, in memory",
        Unit::HitsPerSecond,
        values,
        Some(floor),
        Target::default(),
    ))
}
