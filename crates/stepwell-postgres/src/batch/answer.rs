//! The decoding of the answer of `stepwell.commit` or `commit_plain`.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
use sqlx::Row as _;
use sqlx::postgres::PgRow;
use sqlx::types::Uuid;
use stepwell_core::store::{
    Applied, ArrivedMessage, Claimed, ClaimedTask, CommandOutcome, Committed, Facts, Finish, News,
    Refused, ScheduleOutcome, Spawned, TaskState, Wait, WorkerState, WorkerStatus,
};
use stepwell_core::{
    Entry, Failure, Key, Kind, Name, OtherWorker, Outcome, Payload, RunId, Scope, TaskId,
    UnknownWord, Unreadable, WorkerId, blocked, deleted,
};

use crate::batch::classify::Sorted;
use crate::values::columns::{Moment, calendar};

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
            && (others.remove(transition.task_id.as_uuid()) || matches!(finish, Finish::Completed(_)))
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

/// Returns an array, or an empty one when the column is NULL or the function has no such column.
fn list<'r, T>(row: &'r PgRow, column: &str) -> sqlx::Result<Vec<T>>
where
    Option<Vec<T>>: sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
{
    Ok(value::<Vec<T>>(row, column)?.unwrap_or_default())
}

fn value<'r, T>(row: &'r PgRow, column: &str) -> sqlx::Result<Option<T>>
where
    Option<T>: sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
{
    match row.try_get(column) {
        Err(sqlx::Error::ColumnNotFound(_)) => Ok(None),
        value => value,
    }
}

fn ids(uuids: Vec<Uuid>) -> Vec<TaskId> {
    uuids.into_iter().map(TaskId::from).collect()
}

