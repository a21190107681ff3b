//! A parent learns how its children ended.

use stepwell_core::store::{
    Command, CommandOutcome, Finish, KeyedSpawn, NewTask, Next, Purge, Spawned, Transition,
};
use stepwell_core::{TaskState, deleted};

use crate::backend::Backend;
use crate::handle::of;
use crate::make::*;
use crate::setup::Setup;

/// The end of a child wakes a parent that awaits it, whichever way it ends, and is kept for one that comes
/// later.
pub async fn children(backend: &impl Backend) {
    let (_setup, store) = Setup::with_handle(backend).await;
    let ends = [
        (complete(), Finish::Completed(json("\"output\""))),
        (Next::Fail(failure("no").permanent()), Finish::Failed(failure("no").permanent())),
        (Next::Cancel, Finish::Cancelled),
    ];
    for (n, (next, finish)) in (1..).map(|n| n * 10).zip(ends) {
        let parent = store.run_one(n).await;
        let mut spawning = Transition::new(parent.0, parent.1, GO_ON);
        spawning.spawns = vec![child_of(n, n + 1), child_of(n, n + 2)];
        store.apply(spawning).await.unwrap();
        assert_eq!(store.info(n + 1).await.parent, Some(parent.0));
        let children: Vec<_> = store.claim(1, 2).await.iter().map(of).collect();
        assert!(store.apply(awaiting(parent, [for_child(n + 1)], SUSPEND)).await.unwrap().suspended);

        store.next(children[1], complete()).await;
        assert_eq!(store.state(n).await, TaskState::Suspended, "it does not await that child");
        let committed =
            store.commit(transitions([Transition::new(children[0].0, children[0].1, next)])).await;
        assert_eq!(committed.news.finished, [(children[0].0, finish.clone())]);
        let woken = store.claim_one(1).await;
        assert_eq!(woken.task_id, parent.0);
        assert_eq!(woken.facts.children, [(children[0].0, finish.clone())]);

        // One that has ended before it is awaited, and one that is gone.
        let looked = store.apply(awaiting(of(&woken), [for_child(n + 2)], SUSPEND)).await.unwrap();
        assert!(!looked.suspended, "it was suspended, though its child has ended");
        assert_eq!(looked.facts.children.len(), 2);
        assert_eq!(store.command(Command::Delete(children[1].0)).await, needed_by(n));
        let mut ends = store.look(of(&woken)).await.children;
        ends.sort_by_key(|(task_id, _)| *task_id);
        let other = Finish::Completed(json("\"output\""));
        assert_eq!(ends, [(children[0].0, finish), (children[1].0, other)]);
        store.next(of(&woken), complete()).await;
        assert_eq!(store.command(Command::Delete(children[1].0)).await, CommandOutcome::Done);
    }

    // One that is not there.
    let parent = store.run_one(100).await;
    let ends = store.apply(awaiting(parent, [for_child(101)], SUSPEND)).await.unwrap().facts.children;
    assert_eq!(ends, [(task_id(101), Finish::Failed(deleted()))]);
}

fn needed_by(n: u128) -> CommandOutcome {
    CommandOutcome::Needed { by: task_id(n) }
}

