//! The points of compensation: tasks that have something to undo before they end.

use stepwell_core::store::{
    CancellationPolicy, Command, CommandOutcome, Finish, NewTask, Next, Transition,
};
use stepwell_core::{
    CompensationError, Entry, Failure, Key, Kind, Outcome, RunId, TaskId, TaskState, cancelled,
    crash_limit, crashed,
};

use crate::backend::Backend;
use crate::handle::{Handle, of};
use crate::make::*;
use crate::setup::Setup;

fn record(seq: u64) -> Entry {
    let key = Key { kind: Kind::Compensate, name: name("charge"), ordinal: 1 };
    Entry { key, ..step(seq, json("{\"step\":{\"ordinal\":1,\"begun\":false}}")) }
}

/// Returns the kinds of the entries in a journal.
async fn kinds(store: &Handle, n: u128) -> Vec<Kind> {
    store.journal(n).await.into_iter().map(|entry| entry.key.kind).collect()
}

/// Starts tasks that have recorded a compensation.
async fn recorded(
    store: &Handle,
    tasks: impl IntoIterator<Item = NewTask>,
) -> Vec<(TaskId, RunId)> {
    let runs = store.run(tasks).await;
    for run in &runs {
        store.journals(*run, vec![step(1, json("1")), record(2)]).await;
    }
    runs
}

/// Checks a task with a compensation in its journal that fails or is cancelled: it is claimed once
/// more, and then ends.
pub async fn compensation(backend: &impl Backend) {
    let (setup, store) = Setup::with_handle(backend).await;
    let run = recorded(&store, [new_task(1)]).await[0];
    let last = Transition {
        entries: vec![step(3, json("3"))],
        ..Transition::new(run.0, run.1, Next::Fail(failure("no")))
    };
    let committed = store.commit(transitions([last])).await;
    assert!(committed.transitions[0].is_ok());
    assert!(committed.news.finished.is_empty(), "it has not ended");
    assert!(committed.news.ready.iter().any(|(queue, _)| *queue == name("queue")));
    assert!(
        store.apply(Transition::new(run.0, run.1, GO_ON)).await.is_err(),
        "the run has given it up"
    );

    let info = store.info(1).await;
    assert_eq!((info.state, info.attempt, info.finished_at), (TaskState::Compensating, 0, None));
    assert_eq!(info.failure, Some(failure("no")));
    let mark = store.journal(1).await.pop().unwrap();
    let key = Key { kind: Kind::Compensating, name: name("compensating"), ordinal: 1 };
    assert_eq!(
        mark,
        Entry { seq: 4, key, outcome: Outcome::failed(failure("no")), at: setup.now() }
    );
    assert_eq!(
        store.command(Command::Cancel(task_id(1))).await,
        CommandOutcome::NotAllowed(TaskState::Compensating)
    );
    assert_eq!(store.count(TaskState::Compensating).await, 1);
    assert_eq!(store.count(TaskState::Pending).await, 0);

    let task = store.claim_one(1).await;
    assert_eq!((task.attempt, task.journal.as_ref().map(Vec::len)), (1, Some(4)));
    assert_ne!(of(&task), run);
    assert_eq!(store.state(1).await, TaskState::Compensating, "also while it runs");
    store
        .journals(
            of(&task),
            vec![Entry { key: Key { kind: Kind::Compensated, ..record(5).key }, ..record(5) }],
        )
        .await;
    let sure =
        Failure { compensation_errors: vec![error("charge", failure("worse"))], ..failure("no") };
    let committed = store
        .commit(transitions([Transition::new(task.task_id, task.run_id, Next::Fail(sure.clone()))]))
        .await;
    assert_eq!(committed.news.finished, [(task_id(1), Finish::Failed(sure.clone()))]);
    let info = store.info(1).await;
    assert_eq!((info.state, info.failure), (TaskState::Failed, Some(sure)));

    // A task that is run again is like any other task, and its new steps are undone again.
    assert_eq!(store.command(Command::Retry(task_id(1))).await, CommandOutcome::Done);
    assert_eq!(store.state(1).await, TaskState::Pending);
    assert_eq!(kinds(&store, 1).await[3..], [Kind::Compensating, Kind::Compensated, Kind::Attempt]);
    let task = store.claim_one(1).await;
    store.next(of(&task), Next::Fail(failure("again"))).await;
    assert_eq!(store.state(1).await, TaskState::Failed, "nothing was recorded since");
    store.command(Command::Retry(task_id(1))).await;
    let task = store.claim_one(1).await;
    store.journals(of(&task), vec![record(8)]).await;
    store.next(of(&task), Next::Cancel).await;
    assert_eq!(store.state(1).await, TaskState::Compensating);
}

fn error(name: &str, failure: Failure) -> CompensationError {
    CompensationError { name: name.into(), failure }
}

