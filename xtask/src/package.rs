//! `cargo xtask package`: what crates.io gets of each crate that is published.
//!
//! Cargo writes the packages and does not build them, which takes a few seconds. With `--build`, it
//! builds each package by itself, outside the checkout.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use crate::{cargo, process};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Build each package, as `cargo publish` does
    #[arg(long)]
    pub(crate) build: bool,
}

/// Packages every crate that is published. Changes that are not committed are packaged, too.
pub(crate) fn run(options: &Options) -> Result<()> {
    let mut package = cargo::cargo()?;
    // Quiet, because cargo warns about each test that the packages leave out.
    package.args(["package", "--quiet", "--allow-dirty"]);
    if !options.build {
        package.arg("--no-verify");
    }
    for name in published(&cargo::root()?)? {
        package.args(["--package", &name]);
    }
    process::run(&mut package)
}

/// Returns the names of the crates that are published, which are the names of their folders.
fn published(root: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for folder in fs::read_dir(root.join("crates")).context("cannot list crates/")? {
        let folder = folder?;
        let manifest = fs::read_to_string(folder.path().join("Cargo.toml"))?;
        if !manifest.lines().any(|line| line == "publish = false") {
            names.push(folder.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The folder of each published crate, with its manifest.
    fn crates() -> Vec<(std::path::PathBuf, String)> {
        let root = cargo::root().unwrap();
        let folders =
            published(&root).unwrap().into_iter().map(|name| root.join("crates").join(name));
        folders
            .map(|folder| {
                let manifest = fs::read_to_string(folder.join("Cargo.toml")).unwrap();
                (folder, manifest)
            })
            .collect()
    }

    /// The texts of the list under a key that stands on one line.
    fn list<'a>(manifest: &'a str, key: &str) -> Vec<&'a str> {
        let line =
            manifest.lines().find_map(|line| line.strip_prefix(&format!("{key} = ["))).unwrap();
        line.trim_end_matches(']').split(", ").map(|text| text.trim_matches('"')).collect()
    }

    #[test]
    fn every_published_crate_says_what_crates_io_shows() {
        for (folder, manifest) in crates() {
            let name = folder.display();
            for key in ["license", "repository", "rust-version"] {
                let own = format!("\n{key} = \"");
                let inherited = format!("\n{key}.workspace = true\n");
                assert!(manifest.contains(&own) || manifest.contains(&inherited), "{name}: {key}");
            }
            assert!(manifest.contains("\ndescription = \""), "{name}: description");
            assert!(manifest.contains("\nreadme = \"README.md\"\n"), "{name}: readme");
            let keywords = list(&manifest, "keywords");
            assert!((1..=5).contains(&keywords.len()), "{name}: {keywords:?}");
            let fits = |word: &&str| {
                (1..=20).contains(&word.len())
                    && word.starts_with(|c: char| c.is_ascii_alphanumeric())
                    && word.chars().all(|c| c.is_ascii_alphanumeric() || "-_+".contains(c))
            };
            assert!(keywords.iter().all(fits), "{name}: {keywords:?}");
            assert!((1..=5).contains(&list(&manifest, "categories").len()), "{name}: categories");
        }
    }

    #[test]
    fn every_published_crate_brings_its_page_and_its_licences() {
        for (folder, _) in crates() {
            let lines = fs::read_to_string(folder.join("README.md")).unwrap().lines().count();
            assert!((15..=40).contains(&lines), "{}: {lines} lines", folder.display());
            for licence in ["LICENSE-APACHE", "LICENSE-MIT"] {
                assert!(folder.join(licence).is_file(), "{}: {licence}", folder.display());
            }
        }
    }

    /// The lines of a table of a manifest.
    fn table<'a>(manifest: &'a str, name: &str) -> impl Iterator<Item = (&'a str, &'a str)> {
        let lines = manifest.lines().skip_while(move |line| *line != format!("[{name}]")).skip(1);
        lines.take_while(|line| !line.starts_with('[')).filter_map(|line| line.split_once(" = "))
    }

    #[test]
    fn the_documentation_of_a_crate_lists_its_features_and_their_defaults() {
        for (folder, manifest) in crates() {
            let (mut features, mut defaults) = (Vec::new(), Vec::new());
            for (name, value) in table(&manifest, "features") {
                match name {
                    "default" => {
                        defaults = value.trim_matches(['[', ']']).split(", ").collect();
                    }
                    _ => features.push(name),
                }
            }
            let Ok(code) = fs::read_to_string(folder.join("src/lib.rs")) else { continue };
            let section = code.lines().skip_while(|line| *line != "//! # Crate features");
            let rows = section.take_while(|line| line.starts_with("//!"));
            let mut listed: Vec<_> = rows
                .filter_map(|row| row.strip_prefix("//! | `")?.split_once("` | "))
                .map(|(name, rest)| (name, rest.starts_with("yes | ")))
                .collect();
            let mut there: Vec<_> = features
                .iter()
                .map(|name| (*name, defaults.contains(&format!("\"{name}\"").as_str())))
                .collect();
            listed.sort();
            there.sort();
            assert_eq!(listed, there, "{}", folder.display());
        }
    }
}
