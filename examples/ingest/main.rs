//! A full-text search index over the text files of a folder, built by durable tasks.
//!
//! ```text
//! cargo run --release --example ingest -- ~/notes
//! cargo run --release --example ingest -- --search "durable execution"
//! ```
//!
//! Kill it at any moment, even with `kill -9`, and run it again: it goes on where it was. One
//! SQLite file holds the tasks and the index.
//!
//! ```text
//!   ingest-folder   tables ─ walk ─ list ─┬─ chunk ─┬─ ingest-file   read ─ index ─┬─ … ─ tidy up
//!                                         │         ├─ ingest-file   read ─ index ─┤
//!                                         │         └─ ingest-file   read ─ index ─┘
//!                                         └─ as long as there are changed files
//! ```
//!
//! How it stays correct over a crash:
//!
//! - `tables`, `list`, `index` and `tidy up` are transactions: the data and the step's journal
//!   entry are written in one commit. So a file is in the index if and only if its step is in the
//!   journal, and no step writes twice.
//! - `walk` and `read` only read; after a crash they may run again. What they give is too large for
//!   the journal, which keeps a number or a hash of it; the rest goes straight on to the
//!   transaction that follows (see `aside.rs`).
//! - The listing is a table, written once. What the disk looks like after a crash changes nothing
//!   about which children the parent spawns, so its replay takes the same way.
//! - A process that starts looks for the unfinished ingest of its folder, and only if there is none
//!   spawns another. Two that start at the same time spawn one, as both give the same idempotency
//!   key; they share its work.

mod aside;
mod file;
mod folder;
mod index;
mod names;
mod progress;
mod report;
mod search;

use std::io::{ErrorKind, IsTerminal, Write};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::Parser;
use stepwell::{
    Durable, Name, RetryStrategy, SpawnOptions, Task, TaskFilter, TaskId, TaskInfo, WorkerOptions,
};

use crate::file::IngestFile;
use crate::folder::{Database, FolderParams, IngestFolder};
use crate::index::Summary;
use crate::progress::Progress;
use crate::report::{Report, Unreadable};

/// How many attempts a task has. Each time that this program is killed costs its tasks one.
const ATTEMPTS: u32 = 1_000;
/// How many unreadable files the report names.
const NAMED: usize = 10;
/// How long Ctrl-C waits for files that are being read.
const LAST_FILES: Duration = Duration::from_secs(10);
/// What a shell says of a program that was interrupted.
const INTERRUPTED: u8 = 130;

/// Builds a full-text search index over the text files of a folder, and searches it.
///
/// Files that are hidden or ignored by Git are left out. It can be killed at any moment; the same
/// command goes on where it was. Run again after that, it looks only at what has changed.
#[derive(Parser)]
#[command(name = "ingest")]
struct Args {
    /// The folder to index, or to search in. Default: the current one, or all that have been
    /// indexed.
    folder: Option<PathBuf>,
    /// The SQLite file for the index and for the tasks that make it.
    #[arg(long, value_name = "PATH", default_value = "ingest.db")]
    database: PathBuf,
    /// Skip files over this size in bytes; K, M and G are understood.
    #[arg(long, value_name = "SIZE", default_value = "8M", value_parser = parse_size)]
    max_size: i64,
    /// How many files to work on at the same time. Default: four for each core.
    #[arg(long, value_name = "N")]
    concurrency: Option<NonZeroUsize>,
    /// Search the index for documents with all of these words.
    #[arg(long, value_name = "WORDS")]
    search: Option<String>,
    /// How many documents a search shows at most.
    #[arg(long, value_name = "N", default_value_t = 10)]
    limit: u32,
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
    let result = match &args.search {
        Some(words) => search(&args, words),
        None => ingest(&args).await,
    };
    result.unwrap_or_else(|error| {
        eprintln!("ingest: {error:#}");
        ExitCode::FAILURE
    })
}

