//! The execution of one point of the suite, on its own threads and within a time limit.

use std::future::Future;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

/// The maximum time of a point.
const LIMIT: Duration = Duration::from_secs(60);

/// The maximum time of the comparison with the model, in which a failing sequence is also made
/// smaller.
const LIMIT_OF_THE_MODEL: Duration = Duration::from_secs(120);

/// Runs a point to its end. [`suite!`](crate::suite) calls it in a test for each point.
///
/// # Panics
/// Panics when the point panics, or takes longer than one minute. The comparison with the model may
/// take two minutes.
pub fn run<F: Future<Output = ()>>(point: &'static str, body: impl FnOnce() -> F + Send + 'static) {
    let limit = if point.contains("model") { LIMIT_OF_THE_MODEL } else { LIMIT };
    run_within(limit, point, body);
}

fn run_within<F: Future<Output = ()>>(
    limit: Duration,
    point: &'static str,
    body: impl FnOnce() -> F + Send + 'static,
) {
    let (done, ended) = mpsc::channel();
    // The thread can be left behind, so that a store that blocks for good fails its test and does
    // not delay it.
    let thread = std::thread::Builder::new().name(point.into()).spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(4)
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async { body().await });
        drop(runtime);
        let _ = done.send(());
    });
    if ended.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
        panic!(
            "the point `{point}` has not ended within {limit:?}: the store hangs, or is very slow"
        );
    }
    if let Err(panic) = thread.unwrap().join() {
        std::panic::resume_unwind(panic);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "the point `idle` has not ended within 100ms")]
    fn a_point_that_hangs_is_named() {
        run_within(Duration::from_millis(100), "idle", std::future::pending);
    }

    #[test]
    #[should_panic(expected = "ouch")]
    fn a_point_that_panics_fails_its_test() {
        run("broken", || async { panic!("ouch") });
    }
}
