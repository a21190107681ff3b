//! The point of import: tasks that were exported from a store.

use std::time::Duration;

use stepwell_core::store::{
    CancellationPolicy, ClaimedTask, Command, CommandOutcome, NewTask, Next,
};
use stepwell_core::{RetryStrategy, TaskInfo, TaskRecord, TaskState};

use crate::backend::Backend;
use crate::handle::{Handle, of, payloads};
use crate::make::*;
use crate::setup::Setup;

async fn record(store: &Handle, n: u128) -> TaskRecord {
    let waits = store.0.waits_of(task_id(n)).await.unwrap();
    let messages = store
        .0
        .messages(task_id(n), None)
        .await
        .unwrap()
        .items
        .into_iter()
        .map(|message| (message.topic, message.payload))
        .collect();
    let (info, journal) = (store.info(n).await, store.journal(n).await);
    TaskRecord { info, journal, waits, messages, needs: Vec::new() }
}

/// Makes six tasks, and returns the claim of the first one, and all records. Task 1 waits, task 2
/// has completed, task 3 has failed and needs task 2, task 4 is retried later, task 5 runs, and
/// task 6 waits for the turn of task 1.
async fn exported(
    setup: &Setup<'_, impl Backend>,
    from: &Handle,
) -> (ClaimedTask, Vec<TaskRecord>) {
    let policy =
        CancellationPolicy { max_duration: Some(LEASE * 9), ..CancellationPolicy::default() };
    let full = NewTask {
        priority: 7,
        idempotency_key: Some(name("key")),
        concurrency_key: Some(name("turn")),
        code_version: None,
        retry: RetryStrategy::fixed(LEASE),
        cancellation: policy,
        parent: Some(task_id(99)),
        ..new_task(1)
    };
    from.spawn([full]).await;
    from.signal(register(1)).await;
    let first = from.claim_one(1).await;
    from.journals(of(&first), vec![step(1, json("1")), step(2, json("\"2\""))]).await;
    let waits = [for_event("event"), for_message("topic", 1)];
    assert!(from.apply(awaiting(of(&first), waits, SUSPEND)).await.unwrap().suspended);
    for n in ["1", "2"] {
        from.send(message(1, "other", json(n))).await;
    }
    let runs = from.run((2..=5).map(new_task)).await;
    from.next(runs[0], complete()).await;
    from.send(message(3, "topic", json("3"))).await;
    from.next(runs[1], Next::Fail(failure("no"))).await;
    from.next(runs[2], Next::Retry { failure: failure("no"), at: setup.at(LEASE * 2) }).await;
    from.spawn([NewTask { concurrency_key: Some(name("turn")), ..new_task(6) }]).await;

    let mut records = Vec::new();
    for n in 1..=6 {
        records.push(record(from, n).await);
    }
    records[2].needs = vec![task_id(2)];
    (first, records)
}

/// Checks that the imported tasks differ from their records only where an import changes a task.
async fn are_unchanged(store: &Handle, records: &[TaskRecord]) {
    for (n, old) in (1..).zip(records) {
        let new = record(store, n).await;
        assert_eq!(
            (&new.journal, &new.waits, &new.messages),
            (&old.journal, &old.waits, &old.messages),
            "{n}"
        );
        let ended = old.info.state.is_finished();
        let state = if ended { old.info.state } else { TaskState::Pending };
        let attempt = old.info.attempt - u32::from(old.info.state == TaskState::Running);
        let due_at = old.info.due_at.filter(|_| old.info.state == TaskState::Pending);
        // The import changes only these fields.
        let expected =
            TaskInfo { state, attempt, due_at, cancel_requested: false, ..old.info.clone() };
        assert_eq!(format!("{:?}", new.info), format!("{expected:?}"), "{n}");
    }
}

/// Checks that a task that is imported into another store is unchanged, and continues.
pub async fn importing(backend: &impl Backend) {
    let (from_setup, from) = Setup::with_handle(backend).await;
    let (setup, store) = Setup::with_handle(backend).await;
    let (first, records) = exported(&from_setup, &from).await;
    for record in &records {
        assert!(store.0.import(record.clone()).await.unwrap());
        assert!(!store.0.import(record.clone()).await.unwrap(), "it is there already");
    }
    let other = TaskRecord {
        info: TaskInfo { task_id: task_id(50), ..records[0].info.clone() },
        ..records[0].clone()
    };
    assert!(!store.0.import(other).await.unwrap(), "its key is taken");
    assert!(store.find(50).await.is_none());

    are_unchanged(&store, &records).await;
    store.signal(register(1)).await;
    // Both stores may draw the same numbers for ids that they make in the same moment.
    setup.advance(Duration::from_millis(1));
    let claimed = store.claim(1, 9).await;
    let ids: Vec<_> = claimed.iter().map(|task| task.task_id).collect();
    assert_eq!(ids, [task_id(1), task_id(5)], "the other has its turn later, and one is not due");
    assert_ne!(claimed[0].run_id, first.run_id, "an old run could go on");
    assert_eq!(claimed[0].journal.as_ref().map(Vec::len), Some(2));
    assert_eq!((claimed[0].waits.len(), claimed[0].attempt), (2, 1));
    store.emit(event("event", json("3"))).await;
    assert_eq!(store.look(of(&claimed[0])).await.events.len(), 1);
    store.next(of(&claimed[0]), complete()).await;
    assert_eq!(store.claim_one(1).await.task_id, task_id(6));
    store.command(Command::Retry(task_id(3))).await;
    let retried = store.claim_one(1).await;
    let looked =
        store.apply(awaiting(of(&retried), [for_message("topic", 1)], LOOK)).await.unwrap();
    assert_eq!(payloads(&looked.facts), [json("3")], "a failed task brings its mailbox along");
    setup.advance(LEASE * 2);
    store.signal(register(2)).await;
    assert!(store.claim(2, 9).await.iter().any(|task| task.task_id == task_id(4)));
    assert_eq!(
        store.command(Command::Delete(task_id(2))).await,
        CommandOutcome::Needed { by: task_id(3) }
    );
    store.next(of(&retried), complete()).await;
    assert_eq!(store.command(Command::Delete(task_id(2))).await, CommandOutcome::Done);
}
