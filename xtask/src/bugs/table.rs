//! The table of what was caught, for the terminal and for the book.

use std::fmt::Write as _;
use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::bug::Bug;
use crate::cargo;

/// The page that has the table, and what stands before and behind it there.
const PAGE: &str = "docs/how-it-is-tested.md";
const MARKS: [&str; 2] = ["<!-- bugs: written by `cargo xtask bugs --write` -->\n", "<!-- end of bugs -->\n"];

/// As Markdown: the bugs, and what caught each.
pub(super) fn table(rows: &[(&Bug, String)]) -> String {
    let mut table = "| bug | what breaks | guarantee | caught by |\n| --- | --- | --- | --- |\n".to_owned();
    for (bug, by) in rows {
        let _ = writeln!(table, "| {} | {} | {} | {by} |", bug.name, bug.breaks, bug.guarantee);
    }
    table
}

/// Puts the table into the page.
pub(super) fn write(rows: &[(&Bug, String)], took: Duration) -> Result<()> {
    let page = cargo::root()?.join(PAGE);
    let text = fs::read_to_string(&page)?;
    let [begin, end] = MARKS;
    let (before, rest) = text.split_once(begin).context("the page has no mark for the table")?;
    let (_, behind) = rest.split_once(end).context("the page has no mark behind the table")?;
    let (count, minutes) = (rows.len(), took.as_secs().div_ceil(60));
    let told = format!("The last run, of {count} bugs, took {minutes} minutes.");
    let table = table(rows);
    Ok(fs::write(page, format!("{before}{begin}\n{told}\n\n{table}\n{end}{behind}"))?)
}
