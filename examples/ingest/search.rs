//! Searches the index. It needs no engine: the tables are plain SQLite.

use std::path::Path;

use anyhow::{Context, ensure};
use serde::Serialize;
use stepwell::sqlite::rusqlite::{Connection, params};

use crate::index;
use crate::names::escape;

/// Set around what was found, by FTS5: characters for private use, which no text should hold.
const MARKS: [char; 2] = ['\u{e000}', '\u{e001}'];
/// How long a snippet is, in words.
const SNIPPET: u32 = 16;

/// A document that was found.
#[derive(Serialize)]
pub(crate) struct Hit {
    pub(crate) folder: String,
    pub(crate) path: String,
    pub(crate) title: String,
    /// The higher, the better.
    pub(crate) score: f64,
    /// With [`MARKS`], until it is shown.
    snippet: String,
}

/// The best documents that hold all of the words, in all folders or one.
pub(crate) fn search(
    database: &Path,
    folder: Option<&Path>,
    words: &str,
    limit: u32,
) -> anyhow::Result<Vec<Hit>> {
    let query = query(words);
    ensure!(
        !query.is_empty(),
        "there is nothing to search for: give some words, as in `--search \"two words\"`"
    );
    let none = || {
        format!(
            "there is no index in {}: make one with `ingest <folder>` first",
            database.display()
        )
    };
    ensure!(database.is_file(), none());
    let conn = index::open(database)?;
    ensure!(
        conn.table_exists(None, "documents_fts").with_context(|| cannot_read(database))?,
        none()
    );
    let folder = folder.map(escape);
    hits(&conn, &query, folder.as_deref(), limit)
        .with_context(|| format!("cannot search {} for {words:?}", database.display()))
}

fn cannot_read(database: &Path) -> String {
    format!("cannot read the database {}", database.display())
}

fn hits(
    conn: &Connection,
    query: &str,
    folder: Option<&str>,
    limit: u32,
) -> anyhow::Result<Vec<Hit>> {
    // A word in the path weighs more than one in the text.
    let mut select = conn.prepare(
        "SELECT d.folder, d.path, coalesce(d.title, ''), -bm25(documents_fts, 1.0, 4.0) AS score,
                snippet(documents_fts, 0, ?3, ?4, '…', ?5)
         FROM documents_fts JOIN documents AS d ON d.id = documents_fts.rowid
         WHERE documents_fts MATCH ?1 AND (?2 IS NULL OR d.folder = ?2)
         ORDER BY score DESC, d.path LIMIT ?6",
    )?;
    let [begin, end] = MARKS.map(String::from);
    let hits = select.query_map(params![query, folder, begin, end, SNIPPET, limit], |row| {
        Ok(Hit {
            folder: row.get(0)?,
            path: row.get(1)?,
            title: row.get(2)?,
            score: row.get(3)?,
            snippet: row.get(4)?,
        })
    })?;
    Ok(hits.collect::<Result<_, _>>()?)
}

/// The words in the language of FTS5, each quoted, so that none is taken for an operator.
fn query(words: &str) -> String {
    let words = words.split_whitespace().filter(|word| word.contains(char::is_alphanumeric));
    words.map(|word| format!("\"{}\"", word.replace('"', "\"\""))).collect::<Vec<_>>().join(" ")
}

impl Hit {
    /// The snippet on one line, with what was found between `begin` and `end`.
    pub(crate) fn snippet(&self, begin: &str, end: &str) -> String {
        let line = self.snippet.split_whitespace().collect::<Vec<_>>().join(" ");
        line.replace(char::is_control, "").replace(MARKS[0], begin).replace(MARKS[1], end)
    }

    /// The hit without marks, for programs.
    pub(crate) fn plain(mut self) -> Self {
        self.snippet = self.snippet("", "");
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_no_operators() {
        assert_eq!(query("  two words "), "\"two\" \"words\"");
        assert_eq!(query("a\"b NOT c* (d:"), "\"a\"\"b\" \"NOT\" \"c*\" \"(d:\"");
        assert_eq!(query(" \" -- "), "");
    }

    #[test]
    fn a_snippet_is_one_line_without_control_characters() {
        let snippet = "a\n\u{e000}b\u{e001}\t\u{1b}[31mc".to_owned();
        let hit = Hit {
            folder: String::new(),
            path: String::new(),
            title: String::new(),
            score: 0.0,
            snippet,
        };
        assert_eq!(hit.snippet("<", ">"), "a <b> [31mc");
    }
}
