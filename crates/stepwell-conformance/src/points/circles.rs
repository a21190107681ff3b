//! The points of circles: tasks that wait for each other, so that none of them would ever continue.

use stepwell_core::store::{Applied, Command, Finish, NewTask, Next, Transition};
use stepwell_core::{RunId, TaskId, TaskState, blocked};

use crate::backend::Backend;
use crate::handle::{Handle, of};
use crate::make::*;
use crate::setup::{Setup, rounds, together};

fn keyed_by(key: &str, task: NewTask) -> NewTask {
    NewTask { concurrency_key: Some(name(key)), ..task }
}

/// Spawns the tasks, claims those that are claimable, and returns the runs by task id.
async fn begin(store: &Handle, tasks: impl IntoIterator<Item = NewTask>) -> Vec<(TaskId, RunId)> {
    if !store.signal(heartbeat(1)).await {
        store.signal(register(1)).await;
    }
    store.spawn(tasks).await;
    let mut runs: Vec<_> = store.claim(1, 100).await.iter().map(of).collect();
    runs.sort_unstable();
    runs
}

/// Returns the child for which a task would wait forever, when its facts say so.
fn told(applied: &Applied) -> Option<TaskId> {
    match applied.facts.children.as_slice() {
        [(child, Finish::Failed(failure))] if *failure == blocked() => Some(*child),
        _ => None,
    }
}

async fn joins(store: &Handle, run: (TaskId, RunId), children: &[u128]) -> Applied {
    store.apply(awaiting(run, children.iter().map(|n| for_child(*n)), SUSPEND)).await.unwrap()
}

/// Joins the children, and checks that the task is suspended.
async fn waits(store: &Handle, run: (TaskId, RunId), children: &[u128]) {
    let applied = joins(store, run, children).await;
    assert!(applied.suspended && applied.facts.is_empty(), "{applied:?}");
}

/// Checks that a task that would close a circle stays running, and that its facts name the child.
/// The other tasks wait, and continue once the first one has ended.
pub async fn circles(backend: &impl Backend) {
    let (_setup, store) = Setup::with_handle(backend).await;
    // A key occurs twice in a chain of joins. Each of the two tasks that can close the circle does
    // so once.
    for first in [100, 200] {
        one_key_twice(&store, first).await;
    }
    two_keys(&store).await;
    joins_in_one_batch(&store).await;
}

/// Checks a circle of three tasks, the first of which has the number `first`. It holds the key that
/// the last one waits for. The order in which the tasks suspend depends on the number.
async fn one_key_twice(store: &Handle, first: u128) {
    let key = first.to_string();
    let [holds, joins_it, behind] = [first, first + 1, first + 2];
    let tasks = [
        keyed_by(&key, new_task(holds)),
        child_of(holds, joins_it),
        keyed_by(&key, child_of(joins_it, behind)),
    ];
    let runs = begin(store, tasks).await;
    assert_eq!(runs.len(), 2, "the last waits for its turn");
    let mut ends = [(runs[0], joins_it), (runs[1], behind)];
    if first == 200 {
        ends.reverse();
    }
    let [(other, its_child), (closes, child)] = ends;
    waits(store, other, &[its_child]).await;
    let applied = joins(store, closes, &[child]).await;
    assert_eq!((applied.suspended, told(&applied)), (false, Some(task_id(child))));
    // The facts name the child each time that the task tries to suspend.
    let again = store.next(closes, SUSPEND).await;
    assert_eq!((again.suspended, told(&again)), (false, Some(task_id(child))));
    assert!(store.look(closes).await.is_empty(), "a look finds what has arrived only");
    store.next(closes, Next::Fail(failure("blocked").permanent())).await;
    let went_on = store.claim_one(1).await;
    assert_eq!(went_on.task_id, if first == 100 { other.0 } else { task_id(behind) });
    store.next(of(&went_on), complete()).await;
    for task in store.claim(1, 10).await {
        store.next(of(&task), complete()).await;
    }
    assert_eq!(store.count(TaskState::Suspended).await, 0);
}

