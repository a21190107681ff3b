//! The command `stepwell top`, which shows queues, workers and running tasks as they change.

use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use anyhow::Result;
use serde::Serialize;
use stepwell::{Durable, QueueInfo, TaskFilter, TaskInfo, TaskState, WorkerInfo};

use crate::args::Top;
use crate::screen::{BOLD, DIM, Screen, colour, moment};
use crate::serve::interrupted;

/// The number of tasks that are shown of each state.
const TASKS: usize = 8;
/// The terminal's alternate screen, which leaves the normal one unchanged.
const ENTER: &str = "\u{1b}[?1049h\u{1b}[?25l";
const LEAVE: &str = "\u{1b}[?1049l\u{1b}[?25h";
const HOME: &str = "\u{1b}[H";
/// The sequences that clear the rest of a line, and the rest of the screen.
const CLEAR_LINE: &str = "\u{1b}[K";
const CLEAR_REST: &str = "\u{1b}[J";

#[derive(Serialize)]
struct View {
    queues: Vec<QueueInfo>,
    workers: Vec<WorkerInfo>,
    running: Vec<TaskInfo>,
    failed: Vec<TaskInfo>,
}

pub(crate) async fn run(
    client: &Durable,
    Top { once, interval }: Top,
    screen: &Screen,
) -> Result<()> {
    if once || screen.is_json() || !std::io::stdout().is_terminal() {
        let view = look(client).await?;
        return screen.show(&view, || draw(&view, screen));
    }
    let mut out = std::io::stdout();
    write!(out, "{ENTER}")?;
    let shown = show(client, interval.into(), screen).await;
    write!(out, "{LEAVE}")?;
    out.flush()?;
    shown
}

/// Draws the view once in each interval, until the user interrupts the program.
async fn show(client: &Durable, interval: Duration, screen: &Screen) -> Result<()> {
    let mut end = std::pin::pin!(interrupted());
    loop {
        let page = format!("{}\n{DIM}Ctrl-C ends{DIM:#}", draw(&look(client).await?, screen));
        let page = page.replace('\n', &format!("{CLEAR_LINE}\n"));
        let mut out = anstream::stdout().lock();
        write!(out, "{HOME}{page}{CLEAR_REST}")?;
        out.flush()?;
        drop(out);
        tokio::select! {
            () = &mut end => return Ok(()),
            () = tokio::time::sleep(interval) => {}
        }
    }
}

async fn look(client: &Durable) -> Result<View> {
    let of = |state| TaskFilter { state: Some(state), limit: TASKS, ..TaskFilter::default() };
    Ok(View {
        queues: client.queues().list().await?,
        workers: client.workers().list().await?,
        running: client.tasks(of(TaskState::Running)).await?.items,
        failed: client.tasks(of(TaskState::Failed)).await?.items,
    })
}

fn draw(view: &View, screen: &Screen) -> String {
    let sum = |count: fn(&QueueInfo) -> u64| view.queues.iter().map(count).sum::<u64>();
    let alive = view.workers.iter().filter(|worker| worker.alive).count();
    let mut page = format!(
        "{BOLD}{}{BOLD:#} pending  {BOLD}{}{BOLD:#} running  {BOLD}{}{BOLD:#} suspended  \
         {BOLD}{alive}{BOLD:#} workers\n",
        sum(|queue| queue.pending),
        sum(|queue| queue.running),
        sum(|queue| queue.suspended)
    );
    let queues = view.queues.iter().map(|queue| {
        let state = if queue.paused { "paused" } else { "" };
        [
            queue.queue.to_string(),
            queue.pending.to_string(),
            queue.running.to_string(),
            queue.suspended.to_string(),
            state.into(),
        ]
    });
    let workers = view.workers.iter().map(|worker| {
        let state = if worker.alive { worker.state.as_str() } else { "dead" };
        [worker.name.clone(), state.into(), format!("{}/{}", worker.running, worker.concurrency)]
    });
    for table in [
        screen.table(["QUEUE", "PENDING", "RUNNING", "SUSPENDED", ""], queues),
        screen.table(["WORKER", "STATE", "RUNNING"], workers),
    ] {
        page.push_str(&format!("\n{table}\n"));
    }
    for (title, tasks) in [("runs", &view.running), ("failed last", &view.failed)] {
        if tasks.is_empty() {
            continue;
        }
        let style = colour(tasks[0].state);
        let rows = tasks.iter().map(|task| {
            let at = task.finished_at.or(task.started_at).unwrap_or(task.spawned_at);
            [task.task_id.to_string(), task.task_type.to_string(), moment(at)]
        });
        let table = screen.table(["TASK", "TYPE", "SINCE"], rows);
        page.push_str(&format!("\n{style}{title}{style:#}\n{table}\n"));
    }
    page
}
