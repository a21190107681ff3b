//! The claims in an answer: tasks, with their journals, waits, and what has arrived for them.

use std::collections::BTreeMap;
use std::vec::IntoIter;

use serde_json::Value;
use sqlx::postgres::PgRow;
use sqlx::types::Uuid;
use stepwell_core::store::{ArrivedMessage, Claimed, ClaimedTask, Facts, Wait};
use stepwell_core::{Entry, Name, Payload, Unreadable};

use crate::batch::classify::Sorted;
use crate::values::columns::{Moment, calendar};
use crate::values::rows::{
    attempt, awaited, broken, count, entries, finish, json, key, list, name, of_task, scope,
    unreadable_name, value,
};

/// Returns the claims of a batch.
pub(crate) fn claims(sorted: &Sorted, row: &PgRow) -> sqlx::Result<Vec<Claimed>> {
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
    let task: Vec<Uuid> = list(row, "cl_task")?;
    if task.is_empty() {
        return Ok(claims);
    }
    let length = task.len();
    let mut tasks = Tasks::of(row, task)?;
    for place in (1..).take(length) {
        let (claim, task) = tasks.next(place)?;
        if let Some(claim) = at(&mut claims, claim) {
            claim.tasks.push(task);
        }
    }
    Ok(claims)
}

/// Returns the item at a position of the database, which counts from 1.
fn at<T>(items: &mut [T], place: i32) -> Option<&mut T> {
    usize::try_from(place).ok()?.checked_sub(1).and_then(|place| items.get_mut(place))
}

/// The columns of claimed tasks. A column may be empty when all of its values are NULL.
struct Tasks {
    claim: IntoIter<i32>,
    task: IntoIter<Uuid>,
    run: IntoIter<Uuid>,
    attempt: IntoIter<i64>,
    crashes: IntoIter<i64>,
    lost: IntoIter<i64>,
    had_it: IntoIter<bool>,
    max_attempts: IntoIter<i64>,
    task_type: IntoIter<Option<String>>,
    queue: IntoIter<String>,
    params: IntoIter<String>,
    headers: IntoIter<String>,
    retry: IntoIter<String>,
    scope: IntoIter<Option<String>>,
    key: IntoIter<Option<String>>,
    journals: OfTasks<Entry>,
    waits: OfTasks<Wait>,
    facts: BTreeMap<i64, Facts>,
}

impl Tasks {
    fn of(row: &PgRow, task: Vec<Uuid>) -> sqlx::Result<Self> {
        Ok(Self {
            claim: list(row, "cl_of")?.into_iter(),
            task: task.into_iter(),
            run: list(row, "cl_run")?.into_iter(),
            attempt: list(row, "cl_attempt")?.into_iter(),
            crashes: list(row, "cl_crashes")?.into_iter(),
            lost: list(row, "cl_lost")?.into_iter(),
            had_it: list(row, "cl_had_it")?.into_iter(),
            max_attempts: list(row, "cl_max_attempts")?.into_iter(),
            task_type: list(row, "cl_type")?.into_iter(),
            queue: list(row, "cl_queue")?.into_iter(),
            params: list(row, "cl_params")?.into_iter(),
            headers: list(row, "cl_headers")?.into_iter(),
            retry: list(row, "cl_retry")?.into_iter(),
            scope: list(row, "cl_scope")?.into_iter(),
            key: list(row, "cl_key")?.into_iter(),
            journals: journals(row)?,
            waits: waits(row)?,
            facts: facts(row, "cl_facts"),
        })
    }

    /// Returns the next task, which has this position, and the position of its claim.
    fn next(&mut self, place: i64) -> sqlx::Result<(i32, ClaimedTask)> {
        let mut hurt = None;
        let task_type = next(&mut self.task_type)?;
        let task_type = task_type.ok_or_else(|| broken("there is none: somebody has deleted it"));
        let task_type = of_task(&mut hurt, "the task's row in `tasks`", task_type.map(Some))?;
        let task_type = named(&mut hurt, "`task_type`", task_type)?;
        let queue = named(&mut hurt, "`queue`", Some(next(&mut self.queue)?))?;
        let max_attempts = count(next(&mut self.max_attempts)?);
        let max_attempts = of_task(&mut hurt, "`max_attempts`", max_attempts)?;
        let lost = of_task(&mut hurt, "`lost`", count(next(&mut self.lost)?))?;
        let crashes = of_task(&mut hurt, "`crashes`", count(next(&mut self.crashes)?))?;
        let headers = of_task(&mut hurt, "`headers`", json(&next(&mut self.headers)?))?;
        let retry = of_task(&mut hurt, "`retry`", json(&next(&mut self.retry)?))?;
        let of_scope = scope(self.scope.next().flatten().as_deref());
        let of_scope = of_task(&mut hurt, "`scope`", of_scope)?;
        let journal = self.journals.remove(&place).unwrap_or_else(|| Ok(Vec::new()));
        let journal = of_task(&mut hurt, "a row of `journal`", journal)?;
        let waits = self.waits.remove(&place).unwrap_or_else(|| Ok(Vec::new()));
        let waits = of_task(&mut hurt, "a row of `waits`", waits)?;
        let task = ClaimedTask {
            task_id: next(&mut self.task)?.into(),
            run_id: next(&mut self.run)?.into(),
            attempt: attempt(next(&mut self.attempt)?),
            max_attempts: max_attempts.saturating_add(lost),
            crashes,
            task_type,
            queue,
            params: Payload::from_json(next(&mut self.params)?),
            headers,
            scope: of_scope,
            concurrency_key: self.key.next().flatten().map(name).transpose()?,
            retry,
            journal: (!next(&mut self.had_it)?).then_some(journal),
            waits,
            facts: self.facts.remove(&place).unwrap_or_default(),
            unreadable: hurt,
        };
        Ok((next(&mut self.claim)?, task))
    }
}

/// Returns the next value of a column that has one for each task.
fn next<T>(column: &mut IntoIter<T>) -> sqlx::Result<T> {
    column.next().ok_or_else(|| broken("the columns of a claim's tasks differ in length"))
}

/// Returns a name of a claimed task, or a placeholder when there is none.
fn named(hurt: &mut Option<Unreadable>, column: &str, text: Option<String>) -> sqlx::Result<Name> {
    let Some(text) = text else { return unreadable_name() };
    of_task(hurt, column, name(text).map(Some))?.map_or_else(unreadable_name, Ok)
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

/// Returns the events, messages and results that have arrived, by the position of the task. A fact
/// that cannot be read counts as not arrived.
pub(crate) fn facts(row: &PgRow, column: &str) -> BTreeMap<i64, Facts> {
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
