//! A task's life as a picture.
//!
//! ```text
//!                 0 s                    4.2 s
//!   charge        ▓▓▓▓
//!   reserve       ▓▓▓▓▓▓▓▓▒▒▒▓▓▓           a step with two tries, and the pause between
//!   approved            ░░░░░░░░░░░        an event that was awaited
//! ```
//!
//! The journal says when each entry was delivered, and the history says when steps began. For a
//! task without a history, an operation is assumed to begin at the delivery before it. Operations
//! that ran in parallel then look as if they had run one after the other.

use std::collections::{HashMap, VecDeque};

use maud::{Markup, html};
use stepwell::store::Wait;
use stepwell::store::until;
use stepwell::{
    Entry, HistoryEntry, Kind, Lifecycle, Outcome, TaskId, TaskInfo, TaskState, Timestamp,
};

use super::words::duration;
use crate::call::Call;

/// The maximum number of rows that are drawn at once.
pub(super) const ROWS: usize = 400;
const WIDTH: i64 = 1_000;
const LABELS: i64 = 240;
const ROW: usize = 24;
const TOP: usize = 28;
/// The minimum width of a bar.
const LEAST: i64 = 3;

/// The appearance of a bar, by what it stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Look {
    Step,
    Wait,
    Child,
    Undo,
    Note,
    Failed,
    Retrying,
    Pause,
    /// An operation that has not ended.
    Open,
}

impl Look {
    fn class(self) -> &'static str {
        match self {
            Self::Step => "step",
            Self::Wait => "wait",
            Self::Child => "child",
            Self::Undo => "undo",
            Self::Note => "note",
            Self::Failed => "failed",
            Self::Retrying => "retrying",
            Self::Pause => "pause",
            Self::Open => "open",
        }
    }
}

#[derive(Debug)]
struct Bar {
    from: Timestamp,
    to: Timestamp,
    look: Look,
    says: String,
}

#[derive(Debug)]
struct Row {
    kind: &'static str,
    name: String,
    child: Option<TaskId>,
    bars: Vec<Bar>,
}

impl Row {
    fn begin(&self) -> Option<Timestamp> {
        self.bars.iter().map(|bar| bar.from).min()
    }
}

pub(super) struct Timeline {
    rows: Vec<Row>,
    /// The times at which attempts began, without the first attempt.
    attempts: Vec<Timestamp>,
    begin: Timestamp,
    end: Timestamp,
}

impl Timeline {
    pub(super) fn new(
        task: &TaskInfo,
        journal: &[Entry],
        waits: &[Wait],
        starts: Starts,
        now: Timestamp,
    ) -> Self {
        let mut building = Building {
            rows: Vec::new(),
            places: HashMap::new(),
            last: task.started_at.unwrap_or(task.spawned_at),
            begun: starts,
        };
        let mut attempts = Vec::new();
        for entry in journal {
            if entry.key.kind == Kind::Attempt {
                attempts.push(entry.at);
            }
            building.add(entry);
        }
        let end = match task.finished_at {
            Some(at) => at,
            None => now,
        };
        building.add_open(task, waits, end);
        let Building { mut rows, .. } = building;
        if let Some(started) = task.started_at {
            let waited = Bar {
                from: task.spawned_at,
                to: started,
                look: Look::Wait,
                says: format!("waited {} for a worker", duration(until(task.spawned_at, started))),
            };
            rows.insert(
                0,
                Row { kind: "spawned", name: String::new(), child: None, bars: vec![waited] },
            );
        }
        rows.sort_by_key(Row::begin);
        let last = rows.iter().flat_map(|row| row.bars.iter().map(|bar| bar.to)).max();
        Self { rows, attempts, begin: task.spawned_at, end: last.unwrap_or(end).max(end) }
    }

    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Draws the rows from `from` on, over the time that they took.
    pub(super) fn draw(&self, call: &Call, from: usize) -> Markup {
        let rows: Vec<_> = self.rows.iter().skip(from).take(ROWS).collect();
        let scale = self.scale(&rows);
        let height = TOP + rows.len() * ROW + 4;
        let whole = duration(until(self.begin, self.end));
        let shown = |at: &&Timestamp| scale.begin <= **at && **at <= scale.end;
        html! {
            div class="scroll" {
                svg class="timeline" viewBox=(format!("0 0 {WIDTH} {height}")) role="img"
                    aria-label={ "Timeline of " (self.rows.len()) " operations over " (whole) } {
                    @for tick in scale.ticks() {
                        @let x = scale.x(tick);
                        line class="grid" x1=(x) x2=(x) y1=(TOP - 6) y2=(height) {}
                        text class="scale" x=(x) y=(TOP - 12) text-anchor=(anchor(x)) {
                            (duration(until(self.begin, tick)))
                        }
                    }
                    @for at in self.attempts.iter().filter(shown) {
                        @let x = scale.x(*at);
                        line class="attempt" x1=(x) x2=(x) y1=(TOP - 6) y2=(height) {}
                    }
                    @for (n, row) in rows.iter().enumerate() {
                        (draw_row(call, row, TOP + n * ROW, &scale))
                    }
                }
            }
        }
    }

