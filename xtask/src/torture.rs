//! `cargo xtask torture`: the long test with real processes and `kill -9`.

use std::ffi::OsString;

use anyhow::{Result, ensure};

use crate::{cargo, nextest, process};

pub(crate) fn run(args: &[OsString]) -> Result<()> {
    ensure!(nextest::available()?, "the torture test needs cargo-nextest");
    let mut command = cargo::cargo()?;
    // Its own profile, because the usual one ends a test that takes minutes.
    command.args(["nextest", "run", "--profile", "torture", "--release"]);
    command.args(["--package", "stepwell", "--test", "torture", "--run-ignored", "all"]);
    process::run(command.args(args))
}
