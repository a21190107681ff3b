//! Tasks that are exported from one store and go on in another.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::unit_arg,
    missing_docs,
    reason = "a test ends by a panic"
)]

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use stepwell::store::{TaskRecord, until};
use stepwell::testing::{Harness, Process, worker_options};
use stepwell::*;

const DAY: Duration = Duration::from_secs(24 * 3600);

type Ran = Arc<Mutex<Vec<&'static str>>>;

/// Leaves something of everything: results, a failure that it survived, a compensation, messages,
/// waits with their times.
#[stepwell::task]
async fn journey(from: String, ctx: TaskContext) -> TaskResult<String> {
    let ran = ctx.state::<Ran>()?.clone();
    let undo = ran.clone();
    ctx.step("pack", || async { Ok(ran.lock().unwrap().push("pack")) })
        .compensate(move |()| {
            undo.lock().unwrap().push("unpack");
            async { Ok(()) }
        })
        .await?;
    let late = ctx
        .step("late", || async {
            Err::<(), _>(anyhow::anyhow!("no train").context("the bus is gone"))
        })
        .await
        .unwrap_err();
    let ticket: String = ctx.recv("ticket", None).await?;
    let decision = ctx.await_approval::<u32>("holiday", &from).timeout(30 * DAY).await?;
    ctx.step("travel", || async { Ok(ran.lock().unwrap().push("travel")) }).await?;
    match decision {
        Decision::Approved { value, .. } => Ok(format!("{from} with {ticket} for {value}, {late}")),
        Decision::Rejected { .. } => Err(TaskError::permanent(anyhow::anyhow!("at home"))),
    }
}

async fn start(harness: &Harness, store: Arc<dyn Store>, ran: &Ran) -> Process {
    let process = harness.start_on(store, |builder| builder.state(ran.clone())).await.unwrap();
    process.register::<journey>().await.unwrap();
    process
}

async fn sqlite(harness: &Harness) -> Arc<dyn Store> {
    let location = stepwell::sqlite::Location::Memory;
    Arc::new(stepwell::sqlite::SqliteStore::open(location, harness.runtime()).await.unwrap())
}

