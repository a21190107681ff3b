//! Caches of step results, and states of runs.

#![allow(clippy::unwrap_used, missing_docs, reason = "a test ends by a panic")]

use std::time::Duration;

use stepwell_checkpoint::key_value::{Files, KeyValueStore as _, Memory, Sqlite};
use stepwell_checkpoint::{
    HydratingCache, KeyValueCache, MemoryCache, Payload, PersistenceError, StatePersistence,
    StepCache,
};

fn payload(text: &str) -> Payload {
    Payload::encode(text, 100).unwrap()
}

async fn does_what_a_cache_does(cache: &dyn StepCache) {
    assert_eq!(cache.get("user:1").await.unwrap(), None);
    assert!(!cache.has("user:1").await.unwrap() && !cache.delete("user:1").await.unwrap());
    for key in ["user:1", "user:2", "*"] {
        cache.set(key, payload(key)).await.unwrap();
    }
    cache.set("user:1", payload("new")).await.unwrap();
    assert_eq!(cache.get("user:1").await.unwrap(), Some(payload("new")));
    assert!(cache.delete("*").await.unwrap() && !cache.has("*").await.unwrap());
    assert!(cache.has("user:2").await.unwrap());
    cache.clear().await.unwrap();
    for key in ["user:1", "user:2"] {
        assert!(!cache.has(key).await.unwrap());
    }
    cache.set("user:2", payload("again")).await.unwrap();
    assert_eq!(cache.get("user:2").await.unwrap(), Some(payload("again")));
}

#[tokio::test]
async fn every_cache_does_what_a_cache_does_and_leaves_others_values_alone() {
    let folder = tempfile::tempdir().unwrap();
    let files = Files::open(folder.path()).await.unwrap();
    let sqlite = Sqlite::open(folder.path().join("db")).await.unwrap();
    let other = KeyValueCache::new(&sqlite).prefix("other:");
    other.set("user:1", payload("other")).await.unwrap();
    let persistence = StatePersistence::new(&sqlite);
    does_what_a_cache_does(&MemoryCache::new()).await;
    does_what_a_cache_does(&KeyValueCache::new(&files)).await;
    does_what_a_cache_does(&KeyValueCache::new(&sqlite).prefix("a*:")).await;
    does_what_a_cache_does(&HydratingCache::new(MemoryCache::new(), persistence, "run")).await;
    assert_eq!(other.get("user:1").await.unwrap(), Some(payload("other")));
}

#[tokio::test]
async fn values_are_gone_when_their_time_is_over() {
    let ttl = Duration::from_millis(100);
    let caches: [Box<dyn StepCache>; 2] = [
        Box::new(MemoryCache::builder().ttl(ttl).build()),
        Box::new(KeyValueCache::new(&Memory::new()).ttl(ttl)),
    ];
    for cache in caches {
        cache.set("key", payload("value")).await.unwrap();
        assert!(cache.has("key").await.unwrap());
        while cache.get("key").await.unwrap().is_some() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(!cache.has("key").await.unwrap() && !cache.delete("key").await.unwrap());
    }
    let for_ever = MemoryCache::builder().ttl(Duration::MAX).build();
    for_ever.set("key", payload("value")).await.unwrap();
    assert!(for_ever.has("key").await.unwrap());
}

#[tokio::test]
async fn a_value_that_is_no_json_is_an_error() {
    let store = Memory::new();
    store.set("cache:key", "not JSON", None).await.unwrap();
    let error = KeyValueCache::new(&store).get("key").await.unwrap_err();
    assert!(error.to_string().contains("\"cache:key\" is no JSON"), "{error}");
}

#[tokio::test]
async fn a_hydrating_cache_begins_with_what_another_process_saved() {
    let store = Memory::new();
    let cache =
        |run: &str| HydratingCache::new(MemoryCache::new(), StatePersistence::new(&store), run);
    let first = cache("run_1");
    assert_eq!(first.hydrate().await.unwrap(), 0);
    first.set("a", payload("1")).await.unwrap();
    first.set("b", payload("2")).await.unwrap();
    first.save([("attempt".to_owned(), 1.into())].into()).await.unwrap();

    let second = cache("run_1");
    second.set("a", payload("stale")).await.unwrap();
    assert_eq!(second.hydrate().await.unwrap(), 2);
    assert_eq!(second.get("a").await.unwrap(), Some(payload("1")));
    assert_eq!(cache("run_2").hydrate().await.unwrap(), 0);
}

#[tokio::test]
async fn states_are_saved_loaded_listed_and_deleted() {
    let store = Memory::new();
    let states = StatePersistence::new(&store).prefix("workflow:state:");
    assert!(states.load::<u32>("run_1").await.unwrap().is_none());
    for (run, state) in [("run_2", 2), ("run_1", 0), ("run_1", 1)] {
        states.save(run, &state, [("user".to_owned(), run.into())].into()).await.unwrap();
    }
    StatePersistence::new(&store).save("run_3", &(), Default::default()).await.unwrap();
    let saved = states.load::<u32>("run_1").await.unwrap().unwrap();
    assert_eq!((saved.state, saved.metadata["user"].as_str()), (1, Some("run_1")));
    assert_eq!(states.list().await.unwrap(), ["run_1", "run_2"]);
    assert!(states.delete("run_1").await.unwrap() && !states.delete("run_1").await.unwrap());
    assert_eq!(states.list().await.unwrap(), ["run_2"]);

    let error = states.load::<String>("run_2").await.unwrap_err();
    assert!(
        error.to_string().starts_with("the state of run \"run_2\": the JSON does not fit"),
        "{error}"
    );
    let newer = store
        .get("workflow:state:run_2")
        .await
        .unwrap()
        .unwrap()
        .replace("\"version\":1", "\"version\":2");
    store.set("workflow:state:run_2", &newer, None).await.unwrap();
    store.set("workflow:state:run_4", "x", None).await.unwrap();
    assert!(matches!(
        states.load::<u32>("run_2").await,
        Err(PersistenceError::Newer { version: 2, known: 1, .. })
    ));
    assert!(matches!(states.load::<u32>("run_4").await, Err(PersistenceError::Foreign { .. })));
}
