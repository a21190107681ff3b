//! What is measured, in which order, beside which floor, and what it is to reach.

use anyhow::Result;
use clap::ValueEnum;

use crate::backend::StoreKind;
use crate::report::{Figure, Floor, Summary, Target, Unit};
use crate::workloads::{self, Setup};
use crate::{floor, memory};

/// A part of the benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// The disk itself: fdatasync
    Disk,
    /// 10,000 tasks of one step, spawned by 64 concurrent callers
    W1,
    /// 100 tasks of 20 sequential steps
    W2,
    /// One task at a time, from spawn to result
    W3,
    /// Drain a backlog of 100,000 tasks
    W4,
    /// Resume a task with 10,000 journal entries
    W5,
    /// The memory of suspended tasks
    Memory,
}

impl Part {
    /// The chosen ones in their order; all of them when none is chosen.
    pub(crate) fn chosen(only: &[Self]) -> Vec<Self> {
        let all = Self::value_variants().iter().copied();
        all.filter(|part| only.is_empty() || only.contains(part)).collect()
    }
}

/// Runs one part `runs` times, each time right after its floor.
pub(crate) async fn run(part: Part, setup: &Setup, runs: usize) -> Result<Vec<Figure>> {
    let on_disk = setup.store == StoreKind::Sqlite;
    if part == Part::Disk && !on_disk {
        return Ok(Vec::new());
    }
    let (mut columns, mut floors) = (Columns::default(), Columns::default());
    for run in 1..=runs {
        eprintln!("{part:?}, run {run} of {runs}");
        if on_disk && let Some(values) = bare(part, setup).await? {
            floors.add(values);
        }
        columns.add(measure(part, setup).await?);
    }
    let lines = figures(part);
    let figures = lines.into_iter().zip(columns.0).enumerate().map(|(i, (line, values))| {
        let Line { workload, name, unit, floor, target } = line;
        let floor = floor.zip(floors.0.get(i).or(floors.0.first()));
        let floor = floor.map(|(name, values)| Floor { name, summary: Summary::of(values.clone()) });
        Figure::new(workload, name, unit, values, floor, target)
    });
    Ok(figures.collect())
}

/// The values of each figure, a value for each run.
#[derive(Default)]
struct Columns(Vec<Vec<f64>>);

impl Columns {
    fn add(&mut self, values: Vec<f64>) {
        self.0.resize(values.len(), Vec::new());
        self.0.iter_mut().zip(values).for_each(|(column, value)| column.push(value));
    }
}

async fn measure(part: Part, setup: &Setup) -> Result<Vec<f64>> {
    Ok(match part {
        Part::Disk => {
            let dir = setup.dir.clone();
            let (append, overwrite) = blocking(move || {
                Ok((
                    floor::fdatasync(&dir, floor::Write::Append)?,
                    floor::fdatasync(&dir, floor::Write::Over)?,
                ))
            })
            .await?;
            vec![append.0, append.1, overwrite.0, overwrite.1]
        }
        Part::W1 => vec![workloads::w1(setup).await?],
        Part::W2 => vec![workloads::w2(setup).await?],
        Part::W3 => {
            let (p50, p99) = workloads::w3(setup).await?;
            vec![p50, p99]
        }
        Part::W4 => vec![workloads::w4(setup).await?],
        Part::W5 => {
            let resumed = workloads::w5(setup).await?;
            vec![resumed.to_first_step, resumed.to_end, resumed.open]
        }
        Part::Memory => {
            let mut values = Vec::new();
            for tasks in [10_000_u32, 100_000] {
                let bytes = memory::measure(setup, tasks.into()).await?;
                values.extend([bytes / f64::from(tasks), bytes / f64::from(1 << 20)]);
            }
            values
        }
    })
}

/// The floor of each figure, or one for all.
async fn bare(part: Part, setup: &Setup) -> Result<Option<Vec<f64>>> {
    let dir = setup.dir.clone();
    let values = match part {
        Part::Disk | Part::Memory => return Ok(None),
        Part::W3 => {
            let (p50, p99) = blocking(move || floor::fdatasync(&dir, floor::Write::Append)).await?;
            vec![p50, p99]
        }
        Part::W1 => vec![floor::w1(setup).await?],
        Part::W2 => vec![floor::w2(setup).await?],
        Part::W4 => vec![floor::w4(setup).await?],
        Part::W5 => vec![floor::w5(setup).await?],
    };
    Ok(Some(values))
}

pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work).await?
}

/// What is said of a figure beside its values.
struct Line {
    workload: &'static str,
    name: &'static str,
    unit: Unit,
    floor: Option<&'static str>,
    target: Target,
}

fn figures(part: Part) -> Vec<Line> {
    let line = |workload, name, unit, floor, value, ratio| Line {
        workload,
        name,
        unit,
        floor,
        target: Target { value, ratio },
    };
    let ms = Unit::Milliseconds;
    match part {
        Part::Disk => vec![
            line("disk", "fdatasync of a 4 KiB append, p50", ms, None, None, None),
            line("disk", "fdatasync of a 4 KiB append, p99", ms, None, None, None),
            line("disk", "fdatasync of a 4 KiB overwrite, p50", ms, None, None, None),
            line("disk", "fdatasync of a 4 KiB overwrite, p99", ms, None, None, None),
        ],
        Part::W1 => {
            let name = "10,000 tasks of one step, 64 callers";
            vec![line("W1", name, Unit::TasksPerSecond, Some(floor::W1), Some(20_000.0), Some(0.5))]
        }
        Part::W2 => {
            let name = "100 tasks of 20 sequential steps";
            vec![line("W2", name, Unit::StepsPerSecond, Some(floor::W2), Some(60_000.0), Some(0.5))]
        }
        Part::W3 => vec![
            line("W3", "one task, spawn to result, p50", ms, Some(floor::FDATASYNC_P50), None, Some(3.0)),
            line("W3", "one task, spawn to result, p99", ms, Some(floor::FDATASYNC_P99), None, None),
        ],
        Part::W4 => {
            let name = "drain a backlog of 100,000 tasks";
            vec![line("W4", name, Unit::TasksPerSecond, Some(floor::W4), None, Some(0.5))]
        }
        Part::W5 => vec![
            line(
                "W5",
                "resume 10,000 entries: to the first new step",
                ms,
                Some(floor::W5),
                Some(100.0),
                None,
            ),
            line("W5", "resume 10,000 entries: to the task's end", ms, Some(floor::W5), None, None),
            line("W5", "opening the store before it", ms, None, None, None),
        ],
        Part::Memory => vec![
            line("mem", "10,000 suspended tasks, each", Unit::Bytes, None, None, None),
            line("mem", "10,000 suspended tasks", Unit::Mebibytes, None, None, None),
            line("mem", "100,000 suspended tasks, each", Unit::Bytes, None, None, None),
            line("mem", "100,000 suspended tasks", Unit::Mebibytes, None, Some(1024.0), None),
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_run_in_their_order_and_once() {
        assert_eq!(Part::chosen(&[Part::W3, Part::W1, Part::W3]), [Part::W1, Part::W3]);
        assert_eq!(Part::chosen(&[]).len(), Part::value_variants().len());
    }
}
