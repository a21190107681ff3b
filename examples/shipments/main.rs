//! Shipments, followed by one process and told of by another, which share a database.
//!
//! ```text
//! cargo run --release --example shipments -- work examples/shipments/shipments.jsonl
//! # in another terminal
//! cargo run --release --example shipments -- emit examples/shipments/events.jsonl
//! ```
//!
//! The database is a SQLite file, or PostgreSQL: then the two may run on different machines.
//!
//! ```text
//!   emit ── packed:1Z0 ── picked_up:1Z0 ── delivered:1Z0 ──▶ database ──▶ work: one task
//!                                                                         for each shipment
//! ```
//!
//! Either of them may be killed at any moment, or not be running at all: an event that is emitted
//! before anybody waits for it is kept, and one that is emitted again changes nothing.

mod event;
mod lines;
mod track;

use std::collections::HashSet;
use std::io::{ErrorKind, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::{Parser, Subcommand};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use stepwell::{DATABASE_URL_VARIABLE, Durable, RetryStrategy, WorkerOptions};

use crate::event::CarrierEvent;
use crate::track::{Outcome, Shipment, TrackShipment};

/// Where the tasks and the events are when nothing is said.
const DATABASE: &str = "sqlite://shipments.db";
/// How many attempts a task has. Each time that the worker is killed while a task runs costs it
/// one.
const ATTEMPTS: u32 = 1_000;
/// How soon another worker takes the tasks of one that died, on PostgreSQL. On SQLite it sees that
/// at once.
const LEASE: Duration = Duration::from_secs(5);
/// What a shell says of a program that was interrupted.
const INTERRUPTED: u8 = 130;

/// Follows shipments by the events of their carriers.
#[derive(Parser)]
#[command(name = "shipments")]
struct Args {
    /// The database: `sqlite://path.db` or `postgres://user:password@host/database`. Default: the
    /// environment variable DURABLE_DATABASE_URL, else sqlite://shipments.db.
    #[arg(long, value_name = "URL", global = true)]
    database: Option<String>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Starts a task for each shipment that has none yet, and works until all have arrived, are
    /// lost, or are late.
    Work {
        /// A file of shipments, one in each line, in JSON.
        shipments: PathBuf,
    },
    /// Emits the events of carriers.
    Emit {
        /// A file of events, one in each line, in JSON; `-` for the standard input, line by line
        /// as they come.
        events: PathBuf,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    let log =
        tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "error".into());
    tracing_subscriber::fmt()
        .with_env_filter(log)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    let Args { database, command } = Args::parse();
    let database = database.or_else(|| std::env::var(DATABASE_URL_VARIABLE).ok());
    let database = database.as_deref().unwrap_or(DATABASE);
    let result = match command {
        Command::Work { shipments } => work(database, &shipments).await,
        Command::Emit { events } => emit(database, &events).await.map(|()| ExitCode::SUCCESS),
    };
    result.unwrap_or_else(|error| {
        eprintln!("shipments: {error:#}");
        ExitCode::FAILURE
    })
}

async fn open(database: &str) -> anyhow::Result<Durable> {
    let retry = RetryStrategy::fixed(Duration::from_millis(500));
    let builder = Durable::builder().database_url(database).queue_name("shipments");
    Ok(builder.max_attempts(ATTEMPTS).retry(retry).build().await?)
}

async fn work(database: &str, path: &Path) -> anyhow::Result<ExitCode> {
    let shipments = lines::read(path)?.collect::<anyhow::Result<Vec<Shipment>>>()?;
    ensure!(!shipments.is_empty(), "{} holds no shipments", path.display());
    let mut seen = HashSet::new();
    for Shipment { tracking, .. } in &shipments {
        ensure!(
            seen.insert(tracking.as_str()),
            "{tracking} is in {} twice: remove one",
            path.display()
        );
    }
    let client = open(database).await?;
    client.register::<TrackShipment>().await?;

    let tasks = shipments.into_iter().map(|shipment| {
        let tracking = shipment.tracking.clone();
        client.spawn::<TrackShipment>(shipment).idempotency_key(tracking)
    });
    let tasks = client.spawn_many(tasks).await?;
    let known = tasks.iter().filter(|task| !task.created()).count();
    if known > 0 {
        eprintln!("{known} of the {} shipments were followed before.", tasks.len());
    }
    let options = WorkerOptions::new().name("shipments").lease(LEASE);
    let worker = client.start_worker(options).await;
    let all = async {
        let mut ends: FuturesUnordered<_> =
            tasks.iter().map(|task| client.wait::<Outcome>(task.task_id)).collect();
        let mut counts = [0; 3];
        while let Some(outcome) = ends.next().await {
            counts[outcome? as usize] += 1;
        }
        anyhow::Ok(counts)
    };
    let counts = tokio::select! {
        counts = all => Some(counts),
        _ = tokio::signal::ctrl_c() => None,
    };
    worker.shutdown().await;
    let Some(counts) = counts else {
        eprintln!("Interrupted. Run the same command again to go on.");
        return Ok(ExitCode::from(INTERRUPTED));
    };
    let [delivered, lost, late] = counts?;
    print(&format!("{delivered} delivered, {lost} lost, {late} late\n"))?;
    Ok(ExitCode::SUCCESS)
}

async fn emit(database: &str, path: &Path) -> anyhow::Result<()> {
    let client = open(database).await?;
    let (mut emitted, mut known) = (0, 0);
    for event in lines::read::<CarrierEvent>(path)? {
        let event = event?;
        if client.emit_event(event.name(), &event).await? {
            emitted += 1;
            print(&format!("{}\n", event.name()))?;
        } else {
            known += 1;
        }
    }
    print(&format!("{emitted} events emitted, {known} were known\n"))
}

/// Prints to the standard output, whose reader may have left.
fn print(text: &str) -> anyhow::Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(error).context("cannot write the answer")
        }
        _ => Ok(()),
    }
}
