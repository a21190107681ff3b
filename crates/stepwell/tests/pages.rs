//! Answers that are full, through the public face: what is too long for one comes in parts, and all
//! of it comes.

#![allow(clippy::unwrap_used, clippy::unit_arg, missing_docs, reason = "a test ends by a panic")]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::{join_all, try_join_all};
use stepwell::sqlite::{Location, SqliteStore};
use stepwell::store::ANSWER_BYTES;
use stepwell::testing::{Harness, Intercepted, Process, worker_options};
use stepwell::*;

/// How many texts are more than an answer holds.
const MANY: usize = 10;

/// A text that is as long as a payload may be.
fn long(n: usize) -> String {
    format!("{n}{}", "x".repeat((4 << 20) - 8))
}

fn numbers() -> BTreeSet<usize> {
    (0..MANY).collect()
}

/// The text's number.
fn number(text: &str) -> usize {
    text.split('x').next().unwrap().parse().unwrap()
}

/// The stores that a test can have in virtual time.
async fn stores(harness: &Harness) -> [Arc<dyn Store>; 2] {
    let sqlite = SqliteStore::open(Location::Memory, harness.runtime()).await.unwrap();
    [Arc::new(harness.store()), Arc::new(sqlite)]
}

async fn spawn(process: &Process, task_type: &str) -> Vec<TaskId> {
    let mut tasks = Vec::new();
    for n in 0..MANY {
        tasks.push(process.spawn_named(task_type, &long(n)).await.unwrap().task_id);
    }
    tasks
}

#[tokio::test(start_paused = true)]
async fn a_list_of_large_tasks_has_short_pages_and_all_tasks() {
    let harness = Harness::new();
    for store in stores(&harness).await {
        let process = harness.start_on(store, |builder| builder).await.unwrap();
        let mut tasks = spawn(&process, "nobody's").await;
        tasks.sort_unstable_by(|a, b| b.cmp(a));
        let (mut found, mut filter, mut pages) = (Vec::new(), TaskFilter::default(), 0);
        loop {
            let page = process.tasks(filter.clone()).await.unwrap();
            let bytes = page.items.iter().map(|task| task.params.as_str().len()).sum::<usize>();
            assert!(bytes < ANSWER_BYTES + (4 << 20), "{bytes}");
            found.extend(page.items.iter().map(|task| task.task_id));
            pages += 1;
            filter.before = page.next;
            if filter.before.is_none() {
                break;
            }
        }
        assert_eq!((&found, pages), (&tasks, 2));

        // A caller who goes by the last task of each page finds them as well.
        let (mut found, mut filter) = (Vec::new(), TaskFilter::default());
        while let page = process.tasks(filter.clone()).await.unwrap()
            && let Some(last) = page.items.last()
        {
            filter.before = Some(last.task_id);
            found.extend(page.items.iter().map(|task| task.task_id));
        }
        assert_eq!(found, tasks);
    }
}

