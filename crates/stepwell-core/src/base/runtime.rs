//! What the engine asks of the world: a clock, timers, randomness, and a place to run futures.
//!
//! The engine names no async runtime. An application's runtime is handed to it, and so tests run on
//! a virtual clock and a browser tab on its own event loop.

use std::future::{Future, poll_fn};
use std::mem;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use crate::base::time::Timestamp;

/// `Send` where there are threads, nothing in a browser tab, where futures hold JavaScript values.
#[cfg(not(target_family = "wasm"))]
pub trait MaybeSend: Send {}
#[cfg(not(target_family = "wasm"))]
impl<T: Send + ?Sized> MaybeSend for T {}
/// `Sync` where there are threads, nothing in a browser tab.
#[cfg(not(target_family = "wasm"))]
pub trait MaybeSync: Sync {}
#[cfg(not(target_family = "wasm"))]
impl<T: Sync + ?Sized> MaybeSync for T {}
/// A boxed future that can be run anywhere its platform allows.
#[cfg(not(target_family = "wasm"))]
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// `Send` where there are threads, nothing in a browser tab, where futures hold JavaScript values.
#[cfg(target_family = "wasm")]
pub trait MaybeSend {}
#[cfg(target_family = "wasm")]
impl<T: ?Sized> MaybeSend for T {}
/// `Sync` where there are threads, nothing in a browser tab.
#[cfg(target_family = "wasm")]
pub trait MaybeSync {}
#[cfg(target_family = "wasm")]
impl<T: ?Sized> MaybeSync for T {}
/// A boxed future that can be run anywhere its platform allows.
#[cfg(target_family = "wasm")]
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// The world that an engine lives in.
pub trait Runtime: Send + Sync + 'static {
    /// The wall clock, to the microsecond. It may jump.
    fn now(&self) -> Timestamp;

    /// A future that is ready when that much time has passed. It is not bound to the wall clock.
    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()>;

    /// Runs the future to its end, beside everything else. It must not be held back by a budget of
    /// polls: within one poll, a task's future has to get as far as it can (tokio:
    /// `task::unconstrained`).
    fn spawn(&self, future: BoxFuture<'static, ()>);

    /// A random number.
    fn random(&self) -> u64;
}

/// Lets everything else that is ready to run have its turn: wakes itself, and so goes to the end of
/// the queue. There, another thread can take it over where a task blocks this one.
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
