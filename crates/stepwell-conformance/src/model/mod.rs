//! The comparison of a store with the reference model.
//!
//! Batches are drawn at random, and are applied to both on the same clock. The test compares every
//! answer, and all tasks after every batch. A sequence that shows a difference is made as short as
//! possible.

mod normal;
mod ops;
mod play;
mod world;

use std::cell::Cell;
use std::time::{Duration, Instant};

use proptest::test_runner::{Config, TestCaseError, TestError, TestRunner};
use tokio::runtime::Handle;

use crate::backend::Backend;
use world::World;

/// The environment variable with the number of sequences to try.
const CASES: &str = "CONFORMANCE_CASES";

/// The number of sequences when the variable is not set, and the time after which no further
/// sequence is tried.
const BY_DEFAULT: (u32, Duration) = (1_000, Duration::from_secs(10));

/// Compares one handle with the model.
pub async fn model(backend: &impl Backend) {
    compare(backend, 1);
}

/// Compares several handles that take turns with the model.
pub async fn model_with_several_handles(backend: &impl Backend) {
    if backend.is_shared() {
        compare(backend, 3);
    }
}

fn compare(backend: &impl Backend, handles: usize) {
    let asked = std::env::var(CASES).ok();
    let asked = asked
        .map(|cases| cases.parse().unwrap_or_else(|_| panic!("{CASES} is no number: {cases:?}")));
    let config = Config {
        cases: asked.unwrap_or(BY_DEFAULT.0),
        failure_persistence: None,
        // A shorter sequence is worth some time, but not the time of a whole test run.
        max_shrink_time: 20_000,
        ..Config::default()
    };
    let (begin, has_failed) = (Instant::now(), Cell::new(false));
    let tried = TestRunner::new(config).run(&ops::batches(), |ops| {
        if asked.is_none() && !has_failed.get() && begin.elapsed() > BY_DEFAULT.1 {
            return Ok(());
        }
        let played = tokio::task::block_in_place(|| {
            Handle::current().block_on(play::play(backend, handles, &ops))
        });
        played.map_err(|difference| {
            has_failed.set(true);
            TestCaseError::fail(difference)
        })
    });
    match tried {
        Ok(()) => {}
        Err(TestError::Fail(difference, ops)) => {
            panic!("the store differs from the model: {difference}\nafter {ops:#?}")
        }
        Err(TestError::Abort(reason)) => panic!("no sequences could be drawn: {reason}"),
    }
}
