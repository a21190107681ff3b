//! Figures beside their floors, as a table for people and as JSON for programs.

use std::fmt::Write as _;

use serde::Serialize;

/// What was measured, once for each run.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Summary {
    median: f64,
    min: f64,
    max: f64,
    values: Vec<f64>,
}

impl Summary {
    pub(crate) fn of(values: Vec<f64>) -> Self {
        let mut sorted = values.clone();
        sorted.sort_unstable_by(f64::total_cmp);
        let (min, max) = (sorted.first(), sorted.last());
        Self {
            median: median(&sorted),
            min: min.copied().unwrap_or_default(),
            max: max.copied().unwrap_or_default(),
            values,
        }
    }
}

fn median(sorted: &[f64]) -> f64 {
    let middle = sorted.len() / 2;
    match sorted {
        [] => 0.0,
        _ if sorted.len().is_multiple_of(2) => f64::midpoint(sorted[middle - 1], sorted[middle]),
        _ => sorted[middle],
    }
}

/// The value below which that share of the values lies.
pub(crate) fn percentile(values: &mut [f64], share: f64) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let last = values.len().saturating_sub(1);
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
    let place = (last as f64 * share).round() as usize;
    values.get(place).copied().unwrap_or_default()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) enum Unit {
    #[serde(rename = "tasks/s")]
    TasksPerSecond,
    #[serde(rename = "steps/s")]
    StepsPerSecond,
    #[serde(rename = "hits/s")]
    HitsPerSecond,
    #[serde(rename = "items/s")]
    ItemsPerSecond,
    #[serde(rename = "ms")]
    Milliseconds,
    #[serde(rename = "bytes")]
    Bytes,
    #[serde(rename = "MiB")]
    Mebibytes,
}

impl Unit {
    const fn word(self) -> &'static str {
        match self {
            Self::TasksPerSecond => "tasks/s",
            Self::StepsPerSecond => "steps/s",
            Self::HitsPerSecond => "hits/s",
            Self::ItemsPerSecond => "items/s",
            Self::Milliseconds => "ms",
            Self::Bytes => "bytes",
            Self::Mebibytes => "MiB",
        }
    }

    const fn more_is_better(self) -> bool {
        matches!(
            self,
            Self::TasksPerSecond
                | Self::StepsPerSecond
                | Self::HitsPerSecond
                | Self::ItemsPerSecond
        )
    }

    const fn decimals(self) -> usize {
        if matches!(self, Self::Milliseconds) { 3 } else { 0 }
    }
}

/// What a figure is to reach: a value, and a ratio to its floor. Whether at least or at most is the
/// unit's.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Target {
    pub(crate) value: Option<f64>,
    pub(crate) ratio: Option<f64>,
}

/// The same work by the bare disk or the bare database.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Floor {
    pub(crate) name: &'static str,
    #[serde(flatten)]
    pub(crate) summary: Summary,
}

/// One line of the report.
#[derive(Debug, Serialize)]
pub(crate) struct Figure {
    pub(crate) workload: &'static str,
    pub(crate) name: String,
    pub(crate) unit: Unit,
    #[serde(flatten)]
    pub(crate) summary: Summary,
    pub(crate) floor: Option<Floor>,
    pub(crate) ratio: Option<f64>,
    pub(crate) target: Target,
    pub(crate) met: Option<bool>,
}

impl Figure {
    pub(crate) fn new(
        workload: &'static str,
        name: impl Into<String>,
        unit: Unit,
        values: Vec<f64>,
        floor: Option<Floor>,
        target: Target,
    ) -> Self {
        let summary = Summary::of(values);
        let ratio = floor.as_ref().map(|floor| summary.median / floor.summary.median);
        let reached = |value: f64, target: f64| {
            if unit.more_is_better() { value >= target } else { value <= target }
        };
        let by_value = target.value.map(|target| reached(summary.median, target));
        let by_ratio = target.ratio.zip(ratio).map(|(target, ratio)| reached(ratio, target));
        let met = match (by_value, by_ratio) {
            (Some(value), Some(ratio)) => Some(value && ratio),
            (value, ratio) => value.or(ratio),
        };
        Self { workload, name: name.into(), unit, summary, floor, ratio, target, met }
    }

    fn number(&self, value: f64) -> String {
        number(value, self.unit.decimals())
    }

    fn target(&self) -> String {
        let sign = if self.unit.more_is_better() { "≥" } else { "≤" };
        let value = self.target.value.map(|value| format!("{sign} {}", self.number(value)));
        let ratio = self.target.ratio.map(|ratio| format!("{sign} {ratio} × floor"));
        [value, ratio].into_iter().flatten().collect::<Vec<_>>().join(", ")
    }

