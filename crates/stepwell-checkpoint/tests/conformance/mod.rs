//! What every key-value store must do.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use stepwell_checkpoint::key_value::KeyValueStore;

const LONG: Option<Duration> = Some(Duration::from_secs(3600));
/// DynamoDB counts whole seconds.
const SHORT: Option<Duration> = Some(Duration::from_secs(1));

/// Keys of all sorts: each is its own.
const KEYS: [&str; 14] = [
    "a",
    "A",
    "a/b",
    "a.b",
    "../a",
    ".",
    "%61",
    "a b",
    "ä📦",
    "a*b",
    "a?b",
    "[a]_%\\",
    "a\nb",
    "'; DROP TABLE key_values; --",
];

/// Runs all of it on a store in which nothing else begins with `prefix`.
pub(crate) async fn check(store: Arc<dyn KeyValueStore>, prefix: &str) {
    values_are_kept_as_they_are(&*store, prefix).await;
    patterns_mean_what_they_say(&*store, prefix).await;
    compare_and_set_keeps_its_word(&*store, prefix).await;
    values_end_with_their_time(&*store, prefix).await;
    only_one_of_many_wins(store, prefix).await;
}

async fn values_are_kept_as_they_are(store: &dyn KeyValueStore, prefix: &str) {
    let long_key = format!("{prefix}{}", "long/Ä".repeat(100));
    let keys: Vec<_> = KEYS.iter().map(|key| format!("{prefix}{key}")).chain([long_key]).collect();
    for key in &keys {
        assert_eq!(store.get(key).await.unwrap(), None, "{key}");
        assert!(!store.exists(key).await.unwrap() && !store.delete(key).await.unwrap(), "{key}");
        store.set(key, &format!("value of {key}"), None).await.unwrap();
    }
    for key in &keys {
        assert_eq!(store.get(key).await.unwrap(), Some(format!("value of {key}")));
        assert!(store.exists(key).await.unwrap());
    }
    let found: BTreeSet<_> = store.keys(&format!("{prefix}*")).await.unwrap().into_iter().collect();
    assert_eq!(found, keys.iter().cloned().collect());
    for value in ["", "\n", "-\n1", "{\"a\": \"\\u0000ä📦\"}", &"x".repeat(300_000)] {
        store.set(&keys[0], value, None).await.unwrap();
        assert_eq!(store.get(&keys[0]).await.unwrap().as_deref(), Some(value));
    }
    for key in &keys {
        assert!(store.delete(key).await.unwrap() && !store.exists(key).await.unwrap(), "{key}");
    }
    assert_eq!(store.keys(&format!("{prefix}*")).await.unwrap(), Vec::<String>::new());
}

async fn patterns_mean_what_they_say(store: &dyn KeyValueStore, prefix: &str) {
    let all = ["user:1", "user:2:x", "User:1", "user?1", "user[1]", "us%r:1", "us_r:1", "user:*"];
    for key in all {
        store.set(&format!("{prefix}{key}"), "", None).await.unwrap();
    }
    for (pattern, expected) in [
        ("user:1", vec!["user:1"]),
        ("user:*", vec!["user:*", "user:1", "user:2:x"]),
        ("user?1", vec!["user?1"]),
        ("user[1]", vec!["user[1]"]),
        ("us%*", vec!["us%r:1"]),
        ("us_r:1", vec!["us_r:1"]),
        ("*:1", vec!["User:1", "us%r:1", "us_r:1", "user:1"]),
        ("u*:*x", vec!["user:2:x"]),
        ("nobody*", vec![]),
    ] {
        let mut found = store.keys(&format!("{prefix}{pattern}")).await.unwrap();
        found.sort_unstable();
        let expected: Vec<_> = expected.into_iter().map(|key| format!("{prefix}{key}")).collect();
        assert_eq!(found, expected, "{pattern}");
    }
    for key in all {
        assert!(store.delete(&format!("{prefix}{key}")).await.unwrap());
    }
}

