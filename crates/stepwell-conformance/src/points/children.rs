//! The points of children: a parent learns how its children ended.

use stepwell_core::store::{
    Command, CommandOutcome, Finish, KeyedSpawn, NewTask, Next, Purge, Spawned, Transition,
};
use stepwell_core::{RunId, TaskId, TaskState, deleted};

use crate::backend::Backend;
use crate::handle::{Handle, of};
use crate::make::*;
use crate::setup::Setup;

/// Checks that each kind of end of a child wakes a parent that awaits the child. The end is kept
/// for a parent that asks later.
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
        assert!(
            store.apply(awaiting(parent, [for_child(n + 1)], SUSPEND)).await.unwrap().suspended
        );

        store.next(children[1], complete()).await;
        assert_eq!(store.state(n).await, TaskState::Suspended, "it does not await that child");
        let committed =
            store.commit(transitions([Transition::new(children[0].0, children[0].1, next)])).await;
        assert_eq!(committed.news.finished, [(children[0].0, finish.clone())]);
        let woken = store.claim_one(1).await;
        assert_eq!(woken.task_id, parent.0);
        assert_eq!(woken.facts.children, [(children[0].0, finish.clone())]);

        // One child has ended before it is awaited, and one is deleted.
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

    // This child does not exist.
    let parent = store.run_one(100).await;
    let ends =
        store.apply(awaiting(parent, [for_child(101)], SUSPEND)).await.unwrap().facts.children;
    assert_eq!(ends, [(task_id(101), Finish::Failed(deleted()))]);
}

fn needed_by(n: u128) -> CommandOutcome {
    CommandOutcome::Needed { by: task_id(n) }
}

fn ids(ids: &[u128]) -> Vec<TaskId> {
    ids.iter().copied().map(task_id).collect()
}

async fn there(store: &Handle) -> Vec<TaskId> {
    let mut ids: Vec<_> = store.all().await.iter().map(|task| task.task_id).collect();
    ids.sort_unstable();
    ids
}

/// Checks that a finished task stays while its parent has not completed or another task waits for
/// it. The rule holds for the deletion by a client and for a purge, whose limit does not count such
/// tasks.
pub async fn needed_tasks(backend: &impl Backend) {
    let (setup, store) = Setup::with_handle(backend).await;
    let parents = store.run([new_task(1), new_task(2), new_task(3), new_task(4)]).await;
    let children = store.run((11..=30).map(|n| child_of(1, n))).await;
    let other =
        store.run([with_key("key", 31), new_task(32), child_of(2, 33), child_of(9, 34)]).await;
    for run in children.iter().chain(&other) {
        store.next(*run, complete()).await;
    }
    // Task 3 waits for task 31, and runs.
    store.apply(awaiting(parents[2], [for_child(31)], GO_ON)).await.unwrap();
    store.next(parents[1], complete()).await;
    setup.advance(SECOND);
    let now = setup.now();
    let purge =
        async |limit| store.0.purge(Purge { before: now, state: None, limit }).await.unwrap();
    let kept: Vec<_> = (11..=30).collect();
    for n in [11, 30] {
        assert_eq!(store.command(Command::Delete(task_id(n))).await, needed_by(1));
    }
    assert_eq!(store.command(Command::Delete(task_id(31))).await, needed_by(3));
    assert_eq!(purge(3).await, 3, "behind those that are kept");
    assert_eq!(purge(3).await, 1);
    assert_eq!(purge(3).await, 0);
    assert_eq!(there(&store).await, ids(&[&[1, 3, 4][..], &kept, &[31]].concat()));

    // A parent that is suspended, or that waits for its next attempt, has not ended.
    assert!(
        store.apply(awaiting(parents[0], [for_event("never")], SUSPEND)).await.unwrap().suspended
    );
    assert_eq!(purge(100).await, 0);
    let removed =
        Transition { waits_removed: vec![for_child(31).key], ..awaiting(parents[2], [], GO_ON) };
    store.apply(removed).await.unwrap();
    // The same holds for a parent that was cancelled, or has failed. The parent may be retried, and
    // then joins its children.
    store.command(Command::Cancel(task_id(1))).await;
    assert_eq!(store.command(Command::Delete(task_id(11))).await, needed_by(1));
    assert_eq!(purge(100).await, 1, "the one that nobody waits for any more");
    store.command(Command::Retry(task_id(1))).await;
    let again = store.claim_one(1).await;
    store.next(of(&again), Next::Fail(failure("no").permanent())).await;
    assert_eq!(store.command(Command::Delete(task_id(11))).await, needed_by(1));
    assert_eq!(purge(100).await, 0);
    store.command(Command::Retry(task_id(1))).await;
    let again = store.claim_one(1).await;
    let ends =
        store.apply(awaiting(of(&again), [for_child(11)], LOOK)).await.unwrap().facts.children;
    assert_eq!(
        ends,
        [(task_id(11), Finish::Completed(json("\"output\"")))],
        "it is there to be joined"
    );
    store.next(of(&again), complete()).await;
    assert_eq!(store.command(Command::Delete(task_id(11))).await, CommandOutcome::Done);
    assert_eq!(purge(7).await, 7);
    assert_eq!(purge(100).await, 12);
    assert_eq!(
        there(&store).await,
        ids(&[1, 3, 4]),
        "those that ended at this moment, and those that have not"
    );
}