async fn waits_for_approval(process: &Process, task: TaskId) -> ApprovalInfo {
    loop {
        let state = process.task(task).await.unwrap().unwrap().state;
        if let Some(approval) = process
            .approvals()
            .list(ApprovalFilter { limit: 10, ..ApprovalFilter::default() })
            .await
            .unwrap()
            .items
            .pop()
            && state == TaskState::Suspended
        {
            return approval;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// A task that waits for its approval, and has a message that it has not asked for.
async fn waiting(process: &Process) -> (TaskId, ApprovalInfo) {
    process.start_worker(worker_options()).await;
    let options =
        SpawnOptions::new().max_attempts(1).header("tenant", "a").idempotency_key("the one");
    let task = process.spawn::<journey>("Köln".into()).options(options).await.unwrap().task_id;
    process.send(task, "ticket", "a ticket").await.unwrap();
    process.send(task, "ticket", "another").await.unwrap();
    let approval = waits_for_approval(process, task).await;
    (task, approval)
}

#[tokio::test(start_paused = true)]
async fn an_imported_task_goes_on_in_another_store_and_in_a_third() {
    let (harness, ran) = (Harness::new(), Ran::default());
    let first = start(&harness, Arc::new(harness.store()), &ran).await;
    let (task, approval) = waiting(&first).await;
    let json = first.export(task).await.unwrap().with("by", "ada").to_json().unwrap();
    first.kill().await;

    let second = start(&harness, sqlite(&harness).await, &ran).await;
    assert_eq!(second.import(Export::from_json(&json).unwrap()).await.unwrap(), task);
    second.start_worker(worker_options()).await;
    let there = waits_for_approval(&second, task).await;
    assert_eq!(
        (&there.request, there.due_at, there.asked_at),
        (&approval.request, approval.due_at, approval.asked_at)
    );
    let info = second.task(task).await.unwrap().unwrap();
    assert_eq!(
        (info.headers["tenant"].as_str(), info.idempotency_key.is_some()),
        (Some("a"), true)
    );
    let again = second.export(task).await.unwrap();
    assert_eq!(again.record.messages.len(), 1);
    let error = second.import(again.clone()).await.unwrap_err().to_string();
    assert!(error.contains("the store has the task already"), "{error}");
    second.kill().await;

    let harness = Harness::new();
    let third = start(&harness, Arc::new(harness.store()), &ran).await;
    third.import(again).await.unwrap();
    third.start_worker(worker_options()).await;
    waits_for_approval(&third, task).await;
    third.approvals().decide(task, "holiday", &Decision::approved("bob", 14_u32)).await.unwrap();
    let output = third.wait::<String>(task).await.unwrap();
    assert_eq!(
        output,
        r#"Köln with a ticket for 14, step "late" failed: the bus is gone: no train"#
    );
    assert_eq!(*ran.lock().unwrap(), ["pack", "travel"], "what is journaled does not run again");

    // One that has ended can be looked at elsewhere.
    let ended = third.export(task).await.unwrap();
    let harness = Harness::new();
    for store in [Arc::new(harness.store()) as Arc<dyn Store>, sqlite(&harness).await] {
        let fourth = start(&harness, store, &ran).await;
        fourth.import(ended.clone()).await.unwrap();
        assert_eq!(fourth.wait::<String>(task).await.unwrap(), output);
        assert_eq!(fourth.journal(task).await.unwrap(), third.journal(task).await.unwrap());
    }
}

/// A task that was answered with another one needs it also where both have moved.
#[tokio::test(start_paused = true)]
async fn an_imported_task_keeps_what_it_was_answered_with() {
    let harness = Harness::new();
    let one = |(): (), _ctx: TaskContext| async move { Ok(7_u32) };
    let key = || SpawnOptions::new().idempotency_key("one");
    let asks = move |(): (), ctx: TaskContext| async move {
        let child: Child<u32> = ctx.spawn_named("child", "one", &()).options(key()).await?;
        ctx.await_event::<()>("go on", None).await?;
        ctx.join(&child).await
    };
    let first = harness.start().await;
    first.register_fn("one", one).await.unwrap();
    first.register_fn("asks", asks).await.unwrap();
    first.start_worker(worker_options()).await;
    let there = first.spawn_named("one", &()).options(key()).await.unwrap().task_id;
    assert_eq!(first.wait::<u32>(there).await.unwrap(), 7);
    let parent = first.spawn_named("asks", &()).await.unwrap().task_id;
    while first.task(parent).await.unwrap().unwrap().state != TaskState::Suspended {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }

    let second = harness.start_on(sqlite(&harness).await, |builder| builder).await.unwrap();
    second.register_fn("one", one).await.unwrap();
    second.register_fn("asks", asks).await.unwrap();
    for task in [there, parent] {
        let document = first.export(task).await.unwrap().to_json().unwrap();
        second.import(Export::from_json(&document).unwrap()).await.unwrap();
    }
    let refused = second.delete(there).await.unwrap_err();
    assert!(matches!(refused, Error::Needed { by, .. } if by == parent), "{refused}");
    second.start_worker(worker_options()).await;
    second.emit_event("go on", &()).await.unwrap();
    assert_eq!(second.wait::<u32>(parent).await.unwrap(), 7);
    second.delete(there).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_task_that_is_compensated_goes_on_with_that() {
    let (harness, ran) = (Harness::new(), Ran::default());
    let first = start(&harness, Arc::new(harness.store()), &ran).await;
    let (task, _) = waiting(&first).await;
    first.kill().await;
    let idle = start(&harness, Arc::new(harness.store()), &ran).await;
    idle.cancel(task).await.unwrap();
    let export = idle.export(task).await.unwrap();
    assert_eq!(export.record.info.state, TaskState::Compensating);
    let second = start(&harness, sqlite(&harness).await, &ran).await;
    second.import(export).await.unwrap();
    assert_eq!(second.task(task).await.unwrap().unwrap().state, TaskState::Compensating);
    second.start_worker(worker_options()).await;
    let error = second.wait::<String>(task).await.unwrap_err();
    assert!(matches!(error, Error::TaskCancelled(_)), "{error}");
    assert_eq!(*ran.lock().unwrap(), ["pack", "unpack"]);
}

#[tokio::test(start_paused = true)]
async fn a_delayed_start_and_a_retry_are_due_when_they_were() {
    static RUNS: AtomicU32 = AtomicU32::new(0);
    let harness = Harness::new();
    let first = harness.start().await;
    let options = SpawnOptions::new().delay(10 * DAY);
    let task = first.spawn_named("later", &()).options(options).await.unwrap().task_id;
    let export = first.export(task).await.unwrap();
    let began = harness.now();
    let store = Arc::new(MemoryStore::new(harness.runtime()));
    let second = harness.start_on(store, |builder| builder).await.unwrap();
    let later = |(): (), _ctx: TaskContext| async {
        RUNS.fetch_add(1, Ordering::SeqCst);
        Ok(())
    };
    second.register_fn("later", later).await.unwrap();
    second.import(export).await.unwrap();
    second.start_worker(worker_options()).await;
    second.wait::<()>(task).await.unwrap();
    assert!(until(began, harness.now()) >= 10 * DAY);
    assert_eq!(RUNS.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn documents_that_are_none_are_refused_with_a_reason() {
    let (harness, ran) = (Harness::new(), Ran::default());
    let process = start(&harness, Arc::new(harness.store()), &ran).await;
    let (task, _) = waiting(&process).await;
    let json = process.export(task).await.unwrap().to_json().unwrap();
    let said = |json: &str| Export::from_json(json).unwrap_err().to_string();
    for cut in [1, json.len() / 3, json.len() - 1] {
        let cut = (0..=cut).rev().find(|cut| json.is_char_boundary(*cut)).unwrap();
        let error = said(&json[..cut]);
        assert!(error.contains("is damaged: EOF while parsing"), "{error}");
    }
    assert!(said("").contains("is damaged"));
    assert!(said("[1, 2]").contains("this is no exported task"));
    assert!(
        said(r#"{"name": "else"}"#).contains("this is no exported task: missing field `format`")
    );
    assert!(
        said(&json.replace("stepwell task", "another task"))
            .contains(r#"its format is "another task""#)
    );
    let newer = said(&json.replacen(r#""version":1"#, r#""version":9"#, 1));
    assert!(
        newer.contains(
            "of version 9, this program knows versions up to 1: import it with a newer build"
        ),
        "{newer}"
    );
    for (was, is) in
        [("a ticket", "a Ticket"), (r#""attempt":0"#, r#""attempt":3"#), ("no train", "no plane")]
    {
        assert!(json.contains(was), "{was}");
        let error = said(&json.replace(was, is));
        assert!(error.contains("its checksum is another one"), "{error}");
    }
    // Another order and other spaces are no change.
    let value: serde_json::Value = serde_json::from_str(&json).unwrap();
    Export::from_json(&serde_json::to_string_pretty(&value).unwrap()).unwrap();
    // What failed says why, with its causes.
    let late = &value["body"]["record"]["journal"]
        .as_array()
        .unwrap()
        .iter()
        .find(|entry| entry["name"] == "late");
    assert_eq!(late.unwrap()["value"]["message"], "the bus is gone");
    assert_eq!(late.unwrap()["value"]["causes"][0], "no train");
}

#[tokio::test(start_paused = true)]
async fn a_task_that_no_store_could_have_given_is_refused_or_is_the_same_in_every_store() {
    let (harness, ran) = (Harness::new(), Ran::default());
    let first = start(&harness, Arc::new(harness.store()), &ran).await;
    let (task, _) = waiting(&first).await;
    let export = first.export(task).await.unwrap();
    first.kill().await;
    let stores = async || {
        [Arc::new(MemoryStore::new(harness.runtime())) as Arc<dyn Store>, sqlite(&harness).await]
    };
    type Change = fn(&mut TaskRecord);
    let change: [(&str, Change); 5] = [
        ("numbered in their order", |record| record.journal.swap(0, 1)),
        ("numbered in their order", |record| record.journal[1].seq = record.journal[0].seq),
        ("numbered in their order", |record| record.journal[0].seq = 0),
        ("numbered in their order", |record| record.journal.last_mut().unwrap().seq = u64::MAX),
        ("waits twice", |record| record.waits.push(record.waits[0].clone())),
    ];
    for (says, change) in change {
        let mut changed = export.clone();
        change(&mut changed.record);
        for store in stores().await {
            let process = start(&harness, store, &ran).await;
            let error = process.import(changed.clone()).await.unwrap_err().to_string();
            assert!(error.contains(says) && error.contains("Export it again"), "{error}");
            assert!(process.task(task).await.unwrap().is_none());
        }
    }
    let mut finer = export.clone();
    finer.record.info.attempt = u32::MAX;
    finer.record.journal[0].at = "2026-01-01T00:00:00.123456789Z".parse().unwrap();
    for store in stores().await {
        let process = start(&harness, store, &ran).await;
        process.import(finer.clone()).await.unwrap();
        let at = process.journal(task).await.unwrap()[0].at;
        assert_eq!(at.to_string(), "2026-01-01T00:00:00.123456Z");
        process.start_worker(worker_options()).await;
        waits_for_approval(&process, task).await;
        process.kill().await;
    }
}

#[test]
fn an_export_tells_where_an_error_was_made() {
    const NAME: &str = "an_export_tells_where_an_error_was_made";
    if std::env::var("RUST_LIB_BACKTRACE").as_deref() != Ok("1") {
        // A process reads the variable once.
        let mut again = std::process::Command::new(std::env::current_exe().unwrap());
        let again = again.args(["--exact", NAME, "--nocapture"]).env("RUST_LIB_BACKTRACE", "1");
        assert!(again.status().unwrap().success());
        return;
    }
    fn far_down() -> anyhow::Result<()> {
        Err(anyhow::anyhow!("no train").context("the bus is gone"))
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = Durable::builder().database_url("sqlite::memory:").build().await.unwrap();
        let stuck = |(): (), ctx: TaskContext| async move {
            ctx.step("leave", || async { far_down() }).await
        };
        client.register_fn("stuck", stuck).await.unwrap();
        client.start_worker(WorkerOptions::new()).await;
        let task = client.spawn_named("stuck", &()).max_attempts(1).await.unwrap().task_id;
        client.wait::<()>(task).await.unwrap_err();
        let json = client.export(task).await.unwrap().to_json().unwrap();
        let export = Export::from_json(&json).unwrap();
        let failed = export.record.journal.iter().find_map(|entry| match &entry.outcome {
            Outcome::Failed(failure) => Some((**failure).clone()),
            _ => None,
        });
        let failed = failed.unwrap();
        assert_eq!(
            (failed.message.as_str(), &failed.causes[..]),
            ("the bus is gone", &["no train".to_owned()][..])
        );
        let backtrace = failed.backtrace.unwrap();
        assert!(backtrace.contains("far_down") && backtrace.len() <= 16 << 10, "{backtrace}");
    });
}

/// A task that journals without a pause is never seen whole: that is said in a limited time, and
/// its journal is read all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_busy_task_is_looked_at_and_refused_as_a_document() {
    let folder = tempfile::tempdir().unwrap();
    let database = format!("sqlite://{}", folder.path().join("tasks.db").display());
    let client = Durable::builder().database_url(database).build().await.unwrap();
    let going = Arc::new(AtomicBool::new(true));
    let goes = going.clone();
    let busy = move |(): (), ctx: TaskContext| {
        let goes = goes.clone();
        async move {
            let mut n = 0;
            while goes.load(Ordering::SeqCst) {
                ctx.step(("n", n), || async { Ok(()) }).await?;
                n += 1;
            }
            Ok(())
        }
    };
    client.register_fn("busy", busy).await.unwrap();
    client.start_worker(WorkerOptions::new()).await;
    let task = client.spawn_named("busy", &()).await.unwrap().task_id;
    // So many that some more come while they are read.
    while client.journal(task).await.unwrap().len() < 2_000 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let exported = tokio::time::timeout(Duration::from_secs(30), client.export(task)).await;
    match exported.expect("it is looked at for ever") {
        Ok(_) => {}
        Err(error) => {
            assert!(error.to_string().contains("cannot export task"), "{error}");
        }
    }
    going.store(false, Ordering::SeqCst);
    client.wait::<()>(task).await.unwrap();
    client.export(task).await.unwrap();
}
