//! The points of children with a key, which the store may have already.

use stepwell_core::store::{Command, Finish, NewTask, Next, Refused, Spawned, Transition};
use stepwell_core::{Coalesce, TaskState, deleted};

use crate::backend::Backend;
use crate::handle::of;
use crate::make::*;
use crate::setup::{Setup, rounds, together};

const CREATED: Spawned = Spawned::Created { claimed: false };

fn coalescing(how: Coalesce, n: u128) -> NewTask {
    NewTask { concurrency_key: Some(name("turn")), coalesce: Some(how), ..new_task(n) }
}

fn waiting(n: u128) -> Spawned {
    Spawned::Waiting { task_id: task_id(n), run_id: run_id(n) }
}

/// Checks that a child is created together with its parent's entry, or that the spawn is answered
/// with an existing task. In the second case the entry is not written, and the rest of the
/// transition stands.
pub async fn keyed_children(backend: &impl Backend) {
    let (_setup, store) = Setup::with_handle(backend).await;
    let parent = store.run_one(1).await;
    let spawned = async |transition| store.apply(transition).await.unwrap().keyed;
    assert_eq!(spawned(keyed(parent, 1, with_key("a", 11))).await, Some(CREATED));
    assert_eq!(store.info(11).await.parent, Some(parent.0));
    let existing =
        |n: u128, attempt| Spawned::Existing { task_id: task_id(n), run_id: run_id(n), attempt };
    assert_eq!(spawned(keyed(parent, 2, with_key("a", 12))).await, Some(existing(11, 0)));

    // The same holds with all other parts of a transition, and with a client's spawns in the batch.
    store.spawn([with_key("b", 20)]).await;
    let mut busy = keyed(parent, 4, with_key("b", 13));
    busy.entries = vec![step(3, json("1"))];
    busy.spawns = vec![child_of(1, 14), with_key("c", 15)];
    busy.messages = vec![message(20, "topic", json("2"))];
    let mut batch = transitions([busy]);
    batch.spawns = vec![new_task(21), with_key("b", 22), with_key("d", 23)];
    let committed = store.commit(batch).await;
    assert_eq!(committed.transitions[0].as_ref().unwrap().keyed, Some(existing(20, 0)));
    assert_eq!(committed.spawns, [CREATED, existing(20, 0), CREATED]);
    for (n, there) in
        [(12, false), (13, false), (14, true), (15, true), (21, true), (22, false), (23, true)]
    {
        assert_eq!(store.find(n).await.is_some(), there, "task {n}");
    }
    let seqs = async || store.journal(1).await.iter().map(|entry| entry.seq).collect::<Vec<_>>();
    assert_eq!(seqs().await, [1, 3], "the entries of those that were created, and the step's");

    // These children have concurrency keys.
    use Coalesce::{Reject, Replace, Reuse};
    assert_eq!(spawned(keyed(parent, 4, coalescing(Reuse, 30))).await, Some(CREATED));
    assert_eq!(spawned(keyed(parent, 5, coalescing(Reuse, 31))).await, Some(waiting(30)));
    assert_eq!(spawned(keyed(parent, 5, coalescing(Reject, 32))).await, Some(waiting(30)));
    let committed = store.commit(transitions([keyed(parent, 5, coalescing(Replace, 33))])).await;
    assert_eq!(committed.transitions[0].as_ref().unwrap().keyed, Some(CREATED));
    assert_eq!(
        committed.news.finished,
        [(task_id(30), Finish::Cancelled)],
        "those who wait for it are told"
    );
    assert!(store.find(31).await.is_none() && store.find(32).await.is_none());
    assert_eq!(seqs().await, [1, 3, 4, 5]);

    // A run that does not own its task brings nothing.
    let stranger = (parent.0, run_id(99));
    let refused = store.apply(keyed(stranger, 6, with_key("e", 40))).await;
    assert!(matches!(refused, Err(Refused)) && store.find(40).await.is_none());

    // A task that the parent did not create is not cancelled with it.
    store.next(parent, Next::Cancel).await;
    assert_eq!(store.state(20).await, TaskState::Pending);
    for n in [11, 14, 33] {
        assert_eq!(store.state(n).await, TaskState::Cancelled, "task {n}");
    }
}

