//! The end of a history. All waits are fulfilled, everything ends, and what is left is checked.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use stepwell::{
    Decision, Durable, Entry, Error, FailureKind, Kind, Outcome, TaskFilter, TaskId, TaskInfo,
    TaskState,
};

use crate::database::User;
use crate::flow;
use crate::ledger::{Ledger, current, gives, is_done, is_new_beginning};
use crate::params::{Params, Seen};
use crate::script::{self, TOPICS};

/// The number of leases within which everything has to end once nothing goes wrong any more. Clocks
/// that were set back delay timers by up to a hundred leases.
const BOUND: u32 = 400;

fn all() -> TaskFilter {
    TaskFilter { limit: 10_000, ..TaskFilter::default() }
}

/// Fulfils the waits of all tasks until they have ended.
pub(crate) async fn wait_for_all(
    ledger: &Ledger,
    client: &Durable,
    lease: Duration,
) -> Result<(), Error> {
    let until = ledger.world.passed() + lease * BOUND + Duration::from_secs(60);
    client.queues().resume("default").await?;
    client.queues().limit("default", stepwell::QueueLimits::default()).await?;
    for schedule in client.schedules().list().await? {
        client.schedules().delete(&schedule.name).await?;
    }
    loop {
        let tasks = client.tasks(all()).await?;
        let damaged = ledger.books().damaged.clone();
        let open: Vec<_> = tasks
            .items
            .iter()
            .filter(|task| !task.state.is_finished() && !damaged.contains(&task.task_id))
            .collect();
        if open.is_empty() {
            return Ok(());
        }
        if ledger.world.passed() > until {
            let stuck: Vec<_> = open.iter().map(|task| tell(task)).collect();
            ledger.fail("stuck", stuck.join("; "));
            return Ok(());
        }
        for task in open {
            help(ledger, client, task).await?;
        }
        tokio::time::sleep(lease).await;
    }
}

fn tell(task: &TaskInfo) -> String {
    let TaskInfo { task_id, state, attempt, due_at, .. } = task;
    format!("task {task_id} is {}, at attempt {attempt}, due at {due_at:?}", state.as_str())
}

async fn help(ledger: &Ledger, client: &Durable, task: &TaskInfo) -> Result<(), Error> {
    let task_id = task.task_id;
    if task.paused {
        // The task may end in this moment.
        drop(client.resume(task_id).await);
    }
    for wait in client.waits(task_id).await? {
        let Some(target) = wait.target else { continue };
        match wait.key.kind {
            Kind::Message => {
                let topic = (0..TOPICS)
                    .find(|topic| target.as_str() == format!("topic{topic}"))
                    .unwrap_or(0);
                let message = {
                    let mut books = ledger.books();
                    let last = books.sent.entry((task_id, topic)).or_default();
                    *last += 1;
                    *last
                };
                if client.send(task_id, target.as_str(), &message).await.is_ok() {
                    ledger.books().accepted.entry((task_id, topic)).or_default().push(message);
                }
            }
            Kind::Event if target.as_str().starts_with("event:") => {
                client.emit_event(target.as_str(), &ledger.world.dice().roll(1 << 40)).await?;
            }
            _ => {}
        }
    }
    for approval in client.approvals().of_task(task_id).await? {
        drop(
            client
                .approvals()
                .decide(task_id, &approval.name, &Decision::approved("somebody", 1))
                .await,
        );
    }
    Ok(())
}

/// Checks everything that is left.
pub(crate) async fn check(ledger: &Ledger, user: Option<&User>) -> Result<(), Error> {
    let mut tasks = found(ledger)?;
    let damaged = ledger.books().damaged.clone();
    tasks.retain(|task| !damaged.contains(&task.task_id));
    accepted(ledger, &tasks);
    once_by_number(ledger, &tasks);
    if let Some(user) = user {
        transactions(ledger, user, &tasks);
    }
    once_by_key(ledger, &tasks);
    once_by_tick(ledger, &tasks);
    for task in &tasks {
        let diverged = |failure: &stepwell::Failure| failure.kind == FailureKind::Diverged;
        if let Some(failure) = task.failure.as_ref().filter(|failure| diverged(failure)) {
            ledger.fail("diverged", format_args!("task {}: {failure}", task.task_id));
        }
        let journal = ledger.journal(task.task_id);
        in_order(ledger, task, &journal);
        once(ledger, task.task_id, &journal);
        messages(ledger, task, &journal)?;
        children(ledger, task, &journal);
        if task.state == TaskState::Completed {
            completed(ledger, task, &journal);
        }
        compensated(ledger, task, &journal);
    }
    Ok(())
}

