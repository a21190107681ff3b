//! What is said at the end, to people and to programs.

use std::fmt::Write;
use std::time::Duration;

use serde::Serialize;

use crate::index::Summary;

/// How an ingest went.
#[derive(Serialize)]
pub(crate) struct Report {
    pub(crate) folder: String,
    /// Which ingest of this folder it was.
    pub(crate) run: i64,
    /// Whether an earlier process began it.
    pub(crate) continued: bool,
    #[serde(flatten)]
    pub(crate) summary: Summary,
    /// Some of the files that cannot be read.
    pub(crate) unreadable: Vec<Unreadable>,
    /// How long this process took.
    pub(crate) seconds: f64,
    /// How many files it did in a second.
    pub(crate) files_per_second: f64,
}

/// A file that cannot be read.
#[derive(Serialize)]
pub(crate) struct Unreadable {
    pub(crate) path: String,
    pub(crate) why: String,
}

impl Report {
    /// For people, in lines.
    pub(crate) fn text(&self) -> String {
        let Summary { files, indexed, unchanged, removed, skipped, failed, failure, bytes } =
            &self.summary;
        let took = Duration::from_millis((self.seconds * 1e3) as u64);
        let mut text = format!(
            "{}: {files} files in {took:.1?}, {:.0} files/s\n  indexed    {indexed:>8}   {}\n  \
             unchanged  {unchanged:>8}\n  removed    {removed:>8}\n  skipped    {:>8}",
            self.folder,
            self.files_per_second,
            size(*bytes),
            skipped.total(),
        );
        let reasons = [
            ("binary", skipped.binary),
            ("too large", skipped.too_large),
            ("unreadable", skipped.unreadable),
        ];
        let reasons = reasons.iter().filter(|(_, count)| *count > 0);
        let reasons: Vec<_> = reasons.map(|(reason, count)| format!("{count} {reason}")).collect();
        if !reasons.is_empty() {
            text += &format!("   {}", reasons.join(", "));
        }
        text.push('\n');
        for Unreadable { path, why } in &self.unreadable {
            // Writing to a string does not fail.
            let _ = writeln!(text, "    {path}: {why}");
        }
        let more = skipped.unreadable.saturating_sub(self.unreadable.len() as u64);
        if more > 0 && !self.unreadable.is_empty() {
            let _ = writeln!(text, "    and {more} more");
        }
        if let Some(failure) = failure {
            let _ = writeln!(text, "  failed     {failed:>8}   the first one: {failure}");
        }
        if indexed + unchanged == 0 {
            text += "There are no text files in this folder that are neither hidden nor ignored by \
                     Git.\n";
        }
        text
    }
}

fn size(bytes: i64) -> String {
    match bytes {
        ..1_000 => format!("{bytes} bytes"),
        1_000..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}
