//! The points of commands by clients, except cancellation.

use stepwell_core::store::{Command, CommandOutcome, NewTask, Next, Spawned};
use stepwell_core::{Entry, Key, Kind, TaskId, TaskState};

use crate::backend::Backend;
use crate::handle::{Handle, of};
use crate::make::*;
use crate::setup::Setup;

/// Makes seven tasks, one in each state.
async fn one_in_each_state(store: &Handle) {
    // The priority makes sure that the compensating task is claimed first.
    let runs =
        store.run((2..=7).map(|n| NewTask { priority: i32::from(n == 4), ..new_task(n) })).await;
    assert!(store.next(runs[1], SUSPEND).await.suspended);
    let key = Key { kind: Kind::Compensate, name: name("step"), ordinal: 1 };
    store.journals(runs[2], vec![Entry { key, ..step(1, json("1")) }]).await;
    store.next(runs[2], Next::Fail(failure("no"))).await;
    store.journals(runs[4], vec![step(1, json("1"))]).await;
    for (run, next) in runs[3..].iter().zip([complete(), Next::Fail(failure("no")), Next::Cancel]) {
        store.next(*run, next).await;
    }
    store.spawn([new_task(1)]).await;
    for (n, state) in (1..).zip(TaskState::ALL) {
        assert_eq!(store.state(n).await, state);
    }
}

/// Checks that a command is refused in all states except these.
async fn is_allowed_only_in(store: &Handle, command: fn(TaskId) -> Command, states: &[TaskState]) {
    for (n, state) in (1..).zip(TaskState::ALL).filter(|(_, state)| !states.contains(state)) {
        let before = store.picture().await;
        let outcome = store.command(command(task_id(n))).await;
        assert_eq!(outcome, CommandOutcome::NotAllowed(state), "{:?}", command(task_id(n)));
        assert_eq!(store.picture().await, before, "a command that was refused changed something");
    }
    assert_eq!(store.command(command(task_id(99))).await, CommandOutcome::NotFound);
}

/// Checks that a failed or cancelled task runs again, from its journal, with its attempts counted
/// from 1.
pub async fn retry_command(backend: &impl Backend) {
    let (_setup, store) = Setup::with_handle(backend).await;
    one_in_each_state(&store).await;
    is_allowed_only_in(&store, Command::Retry, &[TaskState::Failed, TaskState::Cancelled]).await;
    let compensating = store.claim(1, 1).await.remove(0);
    assert_eq!(compensating.task_id, task_id(4));
    store.next(of(&compensating), Next::Fail(failure("no"))).await;
    store.command(Command::Cancel(task_id(1))).await;
    for n in [6, 7, 1] {
        let committed = store.commit(commands([Command::Retry(task_id(n))])).await;
        assert_eq!(committed.commands, [CommandOutcome::Done]);
        assert!(committed.news.ready.iter().any(|(queue, _)| *queue == name("queue")));
        let info = store.info(n).await;
        assert_eq!((info.state, info.attempt, info.finished_at), (TaskState::Pending, 0, None));
        assert!(!info.cancel_requested);
        let task = store.claim_one(1).await;
        assert_eq!((task.task_id, task.attempt), (task_id(n), 1));
        assert_eq!(task.journal.map(|journal| journal.len()), Some(usize::from(n == 6)));
        assert_ne!(task.run_id, run_id(n), "an old run could go on");
        store.next((task.task_id, task.run_id), complete()).await;
    }
}

/// Checks that a finished task is removed with all that belongs to it.
pub async fn delete_command(backend: &impl Backend) {
    let (_setup, store) = Setup::with_handle(backend).await;
    one_in_each_state(&store).await;
    let ended = [TaskState::Completed, TaskState::Failed, TaskState::Cancelled];
    is_allowed_only_in(&store, Command::Delete, &ended).await;
    for n in 5..=7 {
        assert_eq!(store.command(Command::Delete(task_id(n))).await, CommandOutcome::Done);
        assert!(store.find(n).await.is_none());
        assert!(store.journal(n).await.is_empty());
        assert!(!store.send(message(n, "topic", json("1"))).await);
        assert_eq!(store.command(Command::Delete(task_id(n))).await, CommandOutcome::NotFound);
    }
    assert_eq!(store.all().await.len(), 4);
    // The id may be used again, and nothing of the old task is left.
    let run = store.run_one(5).await;
    store.journals(run, vec![step(1, json("1"))]).await;
    assert_eq!(store.journal(5).await.len(), 1);
}

/// Checks that a suspended task becomes claimable, although nothing has arrived.
pub async fn wake_command(backend: &impl Backend) {
    let (_setup, store) = Setup::with_handle(backend).await;
    one_in_each_state(&store).await;
    is_allowed_only_in(&store, Command::Wake, &[TaskState::Suspended]).await;
    let committed =
        store.commit(commands([Command::Wake(task_id(3)), Command::Wake(task_id(3))])).await;
    assert_eq!(
        committed.commands,
        [CommandOutcome::Done, CommandOutcome::NotAllowed(TaskState::Pending)]
    );
    assert!(committed.news.ready.iter().any(|(queue, _)| *queue == name("queue")));
    let claimed = store.claim(1, 5).await;
    let task = claimed.iter().find(|task| task.task_id == task_id(3)).unwrap();
    assert!(task.facts.is_empty());
    store.next(of(task), complete()).await;
}

