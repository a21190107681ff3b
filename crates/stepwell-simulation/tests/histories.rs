//! Some histories of the simulation, with each run of the tests. `cargo xtask sim` plays many more.

#![allow(clippy::panic, missing_docs, reason = "a test ends by a panic")]

use stepwell_simulation::plan::Plan;
use stepwell_simulation::play;

#[test]
fn whatever_happens_the_guarantees_hold() {
    for seed in 0..300 {
        let plan = Plan::draw(seed);
        let (one, other) = (play(&plan, None, false).report, play(&plan, None, false).report);
        if let Some(failure) = &one.failure {
            panic!("seed {seed} fails: {failure}\n  cargo xtask sim --seed {seed}");
        }
        assert_eq!(one.fingerprint, other.fingerprint, "seed {seed} is not reproducible");
        assert!(one.commits > 0, "seed {seed} did nothing");
    }
}
