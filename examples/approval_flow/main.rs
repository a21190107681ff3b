//! A flow that waits for a person, is exported to a folder of documents, and goes on in another
//! database.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Parser, Subcommand};
use serde::{Deserialize, Serialize};
use stepwell::{
    ApprovalFilter, ApprovalInfo, Decision, Durable, Error, Export, SpawnOptions, TaskContext,
    TaskError, TaskFilter, TaskId, TaskResult, TaskState, Worker, WorkerOptions,
};

/// Expense reports that wait for approval, and move between databases
#[derive(Parser)]
struct Cli {
    /// The SQLite file, made when it is missing
    #[arg(long, default_value = "approvals.db")]
    database: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Submit the expenses of a JSON file, each once
    Submit { file: PathBuf },
    /// List what waits for a decision
    List,
    /// Decide one: approve it, unless a reason is given to reject it
    Decide {
        name: String,
        #[arg(long)]
        by: String,
        /// How much is approved; all of it when left out
        #[arg(long)]
        amount: Option<u64>,
        #[arg(long)]
        reject: Option<String>,
    },
    /// Write what waits into a folder, a document each
    Export { folder: PathBuf },
    /// Take in what is in such a folder
    Import { folder: PathBuf },
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Expense {
    name: String,
    who: String,
    amount: u64,
    currency: String,
}

#[stepwell::task]
async fn reimburse(expense: Expense, ctx: TaskContext) -> TaskResult<u64> {
    let limit = ctx
        .step("check", || async {
            println!("checked {} of {} {}", expense.name, expense.amount, expense.currency);
            Ok(expense.amount)
        })
        .await?;
    match ctx.await_approval::<Option<u64>>("reimburse", &expense).assign("ada").await? {
        Decision::Approved { value, by, .. } => {
            let amount = value.unwrap_or(limit).min(limit);
            ctx.step("pay", || async {
                println!("paid {amount} {} to {}, approved by {by}", expense.currency, expense.who);
                Ok(())
            })
            .await?;
            Ok(amount)
        }
        Decision::Rejected { by, reason } => Err(TaskError::permanent(anyhow::anyhow!(
            "rejected by {by}: {}",
            reason.unwrap_or_default()
        ))),
    }
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

async fn run(Cli { database, command }: Cli) -> Result<()> {
    let path = database.to_str().context("the path of the database is no Unicode")?;
    let client = Durable::builder().database_url(format!("sqlite://{path}")).build().await?;
    client.register::<reimburse>().await?;
    match command {
        Command::Submit { file } => {
            let json = fs::read_to_string(&file)
                .with_context(|| format!("could not read {}", file.display()))?;
            let expenses: Vec<Expense> = serde_json::from_str(&json)
                .with_context(|| format!("{} is no list of expenses", file.display()))?;
            let worker = client.start_worker(WorkerOptions::new()).await;
            for expense in expenses {
                let options =
                    SpawnOptions::new().idempotency_key(&expense.name).label("who", &expense.who);
                client.spawn::<reimburse>(expense).options(options).await?;
            }
            settle(&client, worker).await
        }
        Command::List => list(&client).await,
        Command::Decide { name, by, amount, reject } => {
            let approval = find(&client, &name).await?;
            let decision = match reject {
                Some(reason) => Decision::rejected(by, reason),
                None => Decision::approved(by, amount),
            };
            client.approvals().decide(approval.task_id, &approval.name, &decision).await?;
            let worker = client.start_worker(WorkerOptions::new()).await;
            match client.wait::<u64>(approval.task_id).await {
                Ok(amount) => println!("{name}: reimbursed {amount}"),
                Err(Error::TaskFailed { failure, .. }) => println!("{name}: {failure}"),
                Err(error) => return Err(error.into()),
            }
            settle(&client, worker).await
        }
        Command::Export { folder } => {
            fs::create_dir_all(&folder)
                .with_context(|| format!("could not make {}", folder.display()))?;
            for approval in client
                .approvals()
                .list(ApprovalFilter { limit: usize::MAX, ..ApprovalFilter::default() })
                .await?
                .items
            {
                let export = client.export(approval.task_id).await?.with("from", path);
                let file = folder.join(format!("{}.json", approval.task_id));
                write(&file, &export.to_json()?)?;
                println!("exported {} to {}", name_of(&approval)?, file.display());
            }
            Ok(())
        }
        Command::Import { folder } => {
            let read = fs::read_dir(&folder)
                .with_context(|| format!("could not read {}", folder.display()))?;
            for file in read {
                let file = file?.path();
                let json = fs::read_to_string(&file)?;
                let export = Export::from_json(&json)
                    .with_context(|| format!("could not import {}", file.display()))?;
                match client.import(export).await {
                    Ok(task_id) => println!("imported {task_id}"),
                    Err(Error::Import(exists)) => println!("{}: {exists}", file.display()),
                    Err(error) => return Err(error.into()),
                }
            }
            // Those that were imported come to their approvals again.
            let worker = client.start_worker(WorkerOptions::new()).await;
            settle(&client, worker).await?;
            list(&client).await
        }
    }
}

/// Lets the worker go on until every task waits or has ended.
async fn settle(client: &Durable, worker: Worker) -> Result<()> {
    for state in [TaskState::Pending, TaskState::Running] {
        let filter = TaskFilter { state: Some(state), limit: 1, ..TaskFilter::default() };
        while !client.tasks(filter.clone()).await?.items.is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    worker.shutdown().await;
    Ok(())
}

async fn list(client: &Durable) -> Result<()> {
    for approval in client
        .approvals()
        .list(ApprovalFilter { limit: usize::MAX, ..ApprovalFilter::default() })
        .await?
        .items
    {
        let Expense { name, who, amount, currency } = approval.request.decode()?;
        let assignee = approval.assignee.unwrap_or_default();
        println!(
            "{name}: {amount} {currency} of {who} wait for {assignee} since {}",
            approval.asked_at
        );
    }
    Ok(())
}

async fn find(client: &Durable, name: &str) -> Result<ApprovalInfo> {
    let mut behind: Option<TaskId> = None;
    loop {
        let page = client
            .approvals()
            .list(ApprovalFilter { after: behind, limit: 100, ..ApprovalFilter::default() })
            .await?
            .items;
        let Some(last) = page.last() else { bail!("nothing named {name:?} waits for a decision") };
        behind = Some(last.task_id);
        for approval in page {
            if name_of(&approval)? == name {
                return Ok(approval);
            }
        }
    }
}

fn name_of(approval: &ApprovalInfo) -> Result<String> {
    Ok(approval.request.decode::<Expense>()?.name)
}

/// Writes a whole file or none.
fn write(file: &Path, text: &str) -> Result<()> {
    let part = file.with_extension("part");
    fs::write(&part, text).with_context(|| format!("could not write {}", part.display()))?;
    ensure!(fs::File::open(&part)?.sync_all().is_ok(), "could not sync {}", part.display());
    fs::rename(&part, file).with_context(|| format!("could not write {}", file.display()))
}
