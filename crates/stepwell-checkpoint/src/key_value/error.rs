//! The errors of key-value stores.

/// The errors of a key-value store.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyValueError {
    /// The client of the store failed.
    #[error("{store} could not {action}: {reason}")]
    Failed {
        /// The name of the store: `Redis`, `PostgreSQL`…
        store: &'static str,
        /// The action that failed.
        action: &'static str,
        /// The error text of the client.
        reason: String,
    },
    /// The value under the key was not written by this adapter.
    #[error(
        "what {store} has under {key:?} was not written by this program ({reason}): give it \
         another place, or remove that"
    )]
    Foreign {
        /// The name of the store.
        store: &'static str,
        /// The key.
        key: String,
        /// The reason why the value is foreign.
        reason: String,
    },
    /// The value is larger than the store allows.
    #[error(
        "{store} keeps at most {limit} bytes under a key, {key:?} would have {bytes}: keep large \
         data elsewhere, and a reference here"
    )]
    TooLarge {
        /// The name of the store.
        store: &'static str,
        /// The key.
        key: String,
        /// The length of key and value together.
        bytes: usize,
        /// The store's limit.
        limit: usize,
    },
    /// The name is not valid for a table.
    #[error(
        "{0:?} is no name for a table: use letters, digits and underscores, and before it a schema \
         and a dot, if need be"
    )]
    TableName(String),
}

impl KeyValueError {
    /// Makes the error of a client that failed, for adapters.
    pub fn failed(store: &'static str, action: &'static str, reason: impl ToString) -> Self {
        Self::Failed { store, action, reason: reason.to_string() }
    }
}
