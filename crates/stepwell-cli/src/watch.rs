//! The command `stepwell tasks watch`, which prints a task's entries until the task ends.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use stepwell::{Durable, Error, LogLine, TaskId, TaskState};

use crate::exit;
use crate::screen::{Screen, brief, colour, moment};
use crate::timeline::Line;

/// The interval at which the task is read.
const EVERY: Duration = Duration::from_millis(200);

pub(crate) async fn run(client: &Durable, task_id: TaskId, screen: &Screen) -> Result<ExitCode> {
    let (mut seen, mut state) = (0, None);
    loop {
        // The task is read before its journal, so no entry of an ended task is missed.
        let task = client.task(task_id).await?.ok_or(Error::NotFound(task_id))?;
        let mut journal = client.journal(task_id).await?;
        journal.retain(|entry| entry.seq > seen);
        seen = journal.last().map_or(seen, |entry| entry.seq);
        if screen.is_json() {
            journal.iter().try_for_each(|entry| screen.text(&serde_json::to_string(entry)?))?;
        } else {
            let logs = LogLine::all(&journal);
            let mut lines: Vec<_> =
                journal.iter().filter_map(Line::of).chain(logs.iter().map(Line::of_log)).collect();
            lines.sort_by_key(|line| line.at);
            lines.iter().try_for_each(|line| {
                screen.text(&format!("{}  {}", moment(line.at), line.text()))
            })?;
        }
        if task.state.is_finished() {
            let style = colour(task.state);
            if screen.is_json() {
                screen.text(&serde_json::to_string(&task)?)?;
            } else {
                let why = task.failure.map(|failure| failure.to_string());
                let text =
                    task.output.map(|output| brief(&output, 1_000)).or(why).unwrap_or_default();
                screen.text(&format!("{style}{}{style:#}  {text}", task.state))?;
            }
            return Ok(match task.state {
                TaskState::Completed => ExitCode::SUCCESS,
                _ => ExitCode::from(exit::UNHAPPY),
            });
        }
        if state != Some(task.state) && !screen.is_json() {
            state = Some(task.state);
            let style = colour(task.state);
            screen.text(&format!("{style}{}{style:#}", task.state))?;
        }
        tokio::time::sleep(EVERY).await;
    }
}
