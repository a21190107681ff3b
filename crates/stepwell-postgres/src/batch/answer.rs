//! The decoding of the answer of `stepwell.commit` or `commit_plain`.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use serde::Deserialize;
use sqlx::postgres::PgRow;
use sqlx::types::Uuid;
use stepwell_core::store::{
    Applied, CommandOutcome, Committed, Finish, News, Refused, ScheduleOutcome, Spawned, TaskState,
    WorkerState, WorkerStatus,
};
use stepwell_core::{OtherWorker, RunId, TaskId, WorkerId, blocked};

use crate::batch::claims::{claims, facts};
use crate::batch::classify::Sorted;
use crate::values::rows::{attempt, json, list, name, value};

/// Returns the results of the batch, and the tasks that ended other than by its transitions. The
/// results of the latter tasks are not part of the answer, and are read afterwards.
pub(crate) fn read(sorted: &Sorted, row: &PgRow) -> sqlx::Result<(Committed, Vec<Uuid>)> {
    let mut transitions = match value::<Vec<bool>>(row, "t_accepted")? {
        // `commit_one` and `commit_plain` omit values that are the defaults.
        None => sorted.order.iter().map(|_| Ok(Applied::default())).collect(),
        Some(accepted) => sorted.back(judged(accepted, row)?),
    };

    let commands = list::<String>(row, "c_answer")?.into_iter().zip(list(row, "c_needed_by")?);
    let commands = commands.map(|(answer, needed_by)| command(&answer, needed_by)).collect();
    let of_clients = |all: Vec<Option<bool>>| all.into_iter().flatten().collect();
    let events = of_clients(list(row, "ev_first")?);
    let messages = of_clients(list(row, "m_accepted")?);
    let spawns = spawns(sorted, &mut transitions, row)?;
    let schedules =
        list::<String>(row, "h_outcome")?.iter().map(|outcome| schedule(outcome)).collect();
    let workers = list::<String>(row, "signal_status")?;
    let workers =
        workers.iter().map(|status| worker_status(status)).collect::<sqlx::Result<_>>()?;
    let claims = claims(sorted, row)?;

    let mut news = News { poked: ids(list(row, "poked")?), ..News::default() };
    let mut ready: BTreeMap<String, usize> = BTreeMap::new();
    for queue in list::<String>(row, "ready")? {
        *ready.entry(queue).or_default() += 1;
    }
    // No worker serves a queue whose name cannot be read.
    news.ready
        .extend(ready.into_iter().filter_map(|(queue, tasks)| Some((name(queue).ok()?, tasks))));
    let mut others: HashSet<Uuid> = list(row, "finished")?.into_iter().collect();
    for (transition, result) in sorted.batch.transitions.iter().zip(&transitions) {
        if result.is_ok()
            && let Some(finish) = transition.next.finish()
            // A task that failed or is cancelled may run compensations before it ends.
            && (others.remove(transition.task_id.as_uuid())
                || matches!(finish, Finish::Completed(_)))
        {
            news.finished.push((transition.task_id, finish));
        }
    }
    let committed = Committed {
        transitions,
        commands,
        events,
        messages,
        spawns,
        schedules,
        workers,
        claims,
        news,
    };
    Ok((committed, others.into_iter().collect()))
}

fn ids(uuids: Vec<Uuid>) -> Vec<TaskId> {
    uuids.into_iter().map(TaskId::from).collect()
}

/// Returns the results of the transitions, in the order of their tasks' ids.
fn judged(accepted: Vec<bool>, row: &PgRow) -> sqlx::Result<Vec<Result<Applied, Refused>>> {
    let cancel_requested: Vec<bool> = list(row, "t_cancel_requested")?;
    let suspended: Vec<bool> = list(row, "t_suspended")?;
    let mut facts = facts(row, "t_facts");
    let mut joins = list::<Option<Uuid>>(row, "t_blocked")?.into_iter();
    let rows = (1..)
        .zip(accepted.into_iter().zip(cancel_requested))
        .zip(suspended.into_iter().chain(std::iter::repeat(false)));
    let judged = rows.map(|((place, (accepted, cancel_requested)), suspended)| {
        let mut facts = facts.remove(&place).unwrap_or_default();
        let blocked = joins.next().flatten().map(|child| (child.into(), Finish::Failed(blocked())));
        facts.children.extend(blocked);
        let applied = Applied { suspended, cancel_requested, facts, ..Applied::default() };
        accepted.then_some(applied).ok_or(Refused)
    });
    Ok(judged.collect())
}

