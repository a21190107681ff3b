//! Receipts: the results of items, which their owners wait for.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::sync::oneshot;

use crate::base::retry::STORE_RETRY;
use crate::base::runtime::{MaybeSend, Runtime};
use crate::store::StoreError;

pub(crate) type Answer<T> = oneshot::Sender<Result<T, StoreError>>;

/// A future of one item's result, which is ready when the item's batch is durable.
///
/// Invariant: a receipt is followed to its end. An item whose batch fails is lost unless its owner
/// sends it again. [`insist`] does that for items whose answer nobody waits for.
#[must_use = "an item whose batch fails is lost unless its owner sends it again"]
pub(crate) struct Receipt<T>(oneshot::Receiver<Result<T, StoreError>>);

impl<T> Receipt<T> {
    pub(super) fn new() -> (Answer<T>, Self) {
        let (answer, receiver) = oneshot::channel();
        (answer, Self(receiver))
    }
}

impl<T> Future for Receipt<T> {
    type Output = Result<T, StoreError>;

    /// Returns [`StoreError::Closed`] when nobody is left to answer.
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // No adapter moves the answer about, because the answer is large.
        match Pin::new(&mut self.0).poll(cx) {
            Poll::Ready(Ok(answer)) => Poll::Ready(answer),
            Poll::Ready(Err(_)) => Poll::Ready(Err(StoreError::Closed)),
            Poll::Pending => Poll::Pending,
        }
    }
}

/// Sends an item in the background until the store has answered, or has refused it for good.
///
/// It is for items whose answer nobody waits for.
pub(crate) fn insist<T: MaybeSend + 'static>(
    runtime: &Arc<dyn Runtime>,
    send: impl Fn() -> Receipt<T> + MaybeSend + 'static,
) {
    let sending = until_answered(runtime.clone(), send);
    runtime.spawn(Box::pin(async { _ = sending.await }));
}

/// Sends an item until the store has answered, or has refused it for good.
pub(crate) async fn until_answered<T: MaybeSend + 'static>(
    runtime: Arc<dyn Runtime>,
    send: impl Fn() -> Receipt<T> + MaybeSend + 'static,
) -> Result<T, StoreError> {
    let mut tries = 0;
    loop {
        match send().await {
            Err(error) if error.is_transient() && !matches!(error, StoreError::Closed) => {
                tries += 1;
                let pause = STORE_RETRY.delay(tries, runtime.random()).unwrap_or_default();
                runtime.sleep(pause).await;
            }
            result => return result,
        }
    }
}