/// A finished task stays as long as its parent has not ended, or another task waits for it, whoever deletes it: a client,
/// or a purge, whose limit such tasks do not use up.
pub async fn needed_tasks(backend: &impl Backend) {
    let (setup, store) = Setup::with_handle(backend).await;
    let parents = store.run([new_task(1), new_task(2), new_task(3), new_task(4)]).await;
    let children = store.run((11..=30).map(|n| child_of(1, n))).await;
    let other = store.run([with_key("key", 31), new_task(32), child_of(2, 33), child_of(9, 34)]).await;
    for run in children.iter().chain(&other) {
        store.next(*run, complete()).await;
    }
    // It waits, and runs.
    store.apply(awaiting(parents[2], [for_child(31)], GO_ON)).await.unwrap();
    store.next(parents[1], complete()).await;
    setup.advance(SECOND);
    let now = setup.now();
    let purge = async |limit| store.0.purge(Purge { before: now, state: None, limit }).await.unwrap();
    let there = async || {
        let mut ids: Vec<_> = store.all().await.iter().map(|task| task.task_id).collect();
        ids.sort_unstable();
        ids
    };
    let ids = |ids: &[u128]| ids.iter().copied().map(task_id).collect::<Vec<_>>();
    let kept: Vec<_> = (11..=30).collect();
    for n in [11, 30] {
        assert_eq!(store.command(Command::Delete(task_id(n))).await, needed_by(1));
    }
    assert_eq!(store.command(Command::Delete(task_id(31))).await, needed_by(3));
    assert_eq!(purge(3).await, 3, "behind those that are kept");
    assert_eq!(purge(3).await, 1);
    assert_eq!(purge(3).await, 0);
    assert_eq!(there().await, ids(&[&[1, 3, 4][..], &kept, &[31]].concat()));

    // A parent that is suspended, or that waits for its next attempt, has not ended.
    assert!(store.apply(awaiting(parents[0], [for_event("never")], SUSPEND)).await.unwrap().suspended);
    assert_eq!(purge(100).await, 0);
    store.command(Command::Cancel(task_id(1))).await;
    let removed = Transition { waits_removed: vec![for_child(31).key], ..awaiting(parents[2], [], GO_ON) };
    store.apply(removed).await.unwrap();
    assert_eq!(store.command(Command::Delete(task_id(11))).await, CommandOutcome::Done);
    assert_eq!(purge(7).await, 7);
    assert_eq!(purge(100).await, 13);
    assert_eq!(there().await, ids(&[1, 3, 4]), "those that ended at this moment, and those that have not");
}

/// A finished task that others were answered with, because it has the idempotency key of their child, stays until the last of
/// them has ended, though none of them waits for it yet.
pub async fn answered_tasks(backend: &impl Backend) {
    let (setup, store) = Setup::with_handle(backend).await;
    let others = store.run([new_task(1), new_task(2), with_key("key", 31), new_task(32)]).await;
    for run in &others[2..] {
        store.next(*run, complete()).await;
    }
    setup.advance(SECOND);
    let now = setup.now();
    let purge = async || store.0.purge(Purge { before: now, state: None, limit: 10 }).await.unwrap();
    for n in [1, 0] {
        let (task_id, run_id) = others[n];
        let task = NewTask { parent: Some(task_id), ..with_key("key", 99) };
        let keyed = KeyedSpawn { task, entry: step(1, json("1")) };
        let asking = Transition { keyed: Some(Box::new(keyed)), ..Transition::new(task_id, run_id, GO_ON) };
        let answer = store.apply(asking).await.unwrap().keyed;
        assert!(matches!(answer, Some(Spawned::Existing { .. })), "{answer:?}");
    }
    assert_eq!(purge().await, 1, "the one that nobody was answered with");
    assert_eq!(store.command(Command::Delete(task_id(31))).await, needed_by(1));
    store.next(others[0], complete()).await;
    assert_eq!(store.command(Command::Delete(task_id(31))).await, needed_by(2));
    assert_eq!(purge().await, 0);
    store.next(others[1], Next::Fail(failure("no").permanent())).await;
    // Whoever is tried again needs it again.
    store.command(Command::Retry(task_id(2))).await;
    assert_eq!(store.command(Command::Delete(task_id(31))).await, needed_by(2));
    store.command(Command::Cancel(task_id(2))).await;
    assert_eq!(purge().await, 1);
}

/// The end of a child is told to a parent that runs, and a parent may be gone when its child ends.
pub async fn children_of_running_parents(backend: &impl Backend) {
    let (_setup, store) = Setup::with_handle(backend).await;
    let parent = store.run_one(1).await;
    let children = store.run([child_of(1, 2), child_of(1, 3), child_of(1, 4)]).await;
    store.apply(awaiting(parent, [for_child(2)], GO_ON)).await.unwrap();
    let ends = |n: usize| transitions([Transition::new(children[n].0, children[n].1, complete())]);
    assert_eq!(store.commit(ends(0)).await.news.poked, [parent.0]);
    assert_eq!(store.claimed(1, 5).await.poked, [parent.0]);
    assert_eq!(store.look(parent).await.children.len(), 1);
    assert!(store.commit(ends(1)).await.news.poked.is_empty(), "that child is not awaited");

    store.next(parent, complete()).await;
    assert_eq!(store.state(4).await, TaskState::Running, "a child goes on when its parent completes");
    store.command(Command::Delete(parent.0)).await;
    assert!(store.commit(ends(2)).await.transitions[0].is_ok());
    assert_eq!(store.info(4).await.parent, Some(parent.0));
}
