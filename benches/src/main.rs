//! The benchmark program: `cargo xtask bench`. See the README beside it.

mod backend;
mod floor;
mod memory;
mod plan;
mod report;
mod tasks;
mod workloads;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;

use crate::backend::StoreKind;
use crate::plan::Part;
use crate::report::Report;
use crate::workloads::Setup;

/// Measures Stepwell, and in the same run what the bare disk and the bare database can do.
#[derive(Parser)]
#[command(name = "bench")]
struct Cli {
    /// Only these, separated by commas
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// How often each workload is repeated; the median is reported
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    runs: u16,
    /// What keeps the tasks
    #[arg(long, value_enum, default_value_t = StoreKind::Sqlite)]
    store: StoreKind,
    /// Where the database files are made, on the disk to be measured [default: the folder of cargo's build output]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// How many tasks the worker runs at the same time (the engine's own default: 256)
    #[arg(long, default_value_t = 256)]
    concurrency: usize,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
    /// Measure the memory of so many suspended tasks in this process
    #[arg(long, hide = true)]
    suspend: Option<u64>,
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

async fn run(cli: Cli) -> Result<()> {
    let dir = cli.dir.map_or_else(build_folder, Ok)?;
    ensure!(cli.concurrency > 0, "--concurrency has to be at least 1");
    let setup = Setup { store: cli.store, dir, concurrency: cli.concurrency };
    if let Some(tasks) = cli.suspend {
        return memory::child(&setup, tasks).await;
    }
    if cfg!(debug_assertions) {
        eprintln!("This is a debug build, whose figures say nothing: use `cargo xtask bench`.");
    }
    let mut figures = Vec::new();
    for part in Part::chosen(&cli.only) {
        figures.extend(plan::run(part, &setup, usize::from(cli.runs)).await?);
    }
    let report = Report {
        store: setup.store,
        directory: setup.dir.display().to_string(),
        cpus: std::thread::available_parallelism().map_or(1, Into::into),
        concurrency: setup.concurrency,
        runs: usize::from(cli.runs),
        figures,
    };
    if cli.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{}", report.table());
    }
    Ok(())
}

/// The folder of the build that this program is from: on a real disk, where builds are.
fn build_folder() -> Result<PathBuf> {
    let program = std::env::current_exe()?;
    let folder = program.parent().context("this program lies in no folder: give one with --dir")?;
    Ok(folder.join("bench"))
}
