//! The points of workers: their lives, their stops and their deaths.

use stepwell_core::store::{
    Claim, Command, Finish, NewTask, NewWorker, Next, Transition, WorkerSignal,
};
use stepwell_core::{
    Entry, Key, Kind, OtherWorker, SUSPECT_CRASHES, TaskId, TaskState, WATCHED, WorkerInfo,
    WorkerState, after, crash_limit, crashed,
};

use crate::backend::Backend;
use crate::handle::{Handle, of};
use crate::make::*;
use crate::setup::Setup;

/// Checks that a worker is declared dead by another one that has always seen the same number of
/// heartbeats, whatever the clock says. The dead worker's tasks become pending again, each with
/// another attempt.
pub async fn leases(backend: &impl Backend) {
    let setup = Setup::new(backend).await;
    let [a, b]: [Handle; 2] = setup.handles(2).await.try_into().ok().unwrap();
    let run = a.run_one(1).await;
    assert!(!b.signal(heartbeat(9)).await, "a worker that was never registered is alive");
    setup.advance(LEASE * 1_000);
    b.signal(register(2)).await;
    assert!(b.claim(2, 5).await.is_empty(), "time alone takes no task from its worker");
    assert!(a.apply(Transition::new(run.0, run.1, GO_ON)).await.is_ok());

    let watched = |heartbeats| OtherWorker { worker_id: worker_id(1), heartbeats, lease: LEASE };
    assert_eq!(b.status(heartbeat(2)).await.others, [watched(0)]);
    assert!(a.signal(heartbeat(1)).await);
    assert_eq!(b.status(heartbeat(2)).await.others, [watched(1)]);
    assert_eq!(
        b.status(declare_dead(1, 0)).await.state,
        WorkerState::Active,
        "it has been seen since"
    );
    assert_eq!(b.status(declare_dead(1, 2)).await.state, WorkerState::Active);
    assert!(b.claim(2, 5).await.is_empty());
    assert!(a.apply(Transition::new(run.0, run.1, GO_ON)).await.is_ok());

    let committed = b.commit(signals([declare_dead(1, 1)])).await;
    assert!(committed.news.ready.iter().any(|(queue, _)| *queue == name("queue")));
    assert_eq!(b.status(declare_dead(1, 1)).await.state, WorkerState::Gone, "it is dead already");
    let task = b.claim_one(2).await;
    assert_eq!((task.task_id, task.attempt, task.crashes), (run.0, 2, 1));
    assert!(task.journal.is_some());
    assert_ne!(of(&task), run);
    assert!(!a.signal(heartbeat(1)).await, "a dead worker learns of it");
    assert!(a.claim(1, 5).await.is_empty());
    assert!(a.signal(register(1)).await, "and may register again");
    assert_eq!(b.status(heartbeat(2)).await.others, [watched(0)]);
}

/// Checks that the answer to a heartbeat holds the worker's runs in the store, and other workers to
/// watch. Each worker is watched by some of the others, however many workers there are.
pub async fn heartbeats(backend: &impl Backend) {
    let (_setup, store) = Setup::with_handle(backend).await;
    let runs = store.run((1..=4).map(new_task)).await;
    store.next(runs[0], complete()).await;
    assert!(store.next(runs[1], SUSPEND).await.suspended);
    let status = store.status(heartbeat(1)).await;
    assert_eq!((status.state, status.others), (WorkerState::Active, vec![]));
    let mut held = status.runs;
    held.sort_unstable();
    assert_eq!(held, runs[2..]);
    assert_eq!(store.status(register(2)).await.runs, []);
    assert_eq!(
        store.status(WorkerSignal::Drain { worker_id: worker_id(2) }).await,
        WorkerState::Draining.into()
    );

    let count = WATCHED as u128 + 10;
    for n in 3..=count {
        store.signal(register(n)).await;
    }
    for n in [1, 2, 40, count] {
        let others: Vec<_> = store
            .status(heartbeat(n))
            .await
            .others
            .into_iter()
            .map(|other| other.worker_id)
            .collect();
        let following = (n + 1..=count).chain(1..n).take(WATCHED);
        assert_eq!(others, following.map(worker_id).collect::<Vec<_>>(), "the others of {n}");
    }
}

/// Checks what is known of workers, and that a worker can be told to stop.
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
        heartbeat_at: start,
        lease: LEASE,
    };
    let second = WorkerInfo {
        worker_id: worker_id(2),
        name: "a \"second\" one, ünicode".into(),
        queues: vec![name("b"), name("a")],
        concurrency: u32::MAX,
        code_version: Some(name("v2")),
        running: 0,
        lease: LEASE * 2,
        ..first.clone()
    };
    assert_eq!(infos, [first.clone(), second.clone()]);

    // The worker learns it with its next heartbeat, and with every further one.
    let state = async |signal| store.status(signal).await.state;
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
    silent_workers(&setup, &store).await;
}

