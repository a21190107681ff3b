//! A task that waits for many things at once: what one of them costs does not grow with how many
//! there are.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "a test ends by a panic")]

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use futures_util::future::join_all;
use stepwell::testing::{Harness, Intercepted, worker_options};
use stepwell::*;

/// What the store has given, and how often the task's waits were polled.
#[derive(Default)]
struct Counts {
    facts: AtomicUsize,
    waits: AtomicUsize,
    polls: AtomicUsize,
}

/// A future that counts how often it is polled.
struct Counted<F>(F, Arc<Counts>);

impl<F: Future + Unpin> Future for Counted<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        self.1.polls.fetch_add(1, Ordering::SeqCst);
        Pin::new(&mut self.0).poll(cx)
    }
}

/// Waits for `waits` things, which come one after the other. Returns the counts.
async fn count(what: &'static str, waits: u32) -> Arc<Counts> {
    let (harness, counts) = (Harness::new(), Arc::new(Counts::default()));
    let store = Intercepted::new(Arc::new(harness.store()), {
        let counts = counts.clone();
        move |store, batch| {
            let counts = counts.clone();
            Box::pin(async move {
                let committed = store.commit(batch.into()).await?;
                let claimed = committed.claims.iter().flat_map(|claimed| &claimed.tasks);
                counts.waits.fetch_add(
                    claimed.clone().map(|task| task.waits.len()).sum(),
                    Ordering::SeqCst,
                );
                let looked = committed.transitions.iter().flatten().map(|applied| &applied.facts);
                for facts in looked.chain(claimed.map(|task| &task.facts)) {
                    let arrived = facts.events.len() + facts.messages.len() + facts.children.len();
                    counts.facts.fetch_add(arrived, Ordering::SeqCst);
                }
                Ok(committed)
            })
        }
    });
    let process =
        harness.start_on(Arc::new(store), |builder| builder.state(counts.clone())).await.unwrap();
    let many = move |waits: u32, ctx: TaskContext| async move {
        let counts = ctx.state::<Arc<Counts>>()?;
        let wait = |n| match what {
            "events" => ctx.await_event::<u32>(("event", n), None),
            _ => ctx.recv::<u32>("topic", None),
        };
        let all = join_all((0..waits).map(|n| Counted(wait(n), counts.clone()))).await;
        all.into_iter().collect::<TaskResult<Vec<_>>>()
    };
    process.register_fn("many", many).await.unwrap();
    process.start_worker(worker_options()).await;
    let task = process.spawn_named("many", &waits).await.unwrap().task_id;
    for n in 0..waits {
        // Each wakes the task by itself.
        while process.task(task).await.unwrap().unwrap().state != TaskState::Suspended {
            tokio::task::yield_now().await;
        }
        match what {
            "events" => _ = process.emit_event(format!("event:{n}"), &n).await.unwrap(),
            _ => process.send(task, "topic", &n).await.unwrap(),
        }
    }
    assert_eq!(process.wait::<Vec<u32>>(task).await.unwrap(), (0..waits).collect::<Vec<_>>());
    counts
}

#[tokio::test(start_paused = true)]
async fn each_thing_that_a_task_waits_for_is_given_once() {
    for what in ["events", "messages"] {
        let counts = count(what, 300).await;
        assert_eq!(counts.facts.load(Ordering::SeqCst), 300, "{what}");
        assert_eq!(
            counts.waits.load(Ordering::SeqCst),
            0,
            "{what}: the task is in memory, and so are its waits"
        );
        let polls = counts.polls.load(Ordering::SeqCst);
        assert_eq!(polls, 2 * 300, "{what}: when each begins, and when it comes");
    }
}
