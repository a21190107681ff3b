//! `cargo xtask wasm`: the core builds for `wasm32-unknown-unknown`.
//!
//! Rust's standard library for that target comes from rustup. Where rustup cannot fetch it,
//! Debian's packages bring a compiler and the sources to build it from.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::{cargo, packages, process};

const TARGET: &str = "wasm32-unknown-unknown";
const DEBIAN_PACKAGES: [&str; 6] =
    ["rustc-web", "cargo-web", "rust-web-src", "lld", "clang", "llvm"];

pub(crate) fn run() -> Result<()> {
    if has_target() || (add_target() && has_target()) {
        process::run(build(&mut cargo::cargo()?)?)
    } else {
        eprintln!("rustup has no {TARGET} here; building it with Debian's Rust instead.");
        packages::install(&DEBIAN_PACKAGES).with_context(|| {
            format!("no standard library for {TARGET}, which `rustup target add {TARGET}` brings")
        })?;
        process::run(build(&mut debian_cargo()?)?.arg("-Zbuild-std=std,panic_abort"))
    }
}

fn build(command: &mut Command) -> Result<&mut Command> {
    // A folder of its own, so that this build and a usual one do not wait for each other.
    let target_dir = cargo::target_dir()?.join("wasm");
    Ok(command
        .args(["build", "--package", "stepwell-core", "--target", TARGET, "--target-dir"])
        .arg(target_dir))
}

/// Whether the compiler in use has the target's standard library, from rustup or from elsewhere.
fn has_target() -> bool {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    process::output(Command::new(rustc).args(["--print", "target-libdir", "--target", TARGET]))
        .is_ok_and(|folder| Path::new(&folder).is_dir())
}

fn add_target() -> bool {
    process::run(Command::new("rustup").args(["target", "add", TARGET]))
        .inspect_err(|error| eprintln!("{error:#}"))
        .is_ok()
}

/// Debian's cargo with Debian's compiler. What this program inherited from rustup's cargo must not
/// reach them: the names of other programs, and `LD_LIBRARY_PATH`, which leads to the other
/// compiler's libraries.
fn debian_cargo() -> Result<Command> {
    let mut command = Command::new(PathBuf::from("/usr/bin/cargo"));
    command.current_dir(cargo::root()?);
    cargo::forget_this_package(&mut command);
    for name in [
        "CARGO",
        "LD_LIBRARY_PATH",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTDOC",
        "RUSTUP_HOME",
        "RUSTUP_TOOLCHAIN",
    ] {
        command.env_remove(name);
    }
    command
        .env("RUSTC", "/usr/bin/rustc")
        // `-Zbuild-std` is not stable, and Debian has no nightly compiler.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", "wasm-ld");
    Ok(command)
}
