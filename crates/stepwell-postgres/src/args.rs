//! A batch as the arguments of `stepwell.commit` or `commit_plain`: one array for each column of
//! each list. A batch of one item is sent as the arguments of `commit_one`.

use std::sync::Arc;

use serde_json::json;
use sqlx::Arguments as _;
use sqlx::error::BoxDynError;
use sqlx::postgres::PgArguments;
use sqlx::types::Uuid;
use stepwell_core::store::{
    Claim, Command, NewEvent, NewMessage, NewTask, Next, ScheduleAction, ScheduleChange,
    Transition, WorkerSignal,
};
use stepwell_core::{
    Coalesce, Entry, Kind, Name, Payload, QueueAction, QueueChange, QueueLimits, Scope, Timestamp,
    WATCHED, crashed, labels,
};

use crate::batch::{Sorted, added, word};
use crate::columns::{Moment, micros};

/// Adds one argument: an array with a value of each item, or NULL when there are no items. PL/pgSQL
/// unfolds each array that it receives, which takes longer than all other work of a small batch.
macro_rules! column {
    ($args:ident, $items:ident, $item:pat => $value:expr) => {
        $args.add(filled($items.iter().map(|$item| $value)))?
    };
}

/// Adds an argument as `column` does, for values that are mostly the same: NULL when all of them
/// are.
macro_rules! usual {
    ($args:ident, $items:ident, $item:pat => $value:expr, $usual:expr) => {{
        let values: Vec<_> = $items.iter().map(|$item| $value).collect();
        $args.add(values.iter().any(|value| *value != $usual).then_some(values))?
    }};
}

