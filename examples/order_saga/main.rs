//! Orders of a shop, each a durable workflow that ends as shipped or as undone.
//!
//! ```text
//! cargo run --release --example order_saga -- examples/order_saga/orders.jsonl
//! cargo run --release --example order_saga -- --graph
//! ```
//!
//! Kill it at any moment, even with `kill -9`, and run it again: it goes on where it was.
//!
//! ```text
//!   reserve ─ charge ─┬─ invoice ─┬─ pick (a child) ─ packed (a signal) ─┬─ dhl ────────┐
//!      ↩        ↩     └─ label ───┘                                      ├─ royal mail ─┤
//!   release   refund                                                     └─ ups ────────┘
//! ```
//!
//! How it stays correct over a crash:
//!
//! - The order's id is the idempotency key of its workflow: a file that is given again starts
//!   nothing twice.
//! - What is asked of the world outside has a key made of the task's id: a request whose answer was
//!   lost with the process is sent again with the same key, and done once. The ledger shows both.
//! - `charge` and `reserve` are undone when something behind them fails, in reverse order, also by
//!   another process.

mod order;
mod outside;
mod packing;
mod workflow;

use std::io::{ErrorKind, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Parser;
use serde::Serialize;
use stepwell::{Durable, Error, RetryStrategy, SpawnOptions, TaskId, WorkerOptions};

use crate::order::Order;
use crate::outside::Outside;

/// How many attempts a task has. Each time that this program is killed costs its tasks one.
const ATTEMPTS: u32 = 1_000;
/// What a shell says of a program that was interrupted.
const INTERRUPTED: u8 = 130;

/// Takes orders through reservation, payment, papers, packing and shipping. An order that fails is
/// undone.
///
/// It can be killed at any moment; the same command goes on where it was.
#[derive(Parser)]
#[command(name = "order_saga")]
struct Args {
    /// A file of orders, one in each line, in JSON.
    #[arg(required_unless_present = "graph")]
    orders: Option<PathBuf>,
    /// The SQLite file that the workflows are in.
    #[arg(long, value_name = "PATH", default_value = "orders.db")]
    database: PathBuf,
    /// The file for what really happened in the warehouse, the bank, and at the carriers.
    #[arg(long, value_name = "PATH", default_value = "orders-ledger.jsonl")]
    ledger: PathBuf,
    /// How long the warehouse, the bank and the carriers take for an answer, in milliseconds.
    #[arg(long, value_name = "MS", default_value_t = 200)]
    latency: u64,
    /// Print the workflow as a Mermaid graph.
    #[arg(long)]
    graph: bool,
    /// Answer in JSON.
    #[arg(long)]
    json: bool,
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
    let args = Args::parse();
    let result = match &args.orders {
        Some(orders) if !args.graph => run(&args, orders).await,
        _ => print(&workflow::order().graph().to_mermaid()).map(|()| ExitCode::SUCCESS),
    };
    result.unwrap_or_else(|error| {
        eprintln!("order_saga: {error:#}");
        ExitCode::FAILURE
    })
}

/// How an order ended.
#[derive(Serialize)]
struct Ended<'a> {
    order: &'a str,
    task_id: TaskId,
    #[serde(flatten)]
    outcome: Outcome,
}

#[derive(Serialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
enum Outcome {
    Shipped { parcel: String },
    Undone { why: String },
    NotUndone { why: String },
}

async fn run(args: &Args, path: &Path) -> anyhow::Result<ExitCode> {
    let orders = order::read(path)?;
    let outside = Outside::open(&args.ledger, Duration::from_millis(args.latency))?;
    let url =
        args.database.to_str().context("the path of the database is not Unicode: use another")?;
    let client = Durable::builder()
        .database_url(format!("sqlite://{url}"))
        .queue_name("orders")
        .max_attempts(ATTEMPTS)
        .retry(RetryStrategy::fixed(Duration::from_millis(500)))
        .state(outside)
        .build()
        .await?;
    client.register_fn(workflow::PICK, workflow::pick).await?;
    client.register_workflow(workflow::order()).await?;

    let mut tasks = Vec::new();
    let mut known = 0;
    for order in &orders {
        let options = SpawnOptions::new().idempotency_key(&order.id);
        let task = client.spawn_workflow(workflow::ORDER, order).options(options).await?;
        if !task.created() {
            let started = client.snapshot(task.task_id).await?.input;
            ensure!(
                started.decode::<Order>()? == *order,
                "the order {} was started before, and was another: give the changed one an `id` of \
                 its own",
                order.id
            );
            known += 1;
        }
        tasks.push(task.task_id);
    }
    if known > 0 {
        eprintln!("{known} of the {} orders were started before.", orders.len());
    }
    let worker = client.start_worker(WorkerOptions::new().name("order_saga")).await;
    let ended = async {
        let mut all = Vec::new();
        for (order, task_id) in orders.iter().zip(&tasks) {
            let ended = Ended {
                order: &order.id,
                task_id: *task_id,
                outcome: outcome(&client, *task_id).await?,
            };
            if !args.json {
                print(&ended.text())?;
            }
            all.push(ended);
        }
        anyhow::Ok(all)
    };
    let ended = tokio::select! {
        ended = ended => Some(ended),
        Err(error) = packing::pack(&client, tasks.len()) => Some(Err(error.into())),
        _ = tokio::signal::ctrl_c() => None,
    };
    worker.shutdown().await;
    let Some(ended) = ended else {
        eprintln!("Interrupted. Run the same command again to go on.");
        return Ok(ExitCode::from(INTERRUPTED));
    };
    let ended = ended?;
    if args.json {
        print(&(serde_json::to_string(&ended)? + "\n"))?;
    }
    let not_undone = ended.iter().any(|ended| matches!(ended.outcome, Outcome::NotUndone { .. }));
    Ok(if not_undone { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Waits for an order's end.
async fn outcome(client: &Durable, task_id: TaskId) -> anyhow::Result<Outcome> {
    match client.wait::<serde_json::Value>(task_id).await {
        Ok(output) => {
            let parcel = output["carrier"].as_str().context("a shipped order has a parcel")?;
            Ok(Outcome::Shipped { parcel: parcel.to_owned() })
        }
        Err(Error::TaskFailed { failure, .. }) => {
            let why = failure.to_string();
            let undone = failure.compensation_errors.is_empty();
            Ok(if undone { Outcome::Undone { why } } else { Outcome::NotUndone { why } })
        }
        Err(error @ Error::TaskCancelled(_)) => Ok(Outcome::Undone { why: error.to_string() }),
        Err(error) => Err(error.into()),
    }
}

impl Ended<'_> {
    /// For people, in a line.
    fn text(&self) -> String {
        let (word, more) = match &self.outcome {
            Outcome::Shipped { parcel } => ("shipped", parcel),
            Outcome::Undone { why } => ("undone", why),
            Outcome::NotUndone { why } => ("NOT UNDONE", why),
        };
        format!("{:<12} {word:<10} {more}\n", self.order)
    }
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