/// Checks that a purge removes a family that has failed, once its parent's time has come. The purge
/// removes parents first and their children after them, up to the limit. A parent that is not
/// purged keeps its children.
pub async fn purged_families(backend: &impl Backend) {
    let (setup, store) = Setup::with_handle(backend).await;
    // The first family has a parent that ends later. The second one has three generations, and the
    // last generation has lower numbers than its parents.
    let late = store.run([new_task(1), child_of(1, 2)]).await;
    let family =
        [new_task(20), child_of(20, 21), child_of(20, 22), child_of(21, 10), child_of(22, 11)];
    let runs = store.run(family).await;
    for run in [late[1]].iter().chain(&runs[1..]).rev() {
        store.next(*run, Next::Fail(failure("no").permanent())).await;
    }
    setup.advance(SECOND);
    let in_between = setup.now();
    store.next(runs[0], Next::Fail(failure("no").permanent())).await;
    setup.advance(SECOND);
    let before_late = setup.now();
    store.next(late[0], Next::Fail(failure("no").permanent())).await;
    setup.advance(SECOND);
    let purge =
        async |before, state, limit| store.0.purge(Purge { before, state, limit }).await.unwrap();

    assert_eq!(purge(in_between, None, 100).await, 0, "their parents may be retried");
    assert_eq!(purge(before_late, Some(TaskState::Completed), 100).await, 0);
    assert_eq!(purge(before_late, None, 2).await, 2, "as many as were asked for");
    assert!(store.find(20).await.is_none(), "a child was removed before its parent");
    let left = there(&store).await;
    for child in [10, 11] {
        let parent = child + 11;
        assert!(left.contains(&task_id(child)) || !left.contains(&task_id(parent)), "{left:?}");
    }
    assert_eq!(purge(before_late, None, 100).await, 3);
    assert_eq!(there(&store).await, ids(&[1, 2]));
    assert_eq!(purge(setup.now(), None, 100).await, 2, "a parent and its child at once");

    // This family has many generations.
    let generations = (100..160).map(|n| if n == 100 { new_task(n) } else { child_of(n - 1, n) });
    store.run(generations).await;
    store.command(Command::Cancel(task_id(100))).await;
    for n in 100..160 {
        let _ = store.apply(Transition::new(task_id(n), run_id(n), Next::Cancel)).await;
    }
    assert_eq!(store.count(TaskState::Cancelled).await, 60);
    setup.advance(SECOND);
    assert_eq!(store.command(Command::Delete(task_id(130))).await, needed_by(129));
    assert_eq!(purge(setup.now(), None, 40).await, 40);
    assert_eq!(purge(setup.now(), None, 40).await, 20);
    assert_eq!(there(&store).await, []);
}

async fn is_answered(store: &Handle, asks: (TaskId, RunId), key: &str, with: u128) {
    let task = NewTask { parent: Some(asks.0), ..with_key(key, 99) };
    let keyed = KeyedSpawn { task, entry: step(1, json("1")) };
    let asking =
        Transition { keyed: Some(Box::new(keyed)), ..Transition::new(asks.0, asks.1, GO_ON) };
    let answer = store.apply(asking).await.unwrap().keyed;
    assert!(
        matches!(answer, Some(Spawned::Existing { task_id: other, .. }) if other == task_id(with)),
        "{answer:?}"
    );
}

