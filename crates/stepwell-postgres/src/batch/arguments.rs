//! A batch as the arguments of `stepwell.commit` or `commit_plain`: one array for each column of
//! each list. A batch of one item is sent as the arguments of `commit_one`.

use std::sync::Arc;

use serde_json::{Value, json};
use sqlx::error::BoxDynError;
use sqlx::types::Uuid;
use stepwell_core::store::{
    Claim, Command, NewEvent, NewMessage, NewTask, Next, ScheduleAction, ScheduleChange,
    Transition, WorkerSignal,
};
use stepwell_core::{
    Coalesce, Entry, Kind, Name, Payload, QueueAction, QueueChange, QueueLimits, Timestamp,
    WATCHED, labels,
};

use crate::batch::classify::{Sorted, added, word};
use crate::connection::call::Call;
use crate::connection::options::PostgresOptions;
use crate::values::columns::{Moment, bigint, is_own, micros, scope_text};

/// Adds one argument: an array with a value of each item, or NULL when there are no items. PL/pgSQL
/// unfolds each array that it receives, which takes longer than all other work of a small batch.
macro_rules! column {
    ($call:ident, $name:literal, $items:ident, $item:pat => $value:expr) => {
        $call.add($name, filled($items.iter().map(|$item| $value)))?
    };
}

/// Adds an argument as `column` does, for values that are mostly the same: NULL when all of them
/// are.
macro_rules! usual {
    ($call:ident, $name:literal, $items:ident, $item:pat => $value:expr, $usual:expr) => {{
        let values: Vec<_> = $items.iter().map(|$item| $value).collect();
        $call.add($name, values.iter().any(|value| *value != $usual).then_some(values))?
    }};
}

/// Adds an argument as `column` does, for values that most items lack: NULL when all items lack it.
macro_rules! rare {
    ($call:ident, $name:literal, $items:ident, $item:pat => $value:expr) => {
        usual!($call, $name, $items, $item => $value, None)
    };
}

/// The data that is sent with a batch.
pub(crate) struct Envelope<'a> {
    /// The number of the batch; `None` for a spawn in a transaction of the user.
    pub(crate) number: Option<Number>,
    pub(crate) channel: &'a str,
    pub(crate) now: Option<Timestamp>,
    /// The number of an earlier batch whose answer was lost: its claims are returned again.
    pub(crate) again: Option<i64>,
    /// `true` if the outbox was settled, or does not need to be.
    pub(crate) settled: bool,
    /// The timeline on which the database is expected.
    pub(crate) timeline: Option<Arc<str>>,
}

/// The identity of a batch, by which the database recognises it.
#[derive(Clone, Copy)]
pub(crate) struct Number {
    pub(crate) process: Uuid,
    pub(crate) line: i16,
    pub(crate) batch: i64,
}

