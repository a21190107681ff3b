//! The checks of events and messages: each arrives once, and the messages of one sender keep their
//! order.

use std::collections::BTreeMap;

use stepwell::{Kind as Entry, Outcome, TaskState};

use super::Proof;
use super::life::Life;
use crate::work::{Kind, Seen, TALK};

pub(super) fn check(life: &Life<'_>, proof: &mut Proof) {
    let senders: &[(&str, u32)] = match life.ended.work.kind {
        Kind::Listener => &[("host", TALK), ("teller", TALK)],
        Kind::Heard => &[("client", 1)],
        _ => return,
    };
    let (task, info) = (life.task(), &life.ended.info);
    let (TaskState::Completed, Some(output)) = (info.state, &info.output) else { return };
    let seen = output.decode::<Seen>().unwrap_or_default();
    let Some((event, heard)) = seen.heard.split_first() else {
        return proof.fail("told", format_args!("task {task} heard nothing"));
    };
    let number = u32::try_from(life.ended.work.number).unwrap_or(u32::MAX);
    if *event != ("event".to_owned(), number) {
        proof.fail("told", format_args!("task {task} was told {event:?} by the event {number}"));
    }
    let mut by_sender: BTreeMap<&str, Vec<u32>> = BTreeMap::new();
    for (sender, number) in heard {
        by_sender.entry(sender).or_default().push(*number);
    }
    let expected: BTreeMap<_, Vec<u32>> =
        senders.iter().map(|(sender, count)| (*sender, (0..*count).collect())).collect();
    if by_sender != expected {
        proof.fail("told", format_args!("task {task} heard {heard:?}"));
    }
    let messages = life.ended.journal.iter().filter(|entry| entry.key.kind == Entry::Message);
    let journaled: Vec<(String, u32)> = messages
        .filter_map(|entry| match &entry.outcome {
            Outcome::Done(message) => message.decode().ok(),
            _ => None,
        })
        .collect();
    if journaled != heard {
        proof.fail(
            "told",
            format_args!("task {task} heard {heard:?}, and its journal has {journaled:?}"),
        );
    }
}
