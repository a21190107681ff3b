//! Imports a CSV file into a table of an SQLite database, by a durable task in the same database.
//!
//! ```text
//! cargo run --release --example csv_import -- \
//!     examples/csv_import/zones.csv --create examples/csv_import/zones.sql
//! ```
//!
//! Kill it at any moment, even with `kill -9`, and run it again: it goes on where it was.
//!
//! ```text
//!   import-file   look ─ prepare ─ rows, in batches ─▶ csv_import_rows ─ publish ─▶ the table
//! ```
//!
//! How it stays correct over a crash:
//!
//! - `rows` are items: the journal knows which are read, in a few rows of its own. A batch whose
//!   end was not yet journaled is read again, and put beside the table again, which changes
//!   nothing: there, a row's key is the import and its line.
//! - `publish` is a transaction: the table gets all rows in one commit with the step's journal
//!   entry, and so once. Nobody sees half a file in it.
//! - The idempotency key is made of the file's hash and the table: a file that is imported already
//!   is not imported again. A file that changed in the middle is another one: its import fails, and
//!   the cleanup removes what it read.

mod import;
mod progress;
mod source;
mod table;

use std::io::{ErrorKind, IsTerminal, Write};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use stepwell::{Durable, RetryStrategy, SpawnOptions, TaskId, TaskState, WorkerOptions};

use crate::import::{Database, FORGET_ROWS, Import, ImportFile};
use crate::progress::Progress;
use crate::table::{BadRow, Imported};

/// How many attempts a task has. Each time that this program is killed costs its task one.
const ATTEMPTS: u32 = 1_000;
/// How long the end waits for other imports that this process went on with.
const OTHERS: Duration = Duration::from_secs(10);
/// What a shell says of a program that was interrupted.
const INTERRUPTED: u8 = 130;

/// Imports a CSV file into a table of an SQLite database: all of its rows at once, each exactly
/// once.
///
/// The first line names the columns; an empty field is NULL. A row that is malformed, or that the
/// table does not take, is skipped and reported. It can be killed at any moment; the same command
/// goes on where it was.
#[derive(Parser)]
#[command(name = "csv_import")]
struct Args {
    /// The CSV file.
    file: PathBuf,
    /// The SQLite database.
    #[arg(long, value_name = "PATH", default_value = "csv_import.db")]
    database: PathBuf,
    /// The table. Default: the file's name without its ending.
    #[arg(long, value_name = "NAME")]
    table: Option<String>,
    /// A file with the SQL that creates the table, when it is not there.
    #[arg(long, value_name = "PATH")]
    create: Option<PathBuf>,
    /// How many rows are read in one go.
    #[arg(long, value_name = "N", default_value = "1000")]
    batch: NonZeroUsize,
    /// Answer in JSON.
    #[arg(long)]
    json: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let log =
        tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "off".into());
    tracing_subscriber::fmt()
        .with_env_filter(log)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    run(Args::parse()).await.unwrap_or_else(|error| {
        eprintln!("csv_import: {error:#}");
        ExitCode::FAILURE
    })
}

async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let path =
        args.file.canonicalize().with_context(|| format!("cannot open {}", args.file.display()))?;
    let table = match args.table {
        Some(table) => table,
        None => path
            .file_stem()
            .and_then(|stem| stem.to_str())
            .context("the file's name is not Unicode: name the table with `--table`")?
            .to_owned(),
    };
    let create = args.create.map(|path| {
        std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    });
    let hash = source::hash(&path)?;
    let import = Import { path, hash, table, create: create.transpose()?, batch: args.batch.get() };

    let client = open(&args.database, Progress::new(import.key())).await?;
    let table = import.table.clone();
    let (task_id, known) = find_or_spawn(&client, import).await?;
    if known == Some(TaskState::Completed) {
        eprintln!("This file was imported into the table {table:?} before.");
    }
    let options = WorkerOptions::new().name("csv_import").shutdown_timeout(OTHERS);
    let worker = client.start_worker(options).await;
    let imported = tokio::select! {
        imported = client.wait::<Imported>(task_id) => Some(imported),
        _ = tokio::signal::ctrl_c() => None,
    };
    worker.shutdown().await;
    let Some(imported) = imported else {
        eprintln!("Interrupted. Run the same command again to go on.");
        return Ok(ExitCode::from(INTERRUPTED));
    };
    let imported = imported.with_context(|| format!("cannot import {}", args.file.display()))?;
    print(&if args.json {
        serde_json::to_string(&imported)? + "\n"
    } else {
        text(&imported, &table)
    })?;
    Ok(ExitCode::SUCCESS)
}

async fn open(database: &Path, progress: Progress) -> anyhow::Result<Durable> {
    let url = database.to_str().context("the path of the database is not Unicode: use another")?;
    let connection: Database = Arc::new(Mutex::new(
        table::open(database).with_context(|| format!("cannot open the database {url}"))?,
    ));
    let client = Durable::builder()
        .database_url(format!("sqlite://{url}"))
        .queue_name("csv_import")
        .max_attempts(ATTEMPTS)
        .retry(RetryStrategy::fixed(Duration::from_millis(500)))
        .state(connection.clone())
        .state(progress)
        .build()
        .await?;
    client.register::<ImportFile>().await?;
    let forget = move |import| import::forget_rows(connection.clone(), import);
    client.register_cleanup(FORGET_ROWS, forget).await?;
    Ok(client)
}

/// The task of the import, and where it is in its life when it was there before. One that failed is
/// replaced.
async fn find_or_spawn(
    client: &Durable,
    import: Import,
) -> anyhow::Result<(TaskId, Option<TaskState>)> {
    let spawn = || {
        let options = SpawnOptions::new().idempotency_key(import.key());
        client.spawn::<ImportFile>(import.clone()).options(options)
    };
    let spawned = spawn().await?;
    if spawned.created() {
        return Ok((spawned.task_id, None));
    }
    let state = client.snapshot(spawned.task_id).await?.state;
    if !matches!(state, TaskState::Failed | TaskState::Cancelled) {
        return Ok((spawned.task_id, Some(state)));
    }
    client.delete(spawned.task_id).await?;
    Ok((spawn().await?.task_id, None))
}

/// For people, in lines.
fn text(imported: &Imported, table: &str) -> String {
    let Imported { rows, bad, first_bad } = imported;
    let mut text =
        format!("{rows} rows imported into the table {table:?}, {bad} bad rows skipped\n");
    text.extend(first_bad.iter().map(|BadRow { line, why }| format!("  line {line}: {why}\n")));
    let more = bad - first_bad.len() as u64;
    if more > 0 {
        text += &format!("  and {more} more\n");
    }
    text
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
