//! What stores implement for the transactions of their database driver.

use crate::client::emit::Emit;
use crate::client::spawn::Spawn;

/// A transaction of the application's own, in which a client spawns tasks and emits events.
///
/// Each store `S` implements the trait for the transactions of its database driver. Applications
/// call [`Spawn::in_tx`] and [`Emit::in_tx`].
pub trait UserTransaction<S> {
    /// The answer to a spawn: a result, or the future of one.
    type Spawned;
    /// The answer to an event: a result, or the future of one.
    type Emitted;

    /// Spawns a task in the transaction.
    fn spawn(self, spawn: Spawn) -> Self::Spawned;

    /// Emits an event in the transaction.
    fn emit(self, emit: Emit) -> Self::Emitted;
}
