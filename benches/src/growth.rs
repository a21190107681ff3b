//! Whether speed depends on how many tasks have ended before: W1 and W3 on tables that are full of
//! them.

use anyhow::Result;

use crate::backend::{Backend, StoreKind};
use crate::history;
use crate::lines;
use crate::plan::{Columns, Part};
use crate::report::{Figure, Floor, Summary, Target, number};
use crate::setup::Setup;
use crate::workloads;

/// Runs the parts that can be, with that many finished tasks each time. All tables are filled
/// first, so that what disturbs a run disturbs the runs with other sizes as well.
pub(crate) async fn run(
    sizes: &[u64],
    parts: &[Part],
    setup: &Setup,
    runs: usize,
) -> Result<Vec<Figure>> {
    let parts: Vec<_> =
        parts.iter().copied().filter(|part| matches!(part, Part::W1 | Part::W3)).collect();
    if parts.is_empty() {
        return Ok(Vec::new());
    }
    let sizes = with_none(sizes);
    if setup.writes_to_dir() {
        history::ensure_room(&setup.dir, sizes.iter().sum())?;
    }
    let mut filled = Vec::new();
    for size in &sizes {
        let schema = setup.schema()?;
        history::fill(&schema, *size).await?;
        filled.push((Backend::Postgres(schema), Columns::default()));
    }
    for run in 1..=runs {
        for (size, (backend, columns)) in sizes.iter().zip(&mut filled) {
            eprintln!("growth, {}, run {run} of {runs}", finished(*size));
            let mut values = Vec::new();
            for part in &parts {
                values.extend(measure(*part, setup, backend).await?);
            }
            columns.add(values);
        }
    }
    Ok(figures(&parts, &sizes, filled.into_iter().map(|(_, columns)| columns).collect()))
}

async fn measure(part: Part, setup: &Setup, backend: &Backend) -> Result<Vec<f64>> {
    Ok(match part {
        Part::W1 => vec![workloads::w1(setup, backend).await?],
        Part::W3 => {
            let (p50, p99) = workloads::w3(setup, backend).await?;
            vec![p50, p99]
        }
        _ => Vec::new(),
    })
}

/// The sizes in their order, from none on: what the others are compared with.
fn with_none(sizes: &[u64]) -> Vec<u64> {
    let mut sizes: Vec<_> = sizes.iter().copied().chain([0]).collect();
    sizes.sort_unstable();
    sizes.dedup();
    sizes
}

/// Of each figure, a line for each size. Its floor is what was measured with no finished tasks.
fn figures(parts: &[Part], sizes: &[u64], columns: Vec<Columns>) -> Vec<Figure> {
    let lines: Vec<_> =
        parts.iter().flat_map(|part| lines::of(*part, StoreKind::Postgres, None)).collect();
    let mut figures = Vec::new();
    for (i, line) in lines.iter().enumerate() {
        let values = |columns: &Columns| columns.0.get(i).cloned().unwrap_or_default();
        let none = columns.first().map(values).unwrap_or_default();
        for (size, columns) in sizes.iter().zip(&columns) {
            let floor = Floor {
                name: "the same with no finished tasks",
                summary: Summary::of(none.clone()),
            };
            figures.push(Figure::new(
                line.workload,
                format!("{}, {}", line.name, finished(*size)),
                line.unit,
                values(columns),
                (*size > 0).then_some(floor),
                Target::default(),
            ));
        }
    }
    figures
}

#[allow(clippy::cast_precision_loss)]
fn finished(size: u64) -> String {
    format!("{} finished tasks", number(size as f64, 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn none_is_always_measured_and_first() {
        assert_eq!(with_none(&[2_000, 10]), [0, 10, 2_000]);
        assert_eq!(with_none(&[10, 0, 10]), [0, 10]);
    }
}
