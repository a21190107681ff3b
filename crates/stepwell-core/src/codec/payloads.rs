//! Walks over the payloads in requests to a store and in its answers, the same for encoding and
//! decoding.
//!
//! Everything that a walk does not visit is kept as it is: names, headers, times, the kinds of
//! failures.

use crate::base::codec_error::CodecError;
use crate::base::failure::Failure;
use crate::base::ids::TaskId;
use crate::base::journal::{Entry, Kind, Outcome};
use crate::base::payload::Payload;
use crate::codec::Place;
use crate::store::page::{Listed, Room};
use crate::store::record::TaskRecord;
use crate::store::*;

/// A value that codecs are applied to.
pub(crate) enum Held<'a> {
    Payload(&'a mut Payload),
    /// A part of a failure's message, and the reason why it could not be decoded.
    Text(&'a mut String, &'a mut Option<CodecError>),
}

/// The function that a walk calls for each value.
pub(crate) type Each<'a> = &'a mut dyn FnMut(Held<'_>, Place<'_>);

/// Visits the texts of a failure, and returns the reason why the first of them could not be
/// decoded.
fn failure(failure: &mut Failure, place: Place<'_>, each: Each<'_>) -> Option<CodecError> {
    let mut refused = None;
    each(Held::Text(&mut failure.message, &mut refused), place);
    failure.causes.iter_mut().for_each(|text| each(Held::Text(text, &mut refused), place));
    if let Some(backtrace) = &mut failure.backtrace {
        let mut text = String::from(std::mem::take(backtrace));
        each(Held::Text(&mut text, &mut refused), place);
        *backtrace = text.into();
    }
    for error in &mut failure.compensation_errors {
        let of_compensation = self::failure(&mut error.failure, place, each);
        refused = refused.or(of_compensation);
    }
    refused
}

fn finish(task_id: TaskId, finish: &mut Finish, each: Each<'_>) {
    match finish {
        Finish::Completed(output) => each(Held::Payload(output), Place::Output(task_id)),
        Finish::Failed(why) => _ = failure(why, Place::Failure(task_id), each),
        Finish::Cancelled => {}
    }
}

pub(crate) fn happening(happening: &mut Happening, each: Each<'_>) {
    each(Held::Payload(&mut happening.event), Place::History(happening.task_id));
}

pub(crate) fn end((task_id, end): &mut (TaskId, Option<Finish>), each: Each<'_>) {
    if let Some(end) = end {
        finish(*task_id, end, each);
    }
}

pub(crate) fn entries(task_id: TaskId, entries: &mut [Entry], each: Each<'_>) {
    for Entry { seq, key, outcome, .. } in entries {
        let seq = *seq;
        match outcome {
            Outcome::Done(value) => each(Held::Payload(value), Place::Entry { task_id, seq, key }),
            Outcome::Failed(why) | Outcome::Retrying { failure: why, .. } => {
                let place = match key.kind {
                    // The store writes the failure of the task into this entry.
                    Kind::Compensating => Place::Failure(task_id),
                    _ => Place::EntryFailure { task_id, seq, key },
                };
                // The code must not take a path that the journal does not prove.
                if let Some(reason) =
                    failure(why, place, each).filter(|_| key.kind != Kind::Compensating)
                {
                    let value = Payload::not_readable(Payload::null(), place.to_string(), reason);
                    *outcome = Outcome::Done(value);
                }
            }
        }
    }
}

pub(crate) fn task(task: &mut NewTask, each: Each<'_>) {
    each(Held::Payload(&mut task.params), Place::Params(task.task_id));
}

pub(crate) fn event(event: &mut NewEvent, each: Each<'_>) {
    each(Held::Payload(&mut event.payload), Place::Event(&event.name));
}

fn new_message(message: &mut NewMessage, each: Each<'_>) {
    let NewMessage { task_id, topic, payload } = message;
    each(Held::Payload(payload), Place::Message { task_id: *task_id, topic });
}

pub(crate) fn transition(transition: &mut Transition, each: Each<'_>) {
    let task_id = transition.task_id;
    entries(task_id, &mut transition.entries, each);
    transition.spawns.iter_mut().for_each(|spawned| task(spawned, each));
    if let Some(keyed) = &mut transition.keyed {
        task(&mut keyed.task, each);
        entries(task_id, std::slice::from_mut(&mut keyed.entry), each);
    }
    transition.events.iter_mut().for_each(|emitted| event(emitted, each));
    transition.messages.iter_mut().for_each(|sent| new_message(sent, each));
    match &mut transition.next {
        Next::Complete(output) => each(Held::Payload(output), Place::Output(task_id)),
        Next::Retry { failure: why, .. } | Next::Fail(why) => {
            _ = failure(why, Place::Failure(task_id), each);
        }
        Next::Continue { .. }
        | Next::Suspend { .. }
        | Next::Cancel
        | Next::Release
        | Next::Leave { .. } => {}
    }
}

