//! The state of a task and its steps at one moment.

use std::collections::BTreeMap;

use serde::Serialize;

use super::Workflow;
use super::node::{Body, Loop, Node, route_of};
use crate::base::failure::Failure;
use crate::base::guard::guard;
use crate::base::ids::TaskId;
use crate::base::journal::{Entry, Kind, Outcome};
use crate::base::name::Name;
use crate::base::payload::Payload;
use crate::base::time::Timestamp;
use crate::observe::notes::Progress;
use crate::store::{TaskInfo, TaskState};

/// The present state of a task: its parameters, the results of its steps, and its progress.
///
/// [`Client::snapshot`](crate::Client::snapshot) returns it.
#[derive(Clone, Debug, Serialize)]
pub struct Snapshot {
    /// The task's id.
    pub task_id: TaskId,
    /// The name of the task's type; for a workflow, its name.
    pub task_type: Name,
    /// The task's state.
    pub state: TaskState,
    /// The task's parameters.
    pub input: Payload,
    /// The results of the task's steps, messages, events and children, by their labels.
    ///
    /// A label is the name, `charge`, or for a further operation of that name `charge#2`.
    pub results: BTreeMap<String, Payload>,
    /// The part that a workflow is at, when it is registered with this client and has not ended.
    pub current_step: Option<String>,
    /// The task's last report of its progress, if there is one.
    pub progress: Option<Progress>,
    /// The task's output, after it has completed.
    pub output: Option<Payload>,
    /// The failure of the task, or of its last attempt.
    pub failure: Option<Failure>,
    /// The time of the spawn.
    pub spawned_at: Timestamp,
    /// The time of the last change: the spawn, a delivery, or the end.
    pub updated_at: Timestamp,
}

impl Snapshot {
    pub(crate) fn new(info: TaskInfo, journal: &[Entry], workflow: Option<&Workflow>) -> Self {
        let mut results = BTreeMap::new();
        let mut last = info.spawned_at;
        for Entry { key, outcome, at, .. } in journal {
            last = last.max(*at);
            match (key.kind, outcome) {
                // From here on the task runs again from its beginning.
                (Kind::Attempt, Outcome::Done(_)) => results.clear(),
                (Kind::Step | Kind::Event | Kind::Message | Kind::Child, Outcome::Done(value)) => {
                    results.insert(key.label(), value.clone());
                }
                (Kind::Timer, Outcome::Done(value)) => {
                    results.entry(key.label()).or_insert_with(|| value.clone());
                }
                _ => {}
            }
        }
        let current_step = workflow
            .filter(|_| !info.state.is_ending())
            .and_then(|workflow| workflow.nodes.iter().find(|node| !node.is_done(&results)))
            .map(|node| node.name.clone());
        Self {
            task_id: info.task_id,
            task_type: info.task_type,
            state: info.state,
            input: info.params,
            results,
            current_step,
            progress: Progress::latest(journal),
            output: info.output,
            failure: info.failure,
            spawned_at: info.spawned_at,
            updated_at: info.finished_at.map_or(last, |ended| last.max(ended)),
        }
    }
}

impl Node {
    /// Returns whether the part has its result.
    fn is_done(&self, results: &BTreeMap<String, Payload>) -> bool {
        match &self.body {
            Body::Step(_) | Body::Sleep(_) | Body::Signal { .. } => {
                results.contains_key(&self.name)
            }
            // A child is joined under its name and its id.
            Body::Child { .. } => {
                let prefix = format!("{}:", self.name);
                let mut behind = results.range(prefix.clone()..);
                behind.next().is_some_and(|(label, _)| label.starts_with(&prefix))
            }
            Body::Parallel(nodes) => nodes.iter().all(|node| node.is_done(results)),
            Body::Route { routes, .. } => results
                .get(&self.route_label())
                .and_then(|route| route_of(routes, route))
                .is_some_and(|node| node.is_done(results)),
            Body::Loop(this) => {
                let result = |iteration| {
                    Some((iteration, results.get(&Loop::label(&self.name, iteration))?))
                };
                let last = (1..=this.max_iterations).map_while(result).last();
                // The application's code decides whether the iteration is the last.
                let ends = |(iteration, result)| guard(|| this.ends(result, iteration));
                matches!(last.map(ends), Some(Ok(Ok(true))))
            }
        }
    }
}
