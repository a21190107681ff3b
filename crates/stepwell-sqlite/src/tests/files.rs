//! Tests of the database's files, and of what other programs do to them while it is open.

use std::fs;

use stepwell_core::TaskFilter;

use super::*;
use crate::file::checkpoint::GROWN;
use crate::file::identity::beside;

fn detached(store: &SqliteStore, n: u128, fate: &str) -> String {
    let refused = wait(store.commit(spawns(vec![new_task(n)]).into())).unwrap_err();
    assert!(matches!(refused, StoreError::Detached { .. }), "{refused:?}");
    let text = refused.to_string();
    assert!(text.contains(fate) && text.contains("nothing is accepted"), "{text}");
    let described =
        stepwell_core::TaskTypeInfo { task_type: name("t"), params: 1.into(), output: 1.into() };
    assert!(matches!(wait(store.describe(described)), Err(StoreError::Detached { .. })));
    // This read is the check of the store's health.
    assert!(matches!(wait(store.task_types()), Err(StoreError::Detached { .. })));
    text
}

fn ids(store: &SqliteStore) -> Vec<TaskId> {
    let (mut ids, mut before) = (Vec::new(), None);
    loop {
        let page = wait(store.tasks(TaskFilter { before, ..TaskFilter::default() })).unwrap();
        ids.extend(page.items.iter().map(|task| task.task_id));
        before = page.next;
        if before.is_none() {
            ids.sort_unstable();
            return ids;
        }
    }
}

#[cfg(unix)]
#[test]
fn a_database_that_was_moved_accepts_nothing_until_it_is_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stepwell.db");
    let store = open(&path);
    commit(&store, spawns(vec![new_task(1)]));
    let away = folder.path().join("away.db");
    fs::rename(&path, &away).unwrap();
    let text = detached(&store, 2, "stepwell.db was deleted or moved");
    assert!(text.contains("Put the file back, and the program goes on"), "{text}");
    fs::rename(&away, &path).unwrap();
    commit(&store, spawns(vec![new_task(3)]));
    assert_eq!(ids(&store), [task_id(1), task_id(3)], "what was refused is not there");
    drop(store);
    assert_eq!(ids(&open(&path)), [task_id(1), task_id(3)]);
}

#[cfg(unix)]
#[test]
fn a_database_that_was_replaced_accepts_nothing_and_leaves_the_other_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stepwell.db");
    let link = folder.path().join("link.db");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    for through in [&path, &link] {
        let store = open(through);
        commit(&store, spawns(vec![new_task(1)]));
        for suffix in ["", "-wal", "-shm"] {
            fs::remove_file(beside(&path, suffix)).unwrap();
        }
        let text = detached(&store, 2, "was deleted or moved");
        assert!(text.contains("start it again, to use what is there now"), "{text}");
        let other = open(&path);
        commit(&other, spawns(vec![new_task(7)]));
        detached(&store, 3, "was replaced by another file");
        drop(store);
        commit(&other, spawns(vec![new_task(8)]));
        drop(other);
        let again = open(&path);
        assert_eq!(ids(&again), [task_id(7), task_id(8)]);
        drop(again);
        fs::remove_file(&path).unwrap();
    }
}

/// The files are checked when their folder has changed or was replaced.
#[cfg(unix)]
#[test]
fn a_folder_that_was_moved_is_noticed() {
    let outer = tempfile::tempdir().unwrap();
    let [folder, away] = ["folder", "away"].map(|name| outer.path().join(name));
    fs::create_dir(&folder).unwrap();
    let path = folder.join("stepwell.db");
    let store = open(&path);
    commit(&store, spawns(vec![new_task(1)]));
    while !store.identity.as_ref().unwrap().trusts_the_folder() {
        commit(&store, spawns(vec![]));
    }
    fs::rename(&folder, &away).unwrap();
    detached(&store, 2, "stepwell.db was deleted or moved");
    fs::create_dir(&folder).unwrap();
    commit(&open(&path), spawns(vec![new_task(7)]));
    detached(&store, 3, "stepwell.db was replaced by another file");
    fs::rename(&folder, outer.path().join("other")).unwrap();
    fs::rename(&away, &folder).unwrap();
    commit(&store, spawns(vec![new_task(4)]));
    assert_eq!(ids(&store), [task_id(1), task_id(4)]);
}

/// Each change of the folder is noticed at once, however soon it follows another one.
#[cfg(unix)]
#[test]
fn what_is_moved_at_any_moment_is_noticed_by_the_next_commit() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stepwell.db");
    let away = folder.path().join("away.db");
    let store = open(&path);
    for n in 0..50 {
        if n % 10 == 0 {
            while !store.identity.as_ref().unwrap().trusts_the_folder() {
                commit(&store, spawns(vec![]));
            }
        }
        if n % 3 == 0 {
            fs::write(folder.path().join("else"), "").unwrap();
        }
        commit(&store, spawns(vec![new_task(2 * n + 1)]));
        fs::rename(&path, &away).unwrap();
        let refused = wait(store.commit(spawns(vec![new_task(2 * n + 2)]).into()));
        assert!(matches!(refused, Err(StoreError::Detached { .. })), "{n}: {refused:?}");
        fs::rename(&away, &path).unwrap();
    }
    assert_eq!(ids(&store).len(), 50);
}

#[cfg(unix)]
#[test]
fn a_symlink_that_leads_elsewhere_now_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let [first, second, link] =
        ["first.db", "second.db", "link.db"].map(|name| folder.path().join(name));
    drop(open(&second));
    std::os::unix::fs::symlink(&first, &link).unwrap();
    let store = open(&link);
    commit(&store, spawns(vec![new_task(1)]));
    commit(&open(&first), spawns(vec![new_task(2)]));
    fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink(&second, &link).unwrap();
    detached(&store, 3, "was replaced by another file");
    drop(store);
    assert_eq!(ids(&open(&first)), [task_id(1), task_id(2)], "it was first.db that was open");
}

