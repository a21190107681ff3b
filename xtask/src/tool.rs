//! Programs that checks need, and that cargo installs.

use std::env;
use std::process::Command;

use anyhow::Result;

use crate::report::Report;
use crate::{cargo, process};

/// Runs a check that needs the program; where it cannot be had, that is said, and the check is not
/// run.
pub(crate) fn with(
    report: &mut Report,
    program: &str,
    check: &str,
    run: impl FnOnce() -> Result<()>,
) -> Result<()> {
    if available(program)? {
        report.run(check, run);
    } else {
        let why = format!("{program} is missing; to install it: cargo install --locked {program}");
        eprintln!("\nWARNING: {check} not checked, because {why}");
        report.not_run(check, &why);
    }
    Ok(())
}

/// Whether the program can be used. It is installed when it is missing and `CI` is set; that takes
/// some minutes.
fn available(program: &str) -> Result<bool> {
    if process::succeeds(Command::new(program).arg("--version")) {
        return Ok(true);
    }
    if env::var_os("CI").is_none() {
        return Ok(false);
    }
    let installed = process::run(cargo::cargo()?.args(["install", "--locked", program]));
    Ok(installed.inspect_err(|error| eprintln!("{error:#}")).is_ok())
}
