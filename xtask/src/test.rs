//! `cargo xtask test`: all tests. The torture is among them; `cargo xtask torture` makes it ten times as long.

use std::ffi::{OsStr, OsString};

use anyhow::{Result, bail};

use crate::report::Report;
use crate::{cargo, nextest, process};

/// Runs the tests. `args` go to nextest; `profile` is a profile of `.config/nextest.toml`.
pub(crate) fn run(args: &[OsString], profile: Option<&str>) -> Result<()> {
    let mut report = Report::new("Test suites");
    if nextest::available()? {
        report
            .run("unit and integration tests (cargo nextest, SQLite store)", || with_nextest(args, profile));
    } else {
        report.run("unit and integration tests (cargo test, SQLite store)", || with_cargo_test(args));
    }
    report
        .run("documentation tests", || process::run(cargo::cargo()?.args(["test", "--doc", "--workspace"])));
    report.finish()
}

fn with_nextest(args: &[OsString], profile: Option<&str>) -> Result<()> {
    let mut command = cargo::cargo()?;
    command.args(["nextest", "run", "--workspace"]);
    if let Some(profile) = profile {
        command.args(["--profile", profile]);
    }
    process::run(command.args(args))
}

fn with_cargo_test(filters: &[OsString]) -> Result<()> {
    if let Some(option) = filters.iter().find(|filter| is_option(filter)) {
        bail!("`{}` is an option of nextest, which is not installed", option.display());
    }
    let mut command = cargo::cargo()?;
    command.args(["test", "--workspace", "--tests", "--no-fail-fast", "--"]).args(filters);
    process::run(&mut command)
}

fn is_option(arg: &OsStr) -> bool {
    arg.as_encoded_bytes().starts_with(b"-")
}
