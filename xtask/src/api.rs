//! `cargo xtask api`: the public API of the crates that applications and stores depend on, and
//! whether it is what `docs/api/` says.
//!
//! rustdoc writes the API as JSON, which only a nightly compiler does, and whose format changes.
//! The crate `public-api` reads one version of it, so both are pinned, and change together.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use public_api::Builder;

use crate::{cargo, process};

/// The compiler whose format `public-api` reads.
const TOOLCHAIN: &str = "nightly-2026-05-20";
const CRATES: [&str; 2] = ["stepwell", "stepwell-core"];

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Write docs/api/, instead of comparing with it
    #[arg(long)]
    bless: bool,
}

/// Compares the API with `docs/api/`, or writes it there.
pub(crate) fn run(options: &Options) -> Result<()> {
    let toolchain = toolchain()?;
    let mut differences = 0;
    for name in CRATES {
        let api = api(name, toolchain)?;
        let path = cargo::root()?.join("docs/api").join(format!("{name}.txt"));
        if options.bless {
            fs::create_dir_all(path.parent().unwrap_or(&path))?;
            fs::write(&path, api).with_context(|| format!("cannot write {}", path.display()))?;
        } else {
            let kept = fs::read_to_string(&path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            let changes = changes(&kept, &api);
            changes.iter().for_each(|change| eprintln!("{name}: {change}"));
            differences += changes.len();
        }
    }
    ensure!(
        differences == 0,
        "the public API has changed in {differences} lines; if that is meant, run \
         `cargo xtask api --bless`, and say in CHANGELOG.md what changes for users"
    );
    Ok(())
}

/// Returns the toolchain to use: a `nightly` without a date where the right one is missing.
fn toolchain() -> Result<&'static str> {
    let works = |name: &&str| {
        let toolchain = format!("+{name}");
        process::succeeds(Command::new("rustdoc").args([toolchain.as_str(), "--version"]))
    };
    [TOOLCHAIN, "nightly"].into_iter().find(works).with_context(|| {
        format!(
            "a nightly compiler is missing; to install it: rustup toolchain install {TOOLCHAIN} \
             --profile minimal"
        )
    })
}

/// Returns the API of a crate with all its features, one item a line.
fn api(name: &str, toolchain: &str) -> Result<String> {
    let target = cargo::target_dir()?.join("api");
    // By rustup's cargo, which starts the compiler of that name.
    let mut rustdoc = Command::new("cargo");
    rustdoc.current_dir(cargo::root()?).arg(format!("+{toolchain}"));
    cargo::forget_this_package(&mut rustdoc);
    rustdoc.env_remove("RUSTC").env_remove("RUSTDOC").env_remove("RUSTUP_TOOLCHAIN");
    // In the profile that compiles soonest, because nothing is run.
    rustdoc.args(["rustdoc", "--quiet", "--lib", "--all-features", "--profile", "demo"]);
    rustdoc.args(["--package", name, "--target-dir"]).arg(&target);
    rustdoc.args(["--", "-Z", "unstable-options", "--output-format", "json"]);
    // As docs.rs does it.
    rustdoc.args(["--cfg", "docsrs", "--cap-lints", "allow"]);
    process::run(&mut rustdoc)?;
    let json = target.join("doc").join(format!("{}.json", name.replace('-', "_")));
    let api = Builder::from_rustdoc_json(&json)
        // What follows from the types of a type's fields, and from other crates.
        .omit_auto_trait_impls(true)
        .omit_blanket_impls(true)
        .build()
        .with_context(|| {
            format!(
                "cannot read the documentation of {name}; to install the compiler that is needed: \
                 rustup toolchain install {TOOLCHAIN} --profile minimal"
            )
        })?;
    Ok(api.to_string())
}

/// Returns the lines that only one of the texts has.
fn changes(kept: &str, api: &str) -> Vec<String> {
    let (kept, api): (BTreeSet<_>, BTreeSet<_>) = (kept.lines().collect(), api.lines().collect());
    let removed = kept.difference(&api).map(|line| format!("- {line}"));
    removed.chain(api.difference(&kept).map(|line| format!("+ {line}"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_shown_by_its_lines() {
        let (kept, api) = ("pub fn a()\npub fn b()\n", "pub fn b()\npub fn c()\n");
        assert_eq!(changes(kept, api), ["- pub fn a()", "+ pub fn c()"]);
        assert!(changes(kept, kept).is_empty());
    }
}
