//! Errors of codecs.

/// Why a payload could not be encoded, or decoded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    /// What is kept begins as what codecs have made, and does not go on so.
    #[error("what the database holds of it is damaged ({0})")]
    Damaged(String),
    /// It was written with a codec that the client does not have.
    #[error(
        "it was written with the codec `{0}`, which this client does not have: add it with \
         `Durable::builder().codec(..)`"
    )]
    UnknownCodec(String),
    /// It is not encoded by a codec that the client requires.
    #[error(
        "it is not encoded with `{0}`, which this client requires: somebody has put it into the \
         database by another way, or it was written before that codec was set (for the time of \
         such a migration, use `Encryption::accept_plain`)"
    )]
    Plain(&'static str),
    /// It was encrypted with a key that the client does not have.
    #[error(
        "it was encrypted with the key `{key}`, and this client has {known}: add that key with \
         `Encryption::also_reads`"
    )]
    MissingKey {
        /// The key's id.
        key: String,
        /// The ids of the keys that there are.
        known: String,
    },
    /// The key of that id does not open it.
    #[error(
        "the key `{0}` does not open it: either this client has another key by that id, or what \
         the database holds of it is damaged or was copied from another place"
    )]
    Sealed(String),
    /// It panicked.
    #[error("the codec `{codec}` panicked: {panic}")]
    Panicked {
        /// Its name.
        codec: &'static str,
        /// What it said.
        panic: String,
    },
    /// Anything else.
    #[error("{0}")]
    Other(String),
}