type Added = Result<(), BoxDynError>;
/// Returns the call of `stepwell.commit_one`.
pub(crate) fn one(
    options: &PostgresOptions,
    envelope: &Envelope<'_>,
    sorted: &Sorted,
) -> Result<Call, BoxDynError> {
    let mut call = Call::of("commit_one", options);
    frame(&mut call, envelope)?;
    let t = sorted.batch.transitions.first();
    call.add("t_task", t.map(|t| *t.task_id.as_uuid()))?;
    call.add("t_run", t.map(|t| *t.run_id.as_uuid()))?;
    call.add("t_output", t.and_then(|t| output(&t.next)))?;
    let entry = t.and_then(|t| t.entries.first());
    let outcome = entry.map(|entry| entry.outcome.to_columns());
    call.add("e_seq", entry.map(|entry| bigint(entry.seq)))?;
    call.add("e_kind", entry.map(|entry| entry.key.kind.as_str()))?;
    call.add("e_name", entry.map(|entry| entry.key.name.as_str()))?;
    call.add("e_ordinal", entry.map(|entry| i64::from(entry.key.ordinal)))?;
    call.add("e_outcome", outcome.as_ref().map(|(word, _)| *word))?;
    call.add("e_payload", outcome.as_ref().map(|(_, payload)| payload.as_str()))?;
    call.add("e_at", entry.map(|entry| Moment(entry.at)))?;
    let task = sorted.batch.spawns.first();
    call.add("s_task", task.map(|task| *task.task_id.as_uuid()))?;
    call.add("s_run", task.map(|task| *task.run_id.as_uuid()))?;
    call.add("s_type", task.map(|task| task.task_type.as_str()))?;
    call.add("s_queue", task.map(|task| task.queue.as_str()))?;
    call.add("s_priority", task.map(|task| task.priority))?;
    call.add("s_max_attempts", task.map(|task| i64::from(task.max_attempts)))?;
    call.add("s_claim_by", task.and_then(|task| task.claim_by).map(|worker| *worker.as_uuid()))?;
    call.add("s_retry", task.map(|task| serde_json::to_string(&task.retry)).transpose()?)?;
    call.add("s_headers", task.map(|task| serde_json::to_string(&task.headers)).transpose()?)?;
    call.add("s_params", task.map(|task| task.params.as_str()))?;
    Ok(call)
}

/// Returns the call of `stepwell.commit_plain`. The batch may have been applied if `was_sent`.
pub(crate) fn plain(
    options: &PostgresOptions,
    envelope: &Envelope<'_>,
    sorted: &Sorted,
    was_sent: bool,
) -> Result<Call, BoxDynError> {
    let mut call = Call::of("commit_plain", options);
    frame(&mut call, envelope)?;
    call.add("p_again", Some(was_sent))?;
    let items: Vec<_> = sorted.transitions().collect();
    runs(&mut call, &items)?;
    let entries = entries_of(&items);
    usual!(call, "e_kind", entries, (_, entry, _) => entry.key.kind.as_str(), Kind::Step.as_str());
    usual!(call, "e_ordinal", entries, (_, entry, _) => i64::from(entry.key.ordinal), 1);
    usual!(call, "e_outcome", entries, (_, _, (word, _)) => *word, "done");
    contents(&mut call, &entries)?;
    let tasks: Vec<_> = sorted.batch.spawns.iter().collect();
    spawned(&mut call, &tasks)?;
    Ok(call)
}

/// Returns the call of `stepwell.commit`.
pub(crate) fn any(
    options: &PostgresOptions,
    envelope: &Envelope<'_>,
    sorted: &Sorted,
) -> Result<Call, BoxDynError> {
    let mut call = Call::of("commit", options);
    frame(&mut call, envelope)?;
    call.add("p_settled", Some(envelope.settled))?;
    call.add("p_claims_of", envelope.again)?;
    transitions(&mut call, sorted)?;
    let places = sorted.places();
    let batch = &sorted.batch;
    let by_tasks = || places.iter().zip(&batch.transitions);
    let own = by_tasks().flat_map(|(of, t)| t.events.iter().map(|event| (Some(*of), event)));
    events(&mut call, own.chain(batch.events.iter().map(|event| (None, event))).collect())?;
    let own = by_tasks().flat_map(|(of, t)| t.messages.iter().map(|sent| (Some(*of), sent)));
    messages(&mut call, own.chain(batch.messages.iter().map(|sent| (None, sent))).collect())?;
    let own = by_tasks().flat_map(|(of, t)| {
        let keyed = t.keyed.iter();
        let keyed =
            keyed.map(|keyed| Spawn { seq: Some(keyed.entry.seq), ..Spawn::new(&keyed.task) });
        let all = t.spawns.iter().map(Spawn::new).chain(keyed);
        all.map(|spawn| Spawn { of: Some(*of), ..spawn })
    });
    let scheduled = (1..).zip(&batch.schedules).flat_map(|(schedule, change)| {
        let tasks = change.spawns().iter().map(Spawn::new);
        tasks.map(move |spawn| Spawn { schedule: Some(schedule), ..spawn })
    });
    let clients = batch.spawns.iter().map(Spawn::new);
    spawns(&mut call, own.chain(scheduled).chain(clients).collect())?;
    commands(&mut call, &batch.commands)?;
    schedules(&mut call, &batch.schedules)?;
    queues(&mut call, &batch.queues)?;
    call.add("signals", signals(&batch.workers))?;
    call.add("claims", claims(&batch.claims))?;
    Ok(call)
}

