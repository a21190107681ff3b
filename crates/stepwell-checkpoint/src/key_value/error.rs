//! The errors of key-value stores.

/// Why a key-value store could not do what it was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyValueError {
    /// The store's own client failed.
    #[error("{store} could not {action}: {reason}")]
    Failed {
        /// The store: `Redis`, `PostgreSQL`…
        store: &'static str,
        /// What was to be done.
        action: &'static str,
        /// What the client said.
        reason: String,
    },
    /// What lies under the key was not written by this adapter.
    #[error(
        "what {store} has under {key:?} was not written by this program ({reason}): give it \
         another place, or remove that"
    )]
    Foreign {
        /// The store.
        store: &'static str,
        /// The key.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The store does not take values of that size.
    #[error(
        "{store} keeps at most {limit} bytes under a key, {key:?} would have {bytes}: keep large \
         data elsewhere, and a reference here"
    )]
    TooLarge {
        /// The store.
        store: &'static str,
        /// The key.
        key: String,
        /// How long key and value are.
        bytes: usize,
        /// The store's limit.
        limit: usize,
    },
    /// A table cannot have that name.
    #[error(
        "{0:?} is no name for a table: use letters, digits and underscores, and before it a schema \
         and a dot, if need be"
    )]
    TableName(String),
}

impl KeyValueError {
    /// The client of a store failed. For adapters.
    pub fn failed(store: &'static str, action: &'static str, reason: impl ToString) -> Self {
        Self::Failed { store, action, reason: reason.to_string() }
    }
}
