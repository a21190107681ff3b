//! Checkpoints, through their public face.

#![allow(clippy::panic, clippy::unwrap_used, missing_docs, reason = "a test ends by a panic")]

use std::collections::BTreeMap;
use std::future::IntoFuture as _;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::anyhow;
use futures_util::future::join_all;
use stepwell_checkpoint::key_value::{Files, KeyValueStore, Memory};
use stepwell_checkpoint::{
    Checkpoint, CheckpointError, ErrorPolicy, ItemCounts, Kind, Outcome, RetryStrategy, TaskError,
};

const QUICK: RetryStrategy = RetryStrategy::fixed(Duration::from_millis(1));

/// Counts how often something runs.
#[derive(Clone, Default)]
struct Counter(Arc<AtomicU32>);

impl Counter {
    fn up(&self) -> u32 {
        self.0.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn get(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }
}

#[tokio::test]
async fn a_step_runs_once_for_each_input_and_place() {
    let (store, runs) = (Memory::new(), Counter::default());
    let mut answers = Vec::new();
    for _ in 0..2 {
        let cp = Checkpoint::load(&store, "file").await.unwrap();
        let step = |input: u32| {
            let runs = runs.clone();
            cp.step("work", move || async move { Ok(runs.up()) }).input(&input)
        };
        let plain = || cp.step("plain", || async { Ok(runs.up()) });
        answers.push([
            step(7).await.unwrap(),
            step(8).await.unwrap(),
            step(7).await.unwrap(),
            plain().await.unwrap(),
            plain().await.unwrap(),
        ]);
        cp.release().await.unwrap();
    }
    assert_eq!(answers, [[1, 2, 3, 4, 5]; 2]);

    let cp = Checkpoint::load(&store, "file").await.unwrap();
    // The order of inputs says nothing, and a new one runs.
    let step = |input: u32| cp.step("work", || async { Ok(runs.up()) }).input(&input);
    assert_eq!([step(9).await.unwrap(), step(8).await.unwrap(), step(7).await.unwrap()], [6, 2, 1]);
    let labels: Vec<_> =
        cp.entries().await.unwrap().iter().map(|entry| entry.key.label()).collect();
    let hash = stepwell_checkpoint::InputHash::of(&7).unwrap();
    assert_eq!(labels[0], format!("work:{hash}"));
    assert_eq!(labels[2], format!("work:{hash}#2"));
    assert_eq!(labels[3..5], ["plain", "plain#2"]);
    // Another checkpoint knows nothing of them.
    let other = Checkpoint::load(&store, "file2").await.unwrap();
    assert_eq!(other.step("plain", || async { Ok(runs.up()) }).await.unwrap(), 7);
}

#[tokio::test]
async fn a_step_is_tried_again_as_it_says_and_its_failure_is_recorded_but_not_final() {
    let (store, runs) = (Memory::new(), Counter::default());
    let cp = Checkpoint::load(&store, "file").await.unwrap();
    let flaky = || async { if runs.up() < 3 { Err(anyhow!("not yet")) } else { Ok(runs.get()) } };
    assert_eq!(cp.step("flaky", flaky).retry(QUICK).max_attempts(3).await.unwrap(), 3);

    let fails = || async {
        runs.up();
        Err::<(), _>(anyhow!("disk full").context("writing"))
    };
    let error = cp.step("fails", fails).retry(QUICK).max_attempts(2).await.unwrap_err();
    assert_eq!(error.to_string(), "step \"fails\" failed: writing: disk full");
    assert_eq!(runs.get(), 5);
    let permanent = || async {
        runs.up();
        Err::<(), _>(TaskError::permanent(anyhow!("no")).into())
    };
    cp.step("permanent", permanent).retry(QUICK).await.unwrap_err();
    assert_eq!(runs.get(), 6);
    let status = cp.status().await.unwrap();
    assert_eq!(Vec::from_iter(&status.failed), ["fails", "permanent"]);
    assert_eq!(Vec::from_iter(&status.done), ["flaky"]);
    cp.release().await.unwrap();

    let cp = Checkpoint::load(&store, "file").await.unwrap();
    cp.step("fails", || async { Ok(()) }).await.unwrap();
    assert_eq!(Vec::from_iter(&cp.status().await.unwrap().failed), ["permanent"]);
}

#[tokio::test]
async fn steps_that_run_at_the_same_time_share_their_writes() {
    let folder = tempfile::tempdir().unwrap();
    let store = Files::open(folder.path()).await.unwrap();
    let cp = Checkpoint::load(&store, "file").await.unwrap();
    let steps = (0..200).map(|n| cp.step("step", move || async move { Ok(n) }).into_future());
    let results = join_all(steps).await;
    assert!(results.into_iter().enumerate().all(|(n, result)| result.unwrap() == n));
    cp.release().await.unwrap();
    let head = store.get("checkpoint/file/head").await.unwrap().unwrap();
    let writes: u64 =
        serde_json::from_str::<serde_json::Value>(&head).unwrap()["writes"].as_u64().unwrap();
    assert!(writes < 20, "{writes} writes");
    let cp = Checkpoint::load(&store, "file").await.unwrap();
    let again = (0..200)
        .map(|_| cp.step("step", || async { Err::<usize, _>(anyhow!("again")) }).into_future());
    assert!(join_all(again).await.into_iter().enumerate().all(|(n, result)| result.unwrap() == n));
}

#[tokio::test]
async fn items_go_on_at_the_first_that_is_not_done() {
    let (store, runs) = (Memory::new(), Counter::default());
    let cp = Checkpoint::load(&store, "file").await.unwrap();
    let progress = Mutex::new(Vec::new());
    let items = cp.items("rows", (0..100_u32).collect()).concurrency(4);
    let error = items
        .on_progress(|counts| progress.lock().unwrap().push(counts))
        .each(|row| {
            let runs = runs.clone();
            async move {
                runs.up();
                if row == 60 { Err(anyhow!("bad row")) } else { Ok(row * 2) }
            }
        })
        .await
        .unwrap_err();
    assert_eq!(error.to_string(), "item 60 of \"rows\" failed: bad row");
    let ran = runs.get();
    assert!((61..=64).contains(&ran), "{ran} ran");
    let progress = progress.into_inner().unwrap();
    assert_eq!(progress[0], ItemCounts { total: 100, succeeded: 0, failed: 0 });
    assert!(progress.windows(2).all(|two| two[0].succeeded < two[1].succeeded));
    assert_eq!(progress.last().unwrap().succeeded, ran as usize - 1);
    cp.release().await.unwrap();

    let cp = Checkpoint::load(&store, "file").await.unwrap();
    let report = cp
        .items("rows", (0..100_u32).collect())
        .each(|row| {
            assert!(row == 60 || row >= 61);
            let runs = runs.clone();
            async move {
                runs.up();
                Ok(row * 2)
            }
        })
        .await
        .unwrap();
    assert_eq!(runs.get(), 101);
    assert_eq!(
        report.results,
        (0..100).map(|row| (row as usize, row * 2)).collect::<BTreeMap<_, _>>()
    );
    assert_eq!(report.counts, ItemCounts { total: 100, succeeded: 100, failed: 0 });
    assert_eq!(cp.status().await.unwrap().items["rows"], report.counts);

    let error = cp.items("more", vec![1]).input("a").each(|_| async { Ok(()) }).await;
    assert_eq!(error.unwrap().counts.succeeded, 1);
    cp.release().await.unwrap();
    let cp = Checkpoint::load(&store, "file").await.unwrap();
    // Another number of items is an error, and with another input a beginning.
    let error = cp.items("rows", vec![1]).each(|_| async { Ok(()) }).await.unwrap_err();
    assert!(
        error.to_string().contains("what was recorded is of 100 items, now there are 1"),
        "{error}"
    );
    let again = cp.items("more", vec![1, 2]).input("b").each(|_| async { Ok(()) }).await.unwrap();
    assert_eq!(again.counts.succeeded, 2);
}

#[tokio::test]
async fn failed_items_are_given_up_or_collected_as_the_policy_says() {
    let store = Memory::new();
    for (policy, again) in [(ErrorPolicy::Skip, 0), (ErrorPolicy::Collect, 2)] {
        let name = format!("{policy:?}");
        for (load, runs) in [10, again].into_iter().enumerate() {
            let cp = Checkpoint::load(&store, "file").await.unwrap();
            let ran = Counter::default();
            let items = cp.items(&name, (0..10).collect()).concurrency(3).on_error(policy);
            let report = items
                .each(|row| {
                    ran.up();
                    async move { if row % 5 == 3 { Err(anyhow!("row {row}")) } else { Ok(row) } }
                })
                .await
                .unwrap();
            assert_eq!(ran.get(), runs, "{name}, load {load}");
            assert_eq!(report.counts, ItemCounts { total: 10, succeeded: 8, failed: 2 });
            let failures: Vec<_> =
                report.failures.iter().map(|(row, why)| (*row, why.to_string())).collect();
            assert_eq!(failures, [(3, "row 3".to_owned()), (8, "row 8".to_owned())]);
            assert_eq!(report.results.len(), 8);
            cp.release().await.unwrap();
        }
    }
}

#[tokio::test]
async fn what_is_recorded_of_many_items_stays_small() {
    let store = Memory::new();
    let cp = Checkpoint::load(&store, "file").await.unwrap();
    let done = cp.items("rows", (0..4_000).collect()).concurrency(50).each(|_: u32| async {
        tokio::task::yield_now().await;
        Ok(())
    });
    assert_eq!(done.await.unwrap().counts.succeeded, 4_000);
    let keys = store.keys("*").await.unwrap();
    let mut bytes = 0;
    for key in &keys {
        bytes += store.get(key).await.unwrap().unwrap().len();
    }
    assert!(keys.len() < 3 && bytes < 5_000, "{} keys, {bytes} bytes", keys.len());
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }

