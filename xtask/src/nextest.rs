//! cargo-nextest, the test runner: getting it, and having it leave tests out.

use std::path::PathBuf;
use std::{env, fs};

use anyhow::Result;

use crate::{cargo, process};

/// Whether cargo-nextest can be used. It is installed when it is missing and `CI` is set: a
/// person's machine is theirs.
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

/// A copy of nextest's configuration in which only tests of the filterset run, whatever the command
/// line selects.
///
/// An option could not do that: a test runs that any of several `-E` holds, and the caller may have
/// given one.
pub(crate) fn config_with_filter(filterset: &str) -> Result<PathBuf> {
    let ours = fs::read_to_string(cargo::root()?.join(".config/nextest.toml"))?;
    let profile = "[profile.default]\n";
    let copy = cargo::target_dir()?.join("nextest-with-filter.toml");
    fs::write(
        &copy,
        ours.replacen(profile, &format!("{profile}default-filter = '{filterset}'\n"), 1),
    )?;
    Ok(copy)
}
