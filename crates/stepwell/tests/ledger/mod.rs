//! A ledger beside the database: workers append a line whenever a step's closure starts. Together
//! with the journals it shows what really ran, and who did.

mod proof;

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use stepwell::{Durable, Error, TaskContext, TaskResult};
use uuid::Uuid;

pub use proof::prove;

/// How long a step's work takes at most.
pub const WORK: Duration = Duration::from_millis(30);

pub struct Ledger {
    file: File,
    /// The process that writes, or the client, where several are in one process.
    process: Uuid,
}

impl Ledger {
    fn open(folder: &Path) -> Self {
        let file =
            OpenOptions::new().create(true).append(true).open(folder.join("ledger")).unwrap();
        Self { file, process: Uuid::from_u128(random_u128()) }
    }

    /// Notes that a step's closure starts. What it gives is unique, so that the journal shows which
    /// of the lines became its result.
    fn note(&self, ctx: &TaskContext, step: u32) -> String {
        let nonce = Uuid::from_u128(random_u128()).simple().to_string();
        let (task, run, attempt, process) = (ctx.task_id, ctx.run_id, ctx.attempt, self.process);
        let line = format!("{task} {step} {run} {attempt} {process} {nonce}");
        // One write to a file opened for appending: lines of several processes do not mix. Their
        // length divides that of a page: a process that is killed as it writes leaves a
        // part of a line only where one page ends.
        (&self.file).write_all(format!("{line:<255}\n").as_bytes()).unwrap();
        nonce
    }
}

/// A step that notes its start, and gives the nonce of that.
pub async fn step(ctx: &TaskContext, number: u32) -> TaskResult<String> {
    let ledger = ctx.state::<Arc<Ledger>>()?;
    let work = || async move {
        let nonce = ledger.note(ctx, number);
        tokio::time::sleep(WORK.mul_f64(random(100) as f64 / 100.0)).await;
        Ok(nonce)
    };
    ctx.step(("step", number), work).await
}

/// A client whose tasks write to the ledger in the folder.
pub async fn connect(url: &str, folder: &Path) -> Durable {
    let builder = Durable::builder().database_url(url).state(Arc::new(Ledger::open(folder)));
    builder.max_attempts(10_000).build().await.unwrap()
}

/// Calls again when the server could not be asked. An answer of the server's, whatever it is, is
/// the last.
pub async fn answered<T, Fut: IntoFuture<Output = Result<T, Error>>>(call: impl Fn() -> Fut) -> T {
    loop {
        match call().await {
            Ok(answer) => return answer,
            Err(Error::Store(_)) => tokio::time::sleep(Duration::from_millis(20)).await,
            Err(error) => panic!("{error}"),
        }
    }
}

pub fn random_u128() -> u128 {
    use std::hash::{BuildHasher, RandomState};
    let half = || u128::from(RandomState::new().hash_one(std::time::Instant::now()));
    half() << 64 | half()
}

/// A random number below the limit.
pub fn random(limit: u64) -> u64 {
    (random_u128() % u128::from(limit)) as u64
}