    /// Returns the time span of the task, or of the shown rows when only a part is shown.
    fn scale(&self, shown: &[&Row]) -> Scale {
        if self.rows.len() <= ROWS {
            return Scale { begin: self.begin, end: self.end };
        }
        let bars = || shown.iter().flat_map(|row| &row.bars);
        Scale {
            begin: bars().map(|bar| bar.from).min().unwrap_or(self.begin),
            end: bars().map(|bar| bar.to).max().unwrap_or(self.end),
        }
    }
}

fn draw_row(call: &Call, row: &Row, y: usize, scale: &Scale) -> Markup {
    let label = html! {
        text class="label" x="4" y=(y + 16) {
            tspan class="kind" { (row.kind) } " " (shortened(&row.name))
            title { (row.kind) " " (row.name) }
        }
    };
    html! {
        g class="row" {
            rect class="stripe" x="0" y=(y) width=(WIDTH) height=(ROW) {}
            @match row.child {
                Some(child) => a href=(call.base.to(&format!("/tasks/{child}"))) { (label) },
                None => (label),
            }
            @for bar in &row.bars {
                @let (from, to) = (scale.x(bar.from), scale.x(bar.to));
                rect class={ "bar " (bar.look.class()) } x=(from.min(WIDTH - LEAST)) y=(y + 5)
                    width=((to - from).max(LEAST)) height=(ROW - 10) rx="3" { title { (bar.says) } }
            }
        }
    }
}

/// The mapping from times to positions.
struct Scale {
    begin: Timestamp,
    end: Timestamp,
}

impl Scale {
    fn x(&self, at: Timestamp) -> i64 {
        let micros = |time: Timestamp| i128::from(time.as_microsecond());
        let whole = (micros(self.end) - micros(self.begin)).max(1);
        let part = (micros(at) - micros(self.begin)).clamp(0, whole);
        LABELS + i64::try_from(part * i128::from(WIDTH - LABELS - 4) / whole).unwrap_or(0)
    }

    fn ticks(&self) -> impl Iterator<Item = Timestamp> {
        let (begin, whole) = (self.begin.as_microsecond(), until(self.begin, self.end).as_micros());
        let quarter = i64::try_from(whole / 4).unwrap_or(0);
        (0..=4).map(move |n| stepwell::store::from_micros(begin + quarter * n))
    }
}

fn anchor(x: i64) -> &'static str {
    match x {
        x if x <= LABELS => "start",
        x if x > WIDTH - 40 => "end",
        _ => "middle",
    }
}

fn shortened(name: &str) -> String {
    match name.chars().nth(24) {
        Some(_) => name.chars().take(23).chain(['…']).collect(),
        None => name.to_owned(),
    }
}

/// The times at which the tries of steps began, by label, without those that a bar already uses.
#[derive(Default)]
pub(super) struct Starts(HashMap<String, VecDeque<Timestamp>>);

impl Starts {
    /// Adds the next entry of the history.
    pub(super) fn add(&mut self, entry: HistoryEntry) {
        if let Ok(Lifecycle::StepStarted { step, .. }) = entry.event {
            self.0.entry(step).or_default().push_back(entry.at);
        }
    }
}

