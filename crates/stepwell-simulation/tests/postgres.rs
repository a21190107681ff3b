//! Some histories of the simulation on PostgreSQL, with each run of the tests. `cargo xtask sim --postgres` plays more.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "a test ends by a panic")]

use std::sync::Arc;

use stepwell_simulation::plan::Plan;
use stepwell_simulation::{Postgres, play};

#[test]
fn whatever_happens_the_guarantees_hold_on_postgres() {
    let url = std::env::var("TEST_POSTGRES_URL").expect("this test needs PostgreSQL: run `cargo xtask test`");
    let server = Arc::new(Postgres::new(url).unwrap());
    for seed in 0..12 {
        let report = play(&Plan::draw(seed), Some(&server), false).report;
        if let Some(failure) = &report.failure {
            panic!("seed {seed} fails: {failure}\n  cargo xtask sim --postgres --seed {seed}");
        }
        assert!(report.commits > 0, "seed {seed} did nothing");
    }
}