/// Checks a circle of two tasks. Each task holds one key, and joins a child that waits for the
/// other key.
async fn two_keys(store: &Handle) {
    let runs = begin(
        store,
        [
            keyed_by("a", new_task(301)),
            keyed_by("b", new_task(302)),
            keyed_by("b", child_of(301, 303)),
            keyed_by("a", child_of(302, 304)),
        ],
    )
    .await;
    waits(store, runs[0], &[303]).await;
    let applied = joins(store, runs[1], &[304]).await;
    assert_eq!((applied.suspended, told(&applied)), (false, Some(task_id(304))));
    store.next(runs[1], complete()).await;
    let next = store.claim_one(1).await;
    assert_eq!(next.task_id, task_id(303));
    store.next(of(&next), complete()).await;
    let woken = store.claim_one(1).await;
    assert_eq!((woken.task_id, woken.facts.children.len()), (task_id(301), 1));
    store.next(of(&woken), complete()).await;
    store.next(of(&store.claim_one(1).await), complete()).await;
}

/// Checks tasks that join each other in one batch, and a task that joins itself.
async fn joins_in_one_batch(store: &Handle) {
    let runs = store.run([with_key("c", 401), with_key("d", 402), with_key("e", 403)]).await;
    let suspending =
        [(1, 401), (0, 402)].map(|(n, child)| awaiting(runs[n], [for_child(child)], SUSPEND));
    let applied = store.commit(transitions(suspending)).await.transitions;
    let applied: Vec<_> = applied.into_iter().map(Result::unwrap).collect();
    assert_eq!(
        (applied[0].suspended, told(&applied[0])),
        (false, Some(task_id(401))),
        "the higher id is last"
    );
    assert!(applied[1].suspended);
    assert_eq!(told(&joins(store, runs[2], &[403]).await), Some(task_id(403)));
}

/// Checks that a task that something else may wake is in no circle. A task that waits for such a
/// task is in no circle either.
pub async fn ways_out_of_circles(backend: &impl Backend) {
    let (setup, store) = Setup::with_handle(backend).await;
    let later = setup.at(SECOND * 100);
    let unblocked = |n: u128| child_of(n, n + 3);
    for (n, (what, next, also)) in (1..).map(|n| n * 100).zip([
        ("an event", SUSPEND, Some(for_event("e"))),
        ("a message", SUSPEND, Some(for_message("m", 1))),
        ("a time", suspend_until(later), None),
        ("a child that is pending", SUSPEND, Some(for_child(100 * 4 + 3))),
    ]) {
        let key = n.to_string();
        let tasks = [
            keyed_by(&key, new_task(n)),
            child_of(n, n + 1),
            keyed_by(&key, child_of(n + 1, n + 2)),
        ];
        let runs = begin(&store, tasks).await;
        store.spawn([NewTask { queue: name("other"), ..unblocked(n) }]).await;
        let middle = awaiting(runs[1], [for_child(n + 2)].into_iter().chain(also), next);
        assert!(store.apply(middle).await.unwrap().suspended, "{what}");
        waits(&store, runs[0], &[n + 1]).await;
        assert_eq!(store.state(n).await, TaskState::Suspended, "{what}");
        // The task now waits for the child alone, and closes the circle.
        match n {
            100 => _ = store.emit(event("e", json("1"))).await,
            200 => _ = store.send(message(n + 1, "m", json("1"))).await,
            300 => setup.advance(SECOND * 100),
            _ => _ = store.command(Command::Cancel(task_id(n + 3))).await,
        }
        store.signal(heartbeat(1)).await;
        let woken = store.claim_one(1).await;
        assert_eq!(woken.task_id, task_id(n + 1), "{what}");
        let left: Vec<_> = store.waits_of(n + 1).await.into_iter().map(|wait| wait.key).collect();
        let received = woken.facts.messages.iter().map(|message| message.id).collect();
        let waits_removed = left.into_iter().filter(|key| *key != for_child(n + 2).key).collect();
        let alone = Transition { waits_removed, received, ..awaiting(of(&woken), [], SUSPEND) };
        assert_eq!(told(&store.apply(alone).await.unwrap()), Some(task_id(n + 2)), "{what}");
        store.next(of(&woken), complete()).await;
        for _ in 0..2 {
            let next = store.claim_one(1).await;
            store.next(of(&next), complete()).await;
        }
    }
}

