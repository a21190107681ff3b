//! The check of all dependencies with cargo-deny: `deny.toml` says what is allowed.

use std::env;

use anyhow::Result;

use crate::{cargo, process};

/// Whether cargo-deny can be used. It is installed when it is missing and `CI` is set; that takes about three minutes.
pub(crate) fn available() -> Result<bool> {
    if process::succeeds(cargo::cargo()?.args(["deny", "--version"])) {
        return Ok(true);
    }
    if env::var_os("CI").is_none() {
        return Ok(false);
    }
    let installed = process::run(cargo::cargo()?.args(["install", "--locked", "cargo-deny"]));
    Ok(installed.inspect_err(|error| eprintln!("{error:#}")).is_ok())
}

/// All checks but `advisories`, which fetches a database: a change must not fail because of what others published.
pub(crate) fn run() -> Result<()> {
    process::run(cargo::cargo()?.args(["deny", "--workspace", "check", "bans", "licenses", "sources"]))
}
