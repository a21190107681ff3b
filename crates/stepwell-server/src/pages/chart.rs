//! Charts of the last minutes: stacked areas, or lines.

use maud::{Markup, html};

const WIDTH: f64 = 420.0;
const HEIGHT: f64 = 130.0;
/// The space for the scale.
const LEFT: f64 = 56.0;
const TOP: f64 = 8.0;
const BOTTOM: f64 = 20.0;

/// One series of a chart: its name, its class, and its values, the oldest first.
pub(super) struct Series {
    pub(super) name: &'static str,
    pub(super) class: &'static str,
    pub(super) values: Vec<f64>,
}

pub(super) struct Chart<'a> {
    pub(super) title: &'a str,
    pub(super) series: Vec<Series>,
    /// Stacks each series on those before it.
    pub(super) stacked: bool,
    /// The number of values that fit into the chart.
    pub(super) room: usize,
    /// The label of the whole width, which is a duration.
    pub(super) span: String,
    /// The function that formats a value.
    pub(super) write: fn(f64) -> String,
}

impl Chart<'_> {
    pub(super) fn draw(&self) -> Markup {
        let layers = self.layers();
        let top = layers.iter().flat_map(|layer| layer.iter()).copied().fold(0.0, f64::max);
        let scale = round_up(top);
        let y = |value: f64| TOP + (HEIGHT - TOP - BOTTOM) * (1.0 - value / scale);
        let summary: Vec<_> = self
            .series
            .iter()
            .map(|series| {
                format!(
                    "{} {}",
                    series.name,
                    (self.write)(series.values.last().copied().unwrap_or(0.0))
                )
            })
            .collect();
        html! {
            figure class="chart" {
                figcaption {
                    span class="title" { (self.title) }
                    @for series in &self.series {
                        span class="key" {
                            span class={ "dot " (series.class) } {}
                            @let last = series.values.last().copied().unwrap_or(0.0);
                            (series.name) " " strong { ((self.write)(last)) }
                        }
                    }
                }
                svg viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) role="img"
                    aria-label={ (self.title) ": " (summary.join(", ")) } {
                    @for part in [0.0, 0.5, 1.0] {
                        @let height = y(scale * part);
                        line class="grid" x1=(LEFT) x2=(WIDTH) y1=(at(height)) y2=(at(height)) {}
                        text class="scale" x=(LEFT - 6.0) y=(at(height + 4.0)) text-anchor="end" {
                            ((self.write)(scale * part))
                        }
                    }
                    // The lowest area comes last, because it must not be covered where the others
                    // are empty.
                    @for (n, series) in self.series.iter().enumerate().rev() {
                        @let line = self.line(&layers[n], y);
                        @if self.stacked {
                            @let ground = match n.checked_sub(1) {
                                Some(below) => self.line(&layers[below], y),
                                None => line.iter().map(|(x, _)| (*x, y(0.0))).collect(),
                            };
                            polygon class={ "area " (series.class) }
                                points=(between(&line, &ground)) {}
                        }
                        polyline class={ "line " (series.class) } points=(points(&line)) {}
                    }
                    text class="scale" x=(LEFT) y=(HEIGHT - 4.0) { "−" (self.span) }
                    text class="scale" x=(WIDTH) y=(HEIGHT - 4.0) text-anchor="end" { "now" }
                }
            }
        }
    }

    /// Returns the values of each series, each added to the values below it.
    fn layers(&self) -> Vec<Vec<f64>> {
        let mut below: Vec<f64> = Vec::new();
        let layer = |series: &Series| {
            let mut values = series.values.clone();
            if self.stacked {
                below.resize(values.len(), 0.0);
                values.iter_mut().zip(&mut below).for_each(|(value, below)| {
                    *value += *below;
                    *below = *value;
                });
            }
            values
        };
        self.series.iter().map(layer).collect()
    }

    fn line(&self, values: &[f64], y: impl Fn(f64) -> f64) -> Vec<(f64, f64)> {
        let step = (WIDTH - LEFT) / (self.room.max(2) - 1) as f64;
        let first = WIDTH - step * values.len().saturating_sub(1) as f64;
        values.iter().enumerate().map(|(n, value)| (first + step * n as f64, y(*value))).collect()
    }
}

/// Returns the least number at or above a value that is 1, 2 or 5 times a power of ten.
fn round_up(value: f64) -> f64 {
    if value <= 0.0 {
        return 1.0;
    }
    let power = 10f64.powf(value.log10().floor());
    [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .map(|times| times * power)
        .find(|scale| *scale >= value)
        .unwrap_or(value)
}

fn at(place: f64) -> String {
    format!("{place:.1}")
}

fn points(line: &[(f64, f64)]) -> String {
    line.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect::<Vec<_>>().join(" ")
}

/// Returns the points of the area below one line and above the other.
fn between(line: &[(f64, f64)], ground: &[(f64, f64)]) -> String {
    let back: Vec<_> = ground.iter().rev().copied().collect();
    format!("{} {}", points(line), points(&back))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_are_round() {
        assert_eq!([0.0, 0.3, 1.0, 7.0, 130.0].map(round_up), [1.0, 0.5, 1.0, 10.0, 200.0]);
    }

    #[test]
    fn what_is_stacked_stands_on_what_is_below() {
        let series = |values: &[f64]| Series { name: "s", class: "c", values: values.to_vec() };
        let (series, write) =
            (vec![series(&[1.0, 2.0]), series(&[3.0, 4.0])], |n: f64| n.to_string());
        let chart =
            Chart { title: "t", series, stacked: true, room: 2, span: String::new(), write };
        assert_eq!(chart.layers(), [vec![1.0, 2.0], vec![4.0, 6.0]]);
    }
}
