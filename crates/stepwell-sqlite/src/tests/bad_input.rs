//! Tests that every invalid input is an error that says what to do.

use std::fs;

use super::*;

fn error(path: &Path) -> (StoreError, String) {
    let error = try_open(path).err().unwrap();
    (error.clone(), error.to_string())
}

#[test]
fn a_folder_is_no_database() {
    let folder = tempfile::tempdir().unwrap();
    let (error, text) = error(folder.path());
    assert!(matches!(error, StoreError::Open { .. }), "{error:?}");
    assert!(text.contains("it is a folder. Give the path of a file in it"), "{text}");
}

#[test]
fn a_missing_folder_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let (_, text) = error(&folder.path().join("none/stepwell.db"));
    assert!(text.contains("/none does not exist. Create it, or mend the path"), "{text}");
    fs::write(folder.path().join("file"), "").unwrap();
    let (_, text) = error(&folder.path().join("file/stepwell.db"));
    assert!(text.contains("/file is not a folder. Mend the path"), "{text}");
}

#[cfg(unix)]
#[test]
fn without_permission_it_says_so() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o500)).unwrap();
    if fs::write(folder.path().join("probe"), "").is_ok() {
        return; // Nothing is forbidden to root.
    }
    let (error, text) = error(&folder.path().join("stepwell.db"));
    assert!(matches!(error, StoreError::Open { .. }), "{error:?}");
    assert!(text.contains("this user may read and write the file and its folder"), "{text}");
}

#[test]
fn a_file_that_is_no_database_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notes.txt");
    let content = "Dear diary, ".repeat(1_000);
    fs::write(&path, &content).unwrap();
    let (error, text) = error(&path);
    assert!(matches!(error, StoreError::Open { .. }), "{error:?}");
    assert!(
        text.contains("the file is not an SQLite database. It is left as it is: mend the path"),
        "{text}"
    );
    assert_eq!(fs::read_to_string(&path).unwrap(), content);
}

#[test]
fn damage_is_reported_and_not_survived_in_silence() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stepwell.db");
    commit(&open(&path), spawns((1..500).map(new_task).collect()));
    let mut bytes = fs::read(&path).unwrap();
    bytes[4096..].fill(0x5a);
    fs::write(&path, bytes).unwrap();
    let failed = match try_open(&path) {
        Err(error) => error,
        Ok(store) => wait(store.commit(spawns(vec![new_task(1_000)]).into())).unwrap_err(),
    };
    assert!(matches!(failed, StoreError::Corrupt(_)), "{failed:?}");
    let text = failed.to_string();
    assert!(text.contains("stop all programs that use it, and restore a backup"), "{text}");
}

#[test]
fn a_locked_database_is_waited_for_but_not_for_ever() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stepwell.db");
    let other = Connection::open(&path).unwrap();
    other.execute_batch("CREATE TABLE other (x); BEGIN EXCLUSIVE").unwrap();
    let (failed, text) = error(&path);
    assert!(matches!(failed, StoreError::Locked(_)), "{failed:?}");
    assert!(text.contains("end the program that holds a transaction open on it"), "{text}");
    other.execute_batch("COMMIT").unwrap();

    let store = open(&path);
    other.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let failed = wait(store.commit(spawns(vec![new_task(1)]).into())).unwrap_err();
    assert!(matches!(failed, StoreError::Locked(_)), "{failed:?}");
    assert!(wait(store.task(task_id(1))).unwrap().is_none(), "queries go on");
    other.execute_batch("COMMIT").unwrap();
    commit(&store, spawns(vec![new_task(1)]));
}

#[test]
fn a_full_disk_fails_whole_batches_and_the_store_goes_on_when_there_is_room() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder.path().join("stepwell.db"));
    let limit = |pages: u32| {
        on_writer(&store, move |conn| {
            conn.query_row(&format!("PRAGMA max_page_count = {pages}"), [], |row| {
                row.get::<_, i64>(0)
            })
            .unwrap()
        })
    };
    // A limit below the current size counts as the current size.
    limit(1);
    let large =
        |n| NewTask { params: json(&format!("\"{}\"", "x".repeat(1 << 20))), ..new_task(n) };
    for _ in 0..2 {
        let failed = wait(store.commit(spawns(vec![new_task(1), large(2)]).into())).unwrap_err();
        assert!(matches!(failed, StoreError::Full(_)), "{failed:?}");
        assert!(
            failed.to_string().contains("free some space, the engine goes on by itself"),
            "{failed}"
        );
        assert!(wait(store.tasks(Default::default())).unwrap().items.is_empty());
    }
    limit(1_000_000);
    commit(&store, spawns(vec![new_task(1), large(2)]));
    assert_eq!(wait(store.tasks(Default::default())).unwrap().items.len(), 2);
}