    /// A cleanup that notes what it is called with, and fails or panics when it is told to.
    async fn clean(self, what: String) -> anyhow::Result<()> {
        self.0.lock().unwrap().push(what.clone());
        assert!(what != "panic", "as it was told");
        if what == "fail" { Err(anyhow!("as it was told")) } else { Ok(()) }
    }
}

async fn with_cleanup(store: &Memory, log: &Log) -> Result<Checkpoint, CheckpointError> {
    let log = log.clone();
    Checkpoint::load(store, "file").on_cleanup("note", move |what| log.clone().clean(what)).await
}

#[tokio::test]
async fn a_cleanup_that_panics_before_it_gives_a_future_blocks_no_load() {
    let (store, log) = (Memory::new(), Log::default());
    let load = async || {
        let log = log.clone();
        let clean = move |what: String| {
            assert!(what != "panic", "before there is a future");
            log.clone().clean(what)
        };
        Checkpoint::load(&store, "file").on_cleanup("note", clean).await
    };
    let cp = load().await.unwrap();
    for what in ["a", "panic"] {
        let _recorded = cp.cleanup("note", what).await.unwrap();
    }
    cp.release().await.unwrap();
    let cp = load().await.unwrap();
    let results: Vec<_> = cp.cleaned().iter().map(|cleaned| cleaned.result.is_ok()).collect();
    assert_eq!((results, log.take()), (vec![false, true], vec!["a".to_owned()]));
    cp.release().await.unwrap();
    assert!(load().await.unwrap().cleaned().is_empty());
}

