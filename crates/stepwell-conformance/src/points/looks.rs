//! The points of looks: a look finds everything that has arrived for a task's waits, whichever came
//! first.

use std::future::Future;
use std::pin::Pin;

use stepwell_core::store::{Command, Facts, Finish, NewTask, Next, Transition, Wait};
use stepwell_core::{Key, RunId, TaskId};

use crate::backend::Backend;
use crate::handle::{Handle, of, payloads};
use crate::make::*;
use crate::setup::{Setup, rounds, together};

/// Tries to suspend a task that has something to receive, and returns what has arrived.
async fn stays(store: &Handle, run: (TaskId, RunId), what: &str) -> Facts {
    let applied = store.next(run, SUSPEND).await;
    assert!(!applied.suspended && !applied.facts.is_empty(), "{what}: {applied:?}");
    applied.facts
}

async fn removes(store: &Handle, run: (TaskId, RunId), waits: impl IntoIterator<Item = Wait>) {
    let waits_removed = waits.into_iter().map(|wait| wait.key).collect();
    store
        .apply(Transition { waits_removed, ..Transition::new(run.0, run.1, GO_ON) })
        .await
        .unwrap();
}

/// Checks that each look finds what has arrived until its wait is gone, and that another wait for
/// it finds it as well.
pub async fn looks(backend: &impl Backend) {
    let (_setup, store) = Setup::with_handle(backend).await;
    let run = store.run_one(1).await;
    looks_for_one_message(&store, run).await;
    looks_for_many_messages(&store, run).await;
    looks_for_an_event(&store, run).await;
    let child = looks_for_a_child(&store, run).await;

    // Another worker receives everything.
    store.apply(awaiting(run, [for_event("event"), for_message("late", 1)], GO_ON)).await.unwrap();
    store.send(message(1, "late", json("1"))).await;
    store.signal(register(2)).await;
    store.next(run, Next::Release).await;
    let claimed = store.claim_one(2).await;
    let Facts { events, messages, children, more } = &claimed.facts;
    assert!(!more, "there is room for all of it");
    assert_eq!((events.len(), messages.len(), children), (1, 1, &child));
}

/// Checks two waits for a message, of which one is dropped, and replaced by another one later.
async fn looks_for_one_message(store: &Handle, run: (TaskId, RunId)) {
    for n in [1_u32, 2] {
        store
            .apply(awaiting(run, [for_message("topic", 1), for_message("topic", 2)], GO_ON))
            .await
            .unwrap();
        store.send(message(1, "topic", number(n.into()))).await;
        removes(store, run, [for_message("topic", n)]).await;
        let facts = stays(store, run, "the other wait").await;
        assert_eq!(payloads(&facts), [number(n.into())]);
        assert_eq!(store.look(run).await, facts, "it is there until it is received");
        removes(store, run, [for_message("topic", 3 - n)]).await;
        assert!(store.look(run).await.is_empty(), "nobody waits for it");
        store.apply(awaiting(run, [for_message("topic", 9)], GO_ON)).await.unwrap();
        assert_eq!(payloads(&stays(store, run, "a later wait").await), [number(n.into())]);
        // The same wait is added once more.
        store.apply(awaiting(run, [for_message("topic", 9)], GO_ON)).await.unwrap();
        let received = stays(store, run, "the same wait")
            .await
            .messages
            .iter()
            .map(|message| message.id)
            .collect();
        let takes = Transition { received, ..Transition::new(run.0, run.1, LOOK) };
        assert!(store.apply(takes).await.unwrap().facts.is_empty());
        removes(store, run, [for_message("topic", 9)]).await;
    }
}

/// Checks more messages than waits, and then more waits than messages.
async fn looks_for_many_messages(store: &Handle, run: (TaskId, RunId)) {
    for n in 1..=3 {
        store.send(message(1, "many", number(n))).await;
    }
    store.apply(awaiting(run, [for_message("many", 1)], GO_ON)).await.unwrap();
    for n in 1..=3_u32 {
        let facts = stays(store, run, "the next message").await;
        assert_eq!(payloads(&facts), [number(n.into())]);
        let goes_on = Transition {
            received: facts.messages.iter().map(|message| message.id).collect(),
            waits_removed: vec![for_message("many", n).key],
            ..awaiting(run, [for_message("many", n + 1)], GO_ON)
        };
        store.apply(goes_on).await.unwrap();
    }
    assert!(store.look(run).await.is_empty());
    store.apply(awaiting(run, (5..10).map(|n| for_message("many", n)), GO_ON)).await.unwrap();
    for n in 4..=5 {
        store.send(message(1, "many", number(n))).await;
    }
    let facts = stays(store, run, "two of them").await;
    assert_eq!(payloads(&facts), [number(4), number(5)]);
    let received = facts.messages.iter().map(|message| message.id).collect();
    let waits_removed = [4, 5].map(|n| for_message("many", n).key).into();
    let takes = Transition { received, waits_removed, ..Transition::new(run.0, run.1, LOOK) };
    assert!(store.apply(takes).await.unwrap().facts.is_empty());
    store.send(message(1, "many", number(6))).await;
    assert_eq!(payloads(&stays(store, run, "the last").await), [number(6)]);
    removes(store, run, (6..10).map(|n| for_message("many", n))).await;
}

