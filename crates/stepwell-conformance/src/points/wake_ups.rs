//! The points of wake-ups: none is lost, whatever happens at the same time.
//!
//! In each round, some tasks suspend while other handles bring what these tasks wait for. In either
//! order, a task that stayed running has received it, and a suspended task is claimable.

use std::future::Future;
use std::pin::Pin;

use stepwell_core::store::{Applied, Batch, Command, NewTask, Next, Transition, Wait};
use stepwell_core::{RunId, TaskId, TaskState};

use crate::backend::Backend;
use crate::handle::{Handle, of};
use crate::make::*;
use crate::setup::{Setup, rounds, together};

/// The number of tasks in each round.
const TASKS: u128 = 6;

/// The way in which the tasks of a round, and what they wait for, reach the store.
#[derive(Clone, Copy)]
enum How {
    /// Each item has its own commit.
    OneByOne,
    /// Each side commits one batch, and the two batches have opposite orders.
    Together,
}

/// A future that commits a batch, and returns the results of its transitions.
type Racer = Pin<Box<dyn Future<Output = Vec<Applied>> + Send>>;

fn committing(store: &Handle, batch: Batch) -> Racer {
    let store = store.clone();
    Box::pin(async move {
        let applied = store.commit(batch).await.transitions;
        applied.into_iter().map(|applied| applied.expect("the run owns its task")).collect()
    })
}

/// Starts all racers at once. Returns the results of all transitions, in the order of the racers.
async fn race_of(racers: impl IntoIterator<Item = Racer>) -> Vec<Applied> {
    together(racers).await.into_iter().flatten().collect()
}

/// Joins the batches into one, backwards.
fn joined(batches: impl IntoIterator<Item = Batch>) -> Batch {
    let mut all = Batch::default();
    for batch in batches {
        all.transitions.extend(batch.transitions);
        all.events.extend(batch.events);
        all.messages.extend(batch.messages);
        all.commands.extend(batch.commands);
    }
    all.transitions.reverse();
    all.events.reverse();
    all.messages.reverse();
    all.commands.reverse();
    all
}

/// Suspends the tasks while the batches bring what each task waits for, and checks that no task is
/// left suspended.
async fn race(
    handles: &[Handle],
    how: How,
    runs: &[(TaskId, RunId)],
    waits: impl Fn(usize) -> Vec<Wait>,
    bringing: impl Fn(usize) -> Batch,
) {
    let suspending = (0..runs.len()).map(|n| awaiting(runs[n], waits(n), SUSPEND));
    let brought = (0..runs.len()).map(bringing);
    // The tasks that suspend come first, so that their results come first as well.
    let racers: Vec<Racer> = match how {
        How::OneByOne => {
            let suspending =
                suspending.map(|suspends| committing(&handles[0], transitions([suspends])));
            let brought = brought.zip(handles[1..].iter().cycle());
            suspending.chain(brought.map(|(batch, store)| committing(store, batch))).collect()
        }
        How::Together => {
            vec![
                committing(&handles[0], transitions(suspending)),
                committing(&handles[1], joined(brought)),
            ]
        }
    };
    let applied = race_of(racers).await;
    for (n, (run, applied)) in runs.iter().zip(applied).enumerate() {
        let state = handles[0].0.task(run.0).await.unwrap().unwrap().state;
        match (applied.suspended, state) {
            (false, TaskState::Running) => {
                assert!(!applied.facts.is_empty(), "task {n} runs, and was given nothing");
            }
            (true, TaskState::Pending) => {}
            (true, TaskState::Suspended) => {
                panic!(
                    "task {n} is suspended, though what it waits for is there: its wake-up was lost"
                )
            }
            (suspended, state) => {
                panic!("task {n} is {state}, and was told suspended: {suspended}")
            }
        }
    }
    let claimed = handles[0].claimed(1, runs.len()).await;
    for task in claimed.tasks {
        assert!(
            !task.facts.is_empty(),
            "a task was woken, and what it was woken for is not there: {task:#?}"
        );
        handles[0].next(of(&task), complete()).await;
    }
    for run in runs {
        // These tasks stayed running.
        let _ = handles[0].apply(Transition::new(run.0, run.1, complete())).await;
    }
}