#[tokio::test]
async fn outstanding_cleanups_run_in_reverse_order_at_the_next_load_and_once() {
    let (store, log) = (Memory::new(), Log::default());
    let cp = with_cleanup(&store, &log).await.unwrap();
    for what in ["a", "fail", "b", "panic", "discharged", "with the step"] {
        let cleanup = cp.cleanup("note", what).await.unwrap();
        match what {
            "discharged" => cleanup.done().await.unwrap(),
            "with the step" => {
                cp.step("step", || async { Ok(()) }).discharges(&cleanup).await.unwrap();
            }
            _ => {}
        }
    }
    assert_eq!(cp.status().await.unwrap().cleanups, ["note", "note#2", "note#3", "note#4"]);
    cp.release().await.unwrap();
    assert_eq!(log.take(), Vec::<String>::new());

    let cp = with_cleanup(&store, &log).await.unwrap();
    assert_eq!(log.take(), ["panic", "b", "fail", "a"]);
    let results =
        cp.cleaned().iter().map(|cleaned| (cleaned.name.as_str(), cleaned.result.is_ok()));
    let expected = [("note#4", false), ("note#3", true), ("note#2", false), ("note", true)];
    assert_eq!(results.collect::<Vec<_>>(), expected);
    let failed = cp.entries().await.unwrap();
    let failed = failed.iter().filter(|entry| matches!(entry.outcome, Outcome::Failed(_)));
    assert_eq!(failed.filter(|entry| entry.key.kind == Kind::Compensated).count(), 2);
    cp.release().await.unwrap();

    let cp = with_cleanup(&store, &log).await.unwrap();
    assert_eq!((log.take(), cp.cleaned().len()), (Vec::new(), 0));
    // A step that does not run again discharges all the same.
    let cleanup = cp.cleanup("note", "with the step").await.unwrap();
    cp.step("step", || async { Err::<(), _>(anyhow!("again")) })
        .discharges(&cleanup)
        .await
        .unwrap();
    assert_eq!(cp.status().await.unwrap().cleanups, Vec::<String>::new());
    // Right away, when it is given up; never, when it is completed.
    let _ = cp.cleanup("note", "given up").await.unwrap();
    assert_eq!(cp.abandon().await.unwrap()[0].name, "note#8");
    assert_eq!(log.take(), ["given up"]);
    assert!(matches!(cp.cleanup("note", "late").await, Err(CheckpointError::Ended(_))));
    let cp = with_cleanup(&store, &log).await.unwrap();
    let _ = cp.cleanup("note", "not needed").await.unwrap();
    cp.complete().await.unwrap();
    with_cleanup(&store, &log).await.unwrap();
    assert_eq!(log.take(), Vec::<String>::new());
}

