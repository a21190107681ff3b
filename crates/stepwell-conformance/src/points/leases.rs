//! Workers that live, stop and die.

use stepwell_core::store::{Command, Finish, NewTask, NewWorker, Transition, WorkerSignal};
use stepwell_core::{TaskState, WorkerInfo, WorkerState, after, crashed};

use crate::backend::Backend;
use crate::handle::{Handle, of};
use crate::make::*;
use crate::setup::Setup;

/// A worker that shows no sign of life for as long as its lease loses its tasks, and the attempt counts.
pub async fn leases(backend: &impl Backend) {
    let setup = Setup::new(backend).await;
    let [a, b]: [Handle; 2] = setup.handles(2).await.try_into().ok().unwrap();
    let run = a.run_one(1).await;
    assert!(!b.signal(heartbeat(9)).await, "a worker that was never registered is alive");
    for _ in 0..3 {
        setup.advance(LEASE - MICROSECOND);
        assert!(a.signal(heartbeat(1)).await);
        b.signal(register(2)).await;
        assert!(b.claim(2, 5).await.is_empty(), "the task of a living worker was taken");
    }
    setup.advance(LEASE - MICROSECOND);
    b.signal(register(2)).await;
    assert!(b.claim(2, 5).await.is_empty(), "its lease has a microsecond left");
    assert!(a.apply(Transition::new(run.0, run.1, GO_ON)).await.is_ok());
    setup.advance(MICROSECOND);
    b.signal(register(2)).await;
    let task = b.claim_one(2).await;
    assert_eq!((task.task_id, task.attempt), (run.0, 2));
    assert!(task.journal.is_some());
    assert!(!a.signal(heartbeat(1)).await, "a dead worker learns of it");
    assert!(a.claim(1, 5).await.is_empty());
    assert!(a.signal(register(1)).await, "and may register again");
    let long = WorkerSignal::Heartbeat { worker_id: worker_id(2), lease: LEASE * 10 };
    assert!(b.signal(long).await);
    setup.advance(LEASE * 10 - MICROSECOND);
    a.signal(register(1)).await;
    assert!(a.claim(1, 5).await.is_empty(), "a heartbeat says how long the worker is alive");
}

/// What is known of workers, and that one can be told to stop.
pub async fn worker_registry(backend: &impl Backend) {
    let (setup, store) = Setup::with_handle(backend).await;
    assert_eq!(store.0.workers().await.unwrap(), []);
    let start = setup.now();
    store.signal(register(1)).await;
    let second = NewWorker {
        name: "a \"second\" one, ünicode".into(),
        queues: vec![name("b"), name("a")],
        concurrency: u32::MAX,
        code_version: Some(name("v2")),
        lease: LEASE * 2,
        ..new_worker(2)
    };
    store.signal(WorkerSignal::Register(second)).await;
    store.spawn((1..=3).map(new_task)).await;
    let claimed = store.claim(1, 2).await;
    let infos = store.0.workers().await.unwrap();
    let first = WorkerInfo {
        worker_id: worker_id(1),
        name: "host".into(),
        queues: vec![name("queue")],
        concurrency: 10,
        code_version: None,
        state: WorkerState::Active,
        alive: true,
        running: 2,
        registered_at: start,
        lease_until: after(start, LEASE),
    };
    let second = WorkerInfo {
        worker_id: worker_id(2),
        name: "a \"second\" one, ünicode".into(),
        queues: vec![name("b"), name("a")],
        concurrency: u32::MAX,
        code_version: Some(name("v2")),
        running: 0,
        lease_until: after(start, LEASE * 2),
        ..first.clone()
    };
    assert_eq!(infos, [first.clone(), second.clone()]);

    // It is told with its next sign of life, and with every further one.
    let state = async |signal| store.commit(signals([signal])).await.workers[0];
    assert_eq!(state(WorkerSignal::Drain { worker_id: worker_id(1) }).await, WorkerState::Draining);
    assert_eq!(state(WorkerSignal::Drain { worker_id: worker_id(9) }).await, WorkerState::Gone);
    assert_eq!(state(heartbeat(1)).await, WorkerState::Draining);
    assert_eq!(state(heartbeat(1)).await, WorkerState::Draining);
    assert_eq!(state(heartbeat(2)).await, WorkerState::Active);
    store.next(of(&claimed[0]), complete()).await;
    let infos = store.0.workers().await.unwrap();
    assert_eq!(infos[0], WorkerInfo { state: WorkerState::Draining, running: 1, ..first.clone() });
    assert_eq!(state(deregister(1)).await, WorkerState::Draining, "what it was");
    assert_eq!(state(heartbeat(1)).await, WorkerState::Gone);
    assert_eq!(state(register(1)).await, WorkerState::Active, "it is another worker now");

    // One whose lease has run out is there until somebody finds that out.
    setup.advance(LEASE);
    let alive: Vec<_> = store.0.workers().await.unwrap().iter().map(|worker| worker.alive).collect();
    assert_eq!(alive, [false, false]);
    store.signal(register(3)).await;
    store.claim(3, 0).await;
    let left: Vec<_> = store.0.workers().await.unwrap().iter().map(|worker| worker.worker_id).collect();
    assert_eq!(left, [worker_id(3)]);
}