pub(crate) fn batch(batch: &mut Batch, each: Each<'_>) {
    batch.transitions.iter_mut().for_each(|applied| transition(applied, each));
    batch.events.iter_mut().for_each(|emitted| event(emitted, each));
    batch.messages.iter_mut().for_each(|sent| new_message(sent, each));
    batch.spawns.iter_mut().for_each(|spawned| task(spawned, each));
    for ScheduleChange { name, action } in &mut batch.schedules {
        match action {
            ScheduleAction::Create(plan) => {
                each(Held::Payload(&mut plan.definition), Place::Schedule(name));
            }
            ScheduleAction::Replace { plan, spawns, .. } => {
                each(Held::Payload(&mut plan.definition), Place::Schedule(name));
                spawns.iter_mut().for_each(|spawned| task(spawned, each));
            }
            ScheduleAction::Delete => {}
        }
    }
}

pub(crate) fn schedule(schedule: &mut Scheduled, each: Each<'_>) {
    each(Held::Payload(&mut schedule.plan.definition), Place::Schedule(&schedule.name));
}

pub(crate) fn message(task_id: TaskId, message: &mut ArrivedMessage, each: Each<'_>) {
    let ArrivedMessage { topic, payload, .. } = message;
    each(Held::Payload(payload), Place::Message { task_id, topic });
}

pub(crate) fn record(record: &mut TaskRecord, each: Each<'_>) {
    let task_id = record.info.task_id;
    info(&mut record.info, each);
    entries(task_id, &mut record.journal, each);
    for (topic, payload) in &mut record.messages {
        each(Held::Payload(payload), Place::Message { task_id, topic });
    }
}

/// Visits facts, and removes those that have no room in the answer after they are decoded; a later
/// look finds them.
fn facts(task_id: TaskId, facts: &mut Facts, room: &mut Room, each: Each<'_>) {
    let Facts { events, messages, children, more } = facts;
    let mut take = |change: &mut dyn FnMut() -> usize| {
        let has_room = !room.is_full() && room.take(change());
        *more |= !has_room;
        has_room
    };
    events.retain_mut(|(name, payload)| {
        take(&mut || {
            each(Held::Payload(payload), Place::Event(name));
            payload.as_str().len()
        })
    });
    messages.retain_mut(|arrived| {
        take(&mut || {
            message(task_id, arrived, each);
            arrived.bytes()
        })
    });
    children.retain_mut(|(child, end)| {
        take(&mut || {
            finish(*child, end, each);
            end.bytes()
        })
    });
}

/// Visits the result of a transition, without the result of a [`UserTransaction`], which is not
/// encoded.
pub(crate) fn applied(
    task_id: TaskId,
    applied: &mut Result<Applied, Refused>,
    room: &mut Room,
    each: Each<'_>,
) {
    if let Ok(applied) = applied {
        facts(task_id, &mut applied.facts, room, each);
    }
}

/// Visits the results of a batch whose transitions belong to these tasks.
pub(crate) fn committed(tasks: &[TaskId], committed: &mut Committed, each: Each<'_>) {
    let mut room = Room::default();
    for (task_id, result) in tasks.iter().zip(&mut committed.transitions) {
        applied(*task_id, result, &mut room, each);
    }
    for claimed in committed.claims.iter_mut().flat_map(|claimed| &mut claimed.tasks) {
        each(Held::Payload(&mut claimed.params), Place::Params(claimed.task_id));
        entries(claimed.task_id, claimed.journal.as_deref_mut().unwrap_or_default(), each);
        facts(claimed.task_id, &mut claimed.facts, &mut room, each);
    }
    for (task_id, end) in &mut committed.news.finished {
        finish(*task_id, end, each);
    }
}

pub(crate) fn info(info: &mut TaskInfo, each: Each<'_>) {
    each(Held::Payload(&mut info.params), Place::Params(info.task_id));
    if let Some(output) = &mut info.output {
        each(Held::Payload(output), Place::Output(info.task_id));
    }
    if let Some(why) = &mut info.failure {
        failure(why, Place::Failure(info.task_id), each);
    }
}
