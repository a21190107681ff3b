//! Who runs the tasks of a workload: a worker in this process, or worker processes beside it.

use std::process::Stdio;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use stepwell::{Durable, Worker};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::backend::Backend;
use crate::plan::blocking;
use crate::setup::Setup;
use crate::tasks::Probe;

/// The argument, hidden from people, that makes this program a worker process on the schema of this
/// name.
pub(crate) const CHILD: &str = "--work";
/// What a worker process says when it has opened the store.
const READY: &str = "ready";
/// What it says when its worker runs.
const WORKING: &str = "working";

/// Those who are to work.
pub(crate) enum Crew {
    Here { client: Durable, probe: Arc<Probe>, setup: Setup },
    Processes(Vec<Process>),
}

/// Those who work.
pub(crate) enum Working {
    Here { worker: Worker, probe: Arc<Probe> },
    Processes(Vec<Process>),
}

impl Crew {
    /// Lets worker processes, if there are to be any, open the store.
    pub(crate) async fn hire(
        setup: &Setup,
        backend: &Backend,
        client: &Durable,
        probe: &Arc<Probe>,
    ) -> Result<Self> {
        let Some(count) = setup.processes else {
            return Ok(Self::Here {
                client: client.clone(),
                probe: probe.clone(),
                setup: setup.clone(),
            });
        };
        let Backend::Postgres(schema) = backend else {
            anyhow::bail!("several processes can work on PostgreSQL only");
        };
        let mut processes = Vec::new();
        for _ in 0..count {
            processes.push(Process::start(setup.child(CHILD, schema.name())?)?);
        }
        for process in &mut processes {
            process.expect(READY).await?;
        }
        Ok(Self::Processes(processes))
    }

    /// Starts all workers, and waits until they run.
    pub(crate) async fn start(self) -> Result<Working> {
        let mut processes = match self {
            Self::Here { client, probe, setup } => {
                return Ok(Working::Here {
                    worker: client.start_worker(setup.worker()).await,
                    probe,
                });
            }
            Self::Processes(processes) => processes,
        };
        for process in &mut processes {
            process.input.write_all(b"\n").await?;
        }
        for process in &mut processes {
            process.expect(WORKING).await?;
        }
        Ok(Working::Processes(processes))
    }
}

impl Working {
    /// Shuts all workers down. Says how many steps ran.
    pub(crate) async fn end(self) -> Result<u64> {
        match self {
            Self::Here { worker, probe } => {
                worker.shutdown().await;
                Ok(probe.steps())
            }
            Self::Processes(processes) => {
                let mut steps = 0;
                for process in processes {
                    steps += process.end().await?;
                }
                Ok(steps)
            }
        }
    }
}

/// A worker process. It ends with this value, or when this process is gone.
pub(crate) struct Process {
    child: Child,
    /// A line starts its worker, and the end shuts it down.
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Process {
    fn start(command: std::process::Command) -> Result<Self> {
        let mut command = Command::from(command);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().context("could not start a worker process")?;
        let input = child.stdin.take().context("a worker process has no input")?;
        let output = child.stdout.take().context("a worker process has no output")?;
        Ok(Self { child, input, output: BufReader::new(output).lines() })
    }

    async fn says(&mut self) -> Result<String> {
        self.output.next_line().await?.context("a worker process ended too soon")
    }

    async fn expect(&mut self, word: &str) -> Result<()> {
        let said = self.says().await?;
        ensure!(said == word, "a worker process said {said:?} instead of {word:?}");
        Ok(())
    }

    async fn end(mut self) -> Result<u64> {
        self.input.shutdown().await?;
        drop(self.input);
        let said = self
            .output
            .next_line()
            .await?
            .context("a worker process did not say what it had done")?;
        let status = self.child.wait().await?;
        ensure!(status.success(), "a worker process failed: {status}");
        said.parse().with_context(|| format!("a worker process said {said:?}"))
    }
}

/// The worker process.
pub(crate) async fn child(setup: &Setup, schema: &str) -> Result<()> {
    let backend = Backend::Postgres(setup.server()?.schema_of_another(schema));
    let probe = Arc::new(Probe::default());
    let client = backend.open(&probe, setup.telemetry).await?;
    println!("{READY}");
    if heard().await? == 0 {
        return Ok(());
    }
    let worker = client.start_worker(setup.worker()).await;
    println!("{WORKING}");
    while heard().await? > 0 {}
    worker.shutdown().await;
    println!("{}", probe.steps());
    Ok(())
}

/// How long the next line of the input is; 0 at its end.
async fn heard() -> Result<usize> {
    blocking(|| Ok(std::io::stdin().read_line(&mut String::new())?)).await
}
