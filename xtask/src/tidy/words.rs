//! Words that `docs/style.md` does without.

use super::Finding;
use super::sources::Sources;

/// Words, and others to be written in their place.
const BANNED: [(&str, &str); 10] = [
    ("whoever", "the caller, the client, the worker"),
    ("anew", "again"),
    ("crowd", "many callers"),
    ("poked", "notified"),
    ("bury", "declare dead"),
    ("buried", "declared dead"),
    ("doomed", "to be cancelled"),
    ("thereby", "which"),
    ("seldom", "rarely"),
    ("somebody", "a client, a user"),
];

pub(super) fn banned(sources: &Sources) -> Vec<Finding> {
    let mut found = Vec::new();
    for (path, text) in &sources.texts {
        // The page that bans them, and this one.
        if path == "docs/style.md" || path.starts_with("xtask/src/tidy/") {
            continue;
        }
        for (index, line) in text.lines().enumerate() {
            let Some(prose) = prose(path, line) else { continue };
            let lower = prose.to_lowercase();
            // What a page has between backticks is code: the name of a column, of a test.
            let parts = lower.split('`').step_by(if path.ends_with(".md") { 2 } else { 1 });
            let words = parts.flat_map(|part| part.split(|c: char| !c.is_alphanumeric()));
            for word in words {
                if let Some((_, instead)) = BANNED.iter().find(|(banned, _)| *banned == word) {
                    let what = format!("\"{word}\": write {instead}");
                    found.push(Finding::new("word", path, index + 1, what));
                }
            }
        }
    }
    found
}

/// The part of a line that people read.
fn prose<'a>(path: &str, line: &'a str) -> Option<&'a str> {
    if path.ends_with(".md") {
        return Some(line);
    }
    let mark = if path.ends_with(".sql") { "--" } else { "//" };
    line.trim_start().strip_prefix(mark)
}
