//! Lifecycle events that are kept.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::unit_arg,
    missing_docs,
    reason = "a test ends by a panic"
)]

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use stepwell::testing::{Harness, worker_options};
use stepwell::*;

#[stepwell::task]
async fn order(item: String, ctx: TaskContext) -> TaskResult<String> {
    ctx.log(LogLevel::Info, "begins", [("item", item.clone().into())]);
    ctx.step("pack", || async { Ok(()) }).compensate(|()| async { Ok(()) }).await?;
    ctx.progress(1, 2, "packed");
    match ctx.step("ship", || async { Err::<(), _>(anyhow::anyhow!("no ship")) }).await {
        Err(error) if item == "anvil" => Err(error),
        _ => Ok(item),
    }
}

/// The names of what was kept of a task, once it is written.
async fn names(client: &Client, task_id: TaskId) -> Vec<&'static str> {
    let which = HistoryFilter { task_id: Some(task_id), ..HistoryFilter::default() };
    let history = client.history(which).await.unwrap();
    history.into_iter().map(|entry| entry.event.unwrap().name()).collect()
}

#[tokio::test(start_paused = true)]
async fn what_happens_is_kept_for_other_processes() {
    let harness = Harness::new();
    let keeping = harness.start_with(DurableBuilder::keep_history).await.unwrap();
    keeping.register::<order>().await.unwrap();
    let mut events = keeping.subscribe();
    keeping.start_worker(worker_options()).await;
    let fine = keeping.spawn::<order>("feather".into()).await.unwrap().task_id;
    keeping.wait::<String>(fine).await.unwrap();
    let undone = keeping.spawn::<order>("anvil".into()).max_attempts(1).await.unwrap().task_id;
    keeping.wait::<String>(undone).await.unwrap_err();
    keeping.shutdown(Duration::ZERO).await;

    let other = harness.start().await;
    let begun = [
        "task:spawn",
        "task:start",
        "log:write",
        "step:start",
        "step:complete",
        "task:progress",
        "step:start",
        "step:fail",
    ];
    assert_eq!(names(&other, fine).await, [&begun[..], &["task:complete"]].concat());
    let compensated = ["task:compensate", "task:start", "step:compensate", "task:fail"];
    let undone_so = names(&other, undone).await;
    assert_eq!(undone_so, [&begun[..], &compensated].concat());

    // In pages, and as subscribers got it.
    let (mut all, mut after) = (Vec::new(), 0);
    loop {
        let page = other
            .history(HistoryFilter { after, limit: 4, ..HistoryFilter::default() })
            .await
            .unwrap();
        let Some(last) = page.items.last() else { break };
        after = last.id;
        all.extend(page);
    }
    assert!(all.windows(2).all(|pair| pair[0].id < pair[1].id && pair[0].at <= pair[1].at));
    for entry in all {
        assert_eq!(Some(entry.event.unwrap()), events.next().await);
    }
    other.delete(fine).await.unwrap();
    assert_eq!(names(&other, fine).await, [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_kept_unless_it_is_asked_for() {
    let harness = Harness::new();
    let process = harness.start().await;
    process.register::<order>().await.unwrap();
    process.start_worker(worker_options()).await;
    let task = process.spawn::<order>("feather".into()).await.unwrap().task_id;
    process.wait::<String>(task).await.unwrap();
    process.shutdown(Duration::ZERO).await;
    assert_eq!(names(&process, task).await, [""; 0]);
}

/// The history cannot be written for a while.
#[derive(Debug, Default)]
struct Failing(AtomicU32);

impl Codec for Failing {
    fn name(&self) -> &'static str {
        "failing"
    }

    fn encode(&self, _: &[u8], place: &Place<'_>) -> Result<Option<Vec<u8>>, CodecError> {
        let fails =
            matches!(place, Place::History(_)) && self.0.fetch_add(1, Ordering::Relaxed) < 5;
        if fails { Err(CodecError::Other("not now".into())) } else { Ok(None) }
    }

    fn decode(&self, bytes: &[u8], _: Option<&str>, _: &Place<'_>) -> Result<Vec<u8>, CodecError> {
        Ok(bytes.to_vec())
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_store_refuses_is_written_once_it_takes_it() {
    let harness = Harness::new();
    let keeping = harness
        .start_with(|builder| builder.keep_history().codec(Failing::default()))
        .await
        .unwrap();
    keeping.register::<order>().await.unwrap();
    keeping.start_worker(worker_options()).await;
    let task = keeping.spawn::<order>("feather".into()).await.unwrap().task_id;
    keeping.wait::<String>(task).await.unwrap();
    keeping.shutdown(Duration::ZERO).await;
    assert_eq!(names(&keeping, task).await.len(), 9);
}

/// The history does not take one kind of event.
#[derive(Debug)]
struct Deaf;

impl Codec for Deaf {
    fn name(&self) -> &'static str {
        "deaf"
    }

    fn encode(&self, bytes: &[u8], place: &Place<'_>) -> Result<Option<Vec<u8>>, CodecError> {
        let refused = matches!(place, Place::History(_))
            && String::from_utf8_lossy(bytes).contains("log:write");
        if refused { Err(CodecError::Other("what?".into())) } else { Ok(None) }
    }

    fn decode(&self, bytes: &[u8], _: Option<&str>, _: &Place<'_>) -> Result<Vec<u8>, CodecError> {
        Ok(bytes.to_vec())
    }
}

#[tokio::test(start_paused = true)]
async fn an_event_that_is_refused_for_good_is_left_out_and_the_others_are_kept() {
    let harness = Harness::new();
    let keeping = harness.start_with(|builder| builder.keep_history().codec(Deaf)).await.unwrap();
    keeping.register::<order>().await.unwrap();
    keeping.start_worker(worker_options()).await;
    for _ in 0..2 {
        let task = keeping.spawn::<order>("feather".into()).await.unwrap().task_id;
        keeping.wait::<String>(task).await.unwrap();
        let shut = keeping.shutdown(Duration::ZERO);
        tokio::time::timeout(Duration::from_secs(3600), shut).await.expect("it is tried for ever");
        let names = names(&keeping, task).await;
        assert!(names.len() == 8 && !names.contains(&"log:write"), "{names:?}");
        keeping.start_worker(worker_options()).await;
    }
}
