//! The benchmark program: `cargo xtask bench`. See the README beside it.

mod backend;
mod checkpoint;
mod crew;
mod floor;
mod floor_key_value;
mod floor_postgres;
mod growth;
mod history;
mod items;
mod lines;
mod memory;
mod plan;
mod report;
mod server;
mod setup;
mod tasks;
mod trace;
mod workloads;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;

use crate::backend::StoreKind;
use crate::plan::{Part, blocking};
use crate::report::Report;
use crate::server::Server;
use crate::setup::{Setup, Telemetry};

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
    /// Where the database files are made, on the disk to be measured [default: the folder of
    /// cargo's build output]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Use this PostgreSQL server instead of a new one in that folder; each run's schema is
    /// dropped afterwards
    #[arg(long)]
    database_url: Option<String>,
    /// Also run W1, W2 and W4 with so many worker processes beside the one that spawns (PostgreSQL
    /// only)
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..))]
    workers: Vec<u16>,
    /// Also run W1 and W3 with so many finished tasks in the tables (PostgreSQL only)
    #[arg(long, value_delimiter = ',')]
    growth: Vec<u64>,
    /// How many tasks the worker runs at the same time (the engine's own default: 256)
    #[arg(long, default_value_t = 256)]
    concurrency: usize,
    /// Let the engine count and time, for a recorder as Prometheus reads it
    #[arg(long)]
    measure: bool,
    /// Let the engine keep the history
    #[arg(long)]
    keep_history: bool,
    /// Let the engine's spans be collected, as OpenTelemetry does it
    #[arg(long)]
    trace: bool,
    /// Measure checkpoints on each key-value store and the cache in memory, and nothing else
    #[arg(long, conflicts_with_all = ["only", "store"])]
    checkpoint: bool,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
    /// Measure the memory of so many suspended tasks in this process
    #[arg(long, hide = true)]
    suspend: Option<u64>,
    /// Measure a step over so many items in this process
    #[arg(long, hide = true)]
    items: Option<u64>,
    /// Be a worker process on this schema
    #[arg(long, hide = true)]
    work: Option<String>,
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
    ensure!(cli.concurrency > 0, "--concurrency has to be at least 1");
    let postgres = cli.store == StoreKind::Postgres;
    let of_postgres =
        cli.database_url.is_some() || !cli.workers.is_empty() || !cli.growth.is_empty();
    ensure!(
        postgres || !of_postgres,
        "--database-url, --workers and --growth need --store postgres"
    );
    if cli.measure {
        metrics_exporter_prometheus::PrometheusBuilder::new().install_recorder()?;
    }
    if cli.trace {
        trace::collect()?;
    }
    let telemetry = Telemetry { measure: cli.measure, keep_history: cli.keep_history };
    let dir = cli.dir.map_or_else(build_folder, Ok)?;
    let server = if postgres { Some(server(&dir, cli.database_url).await?) } else { None };
    let concurrency = cli.concurrency;
    let setup = Setup { store: cli.store, dir, server, concurrency, telemetry, processes: None };
    if let Some(tasks) = cli.suspend {
        return memory::child(&setup, tasks).await;
    }
    if let Some(items) = cli.items {
        return items::child(&setup, items).await;
    }
    if let Some(schema) = cli.work {
        return crew::child(&setup, &schema).await;
    }
    if cfg!(debug_assertions) {
        eprintln!("This is a debug build, whose figures say nothing: use `cargo xtask bench`.");
    }
    let (parts, runs) = (Part::chosen(&cli.only), usize::from(cli.runs));
    let mut figures = Vec::new();
    if cli.checkpoint {
        figures = checkpoint::run(&setup.dir, runs).await?;
    }
    for part in parts.iter().filter(|_| !cli.checkpoint) {
        figures.extend(plan::run(*part, &setup, runs, &cli.workers).await?);
    }
    if !cli.growth.is_empty() {
        figures.extend(growth::run(&cli.growth, &parts, &setup, runs).await?);
    }
    let server_version = match &setup.server {
        Some(server) => Some(server.version().await?),
        None => None,
    };
    let report = Report {
        store: setup.store,
        directory: (!postgres || setup.writes_to_dir()).then(|| setup.dir.display().to_string()),
        server_version,
        cpus: std::thread::available_parallelism().map_or(1, Into::into),
        concurrency: setup.concurrency,
        runs,
        figures,
    };
    if cli.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{}", report.table());
    }
    Ok(())
}

/// The server that is given, or else a new one.
async fn server(dir: &Path, given: Option<String>) -> Result<Arc<Server>> {
    let dir = dir.to_owned();
    let server = match given {
        Some(url) => Server::given(url),
        None => blocking(move || Server::start(&dir)).await?,
    };
    Ok(Arc::new(server))
}

/// The folder of the build that this program is from: on a real disk, where builds are.
fn build_folder() -> Result<PathBuf> {
    let program = std::env::current_exe()?;
    let folder = program.parent().context("this program lies in no folder: give one with --dir")?;
    Ok(folder.join("bench"))
}
