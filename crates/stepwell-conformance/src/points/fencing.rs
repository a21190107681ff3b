//! The points of fencing: only the run that owns a task can write to it.

use stepwell_core::store::{Command, Next, Transition};
use stepwell_core::{RunId, TaskId, TaskState, Timestamp};

use crate::backend::Backend;
use crate::handle::{Handle, of, payloads};
use crate::make::*;
use crate::setup::Setup;

fn all_nexts() -> [Next; 8] {
    [
        GO_ON,
        LOOK,
        SUSPEND,
        complete(),
        Next::Retry { failure: failure("no"), at: Timestamp::UNIX_EPOCH },
        Next::Fail(failure("no")),
        Next::Cancel,
        Next::Release,
    ]
}

/// Returns a transition with one part of each kind. Task 1 receives its message.
fn full((task_id, run_id): (TaskId, RunId), next: Next) -> Transition {
    let mut transition = Transition::new(task_id, run_id, next);
    transition.entries = vec![step(7, json("7"))];
    transition.spawns = vec![new_task(70), with_key("key", 71)];
    transition.events = vec![event("event", json("7"))];
    transition.messages = vec![message(1, "topic", json("7"))];
    transition.waits_added = vec![for_event("other")];
    transition
}

/// Checks that every kind of transition of a run is refused, and leaves no trace.
async fn refuses(store: &Handle, what: &str, run: (TaskId, RunId)) {
    let before = store.picture().await;
    for next in all_nexts() {
        let applied = store.apply(full(run, next.clone())).await;
        assert!(applied.is_err(), "{what}: accepted {next:?}");
    }
    let light =
        Transition { entries: vec![step(8, json("8"))], ..Transition::new(run.0, run.1, GO_ON) };
    assert!(store.apply(light).await.is_err(), "{what}: accepted an entry");
    // A batch holds at most one transition of each run.
    let others = (900..).zip(all_nexts()).map(|(n, next)| full((run.0, run_id(n)), next));
    let all = transitions(others.chain([full(run, complete())]));
    let committed = store.commit(all).await;
    assert!(committed.transitions.iter().all(Result::is_err), "{what}: accepted in a larger batch");
    assert!(
        committed.news.finished.is_empty() && committed.news.poked.is_empty(),
        "{what}: is told as news"
    );
    assert_eq!(store.picture().await, before, "{what}: a refused transition left something behind");
}

/// Checks that a run that does not own its task is refused, with everything in its transition.
pub async fn fencing(backend: &impl Backend) {
    let (_setup, store) = Setup::with_handle(backend).await;
    let watcher = store.run_one(1).await;
    store.apply(awaiting(watcher, [for_message("topic", 1)], GO_ON)).await.unwrap();

    refuses(&store, "there is no such task", (task_id(99), run_id(99))).await;
    store.spawn([new_task(2)]).await;
    refuses(&store, "the task is pending", (task_id(2), run_id(2))).await;
    let running = store.run_one(3).await;
    refuses(&store, "the run is unknown", (running.0, run_id(99))).await;
    refuses(&store, "the run is another task's", (running.0, watcher.1)).await;
    let suspended = store.run_one(4).await;
    assert!(store.next(suspended, SUSPEND).await.suspended);
    refuses(&store, "the task is suspended", suspended).await;
    let delayed = store.run_one(5).await;
    store.next(delayed, Next::Retry { failure: failure("no"), at: Timestamp::MAX }).await;
    refuses(&store, "the task waits for its next attempt", delayed).await;
    let ends = [complete(), Next::Fail(failure("no")), Next::Cancel];
    for (n, next) in (6..).zip(ends) {
        let ended = store.run_one(n).await;
        store.next(ended, next).await;
        refuses(&store, "the task has ended", ended).await;
    }
    let deleted = store.run_one(9).await;
    store.next(deleted, complete()).await;
    store.command(Command::Delete(deleted.0)).await;
    refuses(&store, "the task was deleted", deleted).await;

    assert!(store.look(watcher).await.is_empty(), "a message of a refused transition has arrived");
    assert!(
        store.emit(event("event", json("1"))).await,
        "an event of a refused transition has been emitted"
    );
    assert!(store.find(70).await.is_none() && store.find(71).await.is_none());
    assert_eq!(store.state(3).await, TaskState::Running);
    assert!(store.apply(full(running, complete())).await.is_ok(), "the owner is refused");
    assert_eq!(payloads(&store.look(watcher).await), [json("7")]);
}

