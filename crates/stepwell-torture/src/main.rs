//! The host of a torture, and the programs that it kills: `cargo xtask torture`.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use stepwell_torture::{ClientArgs, Options, Store, WorkerArgs};

#[derive(Parser)]
#[command(about = "Kills Stepwell's real processes by the thousand, and proves what really ran")]
enum Cli {
    /// Tortures one store
    Run(Run),
    #[command(flatten)]
    Killed(Killed),
}

#[derive(clap::Args)]
struct Run {
    /// The store that keeps the tasks
    #[arg(long, value_enum, default_value = "sqlite")]
    store: Store,
    /// The number of processes to kill
    #[arg(long)]
    kills: u64,
    /// The number of kills after which all that was recorded is checked
    #[arg(long, default_value_t = 500)]
    window: u64,
    /// The seed, which decides what goes wrong
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The number of the first window
    #[arg(long, default_value_t = 0)]
    first: u64,
}

#[derive(Subcommand)]
enum Killed {
    /// A worker
    #[command(hide = true)]
    Worker(WorkerArgs),
    /// A client
    #[command(hide = true)]
    Client(ClientArgs),
}

#[tokio::main(worker_threads = 2)]
async fn main() -> ExitCode {
    let done = match Cli::parse() {
        Cli::Run(run) => torture(run).await,
        Cli::Killed(Killed::Worker(args)) => stepwell_torture::work(args).await,
        Cli::Killed(Killed::Client(args)) => stepwell_torture::ask(args).await,
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn torture(run: Run) -> anyhow::Result<()> {
    let Run { store, kills, window: kills_per_window, seed, first } = run;
    let program = std::env::current_exe()?;
    let options = Options { store, kills, kills_per_window, seed, first, program };
    let report = stepwell_torture::run(options).await?;
    println!("PROVEN on {store:?}\n{report}");
    Ok(())
}