/// Returns the tasks of a circle, from number `n` on, and pairs of a task and the child that it
/// joins.
fn circle(kind: u128, n: u128) -> (Vec<NewTask>, Vec<(u128, u128)>) {
    let key = |which: u128| format!("{n} {which}");
    match kind {
        // A chain of the tasks' own children, and a last task that waits for the turn of the first
        // one.
        0 => (
            vec![
                keyed_by(&key(0), new_task(n)),
                child_of(n, n + 1),
                child_of(n + 1, n + 2),
                keyed_by(&key(0), child_of(n + 2, n + 9)),
            ],
            vec![(n, n + 1), (n + 1, n + 2), (n + 2, n + 9)],
        ),
        // Each key is held by one task.
        1 => {
            let holding = (0..3).map(|i| keyed_by(&key(i), new_task(n + i)));
            let behind = (0..3).map(|i| keyed_by(&key((i + 1) % 3), child_of(n + i, n + 9 - i)));
            (holding.chain(behind).collect(), (0..3).map(|i| (n + i, n + 9 - i)).collect())
        }
        // These tasks have no parents.
        2 => (
            (0..4).map(|i| with_key(&key(i), n + i)).collect(),
            (0..4).map(|i| (n + i, n + (i + 1) % 4)).collect(),
        ),
        // This chain combines all of these cases.
        _ => (
            vec![
                keyed_by(&key(0), new_task(n)),
                child_of(n, n + 1),
                with_key(&key(1), n + 2),
                child_of(n + 2, n + 3),
                keyed_by(&key(0), child_of(n + 3, n + 9)),
            ],
            vec![(n, n + 1), (n + 1, n + 2), (n + 2, n + 3), (n + 3, n + 9)],
        ),
    }
}

/// Checks circles that close while all of their tasks suspend at once: exactly one task
/// stays running and learns of its circle.
pub async fn circles_under_races(backend: &impl Backend) {
    let setup = Setup::new(backend).await;
    let handles = setup.handles(4).await;
    for round in rounds() {
        let n = (round + 1) * 1_000;
        let (tasks, edges) = circle(round % 4, n);
        let runs = begin(&handles[0], tasks).await;
        assert_eq!(runs.len(), edges.len());
        let mut suspending = Vec::new();
        for (run, (n, child)) in runs.iter().zip(&edges) {
            assert_eq!(run.0, task_id(*n));
            let suspends = awaiting(*run, [for_child(*child)], SUSPEND);
            // A task may begin to wait earlier, and suspend only now.
            suspending.push(match round % 8 {
                0..4 => suspends,
                _ => {
                    handles[0].apply(Transition { next: GO_ON, ..suspends }).await.unwrap();
                    Transition::new(run.0, run.1, SUSPEND)
                }
            });
        }
        let racing = suspending.into_iter().zip(handles.iter().cycle()).map(|(suspends, store)| {
            let store = store.clone();
            async move { store.apply(suspends).await.unwrap() }
        });
        let applied = together(racing).await;
        let closing: Vec<_> = applied.iter().filter(|applied| !applied.suspended).collect();
        assert_eq!(closing.len(), 1, "round {round}: {applied:#?}");
        assert!(told(closing[0]).is_some(), "{closing:?}");
        let all = (n..n + 10).map(task_id).map(Command::Cancel);
        handles[0].commit(commands(all)).await;
        let running = runs.iter().zip(&applied).find(|(_, applied)| !applied.suspended);
        handles[0].next(*running.unwrap().0, Next::Cancel).await;
    }
}
