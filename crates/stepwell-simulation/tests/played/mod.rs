//! Plays some histories, and ends the test by a panic when one of them fails.

use std::ops::Range;

use stepwell_simulation::plan::Plan;
use stepwell_simulation::{Backend, play};

/// Plays the histories of these seeds; twice, where they are the same each time. `options` are
/// those that choose the backend of `cargo xtask sim`.
pub(crate) fn histories(seeds: Range<u64>, backend: &Backend, options: &str) {
    for seed in seeds {
        let plan = Plan::draw(seed);
        let report = play(&plan, backend, false).unwrap().report;
        if let Some(failure) = &report.failure {
            panic!("seed {seed} fails: {failure}\n  cargo xtask sim {options}--seed {seed}");
        }
        assert!(report.commits > 0, "seed {seed} did nothing");
        if backend.repeats() {
            let again = play(&plan, backend, false).unwrap().report.fingerprint;
            assert_eq!(report.fingerprint, again, "seed {seed} is not reproducible");
        }
    }
}
