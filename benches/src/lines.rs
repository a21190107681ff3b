//! What is said of each figure beside its values: its name, its floor, and what it is to reach.

use crate::backend::StoreKind;
use crate::plan::Part;
use crate::report::{Target, Unit};
use crate::{floor, floor_postgres};

/// What is said of a figure.
pub(crate) struct Line {
    pub(crate) workload: &'static str,
    pub(crate) name: String,
    pub(crate) unit: Unit,
    pub(crate) floor: Option<&'static str>,
    pub(crate) target: Target,
}

impl Line {
    fn new(workload: &'static str, name: &str, unit: Unit) -> Self {
        Self { workload, name: name.to_owned(), unit, floor: None, target: Target::default() }
    }

    const fn floor(mut self, name: &'static str) -> Self {
        self.floor = Some(name);
        self
    }

    /// At least this, or at most.
    const fn value(mut self, target: f64) -> Self {
        self.target.value = Some(target);
        self
    }

    /// So many times the floor.
    const fn ratio(mut self, target: f64) -> Self {
        self.target.ratio = Some(target);
        self
    }
}

/// The figures of a part, in the order of their values.
pub(crate) fn of(part: Part, store: StoreKind, processes: Option<u16>) -> Vec<Line> {
    let floors = match store {
        StoreKind::Postgres => &floor_postgres::NAMES,
        // Also in memory, where there are no floors.
        StoreKind::Sqlite | StoreKind::Memory => &floor::NAMES,
    };
    let lines = with_floors(part, floors).into_iter();
    let mut lines: Vec<_> = lines.map(|line| with_target(part, store, line)).collect();
    if let Some(count) = processes {
        for line in &mut lines {
            line.name = format!("{}, {}", line.name, worker_processes(count));
            // Targets are those of one process that does everything.
            line.target = Target::default();
        }
    }
    lines
}

pub(crate) fn worker_processes(count: u16) -> String {
    format!("{count} worker process{}", if count == 1 { "" } else { "es" })
}

/// What the figure is to reach on the store.
fn with_target(part: Part, store: StoreKind, line: Line) -> Line {
    let postgres = matches!(store, StoreKind::Postgres);
    match (part, line.name.as_str()) {
        (Part::W1, _) => line.value(if postgres { 10_000.0 } else { 20_000.0 }).ratio(0.5),
        (Part::W2, _) => line.value(if postgres { 30_000.0 } else { 60_000.0 }).ratio(0.5),
        (Part::W3, ONE_TASK_P50) => line.ratio(if postgres { 4.0 } else { 3.0 }),
        (Part::W4, _) => line.ratio(0.5),
        (Part::W5, TO_FIRST_STEP) if !postgres => line.value(100.0),
        _ => line,
    }
}

const ONE_TASK_P50: &str = "one task, spawn to result, p50";
const TO_FIRST_STEP: &str = "resume 10,000 entries: to the first new step";

fn with_floors(part: Part, floors: &floor::Names) -> Vec<Line> {
    let ms = Unit::Milliseconds;
    match part {
        Part::Disk => vec![
            Line::new("disk", "fdatasync of a 4 KiB append, p50", ms),
            Line::new("disk", "fdatasync of a 4 KiB append, p99", ms),
            Line::new("disk", "fdatasync of a 4 KiB overwrite, p50", ms),
            Line::new("disk", "fdatasync of a 4 KiB overwrite, p99", ms),
        ],
        Part::W1 => {
            let name = "10,000 tasks of one step, 64 callers";
            vec![Line::new("W1", name, Unit::TasksPerSecond).floor(floors.w1)]
        }
        Part::W2 => {
            let name = "100 tasks of 20 sequential steps";
            vec![Line::new("W2", name, Unit::StepsPerSecond).floor(floors.w2)]
        }
        Part::W3 => vec![
            Line::new("W3", ONE_TASK_P50, ms).floor(floors.w3_p50),
            Line::new("W3", "one task, spawn to result, p99", ms).floor(floors.w3_p99),
        ],
        Part::W4 => {
            let name = "drain a backlog of 100,000 tasks";
            vec![Line::new("W4", name, Unit::TasksPerSecond).floor(floors.w4)]
        }
        Part::W5 => vec![
            Line::new("W5", TO_FIRST_STEP, ms).floor(floors.w5),
            Line::new("W5", "resume 10,000 entries: to the task's end", ms).floor(floors.w5),
            Line::new("W5", "opening the store before it", ms),
        ],
        Part::Items => vec![
            Line {
                floor: floors.items,
                ..Line::new("items", "1,000,000 items", Unit::ItemsPerSecond)
            },
            Line::new("items", "1,000,000 items: most memory of the process", Unit::Mebibytes),
        ],
        Part::Memory => vec![
            Line::new("mem", "10,000 suspended tasks, each", Unit::Bytes),
            Line::new("mem", "10,000 suspended tasks", Unit::Mebibytes),
            Line::new("mem", "100,000 suspended tasks, each", Unit::Bytes),
            Line::new("mem", "100,000 suspended tasks", Unit::Mebibytes).value(1024.0),
        ],
    }
}
