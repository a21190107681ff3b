//! Durability without a worker, for code that another scheduler runs, such as a cron script, a
//! Lambda or a step of a Windmill flow.
//!
//! - [`Checkpoint`] records what a script has done: steps, single items and cleanups. After a
//!   crash, the next run continues from that state.
//! - [`key_value`] has the stores for a checkpoint: memory, files, SQLite, PostgreSQL, Redis,
//!   DynamoDB, and every type that implements [`KeyValueStore`](key_value::KeyValueStore).
//! - [`MemoryCache`], [`KeyValueCache`] and [`HydratingCache`] are caches of step results
//!   ([`StepCache`]). [`StatePersistence`] saves whole states by the ids of runs.
//!
//! # Crate features
//!
//! | feature | default | what it adds |
//! | --- | --- | --- |
//! | `memory` | yes | `key_value::Memory`, `MemoryCache` and `HydratingCache`. |
//! | `sqlite` | no | `key_value::Sqlite`, one table of an SQLite database. It needs a C compiler. |
//! | `postgres` | no | `key_value::Postgres`, one table of a database. It needs Rust 1.94. |
//! | `redis` | no | `key_value::Redis`, and what speaks its protocol. |
//! | `dynamodb` | no | `key_value::DynamoDb`, one table of DynamoDB. |
//!
//! [`key_value::Files`] needs no feature.

#![cfg_attr(docsrs, feature(doc_cfg))]
#![forbid(unsafe_code)]

mod checkpoint;
mod cleanup;
mod error;
#[cfg(feature = "memory")]
mod hydrating_cache;
mod inspect;
mod items;
pub mod key_value;
mod key_value_cache;
mod ledger;
mod load;
#[cfg(feature = "memory")]
mod memory_cache;
mod persistence;
mod record;
mod step;
mod values;

pub use checkpoint::{Checkpoint, Complete};
pub use cleanup::{Cleaned, Cleanup};
pub use error::CheckpointError;
#[cfg(feature = "memory")]
pub use hydrating_cache::HydratingCache;
pub use inspect::{Inspection, Status};
pub use items::Items;
pub use key_value_cache::KeyValueCache;
pub use load::Load;
#[cfg(feature = "memory")]
pub use memory_cache::{MemoryCache, MemoryCacheBuilder};
pub use persistence::{PersistenceError, SavedState, StatePersistence};
pub use step::Step;
pub use stepwell_core::{
    Entry, ErrorPolicy, Failure, InputHash, ItemCounts, ItemsReport, Key, Kind, Outcome, Payload,
    RetryStrategy, StepCache, StepCacheError, TaskError, Timestamp,
};

/// Documents whose code examples are compiled and run with the tests.
#[cfg(all(doctest, feature = "redis"))]
mod documents {
    #[doc = include_str!("../README.md")]
    struct Readme;
    #[doc = include_str!("../../../docs/coming-from/durable-execution.md")]
    struct DurableExecution;
    #[doc = include_str!("../../../docs/coming-from/awaitly.md")]
    struct Awaitly;
}
