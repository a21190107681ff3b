//! The command `stepwell demo`: orders that complete although their worker is killed half-way.
//!
//! ```text
//!   this process: dashboard, orders ──▶ stepwell.db ◀── worker process, killed; then another one
//!                                       ledger.txt  ◀── a line for each real run of a step's code
//! ```

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use stepwell::{
    ApprovalFilter, Durable, Error, Kind, LogLevel, SpawnOptions, TaskContext, TaskError, TaskId,
    TaskResult, TaskState, WorkerOptions,
};
use stepwell_server::{ServeError, Server};
use tokio::process::{Child, Command};

use crate::args::Demo;
use crate::exit;
use crate::screen::{BOLD, DIM, Screen, colour};
use crate::serve::{interrupted, say};

/// The number of steps that are journaled before the worker is killed.
const STEPS: usize = 5;
/// The interval at which the demo reads the orders.
const EVERY: Duration = Duration::from_millis(50);

#[derive(Clone, Serialize, Deserialize)]
struct Order {
    customer: String,
    items: Vec<String>,
    cents: u64,
}

/// The file to which steps append a line each time that their code runs.
struct Ledger(PathBuf);

impl Ledger {
    fn note(&self, what: &str) -> Result<()> {
        let mut file = OpenOptions::new().create(true).append(true).open(&self.0)?;
        // One write call appends the line, so the lines of two processes do not mix.
        Ok(file.write_all(format!("{what}\n").as_bytes())?)
    }

    /// Returns the lines of the file, each with its number of occurrences.
    fn counts(&self) -> Result<BTreeMap<String, usize>> {
        let text = match std::fs::read_to_string(&self.0) {
            Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
            text => text?,
        };
        let mut counts = BTreeMap::new();
        text.lines().for_each(|line| *counts.entry(line.to_owned()).or_default() += 1);
        Ok(counts)
    }
}

/// Runs a step that stands for a slow call to another system.
async fn outside(ctx: &TaskContext, what: &str, millis: u64) -> TaskResult<String> {
    let ledger = ctx.state::<Ledger>()?;
    let (line, result) = (format!("{} {what}", ctx.task_id), format!("{what}: done"));
    ctx.step(what, || async move {
        tokio::time::sleep(Duration::from_millis(millis)).await;
        ledger.note(&line)?;
        Ok(result)
    })
    .await
}

/// Takes an order through payment, picking, and shipping.
#[stepwell::task]
async fn order(order: Order, ctx: TaskContext) -> TaskResult<String> {
    let ledger = ctx.state::<Ledger>()?;
    ctx.log(LogLevel::Info, "the order is taken", [("customer", order.customer.clone().into())]);
    outside(&ctx, "check the address", 300).await?;
    let (cents, charged) = (order.cents, format!("{} charge the card", ctx.task_id));
    let receipt = ctx
        .step("charge the card", || async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            ledger.note(&charged)?;
            Ok(cents)
        })
        .compensate(|cents| async move {
            tokio::time::sleep(Duration::from_millis(cents.min(400))).await;
            Ok(())
        })
        .await?;
    if order.cents > 50_000 {
        let approval =
            ctx.await_approval::<()>("manager", &order).assign("the shop's manager").await?;
        if !approval.is_approved() {
            return Err(TaskError::permanent(anyhow::anyhow!("the manager has rejected it")));
        }
    }
    let picked = order.items.iter().enumerate().map(|(n, item)| {
        let (ctx, millis) = (ctx.clone(), 400 + 250 * n as u64);
        async move { outside(&ctx, &format!("pick {item}"), millis).await }
    });
    let all = order.items.len() as u64;
    ctx.progress(0, Some(all), "picking");
    for picked in futures_util::future::join_all(picked).await {
        picked?;
    }
    ctx.progress(all, Some(all), "picked");
    if order.items.iter().any(|item| item == "anvil") {
        let heavy = || async {
            Err::<(), _>(anyhow::anyhow!("it is 200 kg").context("no carrier takes it"))
        };
        ctx.step("ship", heavy).await?;
    }
    ctx.sleep_for("until the carrier comes", Duration::from_millis(800)).await?;
    outside(&ctx, "ship", 500).await?;
    Ok(format!("{receipt} cents, {all} items, shipped"))
}

