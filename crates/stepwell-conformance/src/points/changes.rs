//! The point of changes: a handle learns of what others wrote.

use std::time::Duration;

use stepwell_core::store::{Changed, Command, Transition};

use crate::backend::Backend;
use crate::handle::{Handle, of};
use crate::make::*;
use crate::setup::Setup;

/// The time within which a change must be seen. The time is a limit for tests, and no guarantee.
const SOON: Duration = Duration::from_secs(10);

/// The time without news after which there is no change.
const QUIET: Duration = Duration::from_millis(400);

async fn within(limit: Duration, store: &Handle) -> Option<Changed> {
    tokio::time::timeout(limit, store.0.changed()).await.ok()
}

/// Reads all pending changes.
async fn settle(store: &Handle) {
    for _ in 0..50 {
        if within(QUIET, store).await.is_none() {
            return;
        }
    }
    panic!("there is always a change, though nobody writes");
}

/// Waits until the handle receives a certain change.
async fn is_told(store: &Handle, what: &str, is_it: impl Fn(Changed) -> bool) {
    let told = tokio::time::timeout(SOON, async { while !is_it(store.0.changed().await) {} }).await;
    assert!(told.is_ok(), "another handle was not told of {what}");
}

/// Checks that a handle receives a change when another handle brought work for it or ended tasks,
/// even when this happened before the call. A claim that found nothing is no change.
pub async fn changes(backend: &impl Backend) {
    if !backend.is_shared() {
        return;
    }
    let setup = Setup::new(backend).await;
    let [a, b]: [Handle; 2] = setup.handles(2).await.try_into().ok().unwrap();
    a.signal(register(1)).await;
    b.signal(register(2)).await;
    settle(&b).await;

    a.spawn([new_task(1)]).await;
    is_told(&b, "a task, spawned before it asked", |changed| changed.work).await;
    settle(&b).await;
    let waiting = tokio::spawn({
        let b = b.clone();
        async move { is_told(&b, "a task, spawned while it waits", |changed| changed.work).await }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    a.spawn([new_task(2)]).await;
    waiting.await.unwrap();

    let runs: Vec<_> = a.claim(1, 5).await.iter().map(of).collect();
    let own = of(&{
        a.spawn([new_task(3)]).await;
        b.claim_one(2).await
    });
    b.apply(awaiting(own, [for_message("topic", 1)], GO_ON)).await.unwrap();
    settle(&b).await;
    a.send(message(3, "topic", json("1"))).await;
    is_told(&b, "a message for a task that it runs", |changed| changed.work).await;
    settle(&b).await;
    a.command(Command::Cancel(task_id(3))).await;
    is_told(&b, "a request to cancel a task that it runs", |changed| changed.work).await;
    settle(&b).await;
    a.next(runs[0], complete()).await;
    is_told(&b, "the end of a task", |changed| changed.finished).await;
    settle(&b).await;

    for _ in 0..3 {
        assert!(a.claim(1, 5).await.is_empty());
        assert_eq!(within(QUIET, &b).await, None, "it was told of a claim that got nothing");
    }
    let refused = Transition::new(task_id(99), run_id(99), complete());
    assert!(a.apply(refused).await.is_err());
    assert!(!within(QUIET, &b).await.is_some_and(|changed| changed.finished && !changed.work));

    // Two handles that wait at the same time both receive a change by a third one.
    let c = setup.handle().await;
    settle(&a).await;
    settle(&b).await;
    c.spawn([new_task(4)]).await;
    is_told(&a, "the same as another handle is", |changed| changed.work).await;
    is_told(&b, "the same as another handle is", |changed| changed.work).await;
}
