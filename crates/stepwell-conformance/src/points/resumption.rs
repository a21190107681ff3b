//! The point of resumption: which worker resumes a suspended task.

use stepwell_core::store::Command;

use crate::backend::Backend;
use crate::handle::{Handle, of};
use crate::make::*;
use crate::setup::Setup;

/// Checks that a suspended task keeps its run when the worker that ran it claims it. The task then
/// comes without its journal and its waits, which that worker may have in memory. With another
/// worker, the task gets a new run, and comes with its journal and its waits.
pub async fn resumption(backend: &impl Backend) {
    let setup = Setup::new(backend).await;
    let [a, b]: [Handle; 2] = setup.handles(2).await.try_into().ok().unwrap();
    let run = a.run_one(1).await;
    b.signal(register(2)).await;
    let mut suspends = awaiting(run, [for_event("event"), for_message("topic", 1)], SUSPEND);
    suspends.entries = vec![step(1, json("1"))];
    assert!(a.apply(suspends).await.unwrap().suspended);
    b.emit(event("event", json("1"))).await;
    let same = a.claim_one(1).await;
    assert_eq!(of(&same), run, "the same worker goes on with the same run");
    assert_eq!((same.journal, same.attempt), (None, 1));
    assert!(same.waits.is_empty(), "they come with the journal");
    assert_eq!(a.waits_of(1).await, [for_event("event"), for_message("topic", 1)]);
    assert_eq!(same.facts.events.len(), 1);

    let mut again = awaiting(run, [], SUSPEND);
    again.entries = vec![step(2, json("2"))];
    again.waits_removed = vec![for_event("event").key];
    assert!(a.apply(again).await.unwrap().suspended);
    a.send(message(1, "topic", json("2"))).await;
    let other = b.claim_one(2).await;
    assert_ne!(of(&other), run, "another worker has the same run");
    assert_eq!(other.journal, Some(vec![step(1, json("1")), step(2, json("2"))]));
    assert_eq!((other.waits, other.attempt), (vec![for_message("topic", 1)], 1));
    assert_eq!(other.facts.messages.len(), 1);
    assert!(a.apply(awaiting(run, [], GO_ON)).await.is_err(), "the old run still owns the task");
    assert_eq!(a.info(1).await.run_id, other.run_id);

    // The worker that ran the task first no longer has it in memory, because another worker
    // continued it.
    let mut third = awaiting((other.task_id, other.run_id), [], SUSPEND);
    third.received = other.facts.messages.iter().map(|message| message.id).collect();
    assert!(b.apply(third).await.unwrap().suspended);
    a.command(Command::Wake(run.0)).await;
    let back = a.claim_one(1).await;
    assert!(back.journal.is_some() && back.run_id != run.1 && back.run_id != other.run_id);
}