fn orders() -> Vec<Order> {
    let order = |customer: &str, items: &[&str], cents| Order {
        customer: customer.into(),
        items: items.iter().map(ToString::to_string).collect(),
        cents,
    };
    vec![
        order("ada", &["kettle", "teapot", "cups"], 8_950),
        order("grace", &["lamp"], 4_200),
        order("wile", &["rocket skates", "anvil"], 19_900),
        order("edsger", &["paper", "pens"], 1_250),
        order("barbara", &["piano"], 249_000),
    ]
}

pub(crate) async fn run(options: Demo, screen: &Screen) -> Result<ExitCode> {
    let (_temporary, folder);
    match options.folder.clone() {
        Some(path) => {
            std::fs::create_dir_all(&path)
                .with_context(|| format!("cannot make {}", path.display()))?;
            folder = path;
        }
        None => {
            _temporary = tempfile::tempdir()?;
            folder = _temporary.path().to_owned();
        }
    }
    match options.worker {
        true => work(&folder).await.map(|()| ExitCode::SUCCESS),
        // A user who interrupts the demo does not have to wait for its end.
        false => tokio::select! {
            biased;
            ended = tour(&folder, options, screen) => ended,
            () = interrupted() => Ok(ExitCode::SUCCESS),
        },
    }
}

async fn client(folder: &Path) -> Result<Durable> {
    let url = format!("sqlite://{}", folder.join("stepwell.db").display());
    let builder = Durable::builder().database_url(url).keep_history();
    Ok(builder.state(Ledger(folder.join("ledger.txt"))).build().await?)
}

/// Works until it is killed.
async fn work(folder: &Path) -> Result<()> {
    let client = client(folder).await?;
    client.register::<order>().await?;
    client.start_worker(WorkerOptions::new().lease(Duration::from_secs(3))).await;
    // The parent process holds the other end of the input, which closes when the parent is gone.
    let orphaned =
        async { _ = tokio::io::copy(&mut tokio::io::stdin(), &mut tokio::io::sink()).await };
    tokio::select! {
        () = interrupted() => {}
        () = orphaned => {}
    }
    client.shutdown(Duration::from_secs(5)).await;
    // A thread still reads the input, so the process must exit here.
    std::process::exit(0)
}

fn start_worker(folder: &Path) -> Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(["demo", "--worker", "--folder"])
        .arg(folder)
        .stdin(Stdio::piped())
        .kill_on_drop(true);
    command.spawn().context("cannot start a worker process")
}

async fn tour(folder: &Path, options: Demo, screen: &Screen) -> Result<ExitCode> {
    let client = client(folder).await?;
    let bound = match Server::new(client.clone()).bind(options.listen).await {
        // Another program has the default port, which the user did not ask for.
        Err(ServeError::Listen { address, .. }) if address.port() == 7180 => {
            Server::new(client.clone()).bind(([127, 0, 0, 1], 0).into()).await?
        }
        bound => bound?,
    };
    say(&bound, screen)?;
    let server = tokio::spawn(bound.serve(std::future::pending()));
    let mut tasks = Vec::new();
    for new in orders() {
        let options = SpawnOptions::new().max_attempts(3).label("customer", new.customer.clone());
        tasks.push(client.spawn::<order>(new).options(options).await?.task_id);
    }
    screen.done(&format!("{} orders are spawned", tasks.len()))?;
    let mut worker = start_worker(folder)?;
    screen.done(&format!("a worker process has started: {}", pid(&worker)))?;
    while steps(&client, &tasks).await? < STEPS {
        tokio::time::sleep(EVERY).await;
    }
    let was = pid(&worker);
    worker.kill().await?;
    screen.done(&format!(
        "{BOLD}kill -9 {was}{BOLD:#}: the worker is gone, in the middle of the orders"
    ))?;
    worker = start_worker(folder)?;
    screen
        .done(&format!("another one has started, and goes on where that was: {}", pid(&worker)))?;
    let fine = finish(&client, &tasks, screen).await?;
    tell(folder, &tasks, screen)?;
    if !options.exit {
        let advice =
            "\nOne order waits in the dashboard for the manager's approval. Ctrl-C ends the tour.";
        screen.done(advice)?;
        server.await?;
    }
    worker.kill().await?;
    Ok(if fine { ExitCode::SUCCESS } else { ExitCode::from(exit::UNHAPPY) })
}

