//! A task as a text picture: what happened to it, and when.
//!
//! ```text
//!   +0.000 s  ●···················  spawned
//!   +0.012 s  ●                     step    charge     {"receipt":7}
//!   +3.100 s                    ●   event   approved   true
//! ```

use std::fmt::Write as _;

use anstyle::{AnsiColor, Style};
use serde::Serialize;
use stepwell::store::Wait;
use stepwell::{Entry, Kind, LogLevel, LogLine, Outcome, TaskInfo, TaskState, Timestamp};

use crate::screen::{BOLD, DIM, brief, colour, moment, plain, standing};

/// A task with its journal, waits, logs and children.
#[derive(Serialize)]
pub(crate) struct Shown {
    pub(crate) task: TaskInfo,
    pub(crate) journal: Vec<Entry>,
    pub(crate) waits: Vec<Wait>,
    pub(crate) logs: Vec<LogLine>,
    pub(crate) children: Vec<TaskInfo>,
}

/// The number of columns of the scale.
const SCALE: usize = 20;
/// The maximum number of characters of a value when the terminal's width is not known.
const VALUE: usize = 100;

/// The printed form of an entry.
pub(crate) struct Line {
    pub(crate) at: Timestamp,
    kind: &'static str,
    name: String,
    text: String,
    style: Style,
}

impl Line {
    /// Returns the line of an entry, or `None` for an entry that is internal.
    pub(crate) fn of(entry: &Entry) -> Option<Self> {
        let kind = match entry.key.kind {
            Kind::Step => "step",
            Kind::Timer => "sleep",
            Kind::Timeout => "timeout",
            Kind::Backoff => "pause",
            Kind::Event => "event",
            Kind::Message => "message",
            Kind::Child => "child",
            Kind::Value => "value",
            Kind::Spawn => "spawn",
            Kind::Emit => "emit",
            Kind::Send => "send",
            Kind::Approval => "approval",
            Kind::Attempt => "attempt",
            Kind::Items => "items",
            Kind::Compensating => "undo",
            Kind::Compensated => "undone",
            Kind::Log | Kind::Progress | Kind::Patch | Kind::Changed | Kind::Compensate => {
                return None;
            }
        };
        let (text, style) = match &entry.outcome {
            Outcome::Done(_)
                if matches!(entry.key.kind, Kind::Items | Kind::Compensating | Kind::Attempt) =>
            {
                (String::new(), DIM)
            }
            Outcome::Done(value) => (brief(value, VALUE), Style::new()),
            Outcome::Failed(failure) => (failure.to_string(), AnsiColor::Red.on_default()),
            Outcome::Retrying { failure, at } => {
                (format!("{failure}; again at {}", moment(*at)), AnsiColor::Yellow.on_default())
            }
        };
        let name = match entry.key.kind {
            // The engine's own name for the entry tells the user nothing.
            Kind::Attempt | Kind::Compensating => String::new(),
            _ => entry.key.label(),
        };
        Some(Self { at: entry.at, kind, name, text, style })
    }

    pub(crate) fn of_log(line: &LogLine) -> Self {
        let style = match line.level {
            LogLevel::Debug => DIM,
            LogLevel::Info => Style::new(),
            LogLevel::Warn => AnsiColor::Yellow.on_default(),
            LogLevel::Error => AnsiColor::Red.on_default(),
        };
        let fields: String =
            line.fields.iter().map(|(name, value)| format!(" {name}={value}")).collect();
        let name = line.level.as_str().to_owned();
        Self { at: line.at, kind: "log", name, text: format!("{}{fields}", line.message), style }
    }

    /// Returns the line without its time.
    pub(crate) fn text(&self) -> String {
        let Self { kind, name, text, style, .. } = self;
        let mut line = (*kind).to_owned();
        if !(name.is_empty() && text.is_empty()) {
            line = format!("{line:<8}");
        }
        if !name.is_empty() {
            let _ = write!(line, " {BOLD}{}{BOLD:#}", plain(name));
        }
        if !text.is_empty() {
            let _ = write!(line, "  {style}{}{style:#}", plain(text));
        }
        line
    }
}

