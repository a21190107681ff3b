//! The runtime that the engine needs: a clock, timers, randomness, and a place to run futures.
//!
//! The engine names no async runtime: the application passes its own. Tests therefore run on a
//! virtual clock, and a browser tab on its own event loop.

use std::future::{Future, poll_fn};
use std::mem;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use crate::base::time::Timestamp;

/// A bound that is `Send` on platforms with threads, and nothing in a browser tab, where futures
/// hold JavaScript values.
#[cfg(not(target_family = "wasm"))]
pub trait MaybeSend: Send {}
#[cfg(not(target_family = "wasm"))]
impl<T: Send + ?Sized> MaybeSend for T {}
/// A bound that is `Sync` on platforms with threads, and nothing in a browser tab.
#[cfg(not(target_family = "wasm"))]
pub trait MaybeSync: Sync {}
#[cfg(not(target_family = "wasm"))]
impl<T: Sync + ?Sized> MaybeSync for T {}
/// A boxed future that can run wherever its platform allows.
#[cfg(not(target_family = "wasm"))]
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A bound that is `Send` on platforms with threads, and nothing in a browser tab, where futures
/// hold JavaScript values.
#[cfg(target_family = "wasm")]
pub trait MaybeSend {}
#[cfg(target_family = "wasm")]
impl<T: ?Sized> MaybeSend for T {}
/// A bound that is `Sync` on platforms with threads, and nothing in a browser tab.
#[cfg(target_family = "wasm")]
pub trait MaybeSync {}
#[cfg(target_family = "wasm")]
impl<T: ?Sized> MaybeSync for T {}
/// A boxed future that can run wherever its platform allows.
#[cfg(target_family = "wasm")]
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// The clock, timers, randomness and executor of an engine.
pub trait Runtime: Send + Sync + 'static {
    /// Returns the time of the wall clock, to the microsecond; this clock may jump.
    fn now(&self) -> Timestamp;

    /// Returns a future that is ready after this time, independently of the wall clock.
    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()>;

    /// Runs the future to its end, beside all other futures.
    ///
    /// A budget of polls must not hold the future back: within one poll, a task's future has to get
    /// as far as it can (tokio: `task::unconstrained`).
    fn spawn(&self, future: BoxFuture<'static, ()>);

    /// Returns a random number, uniform over all values.
    fn random(&self) -> u64;
}

/// Lets all other futures that are ready take their turn.
///
/// The future wakes itself, and so moves to the end of the queue. From there, another thread can
/// take it over when a task blocks this one.
pub(crate) async fn turn() {
    let mut given = false;
    poll_fn(|cx| {
        if mem::replace(&mut given, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
