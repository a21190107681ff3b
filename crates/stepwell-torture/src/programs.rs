//! The programs that are killed: workers, and clients that spawn tasks and send messages. Both are
//! this program in another role.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use stepwell::{Durable, Error, StoreError, TaskId, WorkerOptions};

use crate::ledger::Ledger;
use crate::work::{Kind, NARROW, Work, tortured};

/// The first number of the tasks that clients spawn.
pub(crate) const OF_CLIENTS: u64 = 1 << 40;
/// The number of tasks that a client spawns in one call.
pub(crate) const TOGETHER: u64 = 3;
/// The number of different turns of a client.
const TURNS: u64 = 4;
/// The time that a client waits between two turns.
const PACE: Duration = Duration::from_millis(15);
/// The pause before a call that was not answered is made again.
const AGAIN: Duration = Duration::from_millis(20);

/// The arguments of every program.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Site {
    /// The database
    #[arg(long)]
    pub(crate) url: String,
    /// The folder of the ledger
    #[arg(long)]
    pub(crate) folder: PathBuf,
    /// The number of the process
    #[arg(long)]
    pub(crate) process: u32,
}

/// A worker.
#[derive(Clone, Debug, clap::Args)]
pub struct WorkerArgs {
    #[command(flatten)]
    pub(crate) site: Site,
    /// The lease, in milliseconds
    #[arg(long)]
    pub(crate) lease: u64,
    /// The number of tasks that the worker runs at a time
    #[arg(long)]
    pub(crate) concurrency: usize,
}

/// A client, which goes on where the one before it was killed.
#[derive(Clone, Debug, clap::Args)]
pub struct ClientArgs {
    #[command(flatten)]
    pub(crate) site: Site,
    /// The first turn
    #[arg(long)]
    pub(crate) turn: u64,
    /// The number of calls of that turn that have been answered
    #[arg(long)]
    pub(crate) answered: u64,
    /// The turn before which it ends
    #[arg(long)]
    pub(crate) end: Option<u64>,
}

/// Returns a client whose tasks write to the ledger in the folder. The function tries again while
/// there is no server.
pub(crate) async fn connect(url: &str, folder: &Path, process: u32) -> Result<Durable> {
    let ledger = Arc::new(Ledger::open(folder, process)?);
    loop {
        let builder = Durable::builder().database_url(url).state(ledger.clone());
        match builder.max_attempts(10_000).build().await {
            Ok(client) => return Ok(client),
            Err(Error::Store(error)) if error.is_transient() => tokio::time::sleep(AGAIN).await,
            Err(error) => return Err(error.into()),
        }
    }
}

/// Repeats a call while the store cannot be reached, because such a call has done nothing. A
/// missing answer is an error, because the call may have been executed.
pub(crate) async fn answered<T, Fut>(call: impl Fn() -> Fut) -> Result<T, Error>
where
    Fut: IntoFuture<Output = Result<T, Error>>,
{
    loop {
        match call().await {
            Err(Error::Store(error))
                if error.is_transient() && !matches!(error, StoreError::Unanswered(_)) =>
            {
                tokio::time::sleep(AGAIN).await;
            }
            answer => return answer,
        }
    }
}

/// Runs a worker until it is killed.
///
/// # Errors
/// Fails when the database cannot be opened.
pub async fn work(args: WorkerArgs) -> Result<()> {
    let Site { url, folder, process } = &args.site;
    let client = connect(url, folder, *process).await?;
    client.register::<tortured>().await?;
    let options = WorkerOptions::new()
        .concurrency(args.concurrency)
        .lease(Duration::from_millis(args.lease))
        .queues(["default", NARROW])?
        .name(process.to_string());
    let _worker = client.start_worker(options).await;
    std::future::pending().await
}

/// Returns how many calls of a turn are recorded when they are answered.
pub(crate) fn calls(turn: u64) -> u64 {
    match turn % TURNS {
        1 => 3,
        2 => 2,
        _ => 1,
    }
}

/// Returns what a turn spawns; the number of each task ends its idempotency key.
fn spawns(turn: u64) -> Vec<Work> {
    let number = OF_CLIENTS + turn * TOGETHER;
    let plain = |place| Work::new(Kind::Plain, number + place);
    match turn % TURNS {
        0 => vec![plain(0)],
        1 => vec![Work::new(Kind::Heard, number)],
        2 => vec![Work::new(Kind::Later, number)],
        _ => (0..TOGETHER).map(plain).collect(),
    }
}

/// Spawns tasks, and fulfils their waits, turn by turn. A call that is repeated after a client was
/// killed has the same idempotency key.
///
/// # Errors
/// Fails when the database cannot be opened, or refuses a call.
pub async fn ask(args: ClientArgs) -> Result<()> {
    let Site { url, folder, process } = &args.site;
    let (client, ledger) = (connect(url, folder, *process).await?, Ledger::open(folder, *process)?);
    let mut skip = args.answered;
    for turn in (args.turn..).take_while(|turn| args.end.is_none_or(|end| *turn < end)) {
        let options =
            |work: &Work| work.options().idempotency_key(format!("client-{}", work.number));
        let spawn = |work: Work| {
            let options = options(&work);
            client.spawn::<tortured>(work).options(options)
        };
        let all = || spawns(turn).into_iter().map(spawn);
        let tasks: Vec<TaskId> =
            answered(|| client.spawn_many(all())).await?.iter().map(|one| one.task_id).collect();
        // The answer is recorded even when it was recorded before, because both must be the same.
        for (place, task) in tasks.iter().enumerate() {
            ledger.answered(*task, &format!("{turn}:0:{place}"))?;
        }
        let Some(&task) = tasks.first() else { continue };
        for call in 1.max(skip)..calls(turn) {
            let (number, event) =
                (OF_CLIENTS + turn * TOGETHER, format!("told:{}", OF_CLIENTS + turn * TOGETHER));
            match (turn % TURNS, call) {
                (1, 1) => drop(answered(|| client.emit_event(&event, &number)).await?),
                (1, _) => match answered(|| client.send(task, "talk", &("client", 0))).await {
                    // The first message had arrived, and has ended the task.
                    Err(Error::NotAllowed { .. }) => {}
                    sent => sent?,
                },
                _ => match answered(|| client.cancel(task)).await {
                    Err(Error::NotAllowed { .. }) => {}
                    cancelled => cancelled?,
                },
            }
            ledger.answered(task, &format!("{turn}:{call}:0"))?;
        }
        skip = 0;
        tokio::time::sleep(PACE).await;
    }
    Ok(())
}
