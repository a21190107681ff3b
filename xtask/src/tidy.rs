//! `cargo xtask tidy`: what the repository holds itself to, and the compiler does not see.
//!
//! Each check returns its findings. Those that `xtask/tidy.txt` excuses are left out; an excuse
//! that is no longer needed is a finding, too, so that the list only gets shorter.

mod docs;
mod evening;
mod excuses;
mod functions;
mod imports;
mod lines;
mod sources;
mod words;

use anyhow::{Result, ensure};

use excuses::Excuses;
use sources::Sources;

/// One place that breaks a rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Finding {
    /// The rule's name, as excuses name it.
    rule: &'static str,
    /// The file, from the root of the repository.
    file: String,
    /// The line, from 1.
    line: usize,
    /// What is wrong there.
    what: String,
}

impl Finding {
    fn new(rule: &'static str, file: &str, line: usize, what: impl Into<String>) -> Self {
        Self { rule, file: file.to_owned(), line, what: what.into() }
    }
}

pub(crate) fn run() -> Result<()> {
    let sources = Sources::of_the_tree()?;
    let found = findings(&sources);
    let excuses = Excuses::of_the_tree()?;
    let left = excuses.judge(&found);
    for finding in &left {
        let Finding { rule, file, line, what } = finding;
        eprintln!("{file}:{line}: {rule}: {what}");
    }
    eprintln!("{} places are excused, in {} files", excuses.places(), excuses.files());
    ensure!(left.is_empty(), "{} findings", left.len());
    Ok(())
}

/// All that the checks find, in the order of files and lines.
fn findings(sources: &Sources) -> Vec<Finding> {
    let mut found = Vec::new();
    found.extend(lines::too_long(sources));
    found.extend(functions::too_long(sources));
    found.extend(docs::summaries(sources));
    found.extend(words::banned(sources));
    found.extend(imports::dead_files(sources));
    found.extend(imports::upward(sources));
    found.extend(imports::cycles(sources));
    found.extend(evening::too_much(sources));
    found.sort_by(|one, other| (&one.file, one.line).cmp(&(&other.file, other.line)));
    found
}

#[cfg(test)]
mod tests;