async fn rounds_of(
    backend: &impl Backend,
    round_of: impl AsyncFn(&[Handle], How, u128, &[(TaskId, RunId)]),
) {
    let setup = Setup::new(backend).await;
    let handles = setup.handles(4).await;
    for round in rounds() {
        let how = if round % 3 == 2 { How::Together } else { How::OneByOne };
        let first = (round + 1) * 1_000;
        let runs = handles[0].run((first..first + TASKS).map(new_task)).await;
        round_of(&handles, how, first, &runs).await;
    }
}

/// Checks events that are emitted while tasks that await them suspend.
pub async fn wake_ups_by_events(backend: &impl Backend) {
    rounds_of(backend, async |handles, how, first, runs| {
        // Each task awaits two events, and one of them is for all tasks of the round.
        let texts = |n: usize| [format!("event of {first}"), format!("event of {first}, {n}")];
        let waits = |n| texts(n).iter().map(|text| for_event(text)).collect();
        let bringing = |n: usize| {
            let [of_all, own] = texts(n);
            let of_all = Some(event(&of_all, json("1"))).filter(|_| n % 3 == 1);
            emitting([event(&own, json("1"))].into_iter().chain(of_all))
        };
        race(handles, how, runs, waits, bringing).await;
    })
    .await;
}

/// Checks messages that are sent while tasks that wait for them suspend.
pub async fn wake_ups_by_messages(backend: &impl Backend) {
    rounds_of(backend, async |handles, how, first, runs| {
        let waits = |_| vec![for_message("topic", 1)];
        let bringing = |n: usize| sending([message(first + n as u128, "topic", json("1"))]);
        race(handles, how, runs, waits, bringing).await;
    })
    .await;
}

/// Checks messages that tasks send while other tasks suspend, each of which waits for one message.
pub async fn wake_ups_among_tasks(backend: &impl Backend) {
    rounds_of(backend, async |handles, how, first, runs| {
        let senders = handles[1].run((first + 100..first + 100 + TASKS).map(new_task)).await;
        let waits = |_| vec![for_message("topic", 1)];
        let bringing = |n: usize| {
            let mut sends = Transition::new(senders[n].0, senders[n].1, complete());
            sends.messages = vec![message(first + n as u128, "topic", json("1"))];
            transitions([sends])
        };
        race(handles, how, runs, waits, bringing).await;
    })
    .await;
}

/// Checks children that end while their parents suspend.
pub async fn wake_ups_by_children(backend: &impl Backend) {
    rounds_of(backend, async |handles, how, first, runs| {
        let children = (first..first + TASKS).map(|n| child_of(n, n + 500));
        let children = handles[0].run(children).await;
        let waits = |n| vec![for_child(first + n as u128 + 500)];
        let bringing =
            |n: usize| transitions([Transition::new(children[n].0, children[n].1, complete())]);
        race(handles, how, runs, waits, bringing).await;
    })
    .await;
}

/// Checks tasks that end while others suspend that were answered with them: one for each task, and
/// one for all tasks of a round.
pub async fn wake_ups_by_others(backend: &impl Backend) {
    rounds_of(backend, async |handles, how, first, runs| {
        let keyed = |n: u128| with_key(&n.to_string(), n);
        let others = handles[0].run((first + 500..=first + 500 + TASKS).map(keyed)).await;
        let of_all = others[runs.len()];
        let waits = |n| vec![for_child(first + n as u128 + 500), for_child(first + 500 + TASKS)];
        let bringing = |n: usize| {
            let ends = [others[n]].into_iter().chain(Some(of_all).filter(|_| n == 1));
            transitions(ends.map(|(task_id, run_id)| Transition::new(task_id, run_id, complete())))
        };
        race(handles, how, runs, waits, bringing).await;
    })
    .await;
}

