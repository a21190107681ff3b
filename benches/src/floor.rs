//! The floors: the same work by the bare disk, and by bare SQLite.

use std::fs::File;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::time::Instant;

use anyhow::{Result, bail};

use crate::backend::temp_folder;
use crate::report::percentile;
use crate::workloads::{Setup, millis};

pub(crate) const FDATASYNC_P50: &str = "fdatasync of a 4 KiB append, p50";
pub(crate) const FDATASYNC_P99: &str = "fdatasync of a 4 KiB append, p99";
pub(crate) const W1: &str = "todo";
pub(crate) const W2: &str = "todo";
pub(crate) const W4: &str = "todo";
pub(crate) const W5: &str = "todo";

const PAGE: [u8; 4096] = [0x5a; 4096];
const SYNCS: u64 = 1_000;

/// Where a page is written before it is synced.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Write {
    /// At the end: the file's length has to reach the disk as well.
    Append,
    /// Over what is there.
    Over,
}

/// Writes pages, each followed by an fdatasync. Milliseconds of both: the median and the 99th percentile.
pub(crate) fn fdatasync(dir: &Path, write: Write) -> Result<(f64, f64)> {
    let folder = temp_folder(dir)?;
    let mut file = File::create(folder.path().join("pages"))?;
    if write == Write::Over {
        for _ in 0..SYNCS {
            file.write_all(&PAGE)?;
        }
        file.sync_all()?;
        file.seek(SeekFrom::Start(0))?;
    }
    let mut times = Vec::new();
    for _ in 0..SYNCS {
        let start = Instant::now();
        file.write_all(&PAGE)?;
        file.sync_data()?;
        times.push(millis(start.elapsed()));
    }
    Ok((percentile(&mut times, 0.5), percentile(&mut times, 0.99)))
}

pub(crate) async fn w1(_: &Setup) -> Result<f64> { bail!("todo") }
pub(crate) async fn w2(_: &Setup) -> Result<f64> { bail!("todo") }
pub(crate) async fn w4(_: &Setup) -> Result<f64> { bail!("todo") }
pub(crate) async fn w5(_: &Setup) -> Result<f64> { bail!("todo") }
