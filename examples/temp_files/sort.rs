//! Sorting one file.

use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use stepwell_checkpoint::Timestamp;

/// What a file is known by.
#[derive(Serialize)]
pub(crate) struct Input {
    pub(crate) name: String,
    pub(crate) bytes: u64,
    pub(crate) modified: Timestamp,
}

/// What is recorded of a file.
#[derive(Serialize, Deserialize)]
pub(crate) struct Sorted {
    pub(crate) lines: usize,
}

/// Writes the lines of a file in their order to a temporary file, which then becomes `to`. Durable
/// when this returns.
pub(crate) fn sort(from: &Path, temp: &Path, to: &Path) -> Result<Sorted> {
    let text = fs::read(from).with_context(|| format!("could not read {}", from.display()))?;
    let mut lines: Vec<_> = text.split_inclusive(|byte| *byte == b'\n').collect();
    lines.sort_unstable();
    let file = File::create(temp).with_context(|| format!("could not write {}", temp.display()))?;
    let mut file = BufWriter::new(file);
    for line in &lines {
        file.write_all(line)?;
        if !line.ends_with(b"\n") {
            file.write_all(b"\n")?;
        }
    }
    file.into_inner()?.sync_all()?;
    fs::rename(temp, to)?;
    if let (true, Some(folder)) = (cfg!(unix), to.parent()) {
        File::open(folder)?.sync_all()?;
    }
    Ok(Sorted { lines: lines.len() })
}