/// Adds an argument as `column` does, for values that most items lack: NULL when all items lack it.
macro_rules! seldom {
    ($args:ident, $items:ident, $item:pat => $value:expr) => {
        usual!($args, $items, $item => $value, None)
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

/// The number of arguments of `stepwell.commit`.
pub(crate) const COUNT: usize = 86;

/// The number of arguments of `stepwell.commit_plain`.
pub(crate) const PLAIN_COUNT: usize = 28;

/// The number of arguments of `stepwell.commit_one`.
pub(crate) const ONE_COUNT: usize = 26;

/// Returns the arguments of `stepwell.commit_one`, in the order of its parameters.
pub(crate) fn one(envelope: &Envelope<'_>, sorted: &Sorted) -> Result<PgArguments, BoxDynError> {
    let mut args = PgArguments::default();
    number(&mut args, envelope)?;
    moment(&mut args, envelope)?;
    args.add(envelope.timeline.as_deref())?;
    let transition = sorted.batch.transitions.first();
    args.add(transition.map(|t| *t.task_id.as_uuid()))?;
    args.add(transition.map(|t| *t.run_id.as_uuid()))?;
    args.add(transition.and_then(|t| output(&t.next)))?;
    let entry = transition.and_then(|t| t.entries.first());
    let outcome = entry.map(|entry| entry.outcome.to_columns());
    args.add(entry.map(|entry| i64::try_from(entry.seq).unwrap_or(i64::MAX)))?;
    args.add(entry.map(|entry| entry.key.kind.as_str()))?;
    args.add(entry.map(|entry| entry.key.name.as_str()))?;
    args.add(entry.map(|entry| i64::from(entry.key.ordinal)))?;
    args.add(outcome.as_ref().map(|(word, _)| *word))?;
    args.add(outcome.as_ref().map(|(_, payload)| text(payload)))?;
    args.add(entry.map(|entry| Moment(entry.at)))?;
    let task = sorted.batch.spawns.first();
    args.add(task.map(|task| *task.task_id.as_uuid()))?;
    args.add(task.map(|task| *task.run_id.as_uuid()))?;
    args.add(task.map(|task| task.task_type.as_str()))?;
    args.add(task.map(|task| task.queue.as_str()))?;
    args.add(task.map(|task| task.priority))?;
    args.add(task.map(|task| i64::from(task.max_attempts)))?;
    args.add(task.and_then(|task| task.claim_by).map(|worker| *worker.as_uuid()))?;
    args.add(task.map(|task| serde_json::to_string(&task.retry)).transpose()?)?;
    args.add(task.map(|task| serde_json::to_string(&task.headers)).transpose()?)?;
    args.add(task.map(|task| text(&task.params)))?;
    debug_assert_eq!(args.len(), ONE_COUNT, "the function takes as many arguments as it is given");
    Ok(args)
}

/// Returns the arguments of `stepwell.commit_plain`, in the order of its parameters.
pub(crate) fn plain(
    envelope: &Envelope<'_>,
    sorted: &Sorted,
    was_sent: bool,
) -> Result<PgArguments, BoxDynError> {
    let mut args = PgArguments::default();
    number(&mut args, envelope)?;
    args.add(was_sent)?;
    moment(&mut args, envelope)?;
    args.add(envelope.timeline.as_deref())?;
    let items: Vec<_> = sorted.transitions().collect();
    runs(&mut args, &items)?;
    outputs(&mut args, &items)?;
    let entries = entries_of(&items);
    places(&mut args, &entries)?;
    usual!(args, entries, (_, entry, _) => entry.key.kind.as_str(), Kind::Step.as_str());
    column!(args, entries, (_, entry, _) => entry.key.name.as_str());
    usual!(args, entries, (_, entry, _) => i64::from(entry.key.ordinal), 1);
    usual!(args, entries, (_, _, (word, _)) => *word, "done");
    contents(&mut args, &entries)?;
    let tasks: Vec<_> = sorted.batch.spawns.iter().collect();
    spawned(&mut args, &tasks)?;
    seldom!(args, tasks, task => task.claim_by.map(|worker| *worker.as_uuid()));
    texts(&mut args, &tasks)?;
    debug_assert_eq!(
        args.len(),
        PLAIN_COUNT,
        "the function takes as many arguments as it is given"
    );
    Ok(args)
}

/// Returns the arguments of `stepwell.commit`, in the order of its parameters.
pub(crate) fn arguments(
    envelope: &Envelope<'_>,
    sorted: &Sorted,
) -> Result<PgArguments, BoxDynError> {
    let mut args = PgArguments::default();
    number(&mut args, envelope)?;
    moment(&mut args, envelope)?;
    args.add(envelope.settled)?;
    args.add(envelope.timeline.as_deref())?;
    transitions(&mut args, sorted)?;
    let places = sorted.places();
    let of = |place: usize| places.get(place).copied();
    let by_tasks = || sorted.batch.transitions.iter().enumerate();
    let own =
        by_tasks().flat_map(|(place, t)| t.events.iter().map(move |event| (of(place), event)));
    let client = sorted.batch.events.iter().map(|event| (None, event));
    events(&mut args, own.chain(client).collect())?;
    let own = by_tasks()
        .flat_map(|(place, t)| t.messages.iter().map(move |message| (of(place), message)));
    let client = sorted.batch.messages.iter().map(|message| (None, message));
    messages(&mut args, own.chain(client).collect())?;
    let own = by_tasks().flat_map(|(place, t)| {
        let keyed = t.keyed.iter().map(|keyed| (&keyed.task, Some(keyed.entry.seq)));
        t.spawns.iter().map(|task| (task, None)).chain(keyed).map(move |spawn| (of(place), spawn))
    });
    let scheduled = (1..).zip(&sorted.batch.schedules);
    let scheduled = scheduled.flat_map(|(place, change)| {
        change.spawns().iter().map(move |task| (Some(-place), (task, None)))
    });
    let client = sorted.batch.spawns.iter().map(|task| (None, (task, None)));
    spawns(&mut args, own.chain(scheduled).chain(client).collect())?;
    commands(&mut args, &sorted.batch.commands)?;
    schedules(&mut args, &sorted.batch.schedules)?;
    queues(&mut args, &sorted.batch.queues)?;
    args.add(signals(&sorted.batch.workers)?)?;
    args.add(claims(&sorted.batch.claims, envelope.again))?;
    debug_assert_eq!(args.len(), COUNT, "the function takes as many arguments as it is given");
    Ok(args)
}

fn number(args: &mut PgArguments, envelope: &Envelope<'_>) -> Result<(), BoxDynError> {
    args.add(envelope.number.map(|number| number.process))?;
    args.add(envelope.number.map(|number| number.line))?;
    args.add(envelope.number.map(|number| number.batch))
}

fn moment(args: &mut PgArguments, envelope: &Envelope<'_>) -> Result<(), BoxDynError> {
    args.add(envelope.channel)?;
    args.add(envelope.now.map(Moment))
}

fn filled<T>(values: impl ExactSizeIterator<Item = T>) -> Option<Vec<T>> {
    (values.len() > 0).then(|| values.collect())
}

fn text(payload: &Payload) -> &str {
    payload.as_str()
}

fn opt(name: &Option<Name>) -> Option<&str> {
    name.as_ref().map(Name::as_str)
}

fn transitions(args: &mut PgArguments, sorted: &Sorted) -> Result<(), BoxDynError> {
    let items: Vec<_> = sorted.transitions().collect();
    runs(args, &items)?;
    let after = |t: &&Transition| t.after.map(|after| i64::try_from(after).unwrap_or(i64::MAX));
    args.add(sorted.doubts.then(|| items.iter().map(after).collect::<Vec<_>>()))?;
    column!(args, items, t => word(&t.next));
    column!(args, items, t => match &t.next {
        Next::Suspend { wake_at } => wake_at.map(Moment),
        Next::Retry { at, .. } | Next::Leave { until: at } => Some(Moment(*at)),
        _ => None,
    });
    outputs(args, &items)?;
    failures(args, &items)?;
    entries(args, &items)?;

    let placed = || (1_i32..).zip(&items);
    let superseded: Vec<_> =
        placed().flat_map(|(of, t)| t.superseded.iter().map(move |seq| (of, *seq))).collect();
    column!(args, superseded, (of, _) => *of);
    column!(args, superseded, (_, seq) => i64::try_from(*seq).unwrap_or(i64::MAX));
    let received: Vec<_> =
        placed().flat_map(|(of, t)| t.received.iter().map(move |id| (of, *id))).collect();
    column!(args, received, (of, _) => *of);
    column!(args, received, (_, id) => *id);

    let removed: Vec<_> =
        placed().flat_map(|(of, t)| t.waits_removed.iter().map(move |key| (of, key))).collect();
    column!(args, removed, (of, _) => *of);
    column!(args, removed, (_, key) => key.kind.as_str());
    column!(args, removed, (_, key) => key.name.as_str());
    column!(args, removed, (_, key) => i64::from(key.ordinal));

    let waits: Vec<_> =
        placed().flat_map(|(of, t)| added(t).into_iter().map(move |wait| (of, wait))).collect();
    column!(args, waits, (of, _) => *of);
    column!(args, waits, (_, wait) => wait.key.kind.as_str());
    column!(args, waits, (_, wait) => wait.key.name.as_str());
    column!(args, waits, (_, wait) => i64::from(wait.key.ordinal));
    column!(args, waits, (_, wait) => opt(&wait.target));
    column!(args, waits, (_, wait) => wait.due_at.map(Moment));
    Ok(())
}

/// Adds the tasks and runs of transitions.
fn runs(args: &mut PgArguments, items: &[&Transition]) -> Result<(), BoxDynError> {
    column!(args, items, t => *t.task_id.as_uuid());
    column!(args, items, t => *t.run_id.as_uuid());
    Ok(())
}

/// Adds the outputs of the tasks that transitions complete.
fn outputs(args: &mut PgArguments, items: &[&Transition]) -> Result<(), BoxDynError> {
    seldom!(args, items, t => output(&t.next));
    Ok(())
}

/// Returns the output of a task that completes.
fn output(next: &Next) -> Option<&str> {
    match next {
        Next::Complete(output) => Some(text(output)),
        _ => None,
    }
}

/// Adds the failures of tasks, and of attempts that are retried.
fn failures(args: &mut PgArguments, items: &[&Transition]) -> Result<(), BoxDynError> {
    let failures: Vec<_> = items
        .iter()
        .map(|t| match &t.next {
            Next::Fail(failure) | Next::Retry { failure, .. } => {
                serde_json::to_string(failure).map(Some)
            }
            _ => Ok(None),
        })
        .collect::<Result<_, _>>()?;
    args.add(failures.iter().any(Option::is_some).then_some(failures))
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

fn entries(args: &mut PgArguments, items: &[&Transition]) -> Result<(), BoxDynError> {
    let entries = entries_of(items);
    places(args, &entries)?;
    column!(args, entries, (_, entry, _) => entry.key.kind.as_str());
    column!(args, entries, (_, entry, _) => entry.key.name.as_str());
    column!(args, entries, (_, entry, _) => i64::from(entry.key.ordinal));
    column!(args, entries, (_, _, (word, _)) => *word);
    contents(args, &entries)
}

/// Adds the positions and numbers of entries.
fn places(args: &mut PgArguments, entries: &[Placed<'_>]) -> Result<(), BoxDynError> {
    column!(args, entries, (of, ..) => *of);
    column!(args, entries, (_, entry, _) => i64::try_from(entry.seq).unwrap_or(i64::MAX));
    Ok(())
}

/// Adds the payloads and times of entries.
fn contents(args: &mut PgArguments, entries: &[Placed<'_>]) -> Result<(), BoxDynError> {
    column!(args, entries, (_, _, (_, payload)) => text(payload));
    column!(args, entries, (_, entry, _) => Moment(entry.at));
    Ok(())
}

/// An item, and the position of the transition to which it belongs.
type Of<'a, T> = (Option<i32>, &'a T);

fn events(args: &mut PgArguments, items: Vec<Of<'_, NewEvent>>) -> Result<(), BoxDynError> {
    column!(args, items, (of, _) => *of);
    column!(args, items, (_, event) => event.name.as_str());
    column!(args, items, (_, event) => opt(&event.queue).unwrap_or_default());
    column!(args, items, (_, event) => text(&event.payload));
    Ok(())
}

fn messages(args: &mut PgArguments, items: Vec<Of<'_, NewMessage>>) -> Result<(), BoxDynError> {
    column!(args, items, (of, _) => *of);
    column!(args, items, (_, message) => *message.task_id.as_uuid());
    column!(args, items, (_, message) => message.topic.as_str());
    column!(args, items, (_, message) => text(&message.payload));
    Ok(())
}

/// A task, and the number of the entry that is written if the task is created.
type Spawn<'a> = (&'a NewTask, Option<u64>);

fn spawns(args: &mut PgArguments, items: Vec<(Option<i32>, Spawn<'_>)>) -> Result<(), BoxDynError> {
    column!(args, items, (of, _) => *of);
    seldom!(args, items, (_, (_, seq)) => seq.map(|seq| i64::try_from(seq).unwrap_or(i64::MAX)));
    let tasks: Vec<_> = items.into_iter().map(|(_, (task, _))| task).collect();
    spawned(args, &tasks)?;
    seldom!(args, tasks, task => task.parent.map(|parent| *parent.as_uuid()));
    seldom!(args, tasks, task => scope(&task.scope));
    seldom!(args, tasks, task => opt(&task.idempotency_key));
    seldom!(args, tasks, task => opt(&task.concurrency_key));
    seldom!(args, tasks, task => task.coalesce.map(word_of));
    seldom!(args, tasks, task => opt(&task.code_version));
    seldom!(args, tasks, task => task.start_at.map(Moment));
    seldom!(args, tasks, task => task.cancellation.max_delay.map(micros));
    seldom!(args, tasks, task => task.cancellation.max_duration.map(micros));
    seldom!(args, tasks, task => task.claim_by.map(|worker| *worker.as_uuid()));
    texts(args, &tasks)?;
    let labels = (1_i32..).zip(&tasks).flat_map(|(of, task)| {
        labels(&task.headers)
            .map(move |(name, value)| (of, name, value, is_own(&task.scope, name, value)))
    });
    let labels: Vec<_> = labels.collect();
    column!(args, labels, (of, ..) => *of);
    column!(args, labels, (_, name, ..) => *name);
    column!(args, labels, (_, _, value, _) => *value);
    column!(args, labels, (.., own) => *own);
    Ok(())
}

/// Returns whether a task of the scope has the label by its scope, and not only by a header that
/// its spawner set.
pub(crate) fn is_own(scope: &Scope, name: &str, value: &str) -> bool {
    scope.is_all() || scope.labels().get(name).is_some_and(|own| own == value)
}

/// Returns the stored form of a scope; NULL when the scope has no limits.
pub(crate) fn scope(scope: &Scope) -> Option<String> {
    (!scope.is_all()).then(|| scope.to_text())
}

fn word_of(coalesce: Coalesce) -> &'static str {
    match coalesce {
        Coalesce::Reuse => "reuse",
        Coalesce::Replace => "replace",
        Coalesce::Reject => "reject",
    }
}

/// Adds the columns that every task has.
fn spawned(args: &mut PgArguments, tasks: &[&NewTask]) -> Result<(), BoxDynError> {
    column!(args, tasks, task => *task.task_id.as_uuid());
    column!(args, tasks, task => *task.run_id.as_uuid());
    column!(args, tasks, task => task.task_type.as_str());
    column!(args, tasks, task => task.queue.as_str());
    column!(args, tasks, task => task.priority);
    column!(args, tasks, task => i64::from(task.max_attempts));
    Ok(())
}

/// Adds the columns that every task has and that are stored as JSON.
fn texts(args: &mut PgArguments, tasks: &[&NewTask]) -> Result<(), BoxDynError> {
    let retries: Vec<_> =
        tasks.iter().map(|task| serde_json::to_string(&task.retry)).collect::<Result<_, _>>()?;
    args.add(filled(retries.into_iter()))?;
    let headers: Vec<_> =
        tasks.iter().map(|task| serde_json::to_string(&task.headers)).collect::<Result<_, _>>()?;
    args.add(filled(headers.into_iter()))?;
    column!(args, tasks, task => text(&task.params));
    Ok(())
}

fn commands(args: &mut PgArguments, commands: &[Command]) -> Result<(), BoxDynError> {
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
    column!(args, items, (command, _) => *command);
    column!(args, items, (_, task_id) => *task_id.as_uuid());
    Ok(())
}

fn schedules(args: &mut PgArguments, changes: &[ScheduleChange]) -> Result<(), BoxDynError> {
    let seen = |change: &ScheduleChange| match &change.action {
        ScheduleAction::Replace { seen, .. } => Some(*seen.as_uuid()),
        ScheduleAction::Create(_) | ScheduleAction::Delete => None,
    };
    column!(args, changes, change => change.name.as_str());
    column!(args, changes, change => seen(change));
    column!(args, changes, change => change.plan().map(|plan| *plan.version.as_uuid()));
    column!(args, changes, change => change.plan().map(|plan| text(&plan.definition)));
    column!(args, changes, change => change.plan().and_then(|plan| plan.next_at).map(Moment));
    column!(args, changes, change => change.spawns().last().map(|task| *task.task_id.as_uuid()));
    column!(args, changes, change => matches!(change.action, ScheduleAction::Replace { unless_running: true, .. }));
    Ok(())
}

fn queues(args: &mut PgArguments, changes: &[QueueChange]) -> Result<(), BoxDynError> {
    let limits = |change: &QueueChange| match change.action {
        QueueAction::Limit(limits) => limits,
        QueueAction::Pause | QueueAction::Resume => QueueLimits::default(),
    };
    column!(args, changes, change => change.queue.as_str());
    column!(args, changes, change => match change.action {
        QueueAction::Pause => "pause",
        QueueAction::Resume => "resume",
        QueueAction::Limit(_) => "limit",
    });
    column!(args, changes, change => limits(change).max_running.map(i64::from));
    column!(args, changes, change => limits(change).max_running_per_worker.map(i64::from));
    column!(args, changes, change => limits(change).rate.map(|rate| i64::from(rate.starts)));
    column!(args, changes, change => limits(change).rate.map(|rate| micros(rate.per)));
    Ok(())
}

fn signals(signals: &[WorkerSignal]) -> serde_json::Result<Option<String>> {
    let signals = signals.iter().map(|signal| {
        Ok(match signal {
            WorkerSignal::Register(new) => json!({
                "signal": "register", "worker_id": new.worker_id, "name": new.name.replace('\0', ""),
                "queues": new.queues, "concurrency": new.concurrency, "code_version": new.code_version,
                "lease": micros(new.lease), "watched": WATCHED,
            }),
            WorkerSignal::Heartbeat { worker_id } => {
                json!({ "signal": "heartbeat", "worker_id": worker_id, "watched": WATCHED })
            }
            WorkerSignal::DeclareDead { worker_id, heartbeats } => json!({
                "signal": "declare_dead", "worker_id": worker_id, "heartbeats": heartbeats,
                "crashed": serde_json::to_string(&crashed(u32::MAX))?,
            }),
            WorkerSignal::Drain { worker_id } => json!({ "signal": "drain", "worker_id": worker_id }),
            WorkerSignal::Deregister { worker_id } => {
                json!({ "signal": "deregister", "worker_id": worker_id })
            }
        })
    });
    let signals = signals.collect::<serde_json::Result<Vec<_>>>()?;
    Ok((!signals.is_empty()).then(|| json!(signals).to_string()))
}

fn claims(claims: &[Claim], again: Option<i64>) -> Option<String> {
    let claims: Vec<_> = claims
        .iter()
        .map(|claim| {
            let mut value = json!({
                "worker_id": claim.worker_id, "queues": claim.queues, "task_types": claim.task_types,
                "code_version": claim.code_version, "limit": i64::try_from(claim.limit).unwrap_or(i64::MAX),
                "suspect": claim.suspect,
            });
            if let Some(number) = again {
                value["again"] = number.into();
            }
            value
        })
        .collect();
    (!claims.is_empty()).then(|| json!(claims).to_string())
}