/// Checks that a silent worker is shown as dead, and stays until it is declared dead.
async fn silent_workers(setup: &Setup<'_, impl Backend>, store: &Handle) {
    setup.advance(LEASE);
    let alive: Vec<_> =
        store.0.workers().await.unwrap().iter().map(|worker| worker.alive).collect();
    assert_eq!(alive, [false, true]);
    setup.advance(LEASE);
    store.signal(heartbeat(1)).await;
    let alive: Vec<_> =
        store.0.workers().await.unwrap().iter().map(|worker| worker.alive).collect();
    assert_eq!(alive, [true, false]);
    store.signal(declare_dead(2, 1)).await;
    let left: Vec<_> =
        store.0.workers().await.unwrap().iter().map(|worker| worker.worker_id).collect();
    assert_eq!(left, [worker_id(1)]);
}

/// Checks the list of types that wait, by which a worker can report the types that it does not
/// know.
pub async fn waiting_types(backend: &impl Backend) {
    let (setup, store) = Setup::with_handle(backend).await;
    let of_type = |n, task_type, queue| NewTask {
        task_type: name(task_type),
        queue: name(queue),
        ..new_task(n)
    };
    let later =
        NewTask { start_at: Some(after(setup.now(), LEASE)), ..of_type(5, "later", "queue") };
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

/// Returns two generations that descend from task 3.
fn descendants_of_3() -> [NewTask; 2] {
    let child = |n, parent| NewTask { parent: Some(task_id(parent)), ..new_task(n) };
    [child(13, 3), child(23, 13)]
}

/// Checks that task 3 was cancelled with all of its descendants.
fn cancelled_with_its_descendants(mut finished: Vec<(TaskId, Finish)>) {
    finished.sort_by_key(|(task_id, _)| *task_id);
    assert_eq!(finished, [3, 13, 23].map(|n| (task_id(n), Finish::Cancelled)));
}

/// Checks that a dead worker's tasks that wait, or have ended, are left unchanged. Tasks that were
/// asked to cancel are cancelled, with their descendants.
pub async fn dead_workers(backend: &impl Backend) {
    let (_setup, store) = Setup::with_handle(backend).await;
    let runs = store.run((1..=5).map(new_task)).await;
    store.spawn(descendants_of_3()).await;
    store.next(runs[0], complete()).await;
    assert!(store.next(runs[1], SUSPEND).await.suspended);
    store.command(Command::Cancel(task_id(3))).await;
    store.signal(register(3)).await;
    let committed = store.commit(signals([declare_dead(1, 0)])).await;
    cancelled_with_its_descendants(committed.news.finished);
    let claimed: Vec<_> =
        store.claim(3, 5).await.iter().map(|task| (task.task_id, task.attempt)).collect();
    assert_eq!(claimed, [(task_id(4), 2), (task_id(5), 2)]);
    assert_eq!(store.state(1).await, TaskState::Completed);
    assert_eq!(store.state(2).await, TaskState::Suspended);
}

/// Checks that crashes are counted apart from attempts. A task gets another attempt for each crash,
/// and fails after a number of crashes in a row between which nothing was journaled.
pub async fn quarantine(backend: &impl Backend) {
    let (setup, store) = Setup::with_handle(backend).await;
    let limit = crash_limit(1, false);
    let [first, last] = [1, u128::from(limit)];
    store
        .spawn([
            NewTask { max_attempts: 1, ..new_task(1) },
            NewTask { max_attempts: 1, ..new_task(2) },
        ])
        .await;
    for worker in first..=last {
        store.signal(register(worker)).await;
        // A claim returns one suspect at a time.
        let tasks = [store.claim(worker, 5).await, store.claim(worker, 5).await].concat();
        for task in &tasks {
            let crashes = if task.task_id == task_id(1) { worker - 1 } else { (worker - 1).min(1) };
            assert_eq!(
                (u128::from(task.attempt), u128::from(task.crashes)),
                (worker, crashes),
                "{task:?}"
            );
            assert_eq!(task.max_attempts, task.attempt, "a crash gives another attempt");
            // Task 1 writes a log line, and task 2 makes progress.
            let entry = match task.task_id == task_id(1) {
                true => Entry {
                    key: Key { kind: Kind::Log, ..step(worker as u64, json("1")).key },
                    ..step(worker as u64, json("1"))
                },
                false => step(worker as u64, json("1")),
            };
            store.journals(of(task), vec![entry]).await;
        }
        let committed = store.commit(signals([declare_dead(worker, 0)])).await;
        let finished = (worker == last).then(|| (task_id(1), Finish::Failed(crashed(limit))));
        assert_eq!(committed.news.finished, Vec::from_iter(finished), "crash {worker}");
    }
    let info = store.info(1).await;
    assert_eq!(
        (info.state, info.failure, info.attempt),
        (TaskState::Failed, Some(crashed(limit)), limit)
    );
    assert_eq!(info.finished_at, Some(setup.now()));
    assert_eq!(store.state(2).await, TaskState::Pending);

    // A task with more attempts survives more crashes.
    assert_eq!(crash_limit(limit + 3, false), limit + 3);
    // A task that is run again starts without a crash.
    store.command(Command::Retry(task_id(1))).await;
    store.signal(register(9)).await;
    let mut crashes: Vec<_> =
        store.claim(9, 5).await.iter().map(|task| (task.task_id, task.crashes)).collect();
    crashes.sort_unstable();
    assert_eq!(crashes, [(task_id(1), 0), (task_id(2), 1)]);
}

/// Checks that tasks with several crashes in a row are suspects. A claim returns at most one
/// suspect, and none with more crashes than the claim allows. A run that ends in an orderly way
/// clears the suspicion.
pub async fn suspects(backend: &impl Backend) {
    let (setup, store) = Setup::with_handle(backend).await;
    store.spawn((1..=5).map(new_task)).await;
    for worker in 1..=u128::from(SUSPECT_CRASHES) {
        store.signal(register(worker)).await;
        assert_eq!(store.claim(worker, 5).await.len(), 5);
        store.crash(worker).await;
    }
    store.spawn((6..=7).map(new_task)).await;
    store.signal(register(9)).await;
    let none = Claim { suspect: SUSPECT_CRASHES - 1, limit: 1, ..claim(9, 1) };
    let fresh = store.commit(claims([none])).await.claims.remove(0).tasks;
    assert_eq!(fresh.iter().map(|task| task.task_id).collect::<Vec<_>>(), [task_id(6)]);
    let both = store.claim(9, 5).await;
    let ids: Vec<_> = both.iter().map(|task| (task.task_id, task.crashes)).collect();
    assert_eq!(ids, [(task_id(1), SUSPECT_CRASHES), (task_id(7), 0)], "a suspect, and the rest");
    assert!(both[0].journal.is_some());
    let types = store.0.waiting_types(vec![name("queue")]).await.unwrap();
    assert_eq!(types.len(), 0, "suspects are not what is to be claimed next");

    // A suspension, a failed attempt and a release are no crashes.
    let suspended = store.apply(awaiting(of(&both[0]), [for_event("e")], SUSPEND)).await.unwrap();
    assert!(suspended.suspended);
    let second = store.claim_one(9).await;
    store.next(of(&second), Next::Retry { failure: failure("no"), at: setup.now() }).await;
    let third = store.claim(9, 5).await;
    let third: Vec<_> = third.iter().filter(|task| task.crashes > 0).collect();
    store.next(of(third[0]), Next::Release).await;
    store.emit(event("e", json("1"))).await;
    let mut cleared: Vec<_> =
        store.claim(9, 9).await.iter().map(|task| (task.task_id, task.crashes)).collect();
    cleared.sort_unstable();
    assert_eq!(cleared[..2], [(task_id(1), 0), (task_id(3), 0)]);
    assert_eq!(cleared[2], (task_id(4), SUSPECT_CRASHES));

    // A claim leaves a task with more crashes than it allows.
    store.crash(9).await;
    store.signal(register(10)).await;
    let few = Claim { suspect: SUSPECT_CRASHES, ..claim(10, 9) };
    let few = store.commit(claims([few])).await.claims.remove(0).tasks;
    let mut few: Vec<_> = few.iter().map(|task| task.task_id).collect();
    few.sort_unstable();
    assert!(few.contains(&task_id(5)) && !few.contains(&task_id(4)), "{few:?}");
    let more = store.claim(10, 9).await;
    assert_eq!(
        more.iter().map(|task| (task.task_id, task.crashes)).collect::<Vec<_>>(),
        [(task_id(4), SUSPECT_CRASHES + 1)]
    );
}

/// Checks that a worker that stops releases its tasks at once, that their attempts do not count,
/// and that the worker receives no others.
pub async fn deregistration(backend: &impl Backend) {
    let setup = Setup::new(backend).await;
    let [a, b]: [Handle; 2] = setup.handles(2).await.try_into().ok().unwrap();
    assert!(!a.signal(deregister(1)).await, "it was not registered");
    let runs = a.run([NewTask { max_attempts: 1, ..new_task(1) }, new_task(2), new_task(3)]).await;
    a.spawn(descendants_of_3()).await;
    assert!(a.next(runs[1], SUSPEND).await.suspended);
    a.command(Command::Cancel(task_id(3))).await;
    let committed = a.commit(signals([deregister(1)])).await;
    assert_eq!(committed.workers, [WorkerState::Active.into()]);
    assert!(committed.news.ready.iter().any(|(queue, _)| *queue == name("queue")));
    cancelled_with_its_descendants(committed.news.finished);
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