/// Checks requests to cancel while tasks suspend: each task is cancelled, or runs and knows of the
/// request.
pub async fn wake_ups_by_cancellation(backend: &impl Backend) {
    let setup = Setup::new(backend).await;
    let handles = setup.handles(3).await;
    for round in rounds() {
        let first = (round + 1) * 1_000;
        let runs = handles[0].run((first..first + TASKS).map(new_task)).await;
        let suspending = runs.iter().map(|run| {
            committing(&handles[0], transitions([awaiting(*run, [for_event("never")], SUSPEND)]))
        });
        let cancelling = runs.iter().zip(handles[1..].iter().cycle());
        let cancelling =
            cancelling.map(|(run, store)| committing(store, commands([Command::Cancel(run.0)])));
        let applied = race_of(suspending.chain(cancelling)).await;
        for (run, applied) in runs.into_iter().zip(applied) {
            match handles[0].0.task(run.0).await.unwrap().unwrap().state {
                TaskState::Cancelled => {}
                TaskState::Running => {
                    assert!(applied.cancel_requested, "it stays running, and does not know why");
                    handles[0].next(run, Next::Cancel).await;
                }
                state => panic!("the task is {state}, though it was cancelled"),
            }
        }
    }
}

/// Checks arrivals while a running task looks: the look finds them, or the worker is told to look
/// again.
pub async fn wake_ups_of_running_tasks(backend: &impl Backend) {
    let setup = Setup::new(backend).await;
    let handles = setup.handles(3).await;
    for round in rounds() {
        let first = (round + 1) * 1_000;
        let runs = handles[0].run((first..first + TASKS).map(new_task)).await;
        let text = format!("event of {first}");
        let looking = runs.iter().map(|run| {
            let (store, looks) = (handles[0].clone(), awaiting(*run, [for_event(&text)], LOOK));
            Box::pin(async move { store.apply(looks).await.unwrap().facts.is_empty() })
                as Pin<Box<dyn Future<Output = bool> + Send>>
        });
        let (store, emitted) = (handles[1].clone(), event(&text, json("1")));
        let emitting = Box::pin(async move { store.emit(emitted).await }) as _;
        let found_nothing = together(looking.chain([emitting])).await;
        let poked = handles[0].claimed(1, 0).await.poked;
        for (run, found_nothing) in runs.iter().zip(found_nothing) {
            assert!(!found_nothing || poked.contains(&run.0), "{} missed its event", run.0);
            assert_eq!(handles[0].look(*run).await.events.len(), 1);
            handles[0].next(*run, complete()).await;
        }
    }
}

/// Checks tasks that send to each other and suspend for the answers, from several handles at once:
/// no batch fails, and no task waits for good.
pub async fn wake_ups_in_circles(backend: &impl Backend) {
    let setup = Setup::new(backend).await;
    let handles = setup.handles(3).await;
    for round in rounds() {
        let first = (round + 1) * 1_000;
        let tasks = (first..first + 3).map(|n| NewTask { max_attempts: 1, ..new_task(n) });
        let runs = handles[0].run(tasks).await;
        let racing = (0..3).map(|n| {
            let to = first + (n as u128 + 1) % 3;
            let mut sends = awaiting(runs[n], [for_message("ring", 1)], SUSPEND);
            sends.messages = vec![message(to, "ring", json("1"))];
            committing(&handles[n], transitions([sends]))
        });
        for (run, applied) in runs.iter().zip(race_of(racing).await) {
            let state = handles[0].0.task(run.0).await.unwrap().unwrap().state;
            assert_ne!(state, TaskState::Suspended, "a message was lost on its way round");
            assert!(
                applied.suspended || applied.facts.messages.len() == 1,
                "it runs, and was given nothing"
            );
        }
        for task in handles[0].claim(1, 3).await {
            assert_eq!(task.facts.messages.len(), 1);
        }
        for run in runs {
            handles[0].next(run, complete()).await;
        }
    }
}
