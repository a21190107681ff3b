//! Tests that a value that does not fit is told of, and that no other value takes its place.

use stepwell_core::store::{Finish, TaskFilter};
use stepwell_core::{FailureKind, WorkerState, WorkerStatus};

use super::*;

fn memory() -> SqliteStore {
    wait(SqliteStore::open(Location::Memory, Manual::new())).unwrap()
}

fn sql(store: &SqliteStore, sql: &'static str) {
    on_writer(store, move |conn| conn.execute_batch(sql).unwrap());
}

fn signal(store: &SqliteStore, signal: WorkerSignal) -> WorkerStatus {
    let batch = Batch { workers: vec![signal], ..Batch::default() };
    commit(store, batch).workers.remove(0)
}

#[test]
fn a_claimed_task_says_which_of_its_numbers_is_out_of_range() {
    for (damage, column) in [
        ("UPDATE stepwell_tasks SET attempt = -1", "`attempt`"),
        ("UPDATE stepwell_tasks SET attempt = 4294967296", "`attempt`"),
        ("UPDATE stepwell_tasks SET max_attempts = -7", "`max_attempts`"),
        ("UPDATE stepwell_tasks SET max_attempts = 9223372036854775807", "`max_attempts`"),
        ("UPDATE stepwell_tasks SET lost = -1", "`lost`"),
        ("UPDATE stepwell_tasks SET crashes = -1", "`crashes`"),
        ("UPDATE stepwell_tasks SET max_duration = -1", "`max_duration`"),
    ] {
        let store = memory();
        commit(&store, register(1));
        commit(&store, spawns(vec![new_task(1)]));
        sql(&store, damage);
        commit(&store, spawns(vec![new_task(2)]));
        let claimed = claimed(commit(&store, claim(1, 5)));
        let said = claimed[0].unreadable.as_ref().unwrap().to_string();
        assert!(said.contains(column) && said.contains("out of range"), "{damage}: {said}");
        assert_eq!(claimed[1].unreadable, None);
    }
}

#[test]
fn a_list_says_which_number_of_a_task_is_out_of_range() {
    for (damage, column) in [
        ("UPDATE stepwell_tasks SET attempt = -1", "`attempt`"),
        ("UPDATE stepwell_tasks SET max_attempts = 4294967296", "`max_attempts`"),
        ("UPDATE stepwell_tasks SET priority = 2147483648", "`priority`"),
        ("UPDATE stepwell_tasks SET max_duration = -1", "`max_duration`"),
    ] {
        let store = memory();
        commit(&store, spawns(vec![new_task(1)]));
        sql(&store, damage);
        let task = wait(store.task(task_id(1))).unwrap().unwrap();
        let listed = wait(store.tasks(TaskFilter::default())).unwrap().items.remove(0);
        for info in [task, listed] {
            let said = info.headers["$unreadable"].as_str().unwrap();
            assert!(said.contains(column), "{damage}: {said}");
        }
    }
}

#[test]
fn an_entry_has_its_number_or_none() {
    let store = memory();
    commit(&store, register(1));
    let first = NewTask { claim_by: Some(worker_id(1)), ..new_task(1) };
    let run_id = first.run_id;
    commit(&store, spawns(vec![first]));
    let going_on = || transition(task_id(1), run_id, Next::Continue { collect: false });
    let too_large = u64::MAX;
    for refused in [
        Transition { entries: vec![step(too_large, json("1"))], ..going_on() },
        Transition { superseded: vec![too_large], ..going_on() },
    ] {
        let error = wait(store.commit(transitions(vec![refused]).into())).unwrap_err();
        assert!(error.is_of_an_item(), "{error}");
        assert!(error.to_string().contains(&too_large.to_string()), "{error}");
    }
    let after = Transition { after: Some(too_large), ..going_on() };
    let judged = commit(&store, transitions(vec![after])).transitions.remove(0);
    assert!(judged.is_err(), "no journal ends there");
    sql(
        &store,
        "INSERT INTO stepwell_journal (task_id, seq, kind, name, ordinal, outcome, payload, at)
        SELECT task_id, -1, 'step', 'step', 1, 'done', '1', 0 FROM stepwell_tasks",
    );
    let error = wait(store.journal(task_id(1))).unwrap_err();
    assert!(matches!(error, StoreError::Unreadable(_)), "{error}");
    assert!(error.to_string().contains("-1 is out of range"), "{error}");
}

#[test]
fn an_end_without_its_output_or_failure_says_so() {
    let store = memory();
    commit(&store, spawns(vec![new_task(1), new_task(2)]));
    sql(
        &store,
        "UPDATE stepwell_tasks SET finished_at = 1,
        state = CASE task_id LIKE '%1' WHEN TRUE THEN 'completed' ELSE 'failed' END",
    );
    let ends = wait(store.ends(vec![task_id(1), task_id(2)])).unwrap().items;
    let Some(Finish::Completed(output)) = &ends[0].1 else { panic!("{ends:?}") };
    assert!(output.unreadable().is_some());
    let Some(Finish::Failed(failure)) = &ends[1].1 else { panic!("{ends:?}") };
    assert_eq!(failure.kind, FailureKind::Payload);
    assert!(failure.message.contains("`failure`"), "{failure}");
}

#[test]
fn a_worker_with_a_damaged_count_of_heartbeats_can_be_declared_dead() {
    let store = memory();
    commit(&store, register(1));
    commit(&store, register(2));
    sql(&store, "UPDATE stepwell_workers SET heartbeats = -5, lease = -5");
    let seen = signal(&store, WorkerSignal::Heartbeat { worker_id: worker_id(2) });
    let other = seen.others[0];
    assert_eq!((other.heartbeats, other.lease), (0, Duration::ZERO));
    let dead = |heartbeats| WorkerSignal::DeclareDead { worker_id: worker_id(1), heartbeats };
    assert_eq!(signal(&store, dead(u64::MAX)).state, WorkerState::Active);
    signal(&store, dead(other.heartbeats));
    assert_eq!(signal(&store, dead(0)).state, WorkerState::Gone);
}

#[test]
fn a_worker_whose_queues_cannot_be_read_serves_no_empty_list() {
    let store = memory();
    commit(&store, register(1));
    assert_eq!(wait(store.workers()).unwrap().len(), 1);
    sql(&store, "UPDATE stepwell_workers SET queues = 'nonsense'");
    assert_eq!(wait(store.workers()).unwrap(), [], "the log says why");
}
