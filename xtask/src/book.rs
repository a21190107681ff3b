//! The book: the pages of `docs/`, by mdBook. Its code is compiled with the documentation tests.

use std::process::Command;

use anyhow::Result;

use crate::report::Report;
use crate::{cargo, process, tool};

/// Builds it into `target/book`. A page that is listed and not there is an error.
pub(crate) fn run(report: &mut Report) -> Result<()> {
    tool::with(report, "mdbook", "book", || {
        let folder = cargo::target_dir()?.join("book");
        let mut build = Command::new("mdbook");
        process::run(
            build.arg("build").arg(cargo::root()?.join("docs")).arg("--dest-dir").arg(folder),
        )
    })
}
