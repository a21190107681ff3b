//! Durability without a worker: for code that runs inside somebody else's scheduler, such as a cron script, a Lambda, a step of a
//! Windmill flow.
//!
//! - [`Checkpoint`] remembers what a script has done: steps, items one by one, what is to be cleaned up. Run again after a
//!   crash, the script goes on where it was.
//! - [`key_value`] are the stores that it can be kept in: memory, files, SQLite, PostgreSQL, Redis, DynamoDB, and whatever
//!   implements [`KeyValueStore`](key_value::KeyValueStore).

#![forbid(unsafe_code)]

mod checkpoint;
mod cleanup;
mod error;
mod inspect;
mod items;
pub mod key_value;
mod ledger;
mod load;
mod record;
mod step;

pub use checkpoint::{Checkpoint, Complete};
pub use cleanup::{Cleaned, Cleanup};
pub use error::CheckpointError;
pub use inspect::{Inspection, Status};
pub use items::Items;
pub use load::Load;
pub use step::Step;
pub use stepwell_core::{
    Entry, ErrorPolicy, Failure, InputHash, ItemCounts, ItemsReport, Key, Kind, Outcome, Payload,
    RetryStrategy, TaskError, Timestamp,
};