/// Which types wait, so that a worker can say which of them it does not know.
pub async fn waiting_types(backend: &impl Backend) {
    let (setup, store) = Setup::with_handle(backend).await;
    let of_type =
        |n, task_type, queue| NewTask { task_type: name(task_type), queue: name(queue), ..new_task(n) };
    let later = NewTask { start_at: Some(after(setup.now(), LEASE)), ..of_type(5, "later", "queue") };
    store
        .spawn([
            of_type(1, "b", "queue"),
            of_type(2, "a", "queue"),
            of_type(3, "b", "queue"),
            of_type(4, "elsewhere", "other"),
            later,
        ])
        .await;
    let types = async |queues: &[&str]| {
        store.0.waiting_types(queues.iter().map(|queue| name(queue)).collect()).await.unwrap()
    };
    assert_eq!(types(&["queue"]).await, [name("a"), name("b")]);
    assert_eq!(types(&["other", "queue"]).await, [name("a"), name("b"), name("elsewhere")]);
    assert_eq!(types(&["empty"]).await, []);
    store.signal(register(1)).await;
    let claim = claim_of(1, &["queue"], &["b"], 10);
    assert_eq!(store.commit(claims([claim])).await.claims[0].tasks.len(), 2);
    assert_eq!(types(&["queue"]).await, [name("a")], "what runs does not wait");
}

/// A dead worker's tasks that wait, or have ended, are left as they are; those that were asked to cancel are
/// cancelled.
pub async fn dead_workers(backend: &impl Backend) {
    let (setup, store) = Setup::with_handle(backend).await;
    let runs = store.run((1..=5).map(new_task)).await;
    store.next(runs[0], complete()).await;
    assert!(store.next(runs[1], SUSPEND).await.suspended);
    store.command(Command::Cancel(task_id(3))).await;
    store.signal(register(2)).await;
    setup.advance(LEASE);
    store.signal(register(3)).await;
    let committed = store.commit(claims([claim(3, 5)])).await;
    let claimed: Vec<_> = committed.claims[0].tasks.iter().map(|task| (task.task_id, task.attempt)).collect();
    assert_eq!(claimed, [(task_id(4), 2), (task_id(5), 2)]);
    assert_eq!(committed.news.finished, [(task_id(3), Finish::Cancelled)]);
    assert_eq!(store.state(1).await, TaskState::Completed);
    assert_eq!(store.state(2).await, TaskState::Suspended);
    assert!(!store.signal(heartbeat(2)).await, "all dead workers are found");
}

/// A task whose worker died in its last attempt has failed: it may be what kills them.
pub async fn quarantine(backend: &impl Backend) {
    let (setup, store) = Setup::with_handle(backend).await;
    store.spawn([NewTask { max_attempts: 3, ..new_task(1) }]).await;
    for attempt in 1..=3 {
        store.signal(register(attempt)).await;
        assert_eq!(u128::from(store.claim_one(attempt).await.attempt), attempt);
        setup.advance(LEASE);
    }
    store.signal(register(4)).await;
    let committed = store.commit(claims([claim(4, 5)])).await;
    assert!(committed.claims[0].tasks.is_empty(), "it was claimed a fourth time");
    assert_eq!(committed.news.finished, [(task_id(1), Finish::Failed(crashed(3)))]);
    let info = store.info(1).await;
    assert_eq!((info.state, info.failure, info.attempt), (TaskState::Failed, Some(crashed(3)), 3));
    assert_eq!(info.finished_at, Some(setup.now()));
}

/// A worker that stops gives its tasks back at once, the attempt not counted, and gets no others.
pub async fn deregistration(backend: &impl Backend) {
    let setup = Setup::new(backend).await;
    let [a, b]: [Handle; 2] = setup.handles(2).await.try_into().ok().unwrap();
    assert!(!a.signal(deregister(1)).await, "it was not registered");
    let runs = a.run([NewTask { max_attempts: 1, ..new_task(1) }, new_task(2), new_task(3)]).await;
    assert!(a.next(runs[1], SUSPEND).await.suspended);
    a.command(Command::Cancel(task_id(3))).await;
    let committed = a.commit(signals([deregister(1)])).await;
    assert_eq!(committed.workers, [WorkerState::Active]);
    assert!(committed.news.ready.iter().any(|(queue, _)| *queue == name("queue")));
    assert_eq!(committed.news.finished, [(task_id(3), Finish::Cancelled)]);
    let info = b.info(1).await;
    assert_eq!((info.state, info.attempt), (TaskState::Pending, 0));
    assert!(a.claim(1, 5).await.is_empty(), "a worker that has stopped claims nothing");
    assert!(!a.signal(heartbeat(1)).await);
    b.signal(register(2)).await;
    let task = b.claim_one(2).await;
    assert_eq!((task.task_id, task.attempt), (runs[0].0, 1));
    assert_ne!(of(&task), runs[0]);
    assert!(a.apply(Transition::new(runs[0].0, runs[0].1, GO_ON)).await.is_err());
    assert_eq!(b.state(2).await, TaskState::Suspended);
}
