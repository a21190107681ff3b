//! Calls into code that is not the engine's: a panic in it is an error of that call, and goes no
//! further.
//!
//! The engine calls the application in many places: its tasks, closures and destructors, its codecs
//! and stores, the wakers of its futures. All these calls go through this module, so that a panic
//! ends only the work in which it happened, and nothing that other tasks need.

use std::any::Any;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::sync::oneshot;

/// A panic of the application's code, with its message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Panic(String);

impl Panic {
    fn of(payload: Box<dyn Any + Send>) -> Self {
        let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| payload.downcast_ref::<String>().cloned());
        // The thrown value is the application's as well. A value that its destructor throws is
        // never dropped.
        if let Err(again) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
            std::mem::forget(again);
        }
        Self(text.unwrap_or_else(|| "a value that is no text".into()))
    }
}

/// Calls the application's code, and returns its result.
///
/// # Errors
/// The code panicked.
pub fn guard<T>(call: impl FnOnce() -> T) -> Result<T, Panic> {
    catch_unwind(AssertUnwindSafe(call)).map_err(Panic::of)
}

/// Drops a value that may hold values of the application; a panic in a destructor is logged.
pub fn discard<T>(value: T) {
    if let Err(panic) = guard(|| drop(value)) {
        tracing::warn!(%panic, "a value of the application panicked while it was dropped");
    }
}

/// Notifies the application; a panic in the call is logged with the name `who`.
///
/// The panic concerns this one recipient only, and others wait for their notifications.
pub(crate) fn tell(who: &str, telling: impl FnOnce()) {
    if let Err(panic) = guard(telling) {
        tracing::warn!(%panic, "{who} panicked");
    }
}

/// Answers one caller.
pub(crate) fn answer<T>(caller: oneshot::Sender<T>, value: T) {
    // The caller may be gone. Then the answer is dropped here.
    tell("the caller that waits for an answer", || drop(caller.send(value)));
}

/// A value of the application that is dropped without a panic.
///
/// As a future, it returns an error when the value panics, and the value is dropped as soon as it
/// has ended.
#[derive(Debug)]
pub struct Guarded<T>(Option<T>);

impl<T> Guarded<T> {
    /// Guards the value.
    pub fn new(value: T) -> Self {
        Self(Some(value))
    }

    /// Returns the value; `None` when it has ended as a future.
    pub fn into_inner(mut self) -> Option<T> {
        self.0.take()
    }
}

impl<F: Future + Unpin> Future for Guarded<F> {
    type Output = Result<F::Output, Panic>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(future) = &mut self.0 else { return Poll::Pending };
        let output = match guard(|| Pin::new(future).poll(cx)) {
            Ok(Poll::Pending) => return Poll::Pending,
            Ok(Poll::Ready(output)) => Ok(output),
            Err(panic) => Err(panic),
        };
        discard(self.0.take());
        Poll::Ready(output)
    }
}

impl<T> Drop for Guarded<T> {
    fn drop(&mut self) {
        discard(self.0.take());
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, reason = "a test ends by a panic")]
mod tests {
    use std::future::{pending, poll_fn};
    use std::panic::panic_any;

    use futures_util::FutureExt as _;

    use super::*;

    struct Bomb;

    impl Drop for Bomb {
        fn drop(&mut self) {
            panic_any(Self);
        }
    }

    #[test]
    fn no_panic_goes_further_not_even_that_of_what_was_thrown() {
        assert_eq!(guard(|| 1), Ok(1));
        assert_eq!(guard(|| panic!("number {}", 2)), Err::<(), _>(Panic("number 2".into())));
        assert_eq!(
            guard(|| panic_any(Bomb)),
            Err::<(), _>(Panic("a value that is no text".into()))
        );
        discard(Bomb);
        drop(Guarded::new(Bomb));
    }

    #[test]
    fn a_future_may_panic_when_it_is_polled_and_when_it_is_dropped() {
        let ends = |mut guarded: Guarded<_>| {
            guarded.poll_unpin(&mut Context::from_waker(std::task::Waker::noop()))
        };
        let bomb = Bomb;
        assert_eq!(
            ends(Guarded::new(
                Box::pin(async move {
                    let _bomb = &bomb;
                    pending::<()>().await;
                })
                .boxed()
            )),
            Poll::Pending
        );
        let panics = poll_fn(|_| -> Poll<()> { panic!("ouch") });
        assert_eq!(ends(Guarded::new(panics.boxed())), Poll::Ready(Err(Panic("ouch".into()))));
    }
}