pub(crate) fn broken(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> sqlx::Error {
    sqlx::Error::Decode(error.into())
}

pub(crate) fn name(text: impl AsRef<str>) -> sqlx::Result<Name> {
    Name::new(text).map_err(broken)
}

pub(crate) fn scope(text: Option<&str>) -> sqlx::Result<Scope> {
    Scope::from_text(text.unwrap_or_default()).map_err(broken)
}

pub(crate) fn json<T: serde::de::DeserializeOwned>(text: &str) -> sqlx::Result<T> {
    serde_json::from_str(text).map_err(broken)
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

pub(crate) fn worker_state(word: impl AsRef<str>) -> sqlx::Result<WorkerState> {
    let word = word.as_ref();
    WorkerState::parse(word).ok_or_else(|| broken(format!("{word:?} is no state of a worker")))
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

pub(crate) fn attempt(number: i64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// Returns the item at a position of the database, which counts from 1.
fn at<T>(items: &mut [T], place: i32) -> Option<&mut T> {
    usize::try_from(place).ok()?.checked_sub(1).and_then(|place| items.get_mut(place))
}

fn claims(sorted: &Sorted, row: &PgRow) -> sqlx::Result<Vec<Claimed>> {
    let mut claims: Vec<Claimed> = sorted.batch.claims.iter().map(|_| Claimed::default()).collect();
    let due: Vec<Option<Moment>> = list(row, "next_due")?;
    for (claim, due) in claims.iter_mut().zip(due) {
        claim.next_due = due.map(|due| due.0);
    }
    let poked = list::<i32>(row, "cl_poked_of")?.into_iter().zip(list::<Uuid>(row, "cl_poked")?);
    for (place, task_id) in poked {
        if let Some(claim) = at(&mut claims, place) {
            claim.poked.push(task_id.into());
        }
    }
    let tasks: Vec<Uuid> = list(row, "cl_task")?;
    if tasks.is_empty() {
        return Ok(claims);
    }
    let of: Vec<i32> = list(row, "cl_of")?;
    let runs: Vec<Uuid> = list(row, "cl_run")?;
    let attempts: Vec<i64> = list(row, "cl_attempt")?;
    let crashes: Vec<i64> = list(row, "cl_crashes")?;
    let lost: Vec<i64> = list(row, "cl_lost")?;
    let had_it: Vec<bool> = list(row, "cl_had_it")?;
    let max_attempts: Vec<i64> = list(row, "cl_max_attempts")?;
    let types: Vec<Option<String>> = list(row, "cl_type")?;
    let queues: Vec<String> = list(row, "cl_queue")?;
    let params: Vec<String> = list(row, "cl_params")?;
    let headers: Vec<String> = list(row, "cl_headers")?;
    let retries: Vec<String> = list(row, "cl_retry")?;
    let mut scopes = list::<Option<String>>(row, "cl_scope")?.into_iter();
    let mut keys = list::<Option<String>>(row, "cl_key")?.into_iter();
    let mut journals = journals(row)?;
    let mut waits = waits(row)?;
    let mut facts = facts(row, "cl_facts");
    let lengths = [of.len(), runs.len(), attempts.len(), crashes.len(), lost.len(), had_it.len()];
    let of_rows =
        [max_attempts.len(), types.len(), queues.len(), params.len(), headers.len(), retries.len()];
    if lengths.into_iter().chain(of_rows).any(|length| length != tasks.len()) {
        return Err(broken("the columns of a claim's tasks differ in length"));
    }
    let ran = runs.into_iter().zip(attempts).zip(crashes.into_iter().zip(lost)).zip(had_it).zip(of);
    let spawned =
        max_attempts.into_iter().zip(types).zip(queues).zip(params).zip(headers).zip(retries);
    for ((place, task_id), (ran, spawned)) in (1..).zip(tasks).zip(ran.zip(spawned)) {
        let ((((run_id, number), (crashes, lost)), had_it), of) = ran;
        let (((((max_attempts, task_type), queue), params), headers), retry) = spawned;
        let mut hurt = None;
        let task_type = task_type.ok_or_else(|| broken("there is none: somebody has deleted it"));
        let task_type = of_task(&mut hurt, "the task's row in `tasks`", task_type.map(Some))?;
        let mut named = |column, text: Option<String>| match text {
            Some(text) => {
                of_task(&mut hurt, column, name(text).map(Some))?.map_or_else(unreadable_name, Ok)
            }
            None => unreadable_name(),
        };
        let (task_type, queue) = (named("`task_type`", task_type)?, named("`queue`", Some(queue))?);
        let headers = of_task(&mut hurt, "`headers`", json(&headers))?;
        let retry = of_task(&mut hurt, "`retry`", json(&retry))?;
        let of_scope = of_task(&mut hurt, "`scope`", scope(scopes.next().flatten().as_deref()))?;
        let journal = journals.remove(&place).unwrap_or_else(|| Ok(Vec::new()));
        let journal = of_task(&mut hurt, "a row of `journal`", journal)?;
        let waits = waits.remove(&place).unwrap_or_else(|| Ok(Vec::new()));
        let waits = of_task(&mut hurt, "a row of `waits`", waits)?;
        let task = ClaimedTask {
            task_id: task_id.into(),
            run_id: run_id.into(),
            attempt: attempt(number),
            max_attempts: attempt(max_attempts.saturating_add(lost)),
            crashes: attempt(crashes),
            task_type,
            queue,
            params: Payload::from_json(params),
            headers,
            scope: of_scope,
            concurrency_key: keys.next().flatten().map(name).transpose()?,
            retry,
            journal: (!had_it).then_some(journal),
            waits,
            facts: facts.remove(&place).unwrap_or_default(),
            unreadable: hurt,
        };
        if let Some(claim) = at(&mut claims, of) {
            claim.tasks.push(task);
        }
    }
    Ok(claims)
}

/// Returns a part of a claimed task, or a default when the part cannot be read. A task with an
/// unreadable part is failed with the error, and the other tasks of the claim run.
pub(crate) fn of_task<T: Default>(
    hurt: &mut Option<Unreadable>,
    what: &str,
    read: sqlx::Result<T>,
) -> sqlx::Result<T> {
    read.or_else(|error| {
        *hurt = Some(unreadable(what, error)?);
        Ok(T::default())
    })
}

/// Returns a placeholder for a name that cannot be read.
pub(crate) fn unreadable_name() -> sqlx::Result<Name> {
    name("unreadable")
}

/// Returns the error of a row that cannot be read. Other errors mean that the database does not
/// answer, and are returned as they are.
pub(crate) fn unreadable(what: &str, error: sqlx::Error) -> sqlx::Result<Unreadable> {
    match &error {
        sqlx::Error::Decode(reason) | sqlx::Error::ColumnDecode { source: reason, .. } => {
            Ok(Unreadable::new(what, &**reason))
        }
        _ => Err(error),
    }
}

/// The parts of claimed tasks, by the positions of the tasks. A part that cannot be read affects
/// only its own task.
type OfTasks<T> = BTreeMap<i64, sqlx::Result<Vec<T>>>;

fn add<T>(all: &mut OfTasks<T>, of: i64, read: sqlx::Result<T>) {
    let parts = all.entry(of).or_insert_with(|| Ok(Vec::new()));
    match (parts, read) {
        (Ok(parts), Ok(part)) => parts.push(part),
        (parts @ Ok(_), Err(error)) => *parts = Err(error),
        (Err(_), _) => {}
    }
}

fn journals(row: &PgRow) -> sqlx::Result<OfTasks<Entry>> {
    let of: Vec<i32> = list(row, "j_of")?;
    let mut journals = OfTasks::new();
    for (of, entry) in of.into_iter().zip(entries(row, "j_")?) {
        add(&mut journals, of.into(), entry);
    }
    Ok(journals)
}

/// Returns journal entries from the arrays whose names have the prefix.
pub(crate) fn entries(
    row: &PgRow,
    prefix: &str,
) -> sqlx::Result<impl Iterator<Item = sqlx::Result<Entry>>> {
    let column = |column: &str| format!("{prefix}{column}");
    let seqs: Vec<i64> = list(row, &column("seq"))?;
    let kinds: Vec<String> = list(row, &column("kind"))?;
    let names: Vec<String> = list(row, &column("name"))?;
    let ordinals: Vec<i64> = list(row, &column("ordinal"))?;
    let outcomes: Vec<String> = list(row, &column("outcome"))?;
    let payloads: Vec<String> = list(row, &column("payload"))?;
    let times: Vec<Moment> = list(row, &column("at"))?;
    let keys = kinds.into_iter().zip(names).zip(ordinals);
    let rest = outcomes.into_iter().zip(payloads).zip(times);
    let all = seqs.into_iter().zip(keys.zip(rest));
    Ok(all.map(|(seq, (((kind, name), ordinal), ((word, payload), at)))| {
        entry(seq, key(&kind, &name, ordinal), &word, payload, at)
    }))
}

fn entry(
    seq: i64,
    key: sqlx::Result<Key>,
    word: &str,
    payload: String,
    at: Moment,
) -> sqlx::Result<Entry> {
    let outcome = Outcome::from_columns(word, Payload::from_json(payload)).map_err(broken)?;
    Ok(Entry { seq: u64::try_from(seq).unwrap_or(0), key: key?, outcome, at: at.0 })
}

fn key(kind: &str, text: &str, ordinal: i64) -> sqlx::Result<Key> {
    let kind = Kind::parse(kind).ok_or_else(|| broken(UnknownWord(kind.to_owned())))?;
    Ok(Key { kind, name: name(text)?, ordinal: attempt(ordinal) })
}

fn field(value: &Value, place: usize) -> sqlx::Result<&str> {
    value.get(place).and_then(Value::as_str).ok_or_else(|| broken("a text is missing in an answer"))
}

fn number(value: &Value, place: usize) -> sqlx::Result<i64> {
    value
        .get(place)
        .and_then(Value::as_i64)
        .ok_or_else(|| broken("a number is missing in an answer"))
}

/// Returns the rows of a JSON column.
fn rows(row: &PgRow, column: &str) -> sqlx::Result<Vec<Value>> {
    match value(row, column)? {
        Some(Value::Array(rows)) => Ok(rows),
        _ => Ok(Vec::new()),
    }
}

/// Returns waits, by the position of the claimed task.
fn waits(row: &PgRow) -> sqlx::Result<OfTasks<Wait>> {
    let mut waits = OfTasks::new();
    for wait in rows(row, "cl_waits")? {
        let read = || {
            Ok(Wait {
                key: key(field(&wait, 1)?, field(&wait, 2)?, number(&wait, 3)?)?,
                target: wait.get(4).and_then(Value::as_str).map(name).transpose()?,
                due_at: wait.get(5).and_then(Value::as_i64).map(calendar),
            })
        };
        let read = || read().and_then(awaited);
        add(&mut waits, number(&wait, 0)?, read());
    }
    waits.values_mut().flatten().for_each(|waits| waits.sort_unstable_by(|a, b| a.key.cmp(&b.key)));
    Ok(waits)
}

/// Checks a wait. The target of a wait for a child must be the child's id, because nothing would
/// end a wait without it.
pub(crate) fn awaited(wait: Wait) -> sqlx::Result<Wait> {
    if wait.key.kind == Kind::Child {
        let target = wait.target.as_ref().map(Name::as_str).unwrap_or_default();
        target.parse::<TaskId>().map_err(broken)?;
    }
    Ok(wait)
}

/// Returns the events, messages and results that have arrived, by the position of the task. A fact
/// that cannot be read counts as not arrived.
fn facts(row: &PgRow, column: &str) -> BTreeMap<i64, Facts> {
    let mut all: BTreeMap<i64, Facts> = BTreeMap::new();
    for fact in rows(row, column).unwrap_or_default() {
        if let Err(error) = add_fact(&mut all, &fact) {
            tracing::error!(%error, "something has arrived for a task that cannot be read");
        }
    }
    for facts in all.values_mut() {
        facts.events.sort_by(|a, b| a.0.cmp(&b.0));
        facts.messages.sort_unstable_by_key(|message| message.id);
        facts.children.sort_unstable_by_key(|(child, _)| *child);
    }
    all
}

fn add_fact(all: &mut BTreeMap<i64, Facts>, fact: &Value) -> sqlx::Result<()> {
    let facts = all.entry(number(fact, 0)?).or_default();
    let payload = |place| Ok::<_, sqlx::Error>(Payload::from_json(field(fact, place)?));
    match field(fact, 1)? {
        "event" => facts.events.push((name(field(fact, 2)?)?, payload(3)?)),
        "message" => facts.messages.push(ArrivedMessage {
            id: number(fact, 2)?,
            topic: name(field(fact, 3)?)?,
            payload: payload(4)?,
        }),
        "more" => facts.more = true,
        _ => {
            let child = field(fact, 2)?.parse().map_err(broken)?;
            let text = |place| fact.get(place).and_then(Value::as_str);
            facts.children.push((child, finish(text(3), text(4), text(5))?));
        }
    }
    Ok(())
}

/// Returns how a task ended. A task without a state has been deleted.
pub(crate) fn finish(
    state: Option<&str>,
    output: Option<&str>,
    failure: Option<&str>,
) -> sqlx::Result<Finish> {
    Ok(match state {
        Some("completed") => {
            Finish::Completed(output.map_or_else(Payload::null, Payload::from_json))
        }
        Some("cancelled") => Finish::Cancelled,
        Some(_) => Finish::Failed(Failure::stored(failure.unwrap_or_default())),
        None => Finish::Failed(deleted()),
    })
}
