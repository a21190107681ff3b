//! Transactions of the application's own, in which stores take requests of the client.

/// A transaction of the application's own that takes a request of the client: a
/// [`Spawn`](crate::Spawn) or an [`Emit`](crate::Emit).
///
/// Each store `S` implements the trait for the transactions of its database driver. Applications
/// call [`Spawn::in_tx`](crate::Spawn::in_tx) and [`Emit::in_tx`](crate::Emit::in_tx).
pub trait UserTransaction<S, Request> {
    /// The answer to the request: a result, or the future of one.
    type Answer;

    /// Carries out the request in the transaction.
    fn carry_out(self, request: Request) -> Self::Answer;
}
