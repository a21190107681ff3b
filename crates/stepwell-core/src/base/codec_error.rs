//! Errors of codecs.

/// The error of a payload that could not be encoded or decoded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    /// The stored text begins as an envelope, and is not a valid one.
    #[error("what the database holds of it is damaged ({0})")]
    Damaged(String),
    /// The payload was written with a codec that the client does not have.
    #[error(
        "it was written with the codec `{0}`, which this client does not have: add it with \
         `Durable::builder().codec(..)`"
    )]
    UnknownCodec(String),
    /// The payload is not encoded by a codec that the client requires.
    #[error(
        "it is not encoded with `{0}`, which this client requires: somebody has put it into the \
         database by another way, or it was written before that codec was set (for the time of \
         such a migration, use `Encryption::accept_plain`)"
    )]
    Plain(&'static str),
    /// The payload was encrypted with a key that the client does not have.
    #[error(
        "it was encrypted with the key `{key}`, and this client has {known}: add that key with \
         `Encryption::also_reads`"
    )]
    MissingKey {
        /// The id of the key.
        key: String,
        /// The ids of the keys that the client has.
        known: String,
    },
    /// The key of this id does not decrypt the payload.
    #[error(
        "the key `{0}` does not open it: either this client has another key by that id, or what \
         the database holds of it is damaged or was copied from another place"
    )]
    Sealed(String),
    /// The codec panicked.
    #[error("the codec `{codec}` panicked: {panic}")]
    Panicked {
        /// The name of the codec.
        codec: &'static str,
        /// The message of the panic.
        panic: String,
    },
    /// Any other error, with its message.
    #[error("{0}")]
    Other(String),
}
