//! No line is wider than a screen shows.

use super::Finding;
use super::sources::Sources;

/// The columns of a line. A link, a row of a table, and what is written by a program may have more.
const COLUMNS: usize = 100;

pub(super) fn too_long(sources: &Sources) -> Vec<Finding> {
    let mut found = Vec::new();
    for (path, text) in &sources.texts {
        let mut in_code = false;
        for (index, line) in text.lines().enumerate() {
            in_code ^= path.ends_with(".md") && line.trim_start().starts_with("```");
            let columns = line.chars().count();
            let is_row = (path.ends_with(".md") || is_comment(line)) && holds_row(line);
            let is_link = ["http://", "https://", "]("].iter().any(|mark| line.contains(mark));
            let is_excepted = is_row || is_link && !in_code;
            if columns > COLUMNS && !is_excepted {
                found.push(Finding::new(
                    "width",
                    path,
                    index + 1,
                    format!("{columns} columns, of {COLUMNS}"),
                ));
            }
        }
    }
    found
}

fn is_comment(line: &str) -> bool {
    line.trim_start().starts_with("//")
}

fn holds_row(line: &str) -> bool {
    line.trim_start().trim_start_matches(['/', '!']).trim_start().starts_with('|')
}
