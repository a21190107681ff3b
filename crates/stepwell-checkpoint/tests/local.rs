//! The key-value stores that need no server.

#![allow(clippy::unwrap_used, missing_docs, reason = "a test ends by a panic")]

mod conformance;

use std::sync::{Arc, Mutex};

use stepwell_checkpoint::key_value::{Files, KeyValueError, KeyValueStore, Memory, Sqlite};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_is_a_key_value_store() {
    conformance::check(Arc::new(Memory::new()), "").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_is_a_key_value_store() {
    let folder = tempfile::tempdir().unwrap();
    conformance::check(Arc::new(Files::open(folder.path()).await.unwrap()), "").await;
    conformance::check(
        Arc::new(Files::open(folder.path().join("in/folders")).await.unwrap()),
        "p/",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlite_is_a_key_value_store() {
    let folder = tempfile::tempdir().unwrap();
    conformance::check(Arc::new(Sqlite::open(folder.path().join("db")).await.unwrap()), "").await;
    let connection = Arc::new(Mutex::new(rusqlite::Connection::open_in_memory().unwrap()));
    conformance::check(Arc::new(Sqlite::new(connection.clone()).await.unwrap()), "p:").await;
    let rows: u32 = connection
        .lock()
        .unwrap()
        .query_row("SELECT count(*) FROM key_values", [], |row| row.get(0))
        .unwrap();
    assert_eq!(rows, 0);
}

#[tokio::test]
async fn two_handles_on_a_folder_see_each_others_values() {
    let folder = tempfile::tempdir().unwrap();
    let (one, two) =
        (Files::open(folder.path()).await.unwrap(), Files::open(folder.path()).await.unwrap());
    one.set("key", "value", None).await.unwrap();
    assert!(two.compare_and_set("key", Some("value"), Some("other"), None).await.unwrap());
    assert_eq!(one.get("key").await.unwrap().as_deref(), Some("other"));
}

#[tokio::test]
async fn a_file_that_is_not_ours_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let store = Files::open(folder.path()).await.unwrap();
    for text in ["no first line", "tomorrow\nvalue"] {
        std::fs::write(folder.path().join("key"), text).unwrap();
        let error = store.get("key").await.unwrap_err();
        assert!(
            error.to_string().contains("is not a file of this store: use another folder"),
            "{error}"
        );
    }
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let error = Files::open(&file).await.unwrap_err();
    assert!(matches!(error, KeyValueError::Failed { action: "open", .. }), "{error}");
}

#[tokio::test]
async fn a_writer_that_another_one_holds_up_gives_up_with_an_error_and_writes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = Files::open(folder.path()).await.unwrap();
    store.set("key", "value", None).await.unwrap();
    let locks = std::fs::read_dir(folder.path().join(".locks")).unwrap();
    let locks: Vec<_> =
        locks.map(|lock| std::fs::File::open(lock.unwrap().path()).unwrap()).collect();
    locks.iter().for_each(|lock| lock.lock().unwrap());
    let error = store.set("key", "new", None).await.unwrap_err();
    assert!(error.to_string().contains("let it go on if it is paused, or end it"), "{error}");
    assert_eq!(store.get("key").await.unwrap().as_deref(), Some("value"));
    drop(locks);
    store.set("key", "new", None).await.unwrap();
}
