//! The output of the program: tables for people, and JSON for programs. Colours appear only on a
//! terminal.

use std::io::Write as _;

use anstyle::{AnsiColor, Style};
use anyhow::{Error, Result};
use comfy_table::presets::NOTHING;
use comfy_table::{ContentArrangement, Table};
use serde::Serialize;
use stepwell::{Payload, TaskInfo, TaskState, Timestamp};

pub(crate) const DIM: Style = Style::new().dimmed();
pub(crate) const BOLD: Style = Style::new().bold();

pub(crate) struct Screen {
    json: bool,
    /// The number of columns of the terminal; `None` when there is no terminal.
    pub(crate) width: Option<u16>,
}

impl Screen {
    pub(crate) fn new(json: bool) -> Self {
        let width = terminal_size::terminal_size_of(std::io::stdout()).map(|(width, _)| width.0);
        Self { json, width }
    }

    pub(crate) fn is_json(&self) -> bool {
        self.json
    }

    /// Prints a value, as JSON or as its text.
    pub(crate) fn show<T: Serialize>(
        &self,
        value: &T,
        text: impl FnOnce() -> String,
    ) -> Result<()> {
        if self.json {
            self.text(&serde_json::to_string_pretty(value)?)
        } else {
            self.text(&text())
        }
    }

    /// Prints a list, as JSON or as a table with these columns. An empty list is printed as the
    /// text `empty`.
    pub(crate) fn list<T: Serialize, const N: usize>(
        &self,
        items: &[T],
        columns: [&str; N],
        empty: &str,
        row: impl Fn(&T) -> [String; N],
    ) -> Result<()> {
        let mut list = self.parts(row);
        list.add(items)?;
        list.end(columns, empty)
    }

    /// Prints a list that comes in parts, and keeps only the row of each item.
    pub(crate) fn parts<T: Serialize, const N: usize, R: Fn(&T) -> [String; N]>(
        &self,
        row: R,
    ) -> Parts<'_, R, N> {
        Parts { screen: self, row, rows: Vec::new(), is_empty: true }
    }

    pub(crate) fn table<const N: usize>(
        &self,
        columns: [&str; N],
        rows: impl Iterator<Item = [String; N]>,
    ) -> String {
        let mut table = Table::new();
        table.load_preset(NOTHING).set_header(columns);
        if let Some(width) = self.width {
            table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width);
        }
        rows.for_each(|row| _ = table.add_row(row.map(|cell| plain(&cell))));
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        let table = table.to_string();
        let mut lines = table.lines().map(str::trim_end);
        let header = lines.next().unwrap_or_default();
        let rows: String = lines.map(|line| format!("\n{line}")).collect();
        format!("{BOLD}{header}{BOLD:#}{rows}")
    }

    /// Prints that something was done.
    pub(crate) fn done(&self, what: &str) -> Result<()> {
        self.show(&serde_json::json!({ "done": what }), || what.to_owned())
    }

    pub(crate) fn text(&self, text: &str) -> Result<()> {
        let mut out = anstream::stdout().lock();
        writeln!(out, "{}", text.trim_end_matches('\n'))?;
        Ok(out.flush()?)
    }

    pub(crate) fn error(&self, error: &Error) {
        let red = AnsiColor::Red.on_default().bold();
        // The error output itself has failed, so nothing can be printed.
        let _ = match self.json {
            true => writeln!(
                anstream::stderr(),
                "{}",
                serde_json::json!({ "error": format!("{error:#}") })
            ),
            false => writeln!(anstream::stderr(), "{red}error:{red:#} {error:#}"),
        };
    }
}

/// A list that is printed while it arrives.
pub(crate) struct Parts<'a, R, const N: usize> {
    screen: &'a Screen,
    row: R,
    rows: Vec<[String; N]>,
    is_empty: bool,
}

impl<R, const N: usize> Parts<'_, R, N> {
    pub(crate) fn add<T: Serialize>(&mut self, items: &[T]) -> Result<()>
    where
        R: Fn(&T) -> [String; N],
    {
        if !self.screen.json {
            self.rows.extend(items.iter().map(&self.row));
            return Ok(());
        }
        let mut out = anstream::stdout().lock();
        for item in items {
            let before = if self.is_empty { "[" } else { "," };
            let json = serde_json::to_string_pretty(item)?.replace('\n', "\n  ");
            write!(out, "{before}\n  {json}")?;
            self.is_empty = false;
        }
        Ok(())
    }

    pub(crate) fn end(self, columns: [&str; N], empty: &str) -> Result<()> {
        match (self.screen.json, self.is_empty, self.rows.is_empty()) {
            (true, true, _) => self.screen.text("[]"),
            (true, false, _) => self.screen.text("\n]"),
            (false, _, true) => self.screen.text(empty),
            (false, _, false) => {
                self.screen.text(&self.screen.table(columns, self.rows.into_iter()))
            }
        }
    }
}

pub(crate) fn colour(state: TaskState) -> Style {
    match state {
        TaskState::Completed => AnsiColor::Green.on_default(),
        TaskState::Failed => AnsiColor::Red.on_default(),
        TaskState::Running => AnsiColor::Blue.on_default(),
        TaskState::Compensating => AnsiColor::Yellow.on_default(),
        TaskState::Cancelled => DIM,
        TaskState::Pending | TaskState::Suspended => Style::new(),
    }
}

/// Returns a task's state, and whether the task is paused.
pub(crate) fn standing(task: &TaskInfo) -> String {
    if task.paused { format!("{}, paused", task.state) } else { task.state.to_string() }
}

/// Formats a moment in UTC, to the second.
pub(crate) fn moment(at: Timestamp) -> String {
    at.strftime("%F %TZ").to_string()
}

/// Returns a payload on one line, cut to `limit` characters.
pub(crate) fn brief(payload: &Payload, limit: usize) -> String {
    let text = payload.as_str();
    match text.char_indices().nth(limit) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

/// Escapes the control characters of a text, which a terminal would obey.
pub(crate) fn plain(text: &str) -> String {
    let one = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(one).collect()
}

/// Returns a value as text, or a dash without one.
pub(crate) fn or_dash<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".into(), |value| value.to_string())
}