/// Adds what each of the functions has for a batch as a whole.
fn frame(call: &mut Call, envelope: &Envelope<'_>) -> Added {
    call.add("p_channel", Some(envelope.channel))?;
    call.add("p_process", envelope.number.map(|number| number.process))?;
    call.add("p_line", envelope.number.map(|number| number.line))?;
    call.add("p_batch", envelope.number.map(|number| number.batch))?;
    call.add("p_now", envelope.now.map(Moment))?;
    call.add("p_timeline", envelope.timeline.as_deref())
}

fn filled<T>(values: impl ExactSizeIterator<Item = T>) -> Option<Vec<T>> {
    (values.len() > 0).then(|| values.collect())
}

fn opt(name: &Option<Name>) -> Option<&str> {
    name.as_ref().map(Name::as_str)
}

fn transitions(call: &mut Call, sorted: &Sorted) -> Added {
    let items: Vec<_> = sorted.transitions().collect();
    runs(call, &items)?;
    // No journal ends at a number that a column cannot hold. `commit` checked the other numbers.
    let after = |t: &&Transition| t.after.map(bigint);
    call.add("t_after", sorted.doubts.then(|| items.iter().map(after).collect::<Vec<_>>()))?;
    column!(call, "t_next", items, t => word(&t.next));
    column!(call, "t_at", items, t => match &t.next {
        Next::Suspend { wake_at } => wake_at.map(Moment),
        Next::Retry { at, .. } | Next::Leave { until: at } => Some(Moment(*at)),
        _ => None,
    });
    failures(call, &items)?;
    let entries = entries_of(&items);
    column!(call, "e_kind", entries, (_, entry, _) => entry.key.kind.as_str());
    column!(call, "e_ordinal", entries, (_, entry, _) => i64::from(entry.key.ordinal));
    column!(call, "e_outcome", entries, (_, _, (word, _)) => *word);
    contents(call, &entries)?;

    let placed = || (1_i32..).zip(&items);
    let superseded: Vec<_> =
        placed().flat_map(|(of, t)| t.superseded.iter().map(move |seq| (of, *seq))).collect();
    column!(call, "x_of", superseded, (of, _) => *of);
    column!(call, "x_seq", superseded, (_, seq) => bigint(*seq));
    let received: Vec<_> =
        placed().flat_map(|(of, t)| t.received.iter().map(move |id| (of, *id))).collect();
    column!(call, "d_of", received, (of, _) => *of);
    column!(call, "d_id", received, (_, id) => *id);

    let removed: Vec<_> =
        placed().flat_map(|(of, t)| t.waits_removed.iter().map(move |key| (of, key))).collect();
    column!(call, "u_of", removed, (of, _) => *of);
    column!(call, "u_kind", removed, (_, key) => key.kind.as_str());
    column!(call, "u_name", removed, (_, key) => key.name.as_str());
    column!(call, "u_ordinal", removed, (_, key) => i64::from(key.ordinal));

    let waits: Vec<_> =
        placed().flat_map(|(of, t)| added(t).into_iter().map(move |wait| (of, wait))).collect();
    column!(call, "w_of", waits, (of, _) => *of);
    column!(call, "w_kind", waits, (_, wait) => wait.key.kind.as_str());
    column!(call, "w_name", waits, (_, wait) => wait.key.name.as_str());
    column!(call, "w_ordinal", waits, (_, wait) => i64::from(wait.key.ordinal));
    column!(call, "w_target", waits, (_, wait) => opt(&wait.target));
    column!(call, "w_due_at", waits, (_, wait) => wait.due_at.map(Moment));
    Ok(())
}