fn command(answer: &str, needed_by: Option<Uuid>) -> CommandOutcome {
    match (answer, needed_by) {
        ("done", _) => CommandOutcome::Done,
        ("not_found", _) => CommandOutcome::NotFound,
        ("needed", Some(by)) => CommandOutcome::Needed { by: by.into() },
        // A state that a newer program has written does not allow any command that this program
        // knows.
        (state, _) => {
            CommandOutcome::NotAllowed(TaskState::parse(state).unwrap_or(TaskState::Running))
        }
    }
}

fn schedule(outcome: &str) -> ScheduleOutcome {
    match outcome {
        "refused" => ScheduleOutcome::Refused,
        outcome => ScheduleOutcome::Changed { spawned: outcome == "spawns" },
    }
}

/// The answer to a signal, as `stepwell.signal` returns it.
#[derive(Deserialize)]
struct Status {
    state: String,
    runs: Option<Vec<(TaskId, RunId)>>,
    /// The other workers. Invariant: unreadable rows of other workers do not hide this worker's own
    /// state.
    others: Option<Vec<(WorkerId, i64, i64)>>,
}

fn worker_status(status: &str) -> sqlx::Result<WorkerStatus> {
    let Status { state, runs, others } = json(status)?;
    let other = |(worker_id, heartbeats, lease): (_, i64, i64)| OtherWorker {
        worker_id,
        heartbeats: heartbeats.unsigned_abs(),
        lease: Duration::from_micros(lease.unsigned_abs()),
    };
    let state = WorkerState::parse(&state).unwrap_or_else(|| {
        tracing::error!(
            state,
            "a worker has a state that this program does not know; it is taken for active"
        );
        WorkerState::Active
    });
    Ok(WorkerStatus {
        state,
        runs: runs.unwrap_or_default(),
        others: others.unwrap_or_default().into_iter().map(other).collect(),
    })
}

/// Returns the results of the clients' spawns, and sets those of keyed spawns in their transitions.
fn spawns(
    sorted: &Sorted,
    transitions: &mut [Result<Applied, Refused>],
    row: &PgRow,
) -> sqlx::Result<Vec<Spawned>> {
    let claimed: Vec<bool> = list(row, "s_claimed")?;
    let existing: Vec<Option<Uuid>> = list(row, "s_existing")?;
    let runs: Vec<Option<Uuid>> = list(row, "s_existing_run")?;
    let attempts: Vec<Option<i64>> = list(row, "s_existing_attempt")?;
    let spawned = |place: usize| {
        let there =
            |column: &[Option<Uuid>]| -> Option<Uuid> { column.get(place).copied().flatten() };
        match (there(&existing), there(&runs)) {
            (Some(task_id), Some(run_id)) => match attempts.get(place).copied().flatten() {
                Some(number) => Spawned::Existing {
                    task_id: task_id.into(),
                    run_id: run_id.into(),
                    attempt: attempt(number),
                },
                None => Spawned::Waiting { task_id: task_id.into(), run_id: run_id.into() },
            },
            _ => Spawned::Created { claimed: claimed.get(place).copied().unwrap_or_default() },
        }
    };
    // The spawns of transitions come first, then those of schedules.
    let mut before = 0;
    for (transition, result) in sorted.batch.transitions.iter().zip(transitions) {
        before += transition.spawns.len();
        if transition.keyed.is_some() {
            if let Ok(applied) = result {
                applied.keyed = Some(spawned(before));
            }
            before += 1;
        }
    }
    before += sorted.batch.schedules.iter().map(|change| change.spawns().len()).sum::<usize>();
    Ok((before..before + sorted.batch.spawns.len()).map(spawned).collect())
}
