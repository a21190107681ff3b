//! A store keeps the contract that every store keeps when its payloads are compressed and
//! encrypted, too.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::{Arc, OnceLock};

use stepwell::codec::{Compression, Encryption};
use stepwell::store::Encoded;
use stepwell::store::{Finish, Next, Transition};
use stepwell::testing::Harness;
use stepwell::{
    Codec, Entry, Failure, FailureKind, Key, Kind, MemoryStore, Name, Outcome, Payload, Store,
    Timestamp, codec,
};
use stepwell_conformance::{Backend, Clock};

fn encoded(store: impl Store) -> Arc<dyn Store> {
    let encryption = Encryption::new(codec::Key::new("test", [7; 32]).unwrap());
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

/// The engine sends it again, with a batch.
#[tokio::test]
async fn a_transition_that_the_store_does_not_apply_by_itself_comes_back_as_it_was() {
    let store = encoded(Harness::new().store());
    let id = uuid::Uuid::from_u128(7);
    let output = Payload::from_json("\"output\"");
    let mut transition = Transition::new(id.into(), id.into(), Next::Complete(output.clone()));
    let key = Key { kind: Kind::Step, name: Name::new("step").unwrap(), ordinal: 1 };
    let failure = Failure::new(FailureKind::Error, "no");
    let entry = Entry { seq: 1, key, outcome: Outcome::failed(failure), at: Timestamp::UNIX_EPOCH };
    transition.entries.push(entry.clone());
    let back = store.transact(transition).err().unwrap();
    assert_eq!((back.entries, back.next.finish()), (vec![entry], Some(Finish::Completed(output))));
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