/// Returns all tasks of the store.
fn found(ledger: &Ledger) -> Result<Vec<TaskInfo>, Error> {
    let mut tasks = Vec::new();
    let mut filter = all();
    loop {
        let page = ledger.world.look(ledger.world.store().tasks(filter.clone()))?;
        tasks.extend(page.items);
        match page.next {
            Some(last) => filter.before = Some(last),
            None => return Ok(tasks),
        }
    }
}

/// Checks that the tasks whose spawns were answered are there.
fn accepted(ledger: &Ledger, tasks: &[TaskInfo]) {
    let there: BTreeSet<_> = tasks.iter().map(|task| task.task_id).collect();
    let spawned = ledger.books().spawned.clone();
    for (number, task_id) in &spawned {
        let (removed, damaged) = {
            let books = ledger.books();
            (books.may_be_removed(task_id), books.damaged.contains(task_id))
        };
        if !there.contains(task_id) && !removed && !damaged {
            ledger.fail(
                "lost",
                format_args!("task {task_id}, number {number}, was accepted and is not there"),
            );
        }
    }
}

/// Checks that a spawn made at most one task, and none when it was rolled back.
fn once_by_number(ledger: &Ledger, tasks: &[TaskInfo]) {
    let mut numbers = BTreeMap::<_, Vec<_>>::new();
    for task in tasks {
        if let Some(number) = task.params.decode::<Params>().ok().and_then(|params| params.number) {
            numbers.entry(number).or_default().push(task.task_id);
        }
    }
    let again = ledger.books().triggered_again.clone();
    for (number, tasks) in
        numbers.iter().filter(|(number, tasks)| tasks.len() > 1 && !again.contains(number))
    {
        ledger.fail(
            "refused",
            format_args!("number {number} was spawned once, and there are {tasks:?}"),
        );
    }
    let rolled_back = ledger.books().rolled_back.clone();
    if let Some((number, tasks)) = numbers.iter().find(|(number, _)| rolled_back.contains(number)) {
        ledger.fail(
            "rolled back",
            format_args!("the spawn of number {number} was, and there are {tasks:?}"),
        );
    }
}

/// Checks that a tick spawned at most one task, unless the schedule was replaced.
fn once_by_tick(ledger: &Ledger, tasks: &[TaskInfo]) {
    let schedules = ledger.books().schedules;
    let mut ticks = BTreeMap::<_, Vec<_>>::new();
    for task in tasks {
        if let Some(tick) = task.headers.get(stepwell::TICK_HEADER) {
            ticks.entry(tick.to_string()).or_default().push(task.task_id);
        }
    }
    for (tick, tasks) in ticks.iter().filter(|(_, tasks)| tasks.len() > 1 && schedules < 2) {
        ledger.fail("tick", format_args!("{tick} has spawned {tasks:?}"));
    }
}

/// Checks the rows of steps that are transactions. A step with a result has its row exactly once,
/// and a step without a result has no row.
fn transactions(ledger: &Ledger, user: &User, tasks: &[TaskInfo]) {
    let rows = match user.rows(&ledger.world) {
        Ok(rows) => rows,
        Err(error) => return ledger.fail("transaction", format_args!("{error:#}")),
    };
    let (transacted, undone) = {
        let books = ledger.books();
        (books.transacted.clone(), books.undone_rows.clone())
    };
    if let Some((task_id, step, _)) = rows.iter().find(|(.., number)| undone.contains(number)) {
        ledger.fail(
            "transaction",
            format_args!("{step} of task {task_id} failed, and its row is there"),
        );
    }
    for task in tasks {
        let task_id = task.task_id.to_string();
        let journal = ledger.journal(task.task_id);
        let own: Vec<_> = rows.iter().filter(|(of, ..)| *of == task_id).collect();
        // A journal that was begun again no longer has the results of its earlier steps.
        let anew = journal.iter().any(|entry| entry.key.kind == Kind::Attempt);
        for (_, step, number) in &own {
            let journaled = journal
                .iter()
                .any(|entry| is_done(entry, Kind::Step, step) && gives(entry, *number));
            let times = own.iter().filter(|(_, _, other)| other == number).count();
            if times > 1 || !journaled && !anew {
                ledger.fail(
                    "transaction",
                    format_args!(
                        "{step} of task {task_id} wrote {number} {times} times (journaled: \
                         {journaled})"
                    ),
                );
            }
        }
        for entry in &journal {
            let name = entry.key.name.as_str();
            let of_transaction = transacted.contains(&(task.task_id, name.to_owned()));
            let there = own.iter().any(|(_, step, number)| step == name && gives(entry, *number));
            if of_transaction && is_done(entry, Kind::Step, name) && !there {
                ledger.fail(
                    "transaction",
                    format_args!("{name} of task {task_id} has a result, and no row"),
                );
            }
        }
    }
}