/// Checks that a paused task is not claimed until it is resumed, whatever happens to it meanwhile.
/// A running task is left alone.
pub async fn paused_tasks(backend: &impl Backend) {
    let (setup, store) = Setup::with_handle(backend).await;
    one_in_each_state(&store).await;
    let unfinished =
        [TaskState::Pending, TaskState::Running, TaskState::Suspended, TaskState::Compensating];
    is_allowed_only_in(&store, Command::Pause, &unfinished).await;
    is_allowed_only_in(&store, Command::Resume, &unfinished).await;
    let n_of = |state| (1..).zip(TaskState::ALL).find(|(_, other)| *other == state).unwrap().0;
    let [pending, running, suspended, compensating] = unfinished.map(n_of);
    for n in [pending, running, suspended, compensating] {
        assert_eq!(store.command(Command::Pause(task_id(n))).await, CommandOutcome::Done);
        assert_eq!(
            store.command(Command::Pause(task_id(n))).await,
            CommandOutcome::Done,
            "twice is once"
        );
        assert!(store.info(n).await.paused);
    }
    let run = (task_id(running), store.info(running).await.run_id);
    assert!(store.next(run, SUSPEND).await.suspended, "it goes on until it waits");
    for n in [running, suspended] {
        assert_eq!(store.command(Command::Wake(task_id(n))).await, CommandOutcome::Done);
    }
    assert!(store.claim(1, 10).await.is_empty());
    assert_eq!(store.queues().await[0].ready_at, None, "none of them waits for a worker");
    // A pause outlasts a process, and also holds for a task whose time comes later.
    let later = NewTask { start_at: Some(setup.at(SECOND)), ..new_task(50) };
    store.spawn([later]).await;
    store.command(Command::Pause(task_id(50))).await;
    setup.advance(SECOND * 2);
    assert!(store.claim(1, 10).await.is_empty());
    for n in [pending, running, suspended, compensating, 50] {
        let committed = store.commit(commands([Command::Resume(task_id(n))])).await;
        assert_eq!(committed.commands, [CommandOutcome::Done]);
        assert!(!committed.news.ready.is_empty(), "workers are told");
        assert!(!store.info(n).await.paused);
        assert_eq!(store.claim_one(1).await.task_id, task_id(n));
    }
    // The end of a task is the end of its pause.
    store.command(Command::Pause(task_id(pending))).await;
    let run = (task_id(pending), store.info(pending).await.run_id);
    store.next(run, Next::Fail(failure("no"))).await;
    assert!(!store.info(pending).await.paused);
    store.command(Command::Retry(task_id(pending))).await;
    assert_eq!(store.claim_one(1).await.task_id, task_id(pending));
    // A task may be paused while it waits for its turn among the tasks of its key. Such a task gets
    // its turn, and still waits.
    let keyed = |n| NewTask { concurrency_key: Some(name("key")), ..new_task(n) };
    store.spawn([keyed(60), keyed(61)]).await;
    store.command(Command::Pause(task_id(61))).await;
    let first = store.claim_one(1).await;
    store.next(of(&first), complete()).await;
    assert!(store.claim(1, 10).await.is_empty());
    store.command(Command::Resume(task_id(61))).await;
    assert_eq!(store.claim_one(1).await.task_id, task_id(61));
}

/// Checks that a worker may receive a task in the commit that inserts it.
pub async fn eager_start(backend: &impl Backend) {
    let (setup, store) = Setup::with_handle(backend).await;
    let by = |worker, n| NewTask { claim_by: Some(worker_id(worker)), ..new_task(n) };
    store.signal(register(1)).await;
    let later = NewTask { start_at: Some(setup.at(SECOND)), ..by(1, 2) };
    let passed = NewTask { start_at: Some(setup.now()), ..by(1, 3) };
    let keyed = |n| NewTask { idempotency_key: Some(name("key")), ..by(1, n) };
    let spawned = store.spawn([by(1, 1), later, passed, by(7, 4), keyed(5), keyed(6)]).await;
    let created = |claimed| Spawned::Created { claimed };
    assert_eq!(spawned[..5], [true, false, true, false, true].map(created));
    let existing = Spawned::Existing { task_id: task_id(5), run_id: run_id(5), attempt: 1 };
    assert_eq!(spawned[5], existing);
    let info = store.info(1).await;
    assert_eq!((info.state, info.attempt, info.run_id), (TaskState::Running, 1, run_id(1)));
    assert_eq!(info.started_at, Some(info.spawned_at));
    store.signal(register(2)).await;
    let rest = store.claim_one(2).await;
    assert_eq!(rest.task_id, task_id(4), "the others have their worker, or their time to come");
    store.next(of(&rest), complete()).await;
    store.next((task_id(1), run_id(1)), complete()).await;

    // The start counts like any claim: the worker's death ends it.
    store.signal(declare_dead(1, 0)).await;
    setup.advance(LEASE);
    let mut taken: Vec<_> =
        store.claim(2, 9).await.iter().map(|task| (task.task_id, task.attempt)).collect();
    taken.sort_unstable();
    assert_eq!(taken, [(task_id(2), 1), (task_id(3), 2), (task_id(5), 2)]);
}
