//! A batch that is sent, with its transitions in the order in which all commits lock rows.

use std::collections::HashMap;
use std::sync::Arc;

use stepwell_core::store::{Batch, NewTask, Next, Transition};
use stepwell_core::{CancellationPolicy, labels};

pub(crate) struct Sorted {
    pub(crate) batch: Arc<Batch>,
    /// The positions of the batch's transitions, in the order of their tasks' ids.
    pub(crate) order: Vec<usize>,
    /// The function of the database that is called for the batch.
    pub(crate) function: Function,
    /// The timeline for which the batch is sent.
    pub(crate) timeline: Option<Arc<str>>,
    /// `true` if the ends of the batch's journals are compared.
    pub(crate) doubts: bool,
}

/// The functions of the database that apply a batch. Each function can do less than the next one,
/// and is faster.
#[derive(Clone, Copy)]
pub(crate) enum Function {
    /// The function `commit_one`, for a plain batch of one item with at most one journal entry.
    One,
    /// The function `commit_plain`, for transitions that only journal or complete, and for spawns
    /// without options.
    Plain,
    /// The function `commit`, for any batch.
    Any,
}

impl Sorted {
    pub(crate) fn new(batch: Arc<Batch>) -> Self {
        let mut order: Vec<usize> = (0..batch.transitions.len()).collect();
        order.sort_unstable_by_key(|place| {
            batch.transitions.get(*place).map(|t| (t.task_id, t.run_id))
        });
        let function =
            match (is_plain(&batch), batch.transitions.as_slice(), batch.spawns.as_slice()) {
                (true, [transition], []) if transition.entries.len() <= 1 => Function::One,
                (true, [], [task]) if task.claim_by.is_some() => Function::One,
                (true, ..) => Function::Plain,
                (false, ..) => Function::Any,
            };
        Self { batch, order, function, timeline: None, doubts: false }
    }

    /// Returns whether a run has two transitions, which no batch may contain.
    pub(crate) fn repeats(&self) -> bool {
        self.transitions()
            .zip(self.transitions().skip(1))
            .any(|(a, b)| (a.task_id, a.run_id) == (b.task_id, b.run_id))
    }

    /// Returns the transitions in the order of their tasks' ids.
    pub(crate) fn transitions(&self) -> impl Iterator<Item = &Transition> {
        self.order.iter().filter_map(|place| self.batch.transitions.get(*place))
    }

    /// Returns the position, from 1, of each transition in the order of the tasks' ids.
    pub(crate) fn places(&self) -> Vec<i32> {
        let mut places = vec![0; self.order.len()];
        for (rank, place) in (1..).zip(&self.order) {
            if let Some(slot) = places.get_mut(*place) {
                *slot = rank;
            }
        }
        places
    }

    /// Reorders answers from the order of the tasks' ids to the order of the batch.
    pub(crate) fn back<T>(&self, answers: Vec<T>) -> Vec<T> {
        let mut slots: Vec<Option<T>> = self.order.iter().map(|_| None).collect();
        for (place, answer) in self.order.iter().zip(answers) {
            if let Some(slot) = slots.get_mut(*place) {
                *slot = Some(answer);
            }
        }
        slots.into_iter().flatten().collect()
    }
}

fn is_plain(batch: &Batch) -> bool {
    let Batch {
        transitions,
        commands,
        events,
        messages,
        spawns,
        schedules,
        queues,
        workers,
        claims,
    } = batch;
    commands.is_empty()
        && events.is_empty()
        && messages.is_empty()
        && schedules.is_empty()
        && queues.is_empty()
        && workers.is_empty()
        && claims.is_empty()
        && transitions.iter().all(only_journals_or_ends)
        && spawns.iter().all(only_runs)
}

fn only_journals_or_ends(transition: &Transition) -> bool {
    matches!(transition.next, Next::Continue { collect: false } | Next::Complete(_))
        && transition.only_journals()
}

/// Returns whether the task runs as soon as possible and has no further options.
fn only_runs(task: &NewTask) -> bool {
    task.start_at.is_none()
        && task.idempotency_key.is_none()
        && task.concurrency_key.is_none()
        && task.coalesce.is_none()
        && task.code_version.is_none()
        && task.parent.is_none()
        && task.scope.is_all()
        && labels(&task.headers).next().is_none()
        && task.cancellation == CancellationPolicy::default()
}

/// Returns the database's word for the variant.
pub(crate) fn word(next: &Next) -> &'static str {
    match next {
        Next::Continue { collect: false } => "continue",
        Next::Continue { collect: true } => "collect",
        Next::Suspend { .. } => "suspend",
        Next::Complete(_) => "completed",
        Next::Retry { .. } => "retry",
        Next::Fail(_) => "failed",
        Next::Cancel => "cancelled",
        Next::Release | Next::Leave { .. } => "release",
    }
}

/// Returns the waits that a transition adds: for each key, the last one.
pub(crate) fn added(transition: &Transition) -> Vec<&stepwell_core::store::Wait> {
    if transition.waits_added.len() < 2 {
        return transition.waits_added.iter().collect();
    }
    let last: HashMap<_, _> = transition.waits_added.iter().map(|wait| (&wait.key, wait)).collect();
    last.into_values().collect()
}
