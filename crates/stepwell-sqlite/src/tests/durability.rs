//! What is committed is on the disk, as it was given; what changes nothing is not written.

use stepwell_core::TaskState;
use stepwell_core::store::Finish;

use super::*;

#[test]
fn everything_is_there_after_reopening() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stepwell.db");
    let (before, journal) = {
        let store = open(&path);
        let eager = NewTask { claim_by: Some(worker_id(1)), ..new_task(1) };
        let run_id = eager.run_id;
        commit(&store, register(1));
        commit(&store, spawns(vec![eager, new_task(2)]));
        let entries = vec![step(1, json("\"result\""))];
        let done = Transition { entries, ..transition(task_id(1), run_id, Next::Complete(json("7"))) };
        let committed = commit(&store, transitions(vec![done]));
        assert_eq!(committed.news.finished, [(task_id(1), Finish::Completed(json("7")))]);
        (wait(store.tasks(Default::default())).unwrap(), wait(store.journal(task_id(1))).unwrap())
    };
    assert_eq!((before.len(), journal.len()), (2, 1));
    let store = open(&path);
    assert_eq!(format!("{before:?}"), format!("{:?}", wait(store.tasks(Default::default())).unwrap()));
    assert_eq!(journal, wait(store.journal(task_id(1))).unwrap());
}

#[test]
fn names_and_payloads_are_kept_as_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder.path().join("odd %20 'näme'?.db"));
    let large = json(&format!("\"{}\"", "ü".repeat(3 << 19)));
    assert_eq!(large.as_str().len(), (3 << 20) + 2);
    let names =
        ["'; DROP TABLE stepwell_tasks; --", "päckchen 📦", "\"quoted\" \\ % _ \n\t", "\u{202e}rtl", "null"];
    for (n, text) in (1..).zip(names) {
        let mut task = new_task(n);
        task.task_type = name(text);
        task.queue = name(text);
        task.idempotency_key = Some(name(text));
        task.params = large.clone();
        task.headers.insert(text.into(), text.into());
        commit(&store, spawns(vec![task]));
        let claim = Claim {
            worker_id: worker_id(1),
            queues: vec![name(text)],
            task_types: vec![name(text)],
            limit: 5,
        };
        let batch = Batch { claims: vec![claim], ..register(1) };
        let [task] = claimed(commit(&store, batch)).try_into().unwrap();
        assert_eq!((task.queue, task.task_type, &task.params), (name(text), name(text), &large));
        let entries = vec![step(1, large.clone())];
        let next = Next::Complete(large.clone());
        let done = Transition { entries, ..transition(task.task_id, task.run_id, next) };
        assert!(commit(&store, transitions(vec![done])).transitions[0].is_ok());
        let info = wait(store.task(task.task_id)).unwrap().unwrap();
        assert_eq!((info.output.as_ref(), info.state), (Some(&large), TaskState::Completed));
        assert_eq!(info.headers[text], text);
        assert_eq!(wait(store.journal(task.task_id)).unwrap(), [step(1, large.clone())]);
    }
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
    let version = || other.query_row("PRAGMA data_version", [], |row| row.get::<_, i64>(0)).unwrap();
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
