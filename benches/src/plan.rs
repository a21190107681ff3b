//! What is measured, in which order, and beside which floor.

use anyhow::Result;
use clap::ValueEnum;

use crate::backend::StoreKind;
use crate::lines::{self, worker_processes};
use crate::report::{Figure, Floor, Summary};
use crate::setup::Setup;
use crate::{floor, floor_postgres, items, memory, workloads};

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
    /// A step over 1,000,000 items
    Items,
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

/// Runs one part `runs` times, each time right after its floor, and then as often with each number
/// of worker processes.
pub(crate) async fn run(
    part: Part,
    setup: &Setup,
    runs: usize,
    workers: &[u16],
) -> Result<Vec<Figure>> {
    if part == Part::Disk && !setup.writes_to_dir() {
        return Ok(Vec::new());
    }
    let crews: Vec<_> = [None].into_iter().chain(crews(part, workers)).collect();
    let (mut columns, mut floors) = (Columns::default(), Columns::default());
    for run in 1..=runs {
        eprintln!("{part:?}, run {run} of {runs}");
        floors.add(bare(part, setup).await?);
        let mut values = Vec::new();
        for processes in &crews {
            if let Some(count) = processes {
                eprintln!("{part:?}, run {run} of {runs}, {}", worker_processes(*count));
            }
            let setup = Setup { processes: *processes, ..setup.clone() };
            values.extend(measure(part, &setup).await?);
        }
        columns.add(values);
    }
    let lines = crews.iter().flat_map(|processes| lines::of(part, setup.store, *processes));
    let figures = lines.zip(columns.0).enumerate().map(|(i, (line, values))| {
        let floor = line.floor.zip(floors.0.get(i).or(floors.0.first()));
        let floor =
            floor.map(|(name, values)| Floor { name, summary: Summary::of(values.clone()) });
        Figure::new(line.workload, line.name, line.unit, values, floor, line.target)
    });
    Ok(figures.collect())
}

/// The numbers of worker processes that a part is measured with beside the usual way.
fn crews(part: Part, workers: &[u16]) -> impl Iterator<Item = Option<u16>> {
    let scales = matches!(part, Part::W1 | Part::W2 | Part::W4);
    workers.iter().copied().filter(move |_| scales).map(Some)
}

/// The values of each figure, a value for each run.
#[derive(Default)]
pub(crate) struct Columns(pub(crate) Vec<Vec<f64>>);

impl Columns {
    pub(crate) fn add(&mut self, values: Vec<f64>) {
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
        Part::W1 => vec![workloads::w1(setup, &setup.backend()?).await?],
        Part::W2 => vec![workloads::w2(setup, &setup.backend()?).await?],
        Part::W3 => {
            let (p50, p99) = workloads::w3(setup, &setup.backend()?).await?;
            vec![p50, p99]
        }
        Part::W4 => vec![workloads::w4(setup, &setup.backend()?).await?],
        Part::W5 => {
            let resumed = workloads::w5(setup, &setup.backend()?).await?;
            vec![resumed.to_first_step, resumed.to_end, resumed.open]
        }
        Part::Items => items::measure(setup).await?,
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

/// The floor of each figure, or one for all, or none.
async fn bare(part: Part, setup: &Setup) -> Result<Vec<f64>> {
    let pair = |(p50, p99)| vec![p50, p99];
    Ok(match (setup.store, part) {
        (StoreKind::Memory, _) | (_, Part::Disk | Part::Memory) => Vec::new(),
        (StoreKind::Sqlite, Part::W1) => vec![floor::w1(setup).await?],
        (StoreKind::Sqlite, Part::W2) => vec![floor::w2(setup).await?],
        (StoreKind::Sqlite, Part::W3) => {
            let dir = setup.dir.clone();
            pair(blocking(move || floor::fdatasync(&dir, floor::Write::Append)).await?)
        }
        (StoreKind::Sqlite, Part::W4) => vec![floor::w4(setup).await?],
        (StoreKind::Sqlite, Part::W5) => vec![floor::w5(setup).await?],
        (StoreKind::Sqlite, Part::Items) => vec![floor::items(setup).await?],
        (StoreKind::Postgres, Part::Items) => Vec::new(),
        (StoreKind::Postgres, Part::W1) => vec![floor_postgres::w1(setup).await?],
        (StoreKind::Postgres, Part::W2) => vec![floor_postgres::w2(setup).await?],
        (StoreKind::Postgres, Part::W3) => pair(floor_postgres::w3(setup).await?),
        (StoreKind::Postgres, Part::W4) => vec![floor_postgres::w4(setup).await?],
        (StoreKind::Postgres, Part::W5) => vec![floor_postgres::w5(setup).await?],
    })
}

pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work).await?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_run_in_their_order_and_once() {
        assert_eq!(Part::chosen(&[Part::W3, Part::W1, Part::W3]), [Part::W1, Part::W3]);
        assert_eq!(Part::chosen(&[]).len(), Part::value_variants().len());
    }

    #[test]
    fn what_scales_is_measured_with_each_number_of_processes() {
        assert_eq!(crews(Part::W1, &[1, 4]).collect::<Vec<_>>(), [Some(1), Some(4)]);
        assert_eq!(crews(Part::W3, &[1, 4]).count(), 0);
    }
}