/// Checks that an idempotency key stands for one task while that task exists.
fn once_by_key(ledger: &Ledger, tasks: &[TaskInfo]) {
    let books = ledger.books();
    let mut by_key = books.answers.clone();
    for task in tasks {
        let Ok(Params { once: Some(once), number, .. }) = task.params.decode::<Params>() else {
            continue;
        };
        if number.is_none_or(|number| !books.triggered_again.contains(&number)) {
            by_key.entry((task.task_type.to_string(), once)).or_default().insert(task.task_id);
        }
    }
    let several = by_key.into_iter().find(|(_, tasks)| {
        tasks.len() > 1 && !tasks.iter().any(|task_id| books.may_be_removed(task_id))
    });
    drop(books);
    if let Some(((task_type, once), tasks)) = several {
        ledger.fail(
            "key",
            format_args!("the idempotency key {once} of {task_type} stands for {tasks:?}"),
        );
    }
}

fn in_order(ledger: &Ledger, task: &TaskInfo, journal: &[Entry]) {
    if !journal.is_sorted_by(|one, other| one.seq < other.seq) {
        ledger.fail(
            "order",
            format_args!("the journal of task {} is not in order: {journal:?}", task.task_id),
        );
    }
}

/// Checks that a step has one result between two beginnings of its task. A result that is kept by
/// its name is journaled again with the same value.
fn once(ledger: &Ledger, task_id: TaskId, journal: &[Entry]) {
    for era in journal.split(is_new_beginning) {
        let mut seen = BTreeMap::new();
        let results = era.iter().filter(|entry| matches!(entry.outcome, Outcome::Done(_)));
        let delivered =
            |kind| matches!(kind, Kind::Step | Kind::Timer | Kind::Event | Kind::Message);
        for entry in results.filter(|entry| delivered(entry.key.kind)) {
            let Outcome::Done(result) = &entry.outcome else { continue };
            if let Some((before, earlier)) = seen.insert(&entry.key, (entry.seq, result))
                && earlier != result
            {
                ledger.fail(
                    "twice",
                    format_args!(
                        "{} of task {task_id} has a result at {before} and at {}",
                        entry.key, entry.seq
                    ),
                );
            }
        }
    }
}

/// Returns the messages of a topic that a task has received, in order. A message that is kept by
/// its name is journaled again, and counts once.
fn received(journal: &[Entry], topic: &str) -> Vec<u64> {
    let mut received = Vec::new();
    for era in journal.split(is_new_beginning) {
        let mut seen = BTreeSet::new();
        let of_topic = era.iter().filter(|entry| is_done(entry, Kind::Message, topic));
        for entry in of_topic.filter(|entry| seen.insert(&entry.key)) {
            if let Outcome::Done(payload) = &entry.outcome {
                received.extend(payload.decode::<u64>());
            }
        }
    }
    received
}

/// Checks that the messages of a topic arrive in order, each once, without a gap. A message that
/// the task has not received is in its mailbox until the task has completed.
fn messages(ledger: &Ledger, task: &TaskInfo, journal: &[Entry]) -> Result<(), Error> {
    let task_id = task.task_id;
    let mailbox = ledger.world.look(ledger.world.store().messages(task_id, None))?.items;
    let completed = task.state == TaskState::Completed;
    if completed && !mailbox.is_empty() {
        ledger
            .fail("messages", format_args!("task {task_id} has completed, and keeps {mailbox:?}"));
    }
    // A moved task may lose the messages that it accepts between its export and its deletion.
    let moved = ledger.books().deleted.contains(&task_id);
    for topic in 0..TOPICS {
        let name = format!("topic{topic}");
        let received: Vec<u64> = received(journal, &name);
        let accepted = ledger.books().accepted.get(&(task_id, topic)).cloned().unwrap_or_default();
        let kept = mailbox.iter().filter(|message| message.topic.as_str() == name);
        let kept: Vec<u64> = kept.filter_map(|message| message.payload.decode().ok()).collect();
        if !received.iter().chain(&kept).is_sorted_by(|one, other| one < other) {
            ledger.fail(
                "messages",
                format_args!(
                    "task {task_id} has received {received:?} of {name}, and keeps {kept:?}"
                ),
            );
        }
        let last = received.last().copied().unwrap_or(0);
        let is_missed = |message: &&u64| match completed || moved {
            true => **message < last && !received.contains(message),
            false => !received.contains(message) && !kept.contains(message),
        };
        if let Some(missed) = accepted.iter().find(is_missed) {
            ledger.fail(
                "messages",
                format_args!(
                    "task {task_id} has received {received:?} of {name}, keeps {kept:?}, and has \
                     lost {missed}, which was accepted"
                ),
            );
        }
    }
    Ok(())
}

