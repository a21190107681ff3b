//! A parent learns how its children ended.

use stepwell_core::store::{Command, Finish, Next, Transition};
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
        store.command(Command::Delete(children[1].0)).await;
        let mut ends = store.look(of(&woken)).await.children;
        ends.sort_by_key(|(task_id, _)| *task_id);
        assert_eq!(ends, [(children[0].0, finish), (children[1].0, Finish::Failed(deleted()))]);
        store.next(of(&woken), complete()).await;
    }
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