async fn ingest(args: &Args) -> anyhow::Result<ExitCode> {
    let begun = Instant::now();
    let path = existing_folder(args.folder.as_deref().unwrap_or(Path::new(".")))?;
    let (folder, database) = (names::escape(&path), true_path(&args.database)?);
    let url = database
        .to_str()
        .context("the path of the database is not Unicode: use another `--database`")?;
    let client = Durable::builder()
        .database_url(format!("sqlite://{url}"))
        .queue_name(folder::queue(&folder))
        .max_attempts(ATTEMPTS)
        .retry(RetryStrategy::fixed(Duration::from_millis(500)))
        .state(Database(database.clone()))
        .build()
        .await?;
    client.register::<IngestFolder>().await?;
    client.register::<IngestFile>().await?;

    let ingest = find_or_spawn(&client, &folder, args.max_size).await?;
    let before = progress::look(&database, &folder, ingest.params.run);
    if ingest.continued {
        match before {
            Some((all, done)) => {
                eprintln!("Going on with {folder}: {done} of {all} files were done before.");
            }
            None => eprintln!("Going on with {folder}: its files were not listed yet."),
        }
        if ingest.params.max_size != args.max_size {
            let size = ingest.params.max_size;
            eprintln!("It was begun with `--max-size {size}`, which holds until it is done.");
        }
    }
    let cores = std::thread::available_parallelism().map_or(4, NonZeroUsize::get);
    let concurrency = args.concurrency.map_or(cores * 4, NonZeroUsize::get);
    let options =
        WorkerOptions::new().concurrency(concurrency).shutdown_timeout(LAST_FILES).name("ingest");
    let progress = Progress::start(&database, &folder, ingest.params.run);
    let worker = client.start_worker(options).await;
    let summary = tokio::select! {
        summary = client.wait::<Summary>(ingest.task_id) => Some(summary),
        _ = tokio::signal::ctrl_c() => None,
    };
    progress.stop();
    let Some(summary) = summary else {
        eprintln!(
            "Stopping after the files in work. Press Ctrl-C again to stop at once: nothing is lost \
             by that."
        );
        tokio::select! {
            () = worker.shutdown() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
        let done = progress::look(&database, &folder, ingest.params.run);
        let done = done
            .map_or_else(String::new, |(all, done)| format!(" {done} of {all} files are done."));
        eprintln!("Interrupted.{done} Run the same command again to go on.");
        return Ok(ExitCode::from(INTERRUPTED));
    };
    worker.shutdown().await;
    let summary = summary.with_context(|| format!("cannot ingest {folder}"))?;

    let seconds = begun.elapsed().as_secs_f64();
    let here = summary.files.saturating_sub(before.map_or(0, |(_, done)| done.unsigned_abs()));
    let unreadable = match summary.skipped.unreadable {
        0 => Vec::new(),
        _ => index::unreadable(&database, &folder, NAMED)?,
    };
    let report = Report {
        folder,
        run: ingest.params.run,
        continued: ingest.continued,
        unreadable: unreadable.into_iter().map(|(path, why)| Unreadable { path, why }).collect(),
        seconds,
        files_per_second: here as f64 / seconds,
        summary,
    };
    print(&if args.json { serde_json::to_string(&report)? + "\n" } else { report.text() })?;
    Ok(if report.summary.failed > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// The ingest that is to be done.
struct Ingest {
    task_id: TaskId,
    params: FolderParams,
    /// Whether it was there before.
    continued: bool,
}

async fn find_or_spawn(client: &Durable, folder: &str, max_size: i64) -> anyhow::Result<Ingest> {
    let queue = folder::queue(folder);
    let filter = TaskFilter {
        queue: Some(Name::new(&queue)?),
        task_type: Some(Name::new(IngestFolder::NAME)?),
        limit: 1,
        ..TaskFilter::default()
    };
    let latest: Option<TaskInfo> = client.tasks(filter).await?.items.pop();
    let mut params = FolderParams { folder: folder.to_owned(), run: 1, max_size };
    if let Some(latest) = latest {
        let former: FolderParams = latest.params.decode()?;
        if !latest.state.is_finished() {
            return Ok(Ingest { task_id: latest.task_id, params: former, continued: true });
        }
        params.run = former.run + 1;
    }
    let options = SpawnOptions::new().idempotency_key(format!("{queue}#{}", params.run));
    let spawned = client.spawn::<IngestFolder>(params.clone()).options(options).await?;
    Ok(Ingest { task_id: spawned.task_id, params, continued: !spawned.created() })
}

fn search(args: &Args, words: &str) -> anyhow::Result<ExitCode> {
    let folder = args.folder.as_deref().map(existing_folder).transpose()?;
    let hits = search::search(&args.database, folder.as_deref(), words, args.limit)?;
    if args.json {
        let hits: Vec<_> = hits.into_iter().map(search::Hit::plain).collect();
        print(&(serde_json::to_string(&hits)? + "\n"))?;
        return Ok(ExitCode::SUCCESS);
    }
    if hits.is_empty() {
        print(&format!("No document has all of the words {words:?}.\n"))?;
    }
    let (bold, end) =
        if std::io::stdout().is_terminal() { ("\x1b[1m", "\x1b[0m") } else { ("", "") };
    for hit in hits {
        let (folder, path, snippet) = (&hit.folder, &hit.path, hit.snippet(bold, end));
        print(&format!("{}/{path}\n    {snippet}\n", folder.trim_end_matches('/')))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn existing_folder(path: &Path) -> anyhow::Result<PathBuf> {
    let folder = match path.canonicalize() {
        Ok(folder) => folder,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            bail!("there is no folder {}", path.display())
        }
        Err(error) => {
            return Err(error)
                .with_context(|| format!("cannot open the folder {}", path.display()));
        }
    };
    ensure!(folder.is_dir(), "{} is not a folder: give the one that it is in", path.display());
    Ok(folder)
}

/// The one true path of a file that need not be there yet.
fn true_path(path: &Path) -> anyhow::Result<PathBuf> {
    if let Ok(path) = path.canonicalize() {
        return Ok(path);
    }
    let name = path.file_name().with_context(|| format!("{} names no file", path.display()))?;
    let parent =
        path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok(existing_folder(parent).context("cannot make the database")?.join(name))
}

fn parse_size(text: &str) -> Result<i64, String> {
    let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text[number.len()..].to_ascii_uppercase().as_str() {
        "" | "B" => 1,
        "K" | "KB" | "KIB" => 1 << 10,
        "M" | "MB" | "MIB" => 1 << 20,
        "G" | "GB" | "GIB" => 1 << 30,
        _ => return Err("give a number of bytes, as 4096, 64K or 8M".into()),
    };
    let size = number.parse::<i64>().ok().and_then(|number| number.checked_mul(unit));
    // SQLite's integers have a sign, and a text of over 1 GB does not fit into it.
    size.filter(|size| (0..=1 << 29).contains(size))
        .ok_or_else(|| "give a number of bytes up to 512M, as 4096, 64K or 8M".into())
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