#[tokio::test(start_paused = true)]
async fn a_page_takes_one_question() {
    let harness = Harness::new();
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = asked.clone();
    let store =
        Intercepted::new(Arc::new(harness.store()), |store, batch| store.commit(batch.into()))
            .after_reads(move || {
                counter.fetch_add(1, Ordering::SeqCst);
                Box::pin(std::future::ready(Ok(())))
            });
    let process = harness.start_on(Arc::new(store), |builder| builder).await.unwrap();
    for n in 0..5 {
        process.spawn_named("nobody's", &n).await.unwrap();
    }
    for (limit, next) in [(4, true), (5, false), (6, false)] {
        asked.store(0, Ordering::SeqCst);
        let filter = TaskFilter { limit, ..TaskFilter::default() };
        let page = process.tasks(filter).await.unwrap();
        assert_eq!((page.items.len(), page.next.is_some()), (limit.min(5), next));
        assert_eq!(asked.load(Ordering::SeqCst), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_mailbox_of_any_length_is_exported() {
    let harness = Harness::new();
    let [memory, sqlite] = stores(&harness).await;
    let from = harness.start_on(memory, |builder| builder).await.unwrap();
    let task = from.spawn_named("nobody's", &()).await.unwrap().task_id;
    for n in 0..MANY {
        from.send(task, "topic", &long(n)).await.unwrap();
    }
    let messages = |export: &Export| -> Vec<usize> {
        let messages = export.record.messages.iter();
        messages.map(|(_, payload)| number(&payload.decode::<String>().unwrap())).collect()
    };
    let export = from.export(task).await.unwrap();
    assert_eq!(messages(&export), Vec::from_iter(0..MANY));
    let to = harness.start_on(sqlite, |builder| builder).await.unwrap();
    to.import(export).await.unwrap();
    assert_eq!(messages(&to.export(task).await.unwrap()), Vec::from_iter(0..MANY));
}

/// It is never suspended meanwhile: a step runs until all has arrived.
#[tokio::test(start_paused = true)]
async fn a_task_that_is_busy_gets_all_that_comes_in_parts() {
    let harness = Harness::new();
    let process = harness.start().await;
    let gather = |(): (), ctx: TaskContext| async move {
        let (arrived, all) = tokio::sync::oneshot::channel::<()>();
        let events = async {
            let events = (0..MANY).map(|n| ctx.await_event::<String>(("event", n), None));
            let messages = (0..MANY).map(|_| ctx.recv::<String>("topic", None));
            let (events, messages) =
                tokio::try_join!(try_join_all(events), try_join_all(messages))?;
            drop(arrived);
            Ok([events, messages]
                .map(|texts| texts.iter().map(|text| number(text)).collect::<Vec<_>>()))
        };
        let busy = ctx.step("busy", || async { Ok(all.await.unwrap_or_default()) });
        let (all, ()) = tokio::try_join!(events, busy)?;
        Ok(all)
    };
    process.register_fn("gather", gather).await.unwrap();
    let task = process.spawn_named("gather", &()).await.unwrap().task_id;
    for n in 0..MANY {
        process.emit_event(format!("event:{n}"), &long(n)).await.unwrap();
        process.send(task, "topic", &long(n)).await.unwrap();
    }
    process.start_worker(worker_options().claim_timeout(Duration::from_secs(3600))).await;
    let done = tokio::time::timeout(Duration::from_secs(60), process.wait::<[Vec<usize>; 2]>(task));
    let all = Vec::from_iter(0..MANY);
    assert_eq!(done.await.expect("something never arrives").unwrap(), [all.clone(), all]);
}

#[tokio::test(start_paused = true)]
async fn many_large_outputs_that_are_waited_for_all_come() {
    let harness = Harness::new();
    for store in stores(&harness).await {
        let start = || harness.start_on(store.clone(), |builder| builder);
        let (worker, waiting, other) =
            (start().await.unwrap(), start().await.unwrap(), start().await.unwrap());
        worker
            .register_fn("echo", |text: String, _: TaskContext| async move { Ok(text) })
            .await
            .unwrap();
        let tasks = spawn(&waiting, "echo").await;
        let outputs = join_all(tasks.iter().map(|task| waiting.wait::<String>(*task)));
        let (outputs, _) = tokio::join!(outputs, worker.start_worker(worker_options()));
        let outputs: Vec<_> = outputs.into_iter().map(|output| number(&output.unwrap())).collect();
        assert_eq!(outputs, Vec::from_iter(0..MANY));
        // They have ended by now, and are asked for together.
        let outputs = join_all(tasks.iter().map(|task| other.wait::<String>(*task))).await;
        let outputs: Vec<_> = outputs.into_iter().map(|output| number(&output.unwrap())).collect();
        assert_eq!(outputs, Vec::from_iter(0..MANY));
    }
}

#[tokio::test(start_paused = true)]
async fn schedules_with_large_parameters_are_all_listed_and_all_tick() {
    let harness = Harness::new();
    let process = harness.start().await;
    process.register_fn("note", |_: String, _: TaskContext| async { Ok(()) }).await.unwrap();
    for n in 0..MANY {
        let hourly = Schedule::cron(format!("schedule {n}"), "0 * * * *");
        process.schedules().put_named(hourly, "note", &long(n)).await.unwrap();
    }
    let listed = process.schedules().list().await.unwrap();
    let listed: Vec<_> =
        listed.iter().map(|info| number(&info.params.decode::<String>().unwrap())).collect();
    assert_eq!(listed, Vec::from_iter(0..MANY));
    process.start_worker(worker_options()).await;
    let mut ticked = BTreeSet::new();
    let all_tick = async {
        while ticked.len() < MANY {
            tokio::time::sleep(Duration::from_secs(60)).await;
            let (mut filter, mut seen) = (TaskFilter::default(), BTreeSet::new());
            loop {
                let page = process.tasks(filter.clone()).await.unwrap();
                seen.extend(
                    page.items.iter().map(|task| number(&task.params.decode::<String>().unwrap())),
                );
                filter.before = page.next;
                if filter.before.is_none() {
                    break;
                }
            }
            ticked = seen;
        }
    };
    tokio::time::timeout(Duration::from_secs(2 * 3600), all_tick).await.expect("some never tick");
    assert_eq!(ticked, numbers());
    process.shutdown(Duration::ZERO).await;
}

#[tokio::test(start_paused = true)]
async fn approvals_with_large_requests_come_in_pages() {
    let harness = Harness::new();
    for store in stores(&harness).await {
        let process = harness.start_on(store, |builder| builder).await.unwrap();
        let ask = |text: String, ctx: TaskContext| async move {
            ctx.await_approval::<()>("sure", &text[..(4 << 20) - 200]).await?;
            Ok(())
        };
        process.register_fn("ask", ask).await.unwrap();
        process.start_worker(worker_options()).await;
        let tasks = spawn(&process, "ask").await;
        for task in &tasks {
            while process.task(*task).await.unwrap().unwrap().state != TaskState::Suspended {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        let (mut asked, mut behind, mut pages) = (Vec::new(), None, 0);
        loop {
            let page = process
                .approvals()
                .list(ApprovalFilter { after: behind, ..ApprovalFilter::default() })
                .await
                .unwrap();
            let bytes =
                page.items.iter().map(|approval| approval.request.as_str().len()).sum::<usize>();
            assert!(bytes < ANSWER_BYTES + (4 << 20), "{bytes}");
            asked.extend(page.items.iter().map(|approval| approval.task_id));
            pages += 1;
            behind = page.next;
            if behind.is_none() {
                break;
            }
        }
        let mut expected = tasks;
        expected.sort_unstable();
        assert_eq!((asked, pages), (expected, 2));
        process.shutdown(Duration::ZERO).await;
    }
}