#[tokio::test]
async fn a_cleanup_that_nobody_knows_is_an_error_before_anything_runs() {
    let (store, log) = (Memory::new(), Log::default());
    let cp = with_cleanup(&store, &log).await.unwrap();
    let error = cp.cleanup("delete", "x").await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "no cleanup \"delete\" is registered (there are [\"note\"]): register it with \
         `.on_cleanup(\"delete\", ..)` where the checkpoint is loaded"
    );
    let _ = cp.cleanup("note", "a").await.unwrap();
    cp.release().await.unwrap();
    let before = store.get("checkpoint/file/head").await.unwrap();
    let error = Checkpoint::load(&store, "file")
        .on_cleanup("other", |(): ()| async { Ok(()) })
        .await
        .unwrap_err();
    assert!(
        matches!(error, CheckpointError::UnknownCleanup { ref name, .. } if name == "note"),
        "{error}"
    );
    assert_eq!(store.get("checkpoint/file/head").await.unwrap(), before);
    let cp = with_cleanup(&store, &log).await.unwrap();
    assert_eq!(log.take(), ["a"]);
    // One whose payload has another type now fails alone.
    let _ = cp.cleanup("note", "b").await.unwrap();
    cp.release().await.unwrap();
    let cp = Checkpoint::load(&store, "file")
        .on_cleanup("note", |_: u32| async { Ok(()) })
        .await
        .unwrap();
    assert!(
        cp.cleaned()[0]
            .result
            .as_ref()
            .unwrap_err()
            .to_string()
            .contains("does not fit the type `u32`")
    );
}

#[tokio::test]
async fn a_completed_checkpoint_leaves_nothing_but_the_result_that_it_keeps() {
    let store = Memory::new();
    for keep in [false, true] {
        let cp = Checkpoint::load(&store, "file").await.unwrap();
        for _ in 0..10 {
            cp.step("large", || async { Ok("x".repeat(3_000)) }).await.unwrap();
        }
        assert!(store.keys("checkpoint/file/*").await.unwrap().len() > 3);
        if keep {
            cp.complete().keep(&"done", Duration::from_millis(500)).await.unwrap();
        } else {
            cp.complete().await.unwrap();
        }
        assert!(matches!(cp.complete().await, Err(CheckpointError::Ended(_))));
        assert_eq!(store.keys("*").await.unwrap().len(), usize::from(keep));
    }
    let error = Checkpoint::load(&store, "file").await.unwrap_err();
    assert!(error.to_string().contains("`Checkpoint::result` has its result"), "{error}");
    assert_eq!(
        Checkpoint::result::<String>(&store, "file").await.unwrap().as_deref(),
        Some("done")
    );
    assert!(
        Checkpoint::inspect(&store, "file").await.unwrap().unwrap().status.completed_at.is_some()
    );
    while Checkpoint::result::<String>(&store, "file").await.unwrap().is_some() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Checkpoint::load(&store, "file").await.unwrap();
}

