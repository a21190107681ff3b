//! How the commands call cargo.

use std::env;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};

/// A call of the cargo that runs this program, in the root of the workspace.
pub(crate) fn cargo() -> Result<Command> {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root()?);
    forget_this_package(&mut command);
    Ok(command)
}

/// The root of the workspace.
pub(crate) fn root() -> Result<PathBuf> {
    // Read when the program runs, not when it is compiled: checkouts may share a target folder, and
    // so this binary.
    let package = env::var_os("CARGO_MANIFEST_DIR").context("run this program as `cargo xtask`")?;
    let root = PathBuf::from(package).parent().map(PathBuf::from);
    root.context("the xtask package has no parent folder")
}

/// Where cargo puts what it builds.
pub(crate) fn target_dir() -> Result<PathBuf> {
    Ok(root()?.join(env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into())))
}

/// Takes away what `cargo run` tells this program about its own package, so that no build script
/// reads it as its own.
pub(crate) fn forget_this_package(command: &mut Command) {
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(name);
        }
    }
}
