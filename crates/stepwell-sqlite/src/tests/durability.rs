//! Tests that committed data is on the disk as it was written, and that a batch without a change
//! writes nothing.

use stepwell_core::store::Finish;

use super::*;

#[test]
fn everything_is_there_after_reopening() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("odd %20 'näme'?.db");
    let (before, journal) = {
        let store = open(&path);
        let eager = NewTask { claim_by: Some(worker_id(1)), ..new_task(1) };
        let run_id = eager.run_id;
        commit(&store, register(1));
        commit(&store, spawns(vec![eager, new_task(2)]));
        let entries = vec![step(1, json("\"result\""))];
        let done =
            Transition { entries, ..transition(task_id(1), run_id, Next::Complete(json("7"))) };
        let committed = commit(&store, transitions(vec![done]));
        assert_eq!(committed.news.finished, [(task_id(1), Finish::Completed(json("7")))]);
        (wait(store.tasks(Default::default())).unwrap(), wait(store.journal(task_id(1))).unwrap())
    };
    assert_eq!((before.items.len(), journal.len()), (2, 1));
    let store = open(&path);
    assert_eq!(
        format!("{before:?}"),
        format!("{:?}", wait(store.tasks(Default::default())).unwrap())
    );
    assert_eq!(journal, wait(store.journal(task_id(1))).unwrap());
}

#[test]
fn a_batch_that_changes_nothing_is_not_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stepwell.db");
    let store = open(&path);
    commit(&store, register(1));
    let event = || stepwell_core::NewEvent { name: name("event"), queue: None, payload: json("1") };
    commit(&store, Batch { events: vec![event()], ..spawns(vec![new_task(1)]) });
    let task = claimed(commit(&store, claim(1, 5))).remove(0);

    let other = Connection::open(&path).unwrap();
    let version =
        || other.query_row("PRAGMA data_version", [], |row| row.get::<_, i64>(0)).unwrap();
    let before = version();
    commit(&store, claim(1, 5));
    commit(&store, Batch { events: vec![event()], ..Batch::default() });
    let looks = transition(task.task_id, task.run_id, Next::Continue { collect: true });
    let refused = transition(task.task_id, Uuid::nil().into(), Next::Complete(json("1")));
    commit(&store, transitions(vec![looks, refused]));
    assert_eq!(version(), before);
    commit(&store, spawns(vec![new_task(2)]));
    assert_ne!(version(), before);
}
