//! Some histories of the simulation, with each run of the tests. `cargo xtask sim` plays many more.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "a test ends by a panic")]

use std::sync::Arc;

use stepwell_simulation::plan::Plan;
use stepwell_simulation::{Backend, Postgres, play};

/// Plays the histories of these seeds; twice, where they are the same each time.
fn histories(seeds: std::ops::Range<u64>, backend: &Backend, option: &str) {
    for seed in seeds {
        let plan = Plan::draw(seed);
        let report = play(&plan, backend, false).unwrap().report;
        if let Some(failure) = &report.failure {
            panic!("seed {seed} fails: {failure}\n  cargo xtask sim {option}--seed {seed}");
        }
        assert!(report.commits > 0, "seed {seed} did nothing");
        if backend.repeats() {
            let again = play(&plan, backend, false).unwrap().report.fingerprint;
            assert_eq!(report.fingerprint, again, "seed {seed} is not reproducible");
        }
    }
}

#[test]
fn whatever_happens_the_guarantees_hold() {
    histories(0..300, &Backend::Memory, "");
}

#[test]
fn whatever_happens_the_guarantees_hold_on_files() {
    histories(0..40, &Backend::Sqlite, "--sqlite ");
}

#[test]
fn whatever_happens_the_guarantees_hold_on_postgres() {
    let url = std::env::var("TEST_POSTGRES_URL").expect("this test needs PostgreSQL: run `cargo xtask test`");
    histories(0..12, &Backend::Postgres(Arc::new(Postgres::new(url).unwrap())), "--postgres ");
}
