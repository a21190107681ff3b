//! Getting cargo-nextest, the test runner.

use std::env;

use anyhow::Result;

use crate::{cargo, process};

/// Whether cargo-nextest can be used. It is installed when it is missing and `CI` is set: a person's machine is theirs.
pub(crate) fn available() -> Result<bool> {
    if process::succeeds(cargo::cargo()?.args(["nextest", "--version"])) {
        return Ok(true);
    }
    if env::var_os("CI").is_some() {
        process::run(cargo::cargo()?.args(["install", "--locked", "cargo-nextest"]))?;
        return Ok(true);
    }
    eprintln!("cargo-nextest is not installed, so `cargo test` runs the tests instead.");
    eprintln!("To install it: cargo install --locked cargo-nextest");
    Ok(false)
}