#[cfg(unix)]
#[test]
fn what_a_deleted_log_held_is_saved_as_the_program_stops() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stepwell.db");
    let store = open(&path);
    commit(&store, spawns(vec![new_task(1)]));
    fs::remove_file(beside(&path, "-wal")).unwrap();
    let text = detached(&store, 2, "stepwell.db-wal was deleted or moved");
    assert!(text.contains("Stop the programs that use the database in the ordinary way"), "{text}");
    drop(store);
    let store = open(&path);
    commit(&store, spawns(vec![new_task(3)]));
    for suffix in ["-wal", "-shm"] {
        fs::remove_file(beside(&path, suffix)).unwrap();
    }
    detached(&store, 4, "was deleted or moved");
    drop(store);
    assert_eq!(ids(&open(&path)), [task_id(1), task_id(3)]);
}

/// SQLite's locks are in the log's index. A program that opens the database next has another index,
/// and would overwrite this program's data.
#[cfg(unix)]
#[test]
fn an_index_of_the_log_that_was_deleted_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stepwell.db");
    let store = open(&path);
    commit(&store, spawns(vec![new_task(1)]));
    fs::remove_file(beside(&path, "-shm")).unwrap();
    let text = detached(&store, 2, "stepwell.db-shm was deleted or moved");
    assert!(text.contains("Stop the programs that use the database in the ordinary way"), "{text}");
    fs::write(beside(&path, "-shm"), "").unwrap();
    detached(&store, 3, "stepwell.db-shm was replaced by another file");
    drop(store);
    let is_left = ["-wal", "-shm"].map(|suffix| beside(&path, suffix).exists());
    assert_eq!(is_left, [true, true], "what another program may use is left where it is");
    assert_eq!(ids(&open(&path)), [task_id(1)]);
}

/// A reader that stays keeps SQLite from writing the log from its beginning. The log grows
/// meanwhile, and is short again when the reader has gone.
#[test]
fn the_log_is_short_again_after_a_long_reader() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stepwell.db");
    let store = open(&path);
    let reader = Connection::open(&path).unwrap();
    reader.execute_batch("BEGIN; SELECT * FROM stepwell_tasks").unwrap();
    let length = || fs::metadata(beside(&path, "-wal")).unwrap().len();
    let large =
        |n| NewTask { params: json(&format!("\"{}\"", "x".repeat(4 << 20))), ..new_task(n) };
    let mut n = 0;
    let mut spawn = || {
        n += 1;
        commit(&store, spawns(vec![large(n)]));
    };
    while length() < GROWN + (8 << 20) {
        spawn();
    }
    reader.execute_batch("COMMIT").unwrap();
    while length() >= GROWN {
        commit(&store, spawns(vec![]));
        std::thread::yield_now();
    }
    // Commits copy the log themselves again.
    for _ in 0..10 {
        spawn();
    }
    let autocheckpoint = on_writer(&store, |conn| {
        conn.query_row("PRAGMA wal_autocheckpoint", [], |row| row.get::<_, i64>(0)).unwrap()
    });
    assert_eq!(autocheckpoint, 2000);
    assert!(length() < GROWN);
    drop(store);
    assert_eq!(ids(&open(&path)).len(), usize::try_from(n).unwrap());
}

#[test]
fn a_connections_settings_are_the_stores_own() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stepwell.db");
    Connection::open(&path)
        .unwrap()
        .execute_batch("PRAGMA journal_mode = TRUNCATE; CREATE TABLE t (x)")
        .unwrap();
    let store = open(&path);
    let read = |pragma: &'static str| {
        on_writer(&store, move |conn| {
            conn.query_row(&format!("PRAGMA {pragma}"), [], |row| {
                row.get::<_, rusqlite::types::Value>(0)
            })
            .unwrap()
        })
    };
    use rusqlite::types::Value::{Integer, Text};
    assert_eq!(read("journal_mode"), Text("wal".into()));
    assert_eq!(read("locking_mode"), Text("normal".into()));
    for (pragma, value) in [
        ("synchronous", 2),
        ("fullfsync", 1),
        ("checkpoint_fullfsync", 1),
        ("recursive_triggers", 0),
        ("trusted_schema", 0),
    ] {
        assert_eq!(read(pragma), Integer(value), "{pragma}");
    }
}

#[test]
fn a_program_that_has_the_database_to_itself_is_named_as_the_obstacle() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stepwell.db");
    drop(open(&path));
    let other = Connection::open(&path).unwrap();
    other
        .execute_batch(
            "PRAGMA locking_mode = EXCLUSIVE; CREATE TABLE t (x); BEGIN; INSERT INTO t VALUES (1); \
             COMMIT",
        )
        .unwrap();
    let failed = try_open(&path).err().unwrap();
    assert!(matches!(failed, StoreError::Locked(_)), "{failed:?}");
    drop(other);
    drop(open(&path));
}

#[cfg(unix)]
#[test]
fn a_file_that_cannot_be_written_is_refused_as_it_is_opened() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stepwell.db");
    drop(open(&path));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
    if fs::OpenOptions::new().write(true).open(&path).is_ok() {
        return; // Nothing is forbidden to root.
    }
    let text = try_open(&path).err().unwrap().to_string();
    assert!(
        text.contains("it cannot be written. Give this user the right to write the file"),
        "{text}"
    );
}
