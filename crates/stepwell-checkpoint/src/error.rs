//! The errors of checkpoints.

use stepwell_core::{Failure, InvalidName, InvalidOptions, ItemError, PayloadError, Timestamp};

use crate::key_value::KeyValueError;

/// Why a checkpoint could not do what it was asked for.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// The store could not be read or written. What was to be recorded may have been, and goes with
    /// the next write if it was not.
    #[error(transparent)]
    Store(#[from] KeyValueError),
    /// A name, or the checkpoint's id, is not valid.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// A step's retry strategy cannot be used.
    #[error(transparent)]
    Options(#[from] InvalidOptions),
    /// Somebody else has the checkpoint.
    #[error(
        "checkpoint \"{id}\" is in use by {by} until {until}: try again then, or let that one end"
    )]
    InUse {
        /// The checkpoint.
        id: String,
        /// Who has it.
        by: String,
        /// When its lease ends, if it does not renew it.
        until: Timestamp,
    },
    /// The lease ran out while this process was paused or could not reach the store, and somebody
    /// else took the checkpoint over. Nothing more is written.
    #[error("checkpoint \"{id}\" was taken over by {by}: stop, and leave the rest to that one")]
    Lost {
        /// The checkpoint.
        id: String,
        /// Who has it now, or had it last.
        by: String,
    },
    /// The checkpoint was completed, abandoned or released before.
    #[error("checkpoint \"{0}\" was completed, abandoned or released already: load it again")]
    Ended(String),
    /// The work is done, and its result is kept.
    #[error("checkpoint \"{id}\" was completed at {at}: `Checkpoint::result` has its result")]
    Completed {
        /// The checkpoint.
        id: String,
        /// When.
        at: Timestamp,
    },
    /// What the store has was not written by a checkpoint.
    #[error(
        "what is stored under {key:?} is no checkpoint \"{id}\" ({reason}): use another id or \
         prefix, or remove it"
    )]
    Foreign {
        /// The checkpoint.
        id: String,
        /// The key in the store.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A part of what a checkpoint wrote is missing or damaged.
    #[error(
        "what is stored under {key:?} is damaged ({reason}): restore it, or remove the checkpoint \
         \"{id}\" to begin afresh"
    )]
    Damaged {
        /// The checkpoint.
        id: String,
        /// The key in the store.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A newer version of this crate wrote it.
    #[error(
        "what is stored under {key:?} has format {format}, this program knows {known}: update it"
    )]
    Newer {
        /// The key in the store.
        key: String,
        /// The format that it has.
        format: u32,
        /// The newest that this program reads.
        known: u32,
    },
    /// Nothing is registered under the name of a cleanup.
    #[error(
        "no cleanup \"{name}\" is registered (there are {registered:?}): register it with \
         `.on_cleanup(\"{name}\", ..)` where the checkpoint is loaded"
    )]
    UnknownCleanup {
        /// The name.
        name: String,
        /// Those that are registered.
        registered: Vec<String>,
    },
    /// A step failed, after its tries.
    #[error("step \"{name}\" failed: {failure}")]
    Step {
        /// The step's name.
        name: String,
        /// Why.
        failure: Box<Failure>,
    },
    /// One of many items failed, and [`ErrorPolicy::Stop`](stepwell_core::ErrorPolicy::Stop) ended
    /// the whole.
    #[error("item {index} of \"{name}\" failed: {failure}")]
    Item {
        /// The name of the whole.
        name: String,
        /// The item's index, from 0.
        index: usize,
        /// Why.
        failure: Box<Failure>,
    },
    /// What was recorded of items does not fit those that there are.
    #[error("the items \"{name}\": {source}")]
    Items {
        /// The name of the whole.
        name: String,
        /// Why.
        source: ItemError,
    },
    /// A value could not be recorded, or is of another type than what was.
    #[error("\"{name}\": {source}")]
    Payload {
        /// The name of the step, the items, the cleanup.
        name: String,
        /// Why.
        source: PayloadError,
    },
}