#[test]
fn a_database_that_is_to_be_left_as_it_is_is_there_and_up_to_date_or_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stepwell.db");
    let existing = || wait(SqliteStore::open_existing(Location::File(path.clone()), Manual::new()));
    assert!(matches!(existing().err(), Some(StoreError::Open { .. })), "it is not there");
    assert!(!path.exists(), "it was made");
    drop(open(&path));
    drop(existing().unwrap());
    let conn = Connection::open(&path).unwrap();
    conn.execute("UPDATE stepwell_schema SET version = 0", []).unwrap();
    assert!(matches!(existing().err(), Some(StoreError::Open { .. })), "it has no version");
    conn.execute("DROP TABLE stepwell_schema", []).unwrap();
    let none = existing().err().unwrap().to_string();
    assert!(none.contains("has no tables of Stepwell"), "{none}");
}

/// Errors of a call differ from errors of a store that cannot work.
#[test]
fn a_refusal_is_told_from_a_store_that_cannot_work() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stepwell.db");
    let store = open(&path);
    let other = Connection::open(&path).unwrap();
    other
        .execute_batch(
            "CREATE TRIGGER no BEFORE INSERT ON stepwell_tasks WHEN new.queue = 'no' BEGIN
                SELECT RAISE(ABORT, 'no such queue here');
            END",
        )
        .unwrap();
    let refused = NewTask { queue: name("no"), ..new_task(1) };
    let failed = wait(store.commit(spawns(vec![refused, new_task(2)]).into())).unwrap_err();
    assert!(
        !failed.is_transient() && failed.to_string().contains("no such queue here"),
        "{failed:?}"
    );
    commit(&store, spawns(vec![new_task(2)]));
    let failed = wait(store.commit(spawns(vec![new_task(2)]).into())).unwrap_err();
    assert!(!failed.is_transient(), "an id that is taken: {failed:?}");
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let failed = wait(store.commit(spawns(vec![new_task(3)]).into())).unwrap_err();
    assert!(failed.is_transient(), "{failed:?}");
}

#[test]
fn a_newer_schema_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stepwell.db");
    drop(open(&path));
    let conn = Connection::open(&path).unwrap();
    conn.execute("UPDATE stepwell_schema SET version = 99", []).unwrap();
    let (error, text) = error(&path);
    let StoreError::NewerSchema { found, known, .. } = error else { panic!("{error:?}") };
    assert_eq!(
        (found, usize::try_from(known).unwrap()),
        (99, crate::file::migrate::MIGRATIONS.len())
    );
    assert!(text.contains("run a newer build of it, or use another database"), "{text}");
}

#[test]
fn a_schema_of_no_version_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stepwell.db");
    drop(open(&path));
    let conn = Connection::open(&path).unwrap();
    conn.execute("UPDATE stepwell_schema SET version = 0", []).unwrap();
    let (error, text) = error(&path);
    assert!(matches!(error, StoreError::Open { .. }), "{error:?}");
    assert!(text.contains("no version that a Stepwell has written. Restore"), "{text}");
}

#[test]
fn the_users_own_tables_may_be_there() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("app.db");
    let conn = Connection::open(&path).unwrap();
    conn.execute_batch(
        "PRAGMA user_version = 42; PRAGMA application_id = 7;
        CREATE TABLE notes (x); CREATE TABLE tasks (x); CREATE TABLE events (x);
        CREATE VIRTUAL TABLE search USING fts5(body); INSERT INTO search VALUES ('a word')",
    )
    .unwrap();
    commit(&open(&path), spawns(vec![new_task(1)]));
    let found =
        conn.query_row("SELECT count(*) FROM search WHERE search MATCH 'word'", [], |row| {
            row.get(0)
        });
    assert_eq!(found, Ok(1));
    assert_eq!(conn.query_row("PRAGMA user_version", [], |row| row.get(0)), Ok(42));

    let path = folder.path().join("clash.db");
    Connection::open(&path).unwrap().execute_batch("CREATE TABLE stepwell_events (x)").unwrap();
    let (_, text) = error(&path);
    assert!(text.contains("table stepwell_events already exists"), "{text}");
    assert!(text.contains("Give Stepwell a file of its own"), "{text}");
}

#[test]
fn threads_that_open_a_new_file_at_once_do_not_collide() {
    let folder = tempfile::tempdir().unwrap();
    for round in 0..10 {
        let path = folder.path().join(format!("{round}.db"));
        std::thread::scope(|scope| {
            for n in 0..4 {
                let path = &path;
                scope.spawn(move || {
                    let location = Location::File(path.clone());
                    let store = wait(SqliteStore::open(location, Manual::new())).unwrap();
                    commit(&store, spawns(vec![new_task(n)]));
                });
            }
        });
        assert_eq!(wait(open(&path).tasks(Default::default())).unwrap().items.len(), 4);
    }
}