    fn cells(&self) -> [String; 8] {
        let Summary { median, min, max, .. } = &self.summary;
        let floor = self.floor.as_ref().map(|floor| self.number(floor.summary.median));
        let met = self.met.map(|met| if met { "yes" } else { "NO" });
        [
            self.workload.to_owned(),
            format!("{}, {}", self.name, self.unit.word()),
            self.number(*median),
            format!("{} … {}", self.number(*min), self.number(*max)),
            floor.unwrap_or_default(),
            self.ratio.map(|ratio| format!("{ratio:.2}")).unwrap_or_default(),
            self.target(),
            met.unwrap_or_default().to_owned(),
        ]
    }
}

/// Everything that was measured, and where.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) store: crate::backend::StoreKind,
    /// The folder on the disk that was measured; unknown of a server that was running before.
    pub(crate) directory: Option<String>,
    /// The version of the PostgreSQL server.
    pub(crate) server_version: Option<String>,
    pub(crate) cpus: usize,
    pub(crate) concurrency: usize,
    pub(crate) runs: usize,
    pub(crate) figures: Vec<Figure>,
}

impl Report {
    /// The figures, and below them what each floor is.
    pub(crate) fn table(&self) -> String {
        let head = ["", "figure", "median", "min … max", "floor", "ratio", "target", "met"];
        let mut rows = vec![head.map(str::to_owned)];
        rows.extend(self.figures.iter().map(Figure::cells));
        let mut table = lines(&rows, &[2, 3, 4, 5]);
        let mut floors: Vec<[String; 3]> = Vec::new();
        for figure in &self.figures {
            let Some(floor) = &figure.floor else { continue };
            let Summary { median, min, max, .. } = &floor.summary;
            let range = format!(
                "{} ({} … {}) {}",
                figure.number(*median),
                figure.number(*min),
                figure.number(*max),
                figure.unit.word()
            );
            floors.push([figure.workload.to_owned(), range, floor.name.to_owned()]);
        }
        if !floors.is_empty() {
            floors.dedup();
            let _ = write!(table, "\nFloors, measured in the same run\n{}", lines(&floors, &[1]));
        }
        table
    }
}

fn lines<const N: usize>(rows: &[[String; N]], right: &[usize]) -> String {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (i, (cell, width)) in row.iter().zip(widths).enumerate() {
            let _ = if right.contains(&i) {
                write!(line, "{cell:>width$}  ")
            } else {
                write!(line, "{cell:<width$}  ")
            };
        }
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

/// A number with its thousands apart.
pub(crate) fn number(value: f64, decimals: usize) -> String {
    let text = format!("{value:.decimals$}");
    let (whole, fraction) =
        text.split_once('.').map_or((text.as_str(), None), |(w, f)| (w, Some(f)));
    let mut grouped = String::new();
    for (i, digit) in whole.chars().enumerate() {
        let left = whole.len() - i;
        if i > 0 && left.is_multiple_of(3) && grouped != "-" {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    fraction.map_or_else(|| grouped.clone(), |fraction| format!("{grouped}.{fraction}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        assert_eq!(number(1_234_567.4, 0), "1,234,567");
        assert_eq!(number(-123_456.0, 0), "-123,456");
        assert_eq!(number(1234.5678, 3), "1,234.568");
        assert_eq!(number(12.0, 0), "12");
    }

    #[test]
    fn a_target_is_met_by_value_and_ratio() {
        let floor = |value| Some(Floor { name: "bare", summary: Summary::of(vec![value]) });
        let target = Target { value: Some(10.0), ratio: Some(0.5) };
        let figure =
            |unit, value, bare| Figure::new("W", "f", unit, vec![value], floor(bare), target);
        assert_eq!(figure(Unit::TasksPerSecond, 12.0, 20.0).met, Some(true));
        assert_eq!(figure(Unit::TasksPerSecond, 12.0, 30.0).met, Some(false));
        assert_eq!(figure(Unit::TasksPerSecond, 9.0, 10.0).met, Some(false));
        assert_eq!(figure(Unit::Milliseconds, 9.0, 20.0).met, Some(true));
        assert_eq!(figure(Unit::Milliseconds, 9.0, 10.0).met, Some(false));
    }

    #[test]
    fn percentiles_and_medians() {
        let mut values: Vec<f64> = (1..=101).rev().map(f64::from).collect();
        assert!((percentile(&mut values, 0.5) - 51.0).abs() < 1e-9);
        assert!((percentile(&mut values, 0.99) - 100.0).abs() < 1e-9);
        assert!((Summary::of(vec![4.0, 1.0, 2.0, 3.0]).median - 2.5).abs() < 1e-9);
    }
}