fn pid(worker: &Child) -> String {
    worker.id().map_or_else(|| "no longer there".into(), |pid| format!("process {pid}"))
}

/// Returns how many steps are journaled.
async fn steps(client: &Durable, tasks: &[TaskId]) -> Result<usize, Error> {
    let mut steps = 0;
    for task_id in tasks {
        let journal = client.journal(*task_id).await?;
        steps += journal.iter().filter(|entry| entry.key.kind == Kind::Step).count();
    }
    Ok(steps)
}

/// Waits until every order has ended or waits for an approval, and prints the outcomes. Returns
/// whether all outcomes are as expected.
async fn finish(client: &Durable, tasks: &[TaskId], screen: &Screen) -> Result<bool> {
    let mut fine = true;
    for (task_id, order) in tasks.iter().zip(orders()) {
        let asks = order.cents > 50_000;
        let task = loop {
            let task = client.task(*task_id).await?.ok_or(Error::NotFound(*task_id))?;
            if task.state.is_finished()
                || (asks
                    && !client
                        .approvals()
                        .list(ApprovalFilter { limit: 10, ..ApprovalFilter::default() })
                        .await?
                        .items
                        .is_empty())
            {
                break task;
            }
            tokio::time::sleep(EVERY).await;
        };
        let is_heavy = order.items.iter().any(|item| item == "anvil");
        let expected = match (asks, is_heavy) {
            (true, _) => TaskState::Suspended,
            (false, true) => TaskState::Failed,
            (false, false) => TaskState::Completed,
        };
        fine &= task.state == expected || (asks && !task.state.is_finished());
        let style = colour(task.state);
        let why = match (&task.output, &task.failure) {
            (Some(output), _) => output.to_string(),
            (None, Some(failure)) => format!("{failure}; the payment is undone"),
            (None, None) => "waits for an approval".into(),
        };
        let state = if task.state.is_finished() { task.state } else { TaskState::Suspended };
        screen.done(&format!(
            "  {:<8} {style}{:<10}{style:#} {why}",
            order.customer,
            state.as_str()
        ))?;
    }
    Ok(fine)
}

/// Prints what the ledger shows.
fn tell(folder: &Path, tasks: &[TaskId], screen: &Screen) -> Result<()> {
    let counts = Ledger(folder.join("ledger.txt")).counts()?;
    let ours = |line: &str| tasks.iter().any(|task_id| line.starts_with(&task_id.to_string()));
    let counts: Vec<_> = counts.into_iter().filter(|(line, _)| ours(line)).collect();
    let again: Vec<_> = counts.iter().filter(|(_, count)| *count > 1).collect();
    screen.done(&format!(
        "\n{} steps ran, {} of them again: {}",
        counts.len(),
        again.len(),
        match again.is_empty() {
            true => "no result was lost with the worker",
            false => "those whose result was not yet in the journal when the worker died",
        }
    ))?;
    screen.done(&format!("{DIM}the ledger: {}{DIM:#}", folder.join("ledger.txt").display()))
}
