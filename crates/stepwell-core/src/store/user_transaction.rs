//! Steps that a store does within its own transaction.

use std::any::Any;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::base::codec_error::CodecError;
use crate::base::journal::Key;
use crate::base::payload::Payload;

/// The work of a step, of a type that only the backend knows, and the [`Seal`] for its result.
type Work = (Box<dyn Any + Send>, Seal);

/// A step that the store does within its own transaction.
///
/// All copies of this value share its work, which is done once.
#[derive(Clone)]
pub struct UserTransaction {
    /// The key of the step.
    pub key: Key,
    /// The sequence number of the step's entry.
    pub seq: u64,
    work: Arc<Mutex<Option<Work>>>,
}

impl UserTransaction {
    /// Returns a step with this work: a value of a type that only the backend knows, such as a
    /// closure over its connection.
    pub fn new(key: Key, seq: u64, work: Box<dyn Any + Send>) -> Self {
        Self { key, seq, work: Arc::new(Mutex::new(Some((work, Seal::default())))) }
    }

    /// Takes out the work and the [`Seal`] for its result; `None` when they were taken before.
    pub fn take(&self) -> Option<(Box<dyn Any + Send>, Seal)> {
        self.work().take()
    }

    /// Returns whether a store has taken the work.
    pub(crate) fn is_taken(&self) -> bool {
        self.work().is_none()
    }

    /// Sets the function that changes the result of the work before the store keeps it.
    pub(crate) fn seal(&self, sealing: Sealing) {
        if let Some((_, seal)) = &mut *self.work() {
            *seal = Seal(Some(sealing));
        }
    }

    fn work(&self) -> MutexGuard<'_, Option<Work>> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A function that makes the content of the journal entry from the result of a [`UserTransaction`];
/// by default the content is the result itself.
#[derive(Default)]
pub struct Seal(pub(crate) Option<Sealing>);

pub(crate) type Sealing = Box<dyn FnOnce(&Payload) -> Result<Payload, CodecError> + Send>;

impl Seal {
    /// Returns the content of the entry for this result.
    ///
    /// # Errors
    /// The result cannot be encoded. Then the work has failed.
    pub fn seal(self, result: &Payload) -> Result<Payload, CodecError> {
        match self.0 {
            Some(seal) => seal(result),
            None => Ok(result.clone()),
        }
    }
}

impl std::fmt::Debug for UserTransaction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UserTransaction").field("key", &self.key).finish_non_exhaustive()
    }
}