/// Checks many parents that spawn the same child at once. One parent creates the child and has the
/// entry, and all parents receive the child.
pub async fn keyed_children_under_races(backend: &impl Backend) {
    let setup = Setup::new(backend).await;
    let handles = setup.handles(4).await;
    for round in rounds() {
        let first = (round + 1) * 1_000;
        let parents = handles[0].run((first..first + 8).map(new_task)).await;
        let racing = (0..8_u128).zip(parents.clone()).zip(handles.iter().cycle()).map(
            |((n, parent), store)| {
                let (store, key) = (store.clone(), format!("round {round}"));
                let child = match round % 2 {
                    0 => with_key(&key, first + 100 + n),
                    _ => NewTask {
                        concurrency_key: Some(name(&key)),
                        coalesce: Some(Coalesce::Reuse),
                        ..new_task(first + 100 + n)
                    },
                };
                async move { store.apply(keyed(parent, 1, child)).await.unwrap().keyed.unwrap() }
            },
        );
        let spawned = together(racing).await;
        let created = spawned.iter().filter(|spawned| **spawned == CREATED).count();
        assert_eq!(created, 1, "{spawned:?}");
        let child =
            (first + 100..first + 108).zip(&spawned).find(|(_, spawned)| **spawned == CREATED);
        let child = child.unwrap().0;
        for ((n, parent), spawned) in (first..).zip(parents).zip(spawned) {
            let journal = handles[0].journal(n).await;
            match spawned {
                Spawned::Created { .. } => {
                    assert_eq!(journal.len(), 1);
                    assert_eq!(handles[0].info(child).await.parent, Some(parent.0));
                }
                Spawned::Existing { task_id: id, .. } | Spawned::Waiting { task_id: id, .. } => {
                    assert!(journal.is_empty() && id == task_id(child), "{journal:?}");
                }
            }
            handles[0].next(parent, complete()).await;
        }
    }
}

/// Checks that a task can join a task that it did not spawn: while that task runs, long after it
/// ended, and after it was deleted.
pub async fn joining_others(backend: &impl Backend) {
    let (setup, store) = Setup::with_handle(backend).await;
    let runs = store.run([new_task(1), new_task(2), new_task(3)]).await;
    let other = store.run([NewTask { parent: Some(task_id(3)), ..with_key("c", 13) }]).await[0];
    for run in &runs[..2] {
        assert!(store.apply(awaiting(*run, [for_child(13)], SUSPEND)).await.unwrap().suspended);
    }
    store.apply(awaiting(runs[2], [for_child(13)], GO_ON)).await.unwrap();
    let committed =
        store.commit(transitions([Transition::new(other.0, other.1, complete())])).await;
    assert_eq!(committed.news.poked, [runs[2].0]);
    let ended = Finish::Completed(json("\"output\""));
    let woken = store.claim(1, 9).await;
    assert_eq!(woken.iter().map(|task| task.task_id).collect::<Vec<_>>(), [runs[0].0, runs[1].0]);
    for task in &woken {
        assert_eq!(task.facts.children, [(other.0, ended.clone())]);
    }

    setup.advance(SECOND * 1_000_000);
    store.signal(heartbeat(1)).await;
    let late = store.run_one(4).await;
    let looked = store.apply(awaiting(late, [for_child(13)], SUSPEND)).await.unwrap();
    assert_eq!((looked.suspended, looked.facts.children), (false, vec![(other.0, ended)]));
    for run in runs {
        let _ = store.apply(Transition::new(run.0, run.1, complete())).await;
    }
    store.next(late, complete()).await;
    store.command(Command::Delete(other.0)).await;
    let later = store.run_one(5).await;
    let looked = store.apply(awaiting(later, [for_child(13)], SUSPEND)).await.unwrap();
    assert_eq!(looked.facts.children, [(other.0, Finish::Failed(deleted()))]);

    // A task is retried after it was awaited. The next end of the task wakes each task that still
    // waits for it.
    let failing = store.run([with_key("d", 20)]).await[0];
    let waiter = store.run_one(6).await;
    assert!(store.apply(awaiting(waiter, [for_child(20)], SUSPEND)).await.unwrap().suspended);
    store.next(failing, Next::Fail(failure("no").permanent())).await;
    store.command(Command::Retry(failing.0)).await;
    let mut claimed = store.claim(1, 9).await;
    claimed.sort_by_key(|task| task.task_id);
    assert!(claimed[0].facts.children.is_empty(), "it runs again");
    assert!(store.apply(Transition::new(waiter.0, waiter.1, SUSPEND)).await.unwrap().suspended);
    store.next(of(&claimed[1]), complete()).await;
    assert_eq!(store.claim_one(1).await.facts.children.len(), 1);
}