/// Checks that no task finds a child removed that it may still join. A task that was moved did not
/// exist for a moment.
fn children(ledger: &Ledger, task: &TaskInfo, journal: &[Entry]) {
    let removed = stepwell::store::deleted().message;
    let of_journal = journal.iter().filter_map(|entry| match &entry.outcome {
        Outcome::Failed(failure) => Some(&**failure),
        Outcome::Done(_) | Outcome::Retrying { .. } => None,
    });
    let mut failures = of_journal.chain(&task.failure);
    let moved = ledger.books().deleted.contains(&task.task_id);
    if !moved && let Some(failure) = failures.find(|failure| failure.message.contains(&removed)) {
        ledger.fail("children", format_args!("task {}: {failure}", task.task_id));
    }
}

/// Checks that the results in a task's output are those that its closures returned and that its
/// journal holds.
fn completed(ledger: &Ledger, task: &TaskInfo, journal: &[Entry]) {
    let task_id = task.task_id;
    let seen = task.output.as_ref().and_then(|output| {
        let of_flow = || output.decode::<flow::Output>().ok().map(flow::Output::seen);
        output.decode::<Seen>().ok().or_else(of_flow)
    });
    let Some(seen) = seen else {
        return ledger.fail("output", format_args!("task {task_id} has no output"));
    };
    if task.params.decode::<Params>().is_err() {
        ledger.fail("output", format_args!("task {task_id} has lost its parameters"));
    }
    let books = ledger.books();
    for (name, value) in seen {
        let given = books.ran.get(&(task_id, name.clone())).is_some_and(|ran| ran.contains(&value));
        let current = current(journal, Kind::Step);
        let journaled =
            current.iter().any(|entry| is_done(entry, Kind::Step, &name) && gives(entry, value));
        if !given || !journaled {
            drop(books);
            return ledger.fail("output", format_args!(
                "task {task_id} has {value} as the result of {name} (given: {given}, journaled: \
                 {journaled})"
            ));
        }
    }
}

/// Checks that the steps of a failed or cancelled task are undone in reverse order.
fn compensated(ledger: &Ledger, task: &TaskInfo, journal: &[Entry]) {
    let task_id = task.task_id;
    let era = journal.rsplit(is_new_beginning).next().unwrap_or_default();
    if task.state == TaskState::Completed {
        return;
    }
    let failed =
        era.iter().position(|entry| entry.key.kind == Kind::Compensating).unwrap_or(era.len());
    let (before, after) = era.split_at(failed);
    let mut recorded = Vec::new();
    for Entry { key, .. } in before {
        let operation = (key.name.as_str(), key.ordinal);
        match key.kind {
            Kind::Compensate => {
                recorded.retain(|of| *of != operation);
                recorded.push(operation);
            }
            Kind::Compensated => recorded.retain(|of| *of != operation),
            _ => {}
        }
    }
    // A step without a result has nothing to undo.
    recorded.retain(|(name, _)| {
        !name.starts_with('/') || before.iter().any(|entry| is_done(entry, Kind::Step, name))
    });
    recorded.reverse();
    let ended: Vec<_> = after
        .iter()
        .filter(|entry| {
            entry.key.kind == Kind::Compensated
                && !matches!(entry.outcome, Outcome::Retrying { .. })
        })
        .collect();
    let undone: Vec<_> =
        ended.iter().map(|entry| (entry.key.name.as_str(), entry.key.ordinal)).collect();
    if undone != recorded && !quarantined(task) {
        ledger.fail(
            "undone",
            format_args!("task {task_id} is to undo {recorded:?}, and has undone {undone:?}"),
        );
    }
    // Code that panics when it is replayed for its closures has none of them.
    let replays =
        task.params.decode::<Params>().is_ok_and(|params| !script::panics(&params.script));
    for entry in ended.iter().filter(|entry| entry.key.name.as_str().starts_with('/')) {
        let name = entry.key.name.as_str();
        if let Outcome::Failed(failure) = &entry.outcome {
            if replays && !failure.message.contains("simulated") {
                ledger.fail("undone", format_args!("{name} of task {task_id}: {failure}"));
            }
            continue;
        }
        let given = before.iter().find(|entry| is_done(entry, Kind::Step, name));
        let books = ledger.books();
        let values = books.undone.get(&(task_id, name.to_owned())).cloned().unwrap_or_default();
        drop(books);
        if !given.is_some_and(|given| values.iter().any(|value| gives(given, *value))) {
            ledger.fail(
                "undone",
                format_args!("{name} of task {task_id} is said to be undone, and nothing has run"),
            );
        }
    }
}

/// Returns whether a task is in quarantine, because its workers died too often.
fn quarantined(task: &TaskInfo) -> bool {
    let Some(failure) = &task.failure else { return false };
    let crashed = |failure: &stepwell::Failure| failure.kind == stepwell::FailureKind::Crashed;
    crashed(failure) || failure.compensation_errors.iter().any(|error| crashed(&error.failure))
}
