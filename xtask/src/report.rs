//! The table at the end of a command that does several things: what was done, how it went, how long
//! it took.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Collects the outcome of each part. A part that fails does not stop the next: one run shows
/// everything that is wrong.
pub(crate) struct Report {
    title: &'static str,
    parts: Vec<(String, Outcome)>,
}

enum Outcome {
    Passed(Duration),
    Failed(Duration),
    NotRun(String),
}

impl Report {
    pub(crate) fn new(title: &'static str) -> Self {
        Self { title, parts: Vec::new() }
    }

    /// Runs one part, and shows its error at once.
    pub(crate) fn run(&mut self, name: &str, part: impl FnOnce() -> Result<()>) {
        let start = Instant::now();
        let result = part();
        let took = start.elapsed();
        let outcome = match result {
            Ok(()) => Outcome::Passed(took),
            Err(error) => {
                eprintln!("{name}: {error:#}");
                Outcome::Failed(took)
            }
        };
        self.parts.push((name.to_owned(), outcome));
    }

    /// Notes a part that is left out, and why.
    pub(crate) fn not_run(&mut self, name: &str, why: impl Into<String>) {
        self.parts.push((name.to_owned(), Outcome::NotRun(why.into())));
    }

    /// Prints the table, and fails when a part failed.
    pub(crate) fn finish(self) -> Result<()> {
        eprintln!("\n{self}");
        let failed: Vec<_> = self
            .parts
            .iter()
            .filter(|(_, outcome)| matches!(outcome, Outcome::Failed(_)))
            .map(|(name, _)| name.as_str())
            .collect();
        if !failed.is_empty() {
            bail!("failed: {}", failed.join(", "));
        }
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.title)?;
        let width = self.parts.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        for (name, outcome) in &self.parts {
            write!(f, "\n  {name:width$}  {outcome}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passed(took) => write!(f, "passed   {:>7.1} s", took.as_secs_f64()),
            Self::Failed(took) => write!(f, "FAILED   {:>7.1} s", took.as_secs_f64()),
            Self::NotRun(why) => write!(f, "NOT RUN  {why}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn a_failed_part_fails_the_report_and_the_next_part_runs() {
        let mut ran = false;
        let mut report = Report::new("Checks");
        report.run("first", || Err(anyhow!("broken")));
        report.run("second", || {
            ran = true;
            Ok(())
        });
        assert!(ran);
        assert_eq!(report.finish().unwrap_err().to_string(), "failed: first");
    }

    #[test]
    fn a_part_that_did_not_run_is_in_the_table_and_fails_nothing() {
        let mut report = Report::new("Checks");
        report.not_run("third", "no such tool");
        assert_eq!(report.to_string(), "Checks\n  third  NOT RUN  no such tool");
        assert!(report.finish().is_ok());
    }
}
