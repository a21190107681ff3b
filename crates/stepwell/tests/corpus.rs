//! The corpus of formats: databases and documents that released versions have written, with which
//! today's code goes on. Each task in them comes to its end, what was journaled does not run again,
//! and nothing is read otherwise than it was written.
//!
//! `docs/how-it-is-tested.md` says when an entry is added, and how.

#![cfg(feature = "sqlite")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "a test ends by a panic"
)]

mod formats;

use std::path::Path;
use std::time::Duration;

use formats::{CURRENT, Expected, Program, client, encrypted, entries, expected, folder, same};
use stepwell::sqlite::rusqlite::Connection;
use stepwell::{Durable, DurableBuilder, Export};

fn in_file(builder: DurableBuilder, path: &Path) -> DurableBuilder {
    builder.database_url(format!("sqlite://{}", path.display()))
}

/// Goes on with a copy of that file.
async fn go_on_with(
    file: &Path,
    codecs: impl FnOnce(DurableBuilder) -> DurableBuilder,
) -> Expected {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tasks.db");
    std::fs::write(&path, formats::unpacked(file)).unwrap();
    let program = Program::new(false);
    let client = client(&program, |builder| codecs(in_file(builder, &path))).await;
    let came_of_it = formats::go_on(&client, &program).await;
    client.shutdown(Duration::from_secs(5)).await;
    came_of_it
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn databases_of_each_version_are_read_and_finished() {
    for entry in entries() {
        let found = go_on_with(&entry.join("sqlite.db.zst"), |builder| builder).await;
        same(&found, &expected(&entry), &entry);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn encrypted_databases_of_each_version_are_read_and_finished() {
    for entry in entries() {
        let found = go_on_with(&entry.join("sqlite-encrypted.db.zst"), encrypted).await;
        same(&found, &expected(&entry), &entry);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exports_of_each_version_are_imported_and_finished() {
    for entry in entries() {
        let documents = formats::unpacked(&entry.join("exports.jsonl.zst"));
        let program = Program::new(false);
        let client = client(&program, |builder| builder.database_url("sqlite::memory:")).await;
        for document in str::from_utf8(&documents).unwrap().lines() {
            client.import(Export::from_json(document).unwrap()).await.unwrap();
        }
        let mut found = formats::go_on(&client, &program).await;
        let expected = expected(&entry);
        found.has_only_tasks_like(&expected);
        same(&found, &expected, &entry);
        client.shutdown(Duration::from_secs(5)).await;
    }
}

/// Writes the entry of today's format. Only for one that is not released yet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "it writes into the source tree"]
async fn write_the_current_entry() {
    let entry = folder(CURRENT);
    for (name, is_encrypted) in [("sqlite.db.zst", false), ("sqlite-encrypted.db.zst", true)] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tasks.db");
        let codecs = |builder| if is_encrypted { encrypted(builder) } else { builder };
        let client = client(&Program::new(true), |builder| codecs(in_file(builder, &path))).await;
        formats::fill(&client).await;
        if !is_encrypted {
            let documents = formats::exports(&client).await.join("\n");
            formats::pack(&entry.join("exports.jsonl.zst"), documents.as_bytes());
        }
        write(&client, &path, &entry.join(name)).await;
    }
    let came_of_it = go_on_with(&entry.join("sqlite.db.zst"), |builder| builder).await;
    let json = serde_json::to_string_pretty(&came_of_it).unwrap();
    std::fs::write(entry.join("expected.json"), json + "\n").unwrap();
}

/// A copy of the database while its worker runs, as a crash would leave it.
async fn write(client: &Durable, path: &Path, file: &Path) {
    let copy = path.with_extension("copy");
    let conn = Connection::open(path).unwrap();
    conn.execute("VACUUM INTO ?1", [copy.to_str().unwrap()]).unwrap();
    formats::pack(file, &std::fs::read(copy).unwrap());
    client.shutdown(Duration::ZERO).await;
}
