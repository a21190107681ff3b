//! The texts of the repository.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::{cargo, process};

/// The texts, by their paths from the root.
pub(super) struct Sources {
    pub(super) texts: BTreeMap<String, String>,
    /// The Rust files among them, parsed.
    pub(super) rust: BTreeMap<String, syn::File>,
}

impl Sources {
    /// Reads what git knows, and what it does not ignore.
    pub(super) fn of_the_tree() -> Result<Self> {
        let root = cargo::root()?;
        let mut list = Command::new("git");
        list.current_dir(&root).args(["ls-files", "--cached", "--others", "--exclude-standard"]);
        let listed = process::output(&mut list)?;
        let known = |path: &&str| {
            [".rs", ".sql", ".md", ".js", ".css"].iter().any(|end| path.ends_with(end))
        };
        let files = listed.lines().filter(known).filter(|path| root.join(path).is_file());
        Self::new(files.map(|path| {
            let text = fs::read_to_string(root.join(path)).with_context(|| path.to_owned())?;
            Ok((path.to_owned(), text))
        }))
    }

    pub(super) fn new(texts: impl Iterator<Item = Result<(String, String)>>) -> Result<Self> {
        let texts = texts.collect::<Result<BTreeMap<_, _>>>()?;
        let mut rust = BTreeMap::new();
        for (path, text) in texts.iter().filter(|(path, _)| path.ends_with(".rs")) {
            rust.insert(path.clone(), syn::parse_file(text).with_context(|| path.clone())?);
        }
        Ok(Self { texts, rust })
    }

    /// The Rust files that are built into crates, without tests, benchmarks and development
    /// commands.
    pub(super) fn libraries(&self) -> impl Iterator<Item = (&str, &syn::File)> {
        let is_library = |path: &str| path.starts_with("crates/") && path.contains("/src/");
        self.rust
            .iter()
            .map(|(path, file)| (path.as_str(), file))
            .filter(move |(path, _)| is_library(path))
    }
}

/// Whether an item is for tests only.
pub(super) fn for_tests(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let list =
            attribute.path().is_ident("cfg").then(|| attribute.meta.require_list().ok()).flatten();
        list.is_some_and(|list| {
            list.tokens.to_string().split(|c: char| !c.is_alphanumeric()).any(|word| word == "test")
        })
    })
}
