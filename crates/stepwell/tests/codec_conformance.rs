//! A store keeps the contract that every store keeps when its payloads are compressed and encrypted, too.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::{Arc, OnceLock};

use stepwell::codec::{Compression, Encryption, Key};
use stepwell::{Codec, Encoded, MemoryStore, Store};
use stepwell_conformance::{Backend, Clock};

fn encoded(store: impl Store) -> Arc<dyn Store> {
    let encryption = Encryption::new(Key::new("test", [7; 32]).unwrap());
    let codecs: [Arc<dyn Codec>; 2] = [Arc::new(Compression::new()), Arc::new(encryption)];
    Encoded::over(Arc::new(store), &codecs)
}

struct Memory;

impl Backend for Memory {
    type Database = OnceLock<MemoryStore>;

    async fn create(&self) -> Self::Database {
        OnceLock::new()
    }

    async fn connect(&self, database: &Self::Database, clock: Arc<Clock>) -> Arc<dyn Store> {
        encoded(database.get_or_init(|| MemoryStore::new(clock)).connect())
    }

    fn refuses_duplicates(&self) -> bool {
        false
    }
}

mod memory {
    stepwell_conformance::suite!(super::Memory);
}

#[cfg(feature = "sqlite")]
mod sqlite {
    use stepwell::sqlite::{Location, SqliteStore};
    use tempfile::TempDir;

    use super::*;

    struct OnAFile;

    impl Backend for OnAFile {
        type Database = TempDir;

        async fn create(&self) -> TempDir {
            tempfile::tempdir().unwrap()
        }

        async fn connect(&self, folder: &TempDir, clock: Arc<Clock>) -> Arc<dyn Store> {
            let location = Location::File(folder.path().join("stepwell.db"));
            encoded(SqliteStore::open(location, clock).await.unwrap())
        }
    }

    stepwell_conformance::suite!(OnAFile);
}
