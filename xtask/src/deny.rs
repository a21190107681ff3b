//! The check of all dependencies with cargo-deny: `deny.toml` says what is allowed.

use anyhow::Result;

use crate::report::Report;
use crate::{cargo, process, tool};

/// All checks but `advisories`, which fetches a database: a change must not fail because of what
/// others published.
pub(crate) fn run(report: &mut Report) -> Result<()> {
    tool::with(report, "cargo-deny", "dependencies", || {
        process::run(cargo::cargo()?.args([
            "deny",
            "--workspace",
            "check",
            "bans",
            "licenses",
            "sources",
        ]))
    })
}
