//! The timeline of a simulated history.

use std::fmt::{self, Display};
use std::time::Duration;

use stepwell_core::store::{Batch, Committed, Next, WorkerSignal};
use stepwell_core::{Outcome, TaskId};

/// A line of a timeline.
#[derive(Clone, Debug)]
pub struct Moment {
    /// The time from the beginning of the world.
    pub at: Duration,
    /// The name of the process, the client or the world that acted.
    pub who: String,
    /// The description of what happened.
    pub what: String,
}

impl Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.at.as_secs_f64();
        write!(f, "{seconds:>12.3} s  {:<10} {}", self.who, self.what)
    }
}

/// Returns the end of a task's id, which is enough to tell tasks apart.
fn short(task_id: TaskId) -> String {
    let id = task_id.to_string();
    id.get(id.len().saturating_sub(6)..).unwrap_or(&id).to_owned()
}

impl Moment {
    /// Returns the lines for a commit, one for each item. Heartbeats and claims without a task have
    /// none.
    pub(super) fn of(at: Duration, who: &str, batch: &Batch, committed: &Committed) -> Vec<Self> {
        let mut lines = Vec::new();
        let mut line = |what: String| lines.push(Self { at, who: who.to_owned(), what });
        for (transition, answer) in batch.transitions.iter().zip(&committed.transitions) {
            let mut what = format!("task …{}:", short(transition.task_id));
            for entry in &transition.entries {
                let outcome = match &entry.outcome {
                    Outcome::Done(_) => "",
                    Outcome::Failed(_) => " failed",
                    Outcome::Retrying { .. } => " is tried again",
                };
                what += &format!(" {}{outcome},", entry.key);
            }
            for wait in &transition.waits_added {
                what += &format!(" waits for {},", wait.key);
            }
            what += match &transition.next {
                Next::Continue { .. } => " goes on",
                Next::Suspend { .. } => " suspended",
                Next::Complete(_) => " completed",
                Next::Retry { .. } => " to be tried again",
                Next::Fail(_) => " failed",
                Next::Cancel => " cancelled",
                Next::Release => " given back",
                Next::Leave { .. } => " left to others",
            };
            if answer.is_err() {
                what += " (refused: the run does not own the task)";
            }
            line(what);
        }
        for (command, outcome) in batch.commands.iter().zip(&committed.commands) {
            line(format!("{command:?}: {outcome:?}"));
        }
        batch.events.iter().for_each(|event| line(format!("emits {}", event.name)));
        for message in &batch.messages {
            line(format!("sends {} to task …{}", message.topic, short(message.task_id)));
        }
        for (task, spawned) in batch.spawns.iter().zip(&committed.spawns) {
            line(format!(
                "spawns {} as task …{}: {spawned:?}",
                task.task_type,
                short(task.task_id)
            ));
        }
        batch.schedules.iter().for_each(|_| line("changes a schedule".into()));
        batch
            .queues
            .iter()
            .for_each(|change| line(format!("queue {}: {:?}", change.queue, change.action)));
        for (signal, status) in batch.workers.iter().zip(&committed.workers) {
            if !matches!(signal, WorkerSignal::Heartbeat { .. }) {
                line(format!("{signal:?}: {:?}", status.state));
            }
        }
        for claimed in &committed.claims {
            for task in &claimed.tasks {
                let (id, attempt) = (short(task.task_id), task.attempt);
                line(format!("claims task …{id} of {}, attempt {attempt}", task.task_type));
            }
        }
        lines
    }
}