/// Checks a finished task that answered other tasks' spawns of a child with its idempotency key.
/// The task stays until the last of these tasks has completed, even when none of them waits for it
/// yet.
pub async fn answered_tasks(backend: &impl Backend) {
    let (setup, store) = Setup::with_handle(backend).await;
    let others = store.run([new_task(1), new_task(2), with_key("key", 31), new_task(32)]).await;
    for run in &others[2..] {
        store.next(*run, complete()).await;
    }
    setup.advance(SECOND);
    let now = setup.now();
    let purge =
        async || store.0.purge(Purge { before: now, state: None, limit: 10 }).await.unwrap();
    for n in [1, 0] {
        is_answered(&store, others[n], "key", 31).await;
    }
    assert_eq!(purge().await, 1, "the one that nobody was answered with");
    assert_eq!(store.command(Command::Delete(task_id(31))).await, needed_by(1));
    store.next(others[0], complete()).await;
    assert_eq!(store.command(Command::Delete(task_id(31))).await, needed_by(2));
    assert_eq!(purge().await, 0);
    // A task that has failed, or was cancelled, may be retried and then needs the child.
    store.next(others[1], Next::Fail(failure("no").permanent())).await;
    assert_eq!(store.command(Command::Delete(task_id(31))).await, needed_by(2));
    assert_eq!(purge().await, 0);
    store.command(Command::Retry(task_id(2))).await;
    store.command(Command::Cancel(task_id(2))).await;
    assert_eq!(store.command(Command::Delete(task_id(31))).await, needed_by(2));
    assert_eq!(purge().await, 0);
    // A task that has completed does not need the child, and neither does one that was deleted.
    store.command(Command::Retry(task_id(2))).await;
    let again = store.claim_one(1).await;
    store.next(of(&again), complete()).await;
    assert_eq!(purge().await, 1);

    let [failed] = store.run([new_task(3)]).await.try_into().ok().unwrap();
    for n in [33, 34] {
        let key = format!("key{n}");
        let run = store.run([with_key(&key, n)]).await[0];
        store.next(run, complete()).await;
        is_answered(&store, failed, &key, n).await;
    }
    store.next(failed, Next::Fail(failure("no").permanent())).await;
    assert_eq!(store.command(Command::Delete(task_id(33))).await, needed_by(3));
    store.command(Command::Delete(task_id(3))).await;
    assert_eq!(store.command(Command::Delete(task_id(33))).await, CommandOutcome::Done);
    assert_eq!(there(&store).await, ids(&[1, 2, 34]));
}

/// Checks tasks that were answered with each other, with themselves, or with their own parents.
/// Such tasks keep each other until all of them have ended, and no longer.
pub async fn answered_with_each_other(backend: &impl Backend) {
    let (setup, store) = Setup::with_handle(backend).await;
    let fail = || Next::Fail(failure("no").permanent());
    let family = |first: u128| {
        let child = NewTask { parent: Some(task_id(first)), ..new_task(first + 1) };
        let grandchild = NewTask { parent: Some(task_id(first + 1)), ..new_task(first + 2) };
        [with_key(&format!("key{first}"), first), child, grandchild]
    };
    let runs = store.run([with_key("self", 1), with_key("one", 2), with_key("other", 3)]).await;
    is_answered(&store, runs[0], "self", 1).await;
    is_answered(&store, runs[1], "other", 3).await;
    is_answered(&store, runs[2], "one", 2).await;
    let families = store.run(family(10).into_iter().chain(family(20))).await;
    is_answered(&store, families[2], "key10", 10).await;
    is_answered(&store, families[5], "key20", 20).await;

    store.next(runs[0], fail()).await;
    assert_eq!(
        store.command(Command::Delete(task_id(1))).await,
        CommandOutcome::Done,
        "it needs itself"
    );
    store.next(runs[1], fail()).await;
    assert_eq!(
        store.command(Command::Delete(task_id(2))).await,
        needed_by(3),
        "that one may join it"
    );
    store.next(runs[2], fail()).await;
    assert_eq!(
        store.command(Command::Delete(task_id(2))).await,
        CommandOutcome::Done,
        "it needs what needs it"
    );

    for run in [families[0], families[3]] {
        store.next(run, fail()).await;
    }
    assert_eq!(store.command(Command::Delete(task_id(10))).await, needed_by(12));
    for run in [families[1], families[2], families[4], families[5]] {
        store.next(run, fail()).await;
    }
    assert_eq!(store.command(Command::Delete(task_id(12))).await, needed_by(11));
    assert_eq!(store.command(Command::Delete(task_id(11))).await, needed_by(10));
    assert_eq!(store.command(Command::Delete(task_id(10))).await, CommandOutcome::Done);
    setup.advance(SECOND);
    let purge = Purge { before: setup.now(), state: None, limit: 100 };
    assert_eq!(store.0.purge(purge).await.unwrap(), 6);
    assert_eq!(there(&store).await, []);
}

/// Checks that a running parent is notified of a child's end, and that a parent may be gone when
/// its child ends.
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
    assert_eq!(
        store.state(4).await,
        TaskState::Running,
        "a child goes on when its parent completes"
    );
    store.command(Command::Delete(parent.0)).await;
    assert!(store.commit(ends(2)).await.transitions[0].is_ok());
    assert_eq!(store.info(4).await.parent, Some(parent.0));
}