struct Building {
    rows: Vec<Row>,
    places: HashMap<(&'static str, String), usize>,
    /// The time of the last delivery.
    last: Timestamp,
    begun: Starts,
}

impl Building {
    fn add(&mut self, entry: &Entry) {
        let Some((kind, look)) = look_of(entry.key.kind) else { return };
        let label = entry.key.label();
        // The pause between two tries belongs to the step.
        let kind = if entry.key.kind == Kind::Backoff { "step" } else { kind };
        let begun = match entry.key.kind {
            Kind::Step => self.started(&label, entry.at),
            _ => None,
        };
        let instant = matches!(look, Look::Note);
        let from = begun.unwrap_or(if instant { entry.at } else { self.last.min(entry.at) });
        let (look, says) = match &entry.outcome {
            Outcome::Done(_) => (look, format!("took {}", duration(until(from, entry.at)))),
            Outcome::Failed(failure) => (Look::Failed, failure.to_string()),
            Outcome::Retrying { failure, at } => {
                (Look::Retrying, format!("{failure}; tried again at {at}"))
            }
        };
        let child = match entry.key.kind {
            Kind::Child => entry.key.name.as_str().parse().ok(),
            _ => None,
        };
        let row = self.row(kind, label);
        row.child = child.or(row.child);
        row.bars.push(Bar { from, to: entry.at, look, says: format!("{} {says}", row.name) });
        self.last = self.last.max(entry.at);
    }

    /// Returns when the try began that was delivered at `by`: the last start at or before that
    /// time.
    fn started(&mut self, label: &str, by: Timestamp) -> Option<Timestamp> {
        let starts = self.begun.0.get_mut(label)?;
        let mut found = None;
        while starts.front().is_some_and(|at| *at <= by) {
            found = starts.pop_front();
        }
        found
    }

    fn row(&mut self, kind: &'static str, name: String) -> &mut Row {
        let next = self.rows.len();
        let place = *self.places.entry((kind, name.clone())).or_insert(next);
        if place == next {
            self.rows.push(Row { kind, name, child: None, bars: Vec::new() });
        }
        &mut self.rows[place]
    }

    /// Adds the operations that have not ended: waits, and steps that have begun.
    fn add_open(&mut self, task: &TaskInfo, waits: &[Wait], end: Timestamp) {
        if task.state.is_finished() {
            return;
        }
        let from = self.last;
        for wait in waits {
            let Some((kind, _)) = look_of(wait.key.kind) else { continue };
            let kind = if wait.key.kind == Kind::Backoff { "step" } else { kind };
            let child = match wait.key.kind {
                Kind::Child => wait.key.name.as_str().parse().ok(),
                _ => None,
            };
            let until = wait.due_at.map(|due_at| format!(", until {due_at}")).unwrap_or_default();
            let row = self.row(kind, wait.key.label());
            row.child = child;
            row.bars.push(Bar { from, to: end, look: Look::Open, says: format!("waits{until}") });
        }
        if !matches!(task.state, TaskState::Running | TaskState::Compensating) {
            return;
        }
        let begun: Vec<_> = self
            .begun
            .0
            .iter()
            .filter_map(|(label, starts)| Some((label.clone(), *starts.back()?)))
            .collect();
        for (label, from) in begun {
            self.row("step", label).bars.push(Bar {
                from,
                to: end,
                look: Look::Open,
                says: "runs".into(),
            });
        }
    }
}

/// Returns the label and the look of entries of a kind; `None` for a kind that is internal.
fn look_of(kind: Kind) -> Option<(&'static str, Look)> {
    Some(match kind {
        Kind::Step => ("step", Look::Step),
        Kind::Items => ("items", Look::Step),
        Kind::Timer => ("sleep", Look::Wait),
        Kind::Timeout => ("timeout", Look::Wait),
        Kind::Backoff => ("step", Look::Pause),
        Kind::Event => ("event", Look::Wait),
        Kind::Message => ("message", Look::Wait),
        Kind::Child => ("child", Look::Child),
        Kind::Spawn => ("spawn", Look::Note),
        Kind::Emit => ("emit", Look::Note),
        Kind::Send => ("send", Look::Note),
        Kind::Compensated => ("undo", Look::Undo),
        Kind::Value
        | Kind::Approval
        | Kind::Attempt
        | Kind::Compensating
        | Kind::Log
        | Kind::Progress
        | Kind::Patch
        | Kind::Changed
        | Kind::Compensate => return None,
    })
}