/// Checks that a refused transition leaves the messages and waits that it names unchanged.
pub async fn fencing_of_mailboxes(backend: &impl Backend) {
    let (_setup, store) = Setup::with_handle(backend).await;
    let run = store.run_one(1).await;
    store.send(message(1, "topic", json("1"))).await;
    let waits = [for_message("topic", 1), for_event("event")];
    store.apply(awaiting(run, waits.clone(), GO_ON)).await.unwrap();
    let id = store.look(run).await.messages[0].id;
    let mut stale = Transition::new(run.0, run_id(99), GO_ON);
    stale.received = vec![id];
    stale.waits_removed = waits.map(|wait| wait.key).to_vec();
    assert!(store.apply(stale).await.is_err());
    assert_eq!(store.look(run).await.messages.len(), 1, "a stale run took a message away");
    store.emit(event("event", json("2"))).await;
    assert_eq!(store.look(run).await.events.len(), 1, "a stale run took a wait away");
}

/// Checks that a run that lost its lease is refused from the moment that another run has its task.
pub async fn fencing_after_a_lost_lease(backend: &impl Backend) {
    let setup = Setup::new(backend).await;
    let [a, b]: [Handle; 2] = setup.handles(2).await.try_into().ok().unwrap();
    let old = a.run_one(1).await;
    a.journals(old, vec![step(1, json("1"))]).await;
    b.signal(register(2)).await;
    b.signal(declare_dead(1, 0)).await;
    let claimed = b.claim_one(2).await;
    let new = of(&claimed);
    assert_eq!((new.0, claimed.attempt), (old.0, 2));
    assert_ne!(new.1, old.1, "the new owner has the run of the old one");
    refuses(&a, "the run lost its lease", old).await;

    let late = Transition {
        entries: vec![step(2, json("\"old\""))],
        ..Transition::new(old.0, old.1, GO_ON)
    };
    let good = Transition {
        entries: vec![step(2, json("\"new\""))],
        ..Transition::new(new.0, new.1, GO_ON)
    };
    let committed = b.commit(transitions([late, good])).await;
    let accepted: Vec<_> = committed.transitions.iter().map(Result::is_ok).collect();
    assert_eq!(accepted, [false, true], "of the old run and the new one");
    assert!(a.apply(Transition::new(old.0, old.1, complete())).await.is_err());
    assert_eq!(a.journal(1).await, [step(1, json("1")), step(2, json("\"new\""))]);
    b.next(new, complete()).await;
    assert_eq!(a.state(1).await, TaskState::Completed);
}

/// Checks that a run is refused when it knows more entries than its task's journal holds. The task
/// continues from the journal. Such a run exists when the database was restored, or failed over to
/// a replica that lacks the rest.
pub async fn fencing_of_shorter_journals(backend: &impl Backend) {
    let (setup, first) = Setup::with_handle(backend).await;
    // The database of this handle may have been replaced before it knew the run.
    let store = setup.handle().await;
    let knows = |run: (TaskId, RunId), after: u64, seq: u64, next: Next| Transition {
        after: Some(after),
        entries: vec![step(seq, json("1"))],
        ..Transition::new(run.0, run.1, next)
    };
    store.signal(register(2)).await;
    for (n, next) in
        (1..).zip(all_nexts().into_iter().filter(|next| !matches!(next, Next::Complete(_))))
    {
        let run = first.run_one(n).await;
        let entries = vec![step(1, json("1")), step(2, json("2"))];
        first.apply(Transition { entries, ..Transition::new(run.0, run.1, GO_ON) }).await.unwrap();
        let attempt = first.info(n).await.attempt;

        let committed = store.commit(transitions([knows(run, 3, 4, next.clone())])).await;
        assert!(
            committed.transitions[0].is_err(),
            "accepted {next:?} behind an entry that is not there"
        );
        assert_eq!(store.state(n).await, TaskState::Pending, "{next:?}");
        assert!(
            store.apply(knows(run, 2, 3, next.clone())).await.is_err(),
            "the run is over: {next:?}"
        );
        let again = store.claim_one(2).await;
        assert_eq!(
            (again.task_id, again.attempt),
            (run.0, attempt),
            "the attempt counted: {next:?}"
        );
        assert_ne!(again.run_id, run.1);
        let journal = again.journal.clone().unwrap_or_default();
        assert_eq!(journal.iter().map(|entry| entry.seq).collect::<Vec<_>>(), [1, 2], "{next:?}");
        // When the journal ends where the run expects, the transition is accepted.
        assert!(store.apply(knows(of(&again), 2, 3, GO_ON)).await.is_ok());
        assert!(store.apply(knows(of(&again), 3, 4, complete())).await.is_ok());
    }
    let empty = first.run_one(50).await;
    assert!(
        store.apply(knows(empty, 0, 1, GO_ON)).await.is_ok(),
        "nothing is before the first entry"
    );
    let one_of_many = first.run_one(51).await;
    let batch = transitions([knows(empty, 1, 2, GO_ON), knows(one_of_many, 7, 8, GO_ON)]);
    let committed = store.commit(batch).await;
    assert!(committed.transitions[0].is_ok() && committed.transitions[1].is_err());
}
