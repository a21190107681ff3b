//! Durability without a worker: for code that runs inside somebody else's scheduler, such as a cron
//! script, a Lambda, a step of a Windmill flow.
//!
//! - [`Checkpoint`] remembers what a script has done: steps, items one by one, what is to be
//!   cleaned up. Run again after a crash, the script goes on where it was.
//! - [`key_value`] are the stores that it can be kept in: memory, files, SQLite, PostgreSQL, Redis,
//!   DynamoDB, and whatever implements [`KeyValueStore`](key_value::KeyValueStore).
//! - [`MemoryCache`], [`KeyValueCache`] and [`HydratingCache`] are caches of step results
//!   ([`StepCache`]), and [`StatePersistence`] keeps whole states by the ids of runs.

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

/// The code in the documents is compiled and run with the tests.
#[cfg(all(doctest, feature = "redis"))]
mod documents {
    #[doc = include_str!("../../../docs/coming-from/durable-execution.md")]
    struct DurableExecution;
    #[doc = include_str!("../../../docs/coming-from/awaitly.md")]
    struct Awaitly;
}
