//! The book: the pages of `docs/`, by mdBook. Its code is compiled with the documentation tests.

use std::process::Command;

use anyhow::{Result, bail};

use crate::{cargo, process, tool};

pub(crate) const MDBOOK: &str = "mdbook";

/// Builds it into `target/book`. A page that is listed and not there is an error.
pub(crate) fn run() -> Result<()> {
    if !tool::available(MDBOOK)? {
        bail!("{}", tool::missing(MDBOOK));
    }
    let folder = cargo::target_dir()?.join("book");
    let mut build = Command::new(MDBOOK);
    process::run(build.arg("build").arg(cargo::root()?.join("docs")).arg("--dest-dir").arg(folder))
}
