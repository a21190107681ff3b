//! No wake-up is lost, whatever happens at the same time.
//!
//! In each round, some tasks suspend while other handles bring what they wait for. Whichever comes
//! first: a task that stayed running was given it, one that was suspended is claimable.

use std::future::Future;
use std::pin::Pin;

use stepwell_core::store::{Applied, Batch, Command, NewTask, Next, Transition, Wait};
use stepwell_core::{RunId, TaskId, TaskState};

use crate::backend::Backend;
use crate::handle::{Handle, of};
use crate::make::*;
use crate::setup::{Setup, rounds, together};

/// How many tasks are at it in each round.
const TASKS: u128 = 6;

/// How the tasks of a round, and what they wait for, get to the store.
#[derive(Clone, Copy)]
enum How {
    /// Each in a commit of its own.
    OneByOne,
    /// All in one batch on either side, in opposite orders.
    Together,
}

/// Commits something, and returns what became of its transitions.
type Racer = Pin<Box<dyn Future<Output = Vec<Applied>> + Send>>;

fn committing(store: &Handle, batch: Batch) -> Racer {
    let store = store.clone();
    Box::pin(async move {
        let applied = store.commit(batch).await.transitions;
        applied.into_iter().map(|applied| applied.expect("the run owns its task")).collect()
    })
}

/// Lets them all begin at once. Returns what became of all transitions, in the order of the racers.
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

/// Lets the tasks suspend while the batches bring what each of them waits for, and sees that none
/// is left suspended.
async fn race(
    handles: &[Handle],
    how: How,
    runs: &[(TaskId, RunId)],
    waits: impl Fn(usize) -> Vec<Wait>,
    bringing: impl Fn(usize) -> Batch,
) {
    let suspending = (0..runs.len()).map(|n| awaiting(runs[n], waits(n), SUSPEND));
    let brought = (0..runs.len()).map(bringing);
    // Those that suspend come first, so that what became of them does as well.
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
        // Those that stayed running.
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

/// Emitting an event while tasks suspend that await it.
pub async fn wake_ups_by_events(backend: &impl Backend) {
    rounds_of(backend, async |handles, how, first, runs| {
        // Each task awaits two, of which one is for all the tasks of the round.
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

/// Sending messages while tasks suspend that wait for them.
pub async fn wake_ups_by_messages(backend: &impl Backend) {
    rounds_of(backend, async |handles, how, first, runs| {
        let waits = |_| vec![for_message("topic", 1)];
        let bringing = |n: usize| sending([message(first + n as u128, "topic", json("1"))]);
        race(handles, how, runs, waits, bringing).await;
    })
    .await;
}

/// Messages sent by tasks while tasks suspend, each waiting for one of another.
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

/// Children that end while their parents suspend.
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

/// Tasks that end while others suspend that were answered with them: one for each, and one for all
/// of a round.
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

/// A request to cancel that comes while tasks suspend: each is cancelled, or runs and knows of it.
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

/// What arrives while a running task looks: it is found, or the worker is told to look again.
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

/// Tasks that send to each other and suspend for the answer, from several handles at once: no batch
/// fails, and nobody waits for good.
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