/// Adds the tasks and runs of transitions, and the outputs of tasks that complete.
fn runs(call: &mut Call, items: &[&Transition]) -> Added {
    column!(call, "t_task", items, t => *t.task_id.as_uuid());
    column!(call, "t_run", items, t => *t.run_id.as_uuid());
    rare!(call, "t_output", items, t => output(&t.next));
    Ok(())
}

/// Returns the output of a task that completes.
fn output(next: &Next) -> Option<&str> {
    match next {
        Next::Complete(output) => Some(output.as_str()),
        _ => None,
    }
}

/// Adds the failures of tasks, and of attempts that are retried.
fn failures(call: &mut Call, items: &[&Transition]) -> Added {
    let failures: Vec<_> = items
        .iter()
        .map(|t| match &t.next {
            Next::Fail(failure) | Next::Retry { failure, .. } => {
                serde_json::to_string(failure).map(Some)
            }
            _ => Ok(None),
        })
        .collect::<Result<_, _>>()?;
    call.add("t_failure", failures.iter().any(Option::is_some).then_some(failures))
}

/// An entry, the position of its transition, and the columns of its outcome.
type Placed<'a> = (i32, &'a Entry, (&'static str, Payload));

fn entries_of<'a>(items: &[&'a Transition]) -> Vec<Placed<'a>> {
    (1_i32..)
        .zip(items)
        .flat_map(|(of, t)| {
            let keyed = t.keyed.iter().map(|keyed| &keyed.entry);
            t.entries.iter().chain(keyed).map(move |entry| (of, entry, entry.outcome.to_columns()))
        })
        .collect()
}

/// Adds the columns that differ in most entries.
fn contents(call: &mut Call, entries: &[Placed<'_>]) -> Added {
    column!(call, "e_of", entries, (of, ..) => *of);
    column!(call, "e_seq", entries, (_, entry, _) => bigint(entry.seq));
    column!(call, "e_name", entries, (_, entry, _) => entry.key.name.as_str());
    column!(call, "e_payload", entries, (_, _, (_, payload)) => payload.as_str());
    column!(call, "e_at", entries, (_, entry, _) => Moment(entry.at));
    Ok(())
}

/// An item, and the position of the transition to which it belongs.
type Of<'a, T> = (Option<i32>, &'a T);

fn events(call: &mut Call, items: Vec<Of<'_, NewEvent>>) -> Added {
    rare!(call, "ev_of", items, (of, _) => *of);
    column!(call, "ev_name", items, (_, event) => event.name.as_str());
    column!(call, "ev_queue", items, (_, event) => opt(&event.queue).unwrap_or_default());
    column!(call, "ev_payload", items, (_, event) => event.payload.as_str());
    Ok(())
}

fn messages(call: &mut Call, items: Vec<Of<'_, NewMessage>>) -> Added {
    rare!(call, "m_of", items, (of, _) => *of);
    column!(call, "m_task", items, (_, message) => *message.task_id.as_uuid());
    column!(call, "m_topic", items, (_, message) => message.topic.as_str());
    column!(call, "m_payload", items, (_, message) => message.payload.as_str());
    Ok(())
}

/// A task to spawn, and who spawns it.
#[derive(Clone, Copy)]
struct Spawn<'a> {
    task: &'a NewTask,
    /// The position of its transition.
    of: Option<i32>,
    /// The position of its change of a schedule.
    schedule: Option<i32>,
    /// The number of the entry that is written if the task is created.
    seq: Option<u64>,
}

impl<'a> Spawn<'a> {
    fn new(task: &'a NewTask) -> Self {
        Self { task, of: None, schedule: None, seq: None }
    }
}