/// Draws a task as text.
pub(crate) fn draw(shown: &Shown, width: Option<u16>) -> String {
    let Shown { task, journal, waits, logs, children } = shown;
    let mut out = head(shown);
    let end = task.finished_at.into_iter().chain(journal.iter().map(|entry| entry.at)).max();
    let scale = Scale { begin: task.spawned_at, end: end.unwrap_or(task.spawned_at) };
    let mut lines = vec![plain_line(task.spawned_at, "spawned")];
    lines.extend(task.started_at.map(|at| plain_line(at, "started")));
    lines.extend(journal.iter().filter_map(Line::of).chain(logs.iter().map(Line::of_log)));
    lines.sort_by_key(|line| line.at);
    lines.extend(task.finished_at.map(|at| plain_line(at, task.state.as_str())));
    out.push('\n');
    for line in &lines {
        let drawn = format!("{} {}  {}", scale.offset(line.at), scale.mark(line.at), line.text());
        let _ = writeln!(out, "{}", fitted(&drawn, width));
    }
    if !waits.is_empty() {
        let _ = writeln!(out, "\n{BOLD}waits for{BOLD:#}");
    }
    for wait in waits {
        let until =
            wait.due_at.map(|due_at| format!("  until {}", moment(due_at))).unwrap_or_default();
        let target = wait.target.as_ref().map_or_else(|| wait.key.label(), ToString::to_string);
        let _ = writeln!(out, "  {} {}{until}", wait.key.kind.as_str(), plain(&target));
    }
    if !children.is_empty() {
        let _ = writeln!(out, "\n{BOLD}children{BOLD:#}");
    }
    for child in children {
        let style = colour(child.state);
        let _ = writeln!(
            out,
            "  {}  {}  {style}{}{style:#}",
            child.task_id,
            plain(child.task_type.as_str()),
            child.state
        );
    }
    out
}

fn plain_line(at: Timestamp, what: &'static str) -> Line {
    Line { at, kind: what, name: String::new(), text: String::new(), style: Style::new() }
}

fn head(Shown { task, .. }: &Shown) -> String {
    let style = colour(task.state);
    let mut out = format!(
        "{BOLD}{}{BOLD:#}  {style}{}{style:#}\n",
        plain(task.task_type.as_str()),
        standing(task)
    );
    let mut say =
        |what: &str, value: String| _ = writeln!(out, "{DIM}{what:<10}{DIM:#}{}", plain(&value));
    say("task", task.task_id.to_string());
    say("queue", task.queue.to_string());
    say("attempt", format!("{} of {}", task.attempt, task.max_attempts));
    say("params", brief(&task.params, VALUE));
    for (name, value) in &task.headers {
        say("header", format!("{name}: {value}"));
    }
    let names = [
        ("key", task.idempotency_key.as_ref()),
        ("in turn by", task.concurrency_key.as_ref()),
        ("version", task.code_version.as_ref()),
    ];
    for (what, name) in names {
        if let Some(name) = name {
            say(what, name.to_string());
        }
    }
    if let Some(parent) = task.parent {
        say("parent", parent.to_string());
    }
    say("spawned", moment(task.spawned_at));
    if let Some(due_at) = task.due_at {
        say("due", moment(due_at));
    }
    if let Some(output) = &task.output {
        say("output", brief(output, VALUE));
    }
    if let Some(failure) = &task.failure {
        let what = if task.state == TaskState::Failed { "failure" } else { "last error" };
        say(what, failure.to_string());
    }
    out
}

/// The time from the spawn to the last known event.
struct Scale {
    begin: Timestamp,
    end: Timestamp,
}

impl Scale {
    fn offset(&self, at: Timestamp) -> String {
        let seconds = (at.as_microsecond() - self.begin.as_microsecond()) as f64 / 1e6;
        match seconds {
            s if s < 100.0 => format!("{s:>+9.3} s"),
            s if s < 7_200.0 => format!("{:>+9.1} m", s / 60.0),
            s if s < 172_800.0 => format!("{:>+9.1} h", s / 3_600.0),
            s => format!("{:>+9.1} d", s / 86_400.0),
        }
    }

    fn mark(&self, at: Timestamp) -> String {
        let micros = |time: Timestamp| i128::from(time.as_microsecond());
        let whole = (micros(self.end) - micros(self.begin)).max(1);
        let part = (micros(at) - micros(self.begin)).clamp(0, whole);
        // The place lies between 0 and SCALE - 1.
        let place = usize::try_from(part * (SCALE as i128 - 1) / whole).unwrap_or(0);
        format!("{DIM}{}{DIM:#}●{DIM}{}{DIM:#}", "·".repeat(place), "·".repeat(SCALE - 1 - place))
    }
}

/// Cuts a line to the terminal's width; escape sequences take no room.
fn fitted(line: &str, width: Option<u16>) -> String {
    let Some(width) = width.map(usize::from) else { return line.to_owned() };
    let (mut out, mut room, mut escape) = (String::new(), width, false);
    for c in line.chars() {
        escape |= c == '\u{1b}';
        if !escape && room == 0 {
            continue;
        }
        out.push(c);
        match escape {
            true => escape = c != 'm',
            false => room -= 1,
        }
    }
    out
}
