//! Some histories of the simulation, with each run of the tests. `cargo xtask sim` plays many more.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "a test ends by a panic")]

mod played;

use stepwell_simulation::Backend;

use crate::played::histories;

#[test]
fn whatever_happens_the_guarantees_hold() {
    histories(0..300, &Backend::Memory, "");
}

#[test]
fn whatever_happens_the_guarantees_hold_on_files() {
    histories(0..40, &Backend::Sqlite, "--sqlite ");
}