#[tokio::test]
async fn one_that_is_dropped_is_free_at_once() {
    let store = Memory::new();
    let cp = Checkpoint::load(&store, "file").owner("the first").await.unwrap();
    let error = Checkpoint::load(&store, "file").await.unwrap_err();
    let CheckpointError::InUse { by, until, .. } = &error else { panic!("{error}") };
    assert_eq!(by, "the first");
    assert!(
        error.to_string().contains(&format!("is in use by the first until {until}")),
        "{error}"
    );
    drop(cp);
    while Checkpoint::load(&store, "file").await.is_err() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn what_is_stored_and_is_no_checkpoint_is_said_and_left_as_it_is() {
    let store = Memory::new();
    let cp = Checkpoint::load(&store, "file").await.unwrap();
    for _ in 0..4 {
        cp.step("large", || async { Ok("x".repeat(3_000)) }).await.unwrap();
    }
    cp.release().await.unwrap();
    let good = store.get("checkpoint/file/head").await.unwrap().unwrap();
    let load = async || Checkpoint::load(&store, "file").await.unwrap_err();
    for (text, expected) in [
        ("not JSON".to_owned(), "is no checkpoint \"file\""),
        ("{}".to_owned(), "is no checkpoint \"file\""),
        (good.replace("\"id\":\"file\"", "\"id\":\"other\""), "it is the checkpoint \"other\""),
        (
            good.replace("\"stepwell_checkpoint\":1", "\"stepwell_checkpoint\":2"),
            "has format 2, this program knows 1: update it",
        ),
        (good.replace("\"epoch\"", "\"epok\""), "is damaged (missing field `epoch`"),
        (
            good.replace("\"segments\":[", "\"segments\":[\"1.999\","),
            "\"checkpoint/file/1.999\" is damaged (it is missing): restore it",
        ),
    ] {
        assert_ne!(text, good);
        store.set("checkpoint/file/head", &text, None).await.unwrap();
        let error = load().await;
        assert!(error.to_string().contains(expected), "{error}");
        assert_eq!(store.get("checkpoint/file/head").await.unwrap().unwrap(), text);
    }
    store.set("checkpoint/file/head", &good, None).await.unwrap();
    let segment = store.keys("checkpoint/file/1.*").await.unwrap().swap_remove(0);
    store.set(&segment, "[{\"seq\": 1}]", None).await.unwrap();
    assert!(load().await.to_string().contains(&format!("{segment:?} is damaged")));
    assert!(matches!(Checkpoint::load(&store, "").await, Err(CheckpointError::Name(_))));
}

#[tokio::test]
async fn a_value_of_another_type_is_an_error_and_stays_recorded() {
    let store = Memory::new();
    for _ in 0..2 {
        let cp = Checkpoint::load(&store, "file").await.unwrap();
        cp.step("text", || async { Ok("text".to_owned()) }).await.unwrap();
        cp.release().await.unwrap();
        let cp = Checkpoint::load(&store, "file").await.unwrap();
        let error = cp.step("text", || async { Ok(1) }).await.unwrap_err();
        assert!(
            error.to_string().starts_with("\"text\": the JSON does not fit the type `i32`"),
            "{error}"
        );
        let unfit = || async { Ok(BTreeMap::from([(vec![1], 1)])) };
        let error = cp.step("unfit", unfit).await.unwrap_err();
        assert!(error.to_string().contains("does not serialise to JSON"), "{error}");
        cp.release().await.unwrap();
    }
}
