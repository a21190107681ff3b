//! The errors of checkpoints.

use stepwell_core::{Failure, InvalidName, InvalidOptions, ItemError, PayloadError, Timestamp};

use crate::key_value::KeyValueError;

/// The errors of a checkpoint.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// The store could not be read or written. The entries to be recorded may have been stored; if
    /// they were not, the next write includes them.
    #[error(transparent)]
    Store(#[from] KeyValueError),
    /// A name, or the checkpoint's id, is not valid.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// The retry strategy of a step is not valid.
    #[error(transparent)]
    Options(#[from] InvalidOptions),
    /// Another process owns the checkpoint.
    #[error(
        "checkpoint \"{id}\" is in use by {by} until {until}: try again then, or let that one end"
    )]
    InUse {
        /// The checkpoint's id.
        id: String,
        /// The name of the owner.
        by: String,
        /// The time at which the owner's lease ends, if the owner does not renew it.
        until: Timestamp,
    },
    /// The lease ended while this process was paused or could not reach the store, and another
    /// process took the checkpoint over. This process writes nothing more.
    #[error("checkpoint \"{id}\" was taken over by {by}: stop, and leave the rest to that one")]
    Lost {
        /// The checkpoint's id.
        id: String,
        /// The name of the present or last owner.
        by: String,
    },
    /// The checkpoint was completed, abandoned or released before.
    #[error("checkpoint \"{0}\" was completed, abandoned or released already: load it again")]
    Ended(String),
    /// The checkpoint was completed, and its result is kept.
    #[error("checkpoint \"{id}\" was completed at {at}: `Checkpoint::result` has its result")]
    Completed {
        /// The checkpoint's id.
        id: String,
        /// The time of the completion.
        at: Timestamp,
    },
    /// The stored value was not written by a checkpoint.
    #[error(
        "what is stored under {key:?} is no checkpoint \"{id}\" ({reason}): use another id or \
         prefix, or remove it"
    )]
    Foreign {
        /// The checkpoint's id.
        id: String,
        /// The key in the store.
        key: String,
        /// The reason why the value is not a checkpoint's.
        reason: String,
    },
    /// A part of the stored checkpoint is missing or damaged.
    #[error(
        "what is stored under {key:?} is damaged ({reason}): restore it, or remove the checkpoint \
         \"{id}\" to begin afresh"
    )]
    Damaged {
        /// The checkpoint's id.
        id: String,
        /// The key in the store.
        key: String,
        /// The description of the damage.
        reason: String,
    },
    /// A newer version of this crate wrote the checkpoint.
    #[error(
        "what is stored under {key:?} has format {format}, this program knows {known}: update it"
    )]
    Newer {
        /// The key in the store.
        key: String,
        /// The format of the stored value.
        format: u32,
        /// The newest format that this program reads.
        known: u32,
    },
    /// Nothing is registered under the name of a cleanup.
    #[error(
        "no cleanup \"{name}\" is registered (there are {registered:?}): register it with \
         `.on_cleanup(\"{name}\", ..)` where the checkpoint is loaded"
    )]
    UnknownCleanup {
        /// The name of the cleanup.
        name: String,
        /// The names that are registered.
        registered: Vec<String>,
    },
    /// A step failed in all its tries.
    #[error("step \"{name}\" failed: {failure}")]
    Step {
        /// The step's name.
        name: String,
        /// The failure of the last try.
        failure: Box<Failure>,
    },
    /// An item failed, and [`ErrorPolicy::Stop`](stepwell_core::ErrorPolicy::Stop) ended the work
    /// on all items.
    #[error("item {index} of \"{name}\" failed: {failure}")]
    Item {
        /// The name of the items.
        name: String,
        /// The item's index, from 0.
        index: usize,
        /// The failure of the item.
        failure: Box<Failure>,
    },
    /// The recorded items do not match the present items.
    #[error("the items \"{name}\": {source}")]
    Items {
        /// The name of the items.
        name: String,
        /// The difference.
        source: ItemError,
    },
    /// A value could not be serialised, or the recorded value has another type.
    #[error("\"{name}\": {source}")]
    Payload {
        /// The name of the step, the items or the cleanup.
        name: String,
        /// The error of the serialisation.
        source: PayloadError,
    },
}
