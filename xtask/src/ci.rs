//! `cargo xtask ci`: every check that a change has to pass, in the order that finds mistakes
//! soonest.

use anyhow::Result;

use crate::report::Report;
use crate::{book, cargo, deny, package, process, test, tidy, wasm};

/// Runs the checks. `without_tests` leaves out the tests, for a machine beside one that runs them.
pub(crate) fn run(without_tests: bool) -> Result<()> {
    let mut report = Report::new("Checks");
    report.run("format", || process::run(cargo::cargo()?.args(["fmt", "--all", "--check"])));
    report.run("tidy", tidy::run);
    report.run("clippy", || {
        let clippy = ["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"];
        process::run(cargo::cargo()?.args(clippy))
    });
    if without_tests {
        report.not_run("tests", "left out by --without-tests");
    } else {
        report.run("tests", || test::run(&[], Some("ci")));
    }
    report.run("documentation", || {
        let doc = ["doc", "--workspace", "--no-deps"];
        process::run(cargo::cargo()?.args(doc).env("RUSTDOCFLAGS", "-D warnings"))
    });
    report.run("WebAssembly", wasm::run);
    report.run("packages", || package::run(&package::Options { build: false }));
    deny::run(&mut report)?;
    book::run(&mut report)?;
    report.finish()
}
