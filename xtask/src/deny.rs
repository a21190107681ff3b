//! The check of all dependencies with cargo-deny: `deny.toml` says what is allowed.

use anyhow::Result;

use crate::{cargo, process};

pub(crate) const CARGO_DENY: &str = "cargo-deny";

/// All checks but `advisories`, which fetches a database: a change must not fail because of what others published.
pub(crate) fn run() -> Result<()> {
    process::run(cargo::cargo()?.args(["deny", "--workspace", "check", "bans", "licenses", "sources"]))
}
