//! The table of what was caught, for the terminal and for the book.
//!
//! A run adds its rows to those of earlier runs, so that all entries can be run in parts.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;

use anyhow::{Context as _, Result};

use super::bug::{Bug, all};
use crate::cargo;

/// The page that has the table, and what stands before and behind it there.
const PAGE: &str = "docs/how-it-is-tested.md";
const MARKS: [&str; 2] =
    ["<!-- bugs: written by `cargo xtask bugs --write` -->\n", "<!-- end of bugs -->\n"];

/// The tests that caught each bug, by the bug's name.
pub(super) struct Table(BTreeMap<&'static str, String>);

impl Table {
    /// The table of the page, without the rows of entries that are gone or that say something else
    /// by now.
    pub(super) fn of_the_page() -> Result<Self> {
        Self::read(&fs::read_to_string(page()?)?)
    }

    fn read(page: &str) -> Result<Self> {
        let [_, table, _] = split(page)?;
        let by = |bug: &Bug| {
            let by =
                table.lines().find_map(|row| row.strip_prefix(&head(bug))?.strip_suffix(" |"))?;
            bug.tests
                .iter()
                .all(|test| by.contains(&format!("{}`", test.name)))
                .then(|| by.to_owned())
        };
        Ok(Self(all().filter_map(|bug| Some((bug.name, by(bug)?))).collect()))
    }

    /// Takes in how a bug has fared: the tests that caught it, or none when it survived.
    pub(super) fn note(&mut self, bug: &Bug, by: Option<String>) {
        match by {
            Some(by) => self.0.insert(bug.name, by),
            None => self.0.remove(bug.name),
        };
    }

    pub(super) fn has(&self, bug: &Bug) -> bool {
        self.0.contains_key(bug.name)
    }

    /// Puts the table into the page, with a sentence about the run that was its last.
    pub(super) fn write(&self, last_run: &str) -> Result<()> {
        let path = page()?;
        let text = self.put_into(&fs::read_to_string(&path)?, last_run)?;
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    fn put_into(&self, page: &str, last_run: &str) -> Result<String> {
        let [before, _, behind] = split(page)?;
        let [begin, end] = MARKS;
        let lacking: Vec<_> =
            all().filter(|bug| !self.has(bug)).map(|bug| format!("`{}`", bug.name)).collect();
        let (caught, of) = (self.0.len(), all().count());
        let mut told =
            format!("Of the {of} entries, {caught} were caught by all their tests. {last_run}");
        if !lacking.is_empty() {
            let _ = write!(told, " {} have no row yet: {}.", lacking.len(), lacking.join(", "));
        }
        let told = wrapped(&told);
        Ok(format!("{before}{begin}\n{told}\n\n{self}\n{end}{behind}"))
    }
}

/// Breaks a paragraph into lines of at most 100 columns.
fn wrapped(paragraph: &str) -> String {
    let mut text = String::new();
    let mut columns = 0;
    for word in paragraph.split_whitespace() {
        let length = word.chars().count();
        let fits = columns + 1 + length <= 100;
        text.push_str(if columns == 0 {
            ""
        } else if fits {
            " "
        } else {
            "\n"
        });
        columns = if fits && columns > 0 { columns + 1 + length } else { length };
        text.push_str(word);
    }
    text
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("| bug | what breaks | guarantee | caught by |\n| --- | --- | --- | --- |\n")?;
        let rows = all().filter_map(|bug| Some((head(bug), self.0.get(bug.name)?)));
        rows.into_iter().try_for_each(|(head, by)| writeln!(f, "{head}{by} |"))
    }
}

fn page() -> Result<std::path::PathBuf> {
    Ok(cargo::root()?.join(PAGE))
}

/// The page before its table, the table, and what is behind it.
fn split(page: &str) -> Result<[&str; 3]> {
    let [begin, end] = MARKS;
    let (before, rest) = page.split_once(begin).context("the page has no mark for the table")?;
    let (table, behind) = rest.split_once(end).context("the page has no mark behind the table")?;
    Ok([before, table, behind])
}

/// What a bug's row begins with.
fn head(Bug { name, breaks, guarantee, .. }: &Bug) -> String {
    format!("| {name} | {breaks} | {guarantee} | ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What catches a bug according to its entry.
    fn by(bug: &Bug) -> String {
        bug.tests
            .iter()
            .map(|test| format!("`{}::{}`", test.binary, test.name))
            .collect::<Vec<_>>()
            .join(", ")
    }

    #[test]
    fn a_run_of_some_adds_to_the_rows_of_others_and_takes_away_what_survived() {
        let bugs: Vec<_> = all().collect();
        let (first, second, third) = (bugs[0], bugs[1], bugs[2]);
        let empty = format!("Before.\n{}{}Behind.\n", MARKS[0], MARKS[1]);

        let mut table = Table::read(&empty).unwrap();
        table.note(second, Some(by(second)));
        table.note(first, Some(by(first)));
        let page = table.put_into(&empty, "The last run took a minute.").unwrap();
        let told = format!(
            "Of the {} entries, 2 were caught by all their tests. The last run took",
            bugs.len()
        );
        let words = page.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(
            page.starts_with("Before.\n") && page.ends_with("Behind.\n") && words.contains(&told),
            "{page}"
        );
        let lacking = format!("{} have no row yet: `{}`, ", bugs.len() - 2, third.name);
        assert!(words.contains(&lacking), "{page}");
        let paragraph = page.lines().filter(|line| !line.starts_with('|'));
        assert!(paragraph.into_iter().all(|line| line.chars().count() <= 100), "{page}");

        let mut table = Table::read(&page).unwrap();
        assert!(table.has(first) && table.has(second) && !table.has(third));
        table.note(first, None);
        table.note(third, Some(by(third)));
        let page = table.put_into(&page, "").unwrap();
        let rows: Vec<_> = page.lines().filter(|line| line.starts_with("| ")).skip(2).collect();
        assert_eq!(rows, [second, third].map(|bug| format!("{}{} |", head(bug), by(bug))));
    }

    #[test]
    fn rows_of_entries_that_are_gone_or_changed_are_dropped() {
        let bugs: Vec<_> = all().take(3).collect();
        let mut table = Table(BTreeMap::new());
        bugs.iter().for_each(|bug| table.note(bug, Some(by(bug))));
        let empty = MARKS.concat();
        let page = table.put_into(&empty, "").unwrap();
        let changed = page
            .replace(&format!("| {} |", bugs[0].name), "| a-bug-that-is-gone |")
            .replace(bugs[1].breaks, "Something else breaks.");
        let table = Table::read(&changed).unwrap();
        assert!(table.0.keys().eq([&bugs[2].name]));
        let other_test = page.replace(&format!("{}`", bugs[2].tests[0].name), "another_test`");
        assert!(!Table::read(&other_test).unwrap().has(bugs[2]));
    }
}
