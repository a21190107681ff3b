//! A script that cron might run: each file's lines are sorted into a temporary file, which then
//! gets its name.
//!
//! What keeps it correct when it is killed: the cleanup of a temporary file is recorded before the
//! file is made, and discharged in one write with the result. The sorted file is durable before its
//! result is. So a result that is recorded has its file, and a file that has no name is removed.

mod sort;

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use stepwell_checkpoint::key_value::Files;
use stepwell_checkpoint::{Checkpoint, CheckpointError, Timestamp};

use crate::sort::{Input, Sorted, sort};

/// How long this waits for a process that died.
const LEASE: Duration = Duration::from_secs(2);

/// Sorts the lines of every file of a folder into another folder
#[derive(Parser)]
struct Cli {
    /// The folder with the files
    input: PathBuf,
    /// The folder for the sorted files, made when it is missing
    output: PathBuf,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Cli::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(Cli { input, output }: Cli) -> Result<()> {
    let files = list(&input)?;
    fs::create_dir_all(&output).with_context(|| format!("could not make {}", output.display()))?;
    let same = output.canonicalize()? == input.canonicalize()?;
    ensure!(!same, "the sorted files would replace the others: give another folder for them");
    let store = Files::open(output.join(".checkpoint")).await?;
    let cp = load(&store).await?;
    for cleaned in cp.cleaned() {
        println!("removed {}", cleaned.payload);
    }
    let mut lines = 0;
    for file in files {
        let (name, from) = (file.name.clone(), input.join(&file.name));
        let (temp, to) = (output.join(format!(".{name}.part")), output.join(&name));
        let sorted = async |temp: PathBuf, to: PathBuf| {
            println!("sorting {name}");
            tokio::task::spawn_blocking(move || sort(&from, &temp, &to)).await?
        };
        let cleanup = cp.cleanup("delete_temp", &temp).await?;
        // With its length and time as input, a file that has changed is sorted again.
        let sort = cp.step(("sort", &name), || sorted(temp, to)).input(&file).discharges(&cleanup);
        let Sorted { lines: sorted } = sort.await?;
        lines += sorted;
    }
    cp.complete().await?;
    println!("{lines} lines are sorted");
    Ok(())
}

/// The text files of the folder, by name.
fn list(folder: &Path) -> Result<Vec<Input>> {
    let mut files = Vec::new();
    for entry in
        fs::read_dir(folder).with_context(|| format!("could not read {}", folder.display()))?
    {
        let entry = entry?;
        let metadata = entry.metadata()?;
        if metadata.is_file() {
            let name = entry.file_name().into_string();
            let name = name.map_err(|name| {
                anyhow::anyhow!("the name {} is no Unicode: rename it", name.display())
            })?;
            let modified = Timestamp::try_from(metadata.modified()?)?;
            files.push(Input { name, bytes: metadata.len(), modified });
        }
    }
    files.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(files)
}

/// Loads the checkpoint as soon as the process that holds it lets go of it or is dead.
async fn load(store: &Files) -> Result<Checkpoint> {
    loop {
        let load = Checkpoint::load(store, "temp_files").lease(LEASE);
        match load.on_cleanup("delete_temp", |temp: PathBuf| async move { delete(&temp) }).await {
            Err(CheckpointError::InUse { by, until, .. }) => {
                eprintln!("waiting for {by}, which may be dead, until {until}");
                let left = until.as_millisecond() - Timestamp::now().as_millisecond();
                tokio::time::sleep(Duration::from_millis(u64::try_from(left).unwrap_or(0) + 1))
                    .await;
            }
            loaded => return Ok(loaded?),
        }
    }
}

fn delete(temp: &Path) -> Result<()> {
    match fs::remove_file(temp) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}
