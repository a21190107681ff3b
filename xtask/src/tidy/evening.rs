//! The engine can be read in an evening.

use super::Finding;
use super::sources::Sources;

/// The page that has the order in which to read, as a table of files and their lines.
const PAGE: &str = "ARCHITECTURE.md";
const SECTION: &str = "## The engine in an evening";
/// Where the files of the table are.
const FOLDER: &str = "crates/stepwell-core/src/";
/// The lines of all files of the table, with comments and without tests.
const LINES: usize = 6_000;

pub(super) fn too_much(sources: &Sources) -> Vec<Finding> {
    let Some(page) = sources.texts.get(PAGE) else { return Vec::new() };
    let (mut found, mut all) = (Vec::new(), 0);
    let mut add = |line, what| found.push(Finding::new("evening", PAGE, line, what));
    for (line, row) in rows(page) {
        let mut lines = 0;
        for path in row.split('`').skip(1).step_by(2).filter(|path| path.ends_with(".rs")) {
            match sources.texts.get(&format!("{FOLDER}{path}")) {
                Some(text) => lines += before_tests(text),
                None => add(line, format!("there is no {FOLDER}{path}")),
            }
        }
        let said = row.split('|').nth(2).and_then(|said| said.trim().parse::<usize>().ok());
        if said.is_none_or(|said| said.abs_diff(lines) > lines / 10) {
            add(line, format!("these files have {lines} lines"));
        }
        all += lines;
    }
    if all == 0 || all > LINES {
        add(1, format!("the engine has {all} lines to read in an evening, of {LINES}"));
    }
    found
}

/// The rows of the table that name files, with their lines.
fn rows(page: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines = (1..).zip(page.lines());
    let section = lines.skip_while(|(_, line)| *line != SECTION).skip(1);
    let section = section.take_while(|(_, line)| !line.starts_with("## "));
    section.filter(|(_, line)| line.starts_with("| `"))
}

/// The number of lines of a file before its tests.
fn before_tests(text: &str) -> usize {
    text.lines().take_while(|line| line.trim() != "#[cfg(test)]").count()
}