/// Checks two waits for an event, of which one ends.
async fn looks_for_an_event(store: &Handle, run: (TaskId, RunId)) {
    let twice = [1, 2].map(|ordinal| {
        let wait = for_event("event");
        Wait { key: Key { ordinal, ..wait.key }, ..wait }
    });
    store.apply(awaiting(run, twice.clone(), GO_ON)).await.unwrap();
    store.emit(event("event", json("1"))).await;
    removes(store, run, [twice[0].clone()]).await;
    assert_eq!(stays(store, run, "the second wait").await.events.len(), 1);
    removes(store, run, [twice[1].clone()]).await;
    store.apply(awaiting(run, [for_event("event")], GO_ON)).await.unwrap();
    assert_eq!(stays(store, run, "a wait behind the event").await.events.len(), 1);
    removes(store, run, [for_event("event")]).await;
}

/// Checks a child that is retried after its failure was seen, and returns its end as a look finds
/// it.
async fn looks_for_a_child(store: &Handle, run: (TaskId, RunId)) -> Vec<(TaskId, Finish)> {
    let child = store.run([child_of(1, 2)]).await[0];
    store.apply(awaiting(run, [for_child(2)], GO_ON)).await.unwrap();
    store.next(child, Next::Fail(failure("no").permanent())).await;
    assert_eq!(stays(store, run, "the failure").await.children.len(), 1);
    store.command(Command::Retry(child.0)).await;
    assert!(store.look(run).await.is_empty(), "it runs again");
    let again = store.claim_one(1).await;
    assert!(store.look(run).await.is_empty());
    store.next(of(&again), complete()).await;
    let ended = vec![(child.0, Finish::Completed(json("\"output\"")))];
    assert_eq!(stays(store, run, "its end").await.children, ended);
    ended
}

/// Checks an arrival while its wait begins, in a commit that does not look: the next look finds it.
pub async fn looks_under_races(backend: &impl Backend) {
    const TASKS: u128 = 5;
    let setup = Setup::new(backend).await;
    let handles = setup.handles(4).await;
    for round in rounds() {
        let n = (round + 1) * 1_000;
        let runs = handles[0].run((n..n + TASKS).map(new_task)).await;
        let own = handles[0].run((n..n + TASKS).map(|n| child_of(n, n + 100))).await;
        let named =
            |n: u128| NewTask { idempotency_key: Some(name(&n.to_string())), ..new_task(n) };
        let others = handles[0].run((n + 200..n + 200 + TASKS).map(named)).await;
        type Racer = Pin<Box<dyn Future<Output = ()> + Send>>;
        let mut racers: Vec<Racer> = Vec::new();
        for (i, run) in (0..TASKS).zip(&runs) {
            let task = n + i;
            let of_task = format!("event of {task}");
            let (wait, brings) = match (round + i) % 4 {
                0 => (for_event(&of_task), emitting([event(&of_task, json("1"))])),
                1 => (for_message("topic", 1), sending([message(task, "topic", json("1"))])),
                2 => {
                    let child = own[i as usize];
                    (
                        for_child(task + 100),
                        transitions([Transition::new(child.0, child.1, complete())]),
                    )
                }
                _ => {
                    let other = others[i as usize];
                    (
                        for_child(task + 200),
                        transitions([Transition::new(other.0, other.1, complete())]),
                    )
                }
            };
            let (waiting, bringing) = (handles[0].clone(), handles[1 + i as usize % 3].clone());
            let begins = awaiting(*run, [wait], GO_ON);
            racers.push(Box::pin(async move { drop(waiting.apply(begins).await.unwrap()) }));
            racers.push(Box::pin(async move { drop(bringing.commit(brings).await) }));
        }
        together(racers).await;
        for run in &runs {
            stays(&handles[0], *run, &format!("round {round}")).await;
            handles[0].next(*run, complete()).await;
        }
    }
}