/// Checks that compensation takes place whatever ends a task.
pub async fn compensation_whatever_ends_it(backend: &impl Backend) {
    let (setup, store) = Setup::with_handle(backend).await;
    let policy =
        CancellationPolicy { max_duration: Some(LEASE / 2), ..CancellationPolicy::default() };
    let tasks = [
        new_task(1),
        new_task(2),
        new_task(3),
        new_task(4),
        NewTask { cancellation: policy, ..new_task(5) },
        NewTask { task_type: name("deadly"), ..new_task(6) },
        child_of(3, 7),
    ];
    let runs = recorded(&store, tasks).await;
    // Task 1 is pending and waits, 2 is suspended and waits, 3 runs, 4 completes, 5 is late, 6
    // kills its worker once too often, and 7 is a child of 3.
    store.next(runs[0], Next::Retry { failure: failure("no"), at: setup.at(SECOND * 100) }).await;
    for n in [1, 4, 6] {
        assert!(
            store.apply(awaiting(runs[n], [for_event("never")], SUSPEND)).await.unwrap().suspended
        );
    }
    for n in [1, 2, 3] {
        assert_eq!(store.command(Command::Cancel(task_id(n))).await, CommandOutcome::Done);
    }
    assert_eq!(store.state(1).await, TaskState::Compensating);
    assert_eq!(store.state(2).await, TaskState::Compensating);
    assert_eq!(store.state(3).await, TaskState::Running, "it is asked to");
    assert_eq!(store.state(7).await, TaskState::Suspended, "its parent has not ended");
    store.next(runs[2], Next::Cancel).await;
    store.next(runs[3], complete()).await;
    assert_eq!(store.state(4).await, TaskState::Completed, "what succeeds is not undone");

    store.crash(1).await;
    for worker in 2..=u128::from(crash_limit(5, false)) {
        store.signal(register(worker)).await;
        let claim = claim_of(worker, &["queue"], &["deadly"], 9);
        assert_eq!(store.commit(claims([claim])).await.claims[0].tasks.len(), 1);
        store.crash(worker).await;
    }
    setup.advance(LEASE);
    store.signal(register(2)).await;
    let claim = claim_of(2, &["queue"], &["type", "deadly"], 9);
    let mut claimed = store.commit(claims([claim])).await.claims.remove(0).tasks;
    claimed.sort_by_key(|task| task.task_id);
    let ids: Vec<_> = claimed.iter().map(|task| task.task_id).collect();
    assert_eq!(ids, [1, 2, 3, 5, 6].map(task_id));
    for task in &claimed {
        assert!(task.waits.is_empty() && task.attempt == 1, "{task:?}");
        let failure =
            if task.task_id == task_id(6) { crashed(crash_limit(5, false)) } else { cancelled() };
        let mark = task.journal.as_ref().and_then(|journal| journal.last()).unwrap();
        assert_eq!((mark.key.kind, &mark.outcome), (Kind::Compensating, &Outcome::failed(failure)));
    }
    let committed =
        store.commit(transitions([Transition::new(ids[2], claimed[2].run_id, Next::Cancel)])).await;
    assert_eq!(committed.news.finished, [(task_id(3), Finish::Cancelled)]);
    assert_eq!(store.state(7).await, TaskState::Compensating, "cancelled with its parent");
}

/// Checks that the compensation replays the attempt that is undone. A suspended attempt does not
/// count, but has its number.
pub async fn compensation_tells_the_attempt(backend: &impl Backend) {
    let (setup, store) = Setup::with_handle(backend).await;
    let first = store.run((1..=2).map(new_task)).await;
    for run in first {
        store.next(run, Next::Retry { failure: failure("no"), at: setup.now() }).await;
    }
    let second: Vec<_> = store.claim(1, 2).await.iter().map(of).collect();
    for run in &second {
        store.journals(*run, vec![record(1)]).await;
    }
    let suspended = second.iter().find(|run| run.0 == task_id(1)).unwrap();
    assert!(
        store.apply(awaiting(*suspended, [for_event("never")], SUSPEND)).await.unwrap().suspended
    );
    store.command(Command::Cancel(task_id(1))).await;
    let fails = second.iter().find(|run| run.0 == task_id(2)).unwrap();
    store.next(*fails, Next::Fail(failure("no"))).await;
    for n in [1, 2] {
        assert_eq!(store.journal(n).await.pop().unwrap().key.ordinal, 2, "{n}");
    }
}

/// Checks that a compensation that kills its workers also comes to an end, and keeps the original
/// failure.
pub async fn compensation_attempts(backend: &impl Backend) {
    let (setup, store) = Setup::with_handle(backend).await;
    let tasks = (1..=2).map(|n| NewTask { max_attempts: 1, ..new_task(n) });
    let runs = recorded(&store, tasks).await;
    store.next(runs[0], Next::Fail(failure("no \"1\""))).await;
    store.next(runs[1], Next::Cancel).await;
    store
        .spawn([NewTask { parent: Some(task_id(2)), queue: name("elsewhere"), ..new_task(3) }])
        .await;
    store.signal(register(2)).await;
    // A stuck run retries in this way; a codec may have changed the message.
    let why = [failure("no \"1\""), Failure { message: "sealed".into(), ..cancelled() }];
    let mut claimed = store.claim(2, 5).await;
    claimed.sort_by_key(|task| task.task_id);
    for (task, failure) in claimed.iter().zip(why) {
        store.next(of(task), Next::Retry { failure, at: setup.now() }).await;
    }
    for crash in 1..=u128::from(crash_limit(1, true)) {
        let worker = crash + 2;
        store.signal(register(worker)).await;
        let claimed = [store.claim(worker, 5).await, store.claim(worker, 5).await].concat();
        assert_eq!(
            claimed.iter().map(|task| u128::from(task.attempt)).collect::<Vec<_>>(),
            [crash + 1; 2]
        );
        store.crash(worker).await;
    }
    store.signal(register(20)).await;
    assert_eq!(store.claim(20, 5).await.len(), 0);
    assert_eq!(store.state(3).await, TaskState::Cancelled, "a child of one that ends as cancelled");
    let (failed, cancelled) = (store.info(1).await, store.info(2).await);
    let left = error("what is left to undo", crashed(crash_limit(1, true)));
    let expected = Failure { compensation_errors: vec![left], ..failure("no \"1\"") };
    assert_eq!((failed.state, failed.failure), (TaskState::Failed, Some(expected)));
    assert_eq!(cancelled.state, TaskState::Cancelled);
}
