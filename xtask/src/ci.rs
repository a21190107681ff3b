//! `cargo xtask ci`: every check that a change has to pass, in the order that finds mistakes soonest.

use std::process::Command;

use anyhow::Result;

use crate::report::Report;
use crate::{book, bugs, cargo, deny, process, test, wasm};

/// Of how many parts of the seeded bugs that were caught before each commit tries one. A part has
/// two or three of them, since building the tests with each takes a minute or more.
const PARTS_OF_BUGS: usize = 36;

pub(crate) fn run() -> Result<()> {
    let mut report = Report::new("Checks");
    report.run("format", || process::run(cargo::cargo()?.args(["fmt", "--all", "--check"])));
    report.run("clippy", || {
        let clippy = ["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"];
        process::run(cargo::cargo()?.args(clippy))
    });
    report.run("tests", || test::run(&[], Some("ci")));
    report.run("seeded bugs", || {
        let commit =
            process::output(Command::new("git").current_dir(cargo::root()?).args(["rev-parse", "HEAD"]))?;
        bugs::run(&bugs::Options::drawn(&commit, PARTS_OF_BUGS))
    });
    report.run("documentation", || {
        let doc = ["doc", "--workspace", "--no-deps"];
        process::run(cargo::cargo()?.args(doc).env("RUSTDOCFLAGS", "-D warnings"))
    });
    report.run("WebAssembly", wasm::run);
    deny::run(&mut report)?;
    book::run(&mut report)?;
    report.finish()
}