fn spawns(call: &mut Call, items: Vec<Spawn<'_>>) -> Added {
    rare!(call, "s_of", items, spawn => spawn.of);
    rare!(call, "s_schedule", items, spawn => spawn.schedule);
    rare!(call, "s_seq", items, spawn => spawn.seq.map(bigint));
    let tasks: Vec<_> = items.into_iter().map(|spawn| spawn.task).collect();
    spawned(call, &tasks)?;
    rare!(call, "s_parent", tasks, task => task.parent.map(|parent| *parent.as_uuid()));
    rare!(call, "s_scope", tasks, task => scope_text(&task.scope));
    rare!(call, "s_idempotency_key", tasks, task => opt(&task.idempotency_key));
    rare!(call, "s_concurrency_key", tasks, task => opt(&task.concurrency_key));
    rare!(call, "s_coalesce", tasks, task => task.coalesce.map(word_of));
    rare!(call, "s_code_version", tasks, task => opt(&task.code_version));
    rare!(call, "s_start_at", tasks, task => task.start_at.map(Moment));
    rare!(call, "s_max_delay", tasks, task => task.cancellation.max_delay.map(micros));
    rare!(call, "s_max_duration", tasks, task => task.cancellation.max_duration.map(micros));
    let labels = (1_i32..).zip(&tasks).flat_map(|(of, task)| {
        labels(&task.headers)
            .map(move |(name, value)| (of, name, value, is_own(&task.scope, name, value)))
    });
    let labels: Vec<_> = labels.collect();
    column!(call, "b_of", labels, (of, ..) => *of);
    column!(call, "b_name", labels, (_, name, ..) => *name);
    column!(call, "b_value", labels, (_, _, value, _) => *value);
    column!(call, "b_own", labels, (.., own) => *own);
    Ok(())
}

fn word_of(coalesce: Coalesce) -> &'static str {
    match coalesce {
        Coalesce::Reuse => "reuse",
        Coalesce::Replace => "replace",
        Coalesce::Reject => "reject",
    }
}

/// Adds the columns that every task has, and the workers that claim tasks at once.
fn spawned(call: &mut Call, tasks: &[&NewTask]) -> Added {
    column!(call, "s_task", tasks, task => *task.task_id.as_uuid());
    column!(call, "s_run", tasks, task => *task.run_id.as_uuid());
    column!(call, "s_type", tasks, task => task.task_type.as_str());
    column!(call, "s_queue", tasks, task => task.queue.as_str());
    column!(call, "s_priority", tasks, task => task.priority);
    column!(call, "s_max_attempts", tasks, task => i64::from(task.max_attempts));
    rare!(call, "s_claim_by", tasks, task => task.claim_by.map(|worker| *worker.as_uuid()));
    let retries = tasks.iter().map(|task| serde_json::to_string(&task.retry));
    let retries: Vec<_> = retries.collect::<Result<_, _>>()?;
    call.add("s_retry", filled(retries.into_iter()))?;
    let headers = tasks.iter().map(|task| serde_json::to_string(&task.headers));
    let headers: Vec<_> = headers.collect::<Result<_, _>>()?;
    call.add("s_headers", filled(headers.into_iter()))?;
    column!(call, "s_params", tasks, task => task.params.as_str());
    Ok(())
}

fn commands(call: &mut Call, commands: &[Command]) -> Added {
    let items: Vec<_> = commands
        .iter()
        .map(|command| match command {
            Command::Cancel(task_id) => ("cancel", task_id),
            Command::Retry(task_id) => ("retry", task_id),
            Command::Delete(task_id) => ("delete", task_id),
            Command::Wake(task_id) => ("wake", task_id),
            Command::Pause(task_id) => ("pause", task_id),
            Command::Resume(task_id) => ("resume", task_id),
        })
        .collect();
    column!(call, "c_command", items, (command, _) => *command);
    column!(call, "c_task", items, (_, task_id) => *task_id.as_uuid());
    Ok(())
}