async fn compare_and_set_keeps_its_word(store: &dyn KeyValueStore, prefix: &str) {
    let key = &format!("{prefix}compared");
    let set = async |expected, new| store.compare_and_set(key, expected, new, LONG).await.unwrap();
    let value = async || store.get(key).await.unwrap();
    assert!(!set(Some(""), Some("a")).await && !set(Some("a"), None).await);
    assert!(set(None, None).await);
    assert_eq!(value().await, None);

    assert!(set(None, Some("a")).await);
    assert!(
        !set(None, Some("b")).await
            && !set(Some("b"), Some("c")).await
            && !set(Some("b"), None).await
    );
    assert!(!set(None, None).await && !set(Some(""), Some("c")).await);
    assert_eq!(value().await.as_deref(), Some("a"));

    assert!(set(Some("a"), Some("b")).await);
    assert_eq!(value().await.as_deref(), Some("b"));
    assert!(set(Some("b"), None).await);
    assert_eq!(value().await, None);
    // The empty text is a value.
    assert!(
        set(None, Some("")).await && !set(None, Some("a")).await && set(Some(""), Some("a")).await
    );
    assert!(store.delete(key).await.unwrap());
}

async fn values_end_with_their_time(store: &dyn KeyValueStore, prefix: &str) {
    let keys = ["set", "swapped", "deleted", "taken", "long", "then for ever"]
        .map(|key| format!("{prefix}{key}"));
    let [set, swapped, deleted, taken, long, for_ever] = &keys;
    for key in [set, deleted, taken, for_ever] {
        store.set(key, "short", SHORT).await.unwrap();
    }
    assert!(store.compare_and_set(swapped, None, Some("short"), SHORT).await.unwrap());
    // A new value has its own time, or none.
    store.set(for_ever, "value", None).await.unwrap();
    store.set(long, "short", SHORT).await.unwrap();
    assert!(store.compare_and_set(long, Some("short"), Some("long"), LONG).await.unwrap());

    let start = Instant::now();
    for key in [set, swapped, deleted, taken] {
        while store.exists(key).await.unwrap() {
            assert!(start.elapsed() < Duration::from_secs(30), "{key} stays");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    assert!(start.elapsed() > Duration::from_millis(500), "they ended too early");
    assert_eq!(store.get(set).await.unwrap(), None);
    assert!(!store.delete(deleted).await.unwrap());
    assert!(!store.compare_and_set(swapped, Some("short"), Some("new"), None).await.unwrap());
    assert!(!store.compare_and_set(swapped, Some("short"), None, None).await.unwrap());
    // What is over is as if it had never been.
    assert!(store.compare_and_set(taken, None, Some("new"), LONG).await.unwrap());
    let mut found = store.keys(&format!("{prefix}*")).await.unwrap();
    found.sort_unstable();
    assert_eq!(found, [long, taken, for_ever].map(String::clone));
    assert_eq!(store.get(long).await.unwrap().as_deref(), Some("long"));
    for key in found {
        assert!(store.delete(&key).await.unwrap());
    }
}

/// Many count up by compare-and-set: none is lost, and none counts twice.
async fn only_one_of_many_wins(store: Arc<dyn KeyValueStore>, prefix: &str) {
    const RACERS: u32 = 8;
    const TO: u32 = 40;
    let key = format!("{prefix}counter");
    let wins = Arc::new(AtomicU32::new(0));
    let racers = (0..RACERS).map(|_| {
        let (store, key, wins) = (store.clone(), key.clone(), wins.clone());
        tokio::spawn(async move {
            loop {
                let found = store.get(&key).await.unwrap();
                let number: u32 = found.as_deref().map_or(0, |text| text.parse().unwrap());
                if number == TO {
                    return;
                }
                let next = (number + 1).to_string();
                if store.compare_and_set(&key, found.as_deref(), Some(&next), None).await.unwrap() {
                    wins.fetch_add(1, Ordering::Relaxed);
                }
            }
        })
    });
    for racer in join_all(racers).await {
        racer.unwrap();
    }
    assert_eq!(wins.load(Ordering::Relaxed), TO);
    assert!(store.delete(&key).await.unwrap());
}
