//! `cargo xtask torture`: the long test with real processes and `kill -9`.

use std::ffi::OsString;

use anyhow::{Result, ensure};

use crate::{cargo, nextest, process};

pub(crate) fn run(args: &[OsString]) -> Result<()> {
    ensure!(nextest::available()?, "the torture test needs cargo-nextest");
    let mut command = cargo::cargo()?;
    // Its own profile, because the usual one ends a test that takes minutes.
    command.args(["nextest", "run", "--profile", "torture", "--release"]);
    command.args(["--package", "stepwell", "--test", "torture", "--test", "postgres_torture"]);
    // Ten times as long as among the other tests, unless the environment says otherwise.
    for (name, number) in [("TORTURE_TASKS", "20000"), ("TORTURE_KILLS", "500")] {
        if std::env::var_os(name).is_none() {
            command.env(name, number);
        }
    }
    process::run(command.args(args))
}