fn schedules(call: &mut Call, changes: &[ScheduleChange]) -> Added {
    let seen = |change: &ScheduleChange| match &change.action {
        ScheduleAction::Replace { seen, .. } => Some(*seen.as_uuid()),
        ScheduleAction::Create(_) | ScheduleAction::Delete => None,
    };
    let unless_running = |change: &ScheduleChange| {
        matches!(change.action, ScheduleAction::Replace { unless_running: true, .. })
    };
    let last_task =
        |change: &ScheduleChange| change.spawns().last().map(|task| *task.task_id.as_uuid());
    column!(call, "h_name", changes, change => change.name.as_str());
    column!(call, "h_seen", changes, change => seen(change));
    column!(call, "h_version", changes, change => {
        change.plan().map(|plan| *plan.version.as_uuid())
    });
    column!(call, "h_definition", changes, change => {
        change.plan().map(|plan| plan.definition.as_str())
    });
    column!(call, "h_next_at", changes, change => {
        change.plan().and_then(|plan| plan.next_at).map(Moment)
    });
    column!(call, "h_last_task", changes, change => last_task(change));
    column!(call, "h_unless_running", changes, change => unless_running(change));
    Ok(())
}

fn queues(call: &mut Call, changes: &[QueueChange]) -> Added {
    let limits = |change: &QueueChange| match change.action {
        QueueAction::Limit(limits) => limits,
        QueueAction::Pause | QueueAction::Resume => QueueLimits::default(),
    };
    let rate = |change: &QueueChange| limits(change).rate;
    column!(call, "q_queue", changes, change => change.queue.as_str());
    column!(call, "q_action", changes, change => match change.action {
        QueueAction::Pause => "pause",
        QueueAction::Resume => "resume",
        QueueAction::Limit(_) => "limit",
    });
    column!(call, "q_max_running", changes, change => limits(change).max_running.map(i64::from));
    column!(call, "q_max_per_worker", changes, change => {
        limits(change).max_running_per_worker.map(i64::from)
    });
    column!(call, "q_rate_starts", changes, change => {
        rate(change).map(|rate| i64::from(rate.starts))
    });
    column!(call, "q_rate_per", changes, change => rate(change).map(|rate| micros(rate.per)));
    Ok(())
}

fn signals(signals: &[WorkerSignal]) -> Option<Value> {
    let signals = signals.iter().map(|signal| match signal {
        WorkerSignal::Register(new) => json!({
            "signal": "register", "worker_id": new.worker_id, "name": new.name.replace('\0', ""),
            "queues": new.queues, "concurrency": new.concurrency,
            "code_version": new.code_version, "lease": micros(new.lease), "watched": WATCHED,
        }),
        WorkerSignal::Heartbeat { worker_id } => {
            json!({ "signal": "heartbeat", "worker_id": worker_id, "watched": WATCHED })
        }
        WorkerSignal::DeclareDead { worker_id, heartbeats } => {
            json!({ "signal": "declare_dead", "worker_id": worker_id, "heartbeats": heartbeats })
        }
        WorkerSignal::Drain { worker_id } => json!({ "signal": "drain", "worker_id": worker_id }),
        WorkerSignal::Deregister { worker_id } => {
            json!({ "signal": "deregister", "worker_id": worker_id })
        }
    });
    filled(signals).map(Value::Array)
}

fn claims(claims: &[Claim]) -> Option<Value> {
    let claims = claims.iter().map(|claim| {
        json!({
            "worker_id": claim.worker_id, "queues": claim.queues,
            "task_types": claim.task_types, "code_version": claim.code_version,
            "limit": i64::try_from(claim.limit).unwrap_or(i64::MAX), "suspect": claim.suspect,
        })
    });
    filled(claims).map(Value::Array)
}
