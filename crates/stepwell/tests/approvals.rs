//! Approvals: tasks that wait for people.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::unit_arg,
    missing_docs,
    reason = "a test ends by a panic"
)]

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use stepwell::store::{after, until};
use stepwell::testing::{Harness, Intercepted, Process, worker_options};
use stepwell::*;

const DAY: Duration = Duration::from_secs(24 * 3600);

type Mails = Arc<Mutex<Vec<String>>>;

async fn mail(mails: Mails, to: &'static str) -> anyhow::Result<()> {
    Ok(mails.lock().unwrap().push(to.into()))
}

#[stepwell::task]
async fn budget(amount: u64, ctx: TaskContext) -> TaskResult<Option<u64>> {
    let mails = ctx.state::<Mails>()?;
    let (remind, escalate) = (mails.clone(), mails.clone());
    let decision: Decision<u64> = ctx
        .await_approval("budget", &amount)
        .assign("manager")
        .remind_every(DAY, move || mail(remind.clone(), "manager"))
        .escalate_after(2 * DAY + DAY / 2, "director", move || mail(escalate.clone(), "director"))
        .timeout(7 * DAY)
        .await?;
    let second: Decision<()> = ctx.await_approval("budget", &(amount * 2)).await?;
    match decision {
        Decision::Approved { value, .. } if second.is_approved() => Ok(Some(value)),
        _ => Ok(None),
    }
}

async fn start(harness: &Harness, mails: &Mails) -> Process {
    let process = harness.start_with(|builder| builder.state(mails.clone())).await.unwrap();
    process.register::<budget>().await.unwrap();
    process.start_worker(worker_options()).await;
    process
}

async fn open(process: &Process) -> ApprovalInfo {
    loop {
        if let Some(approval) = process
            .approvals()
            .list(ApprovalFilter { limit: 10, ..ApprovalFilter::default() })
            .await
            .unwrap()
            .items
            .into_iter()
            .next()
        {
            return approval;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_approval_is_listed_and_decided_once() {
    let (harness, mails) = (Harness::new(), Mails::default());
    let process = start(&harness, &mails).await;
    let task = process.spawn::<budget>(100).await.unwrap().task_id;
    let approval = open(&process).await;
    assert_eq!(
        (approval.task_id, &*approval.name, approval.assignee.as_deref()),
        (task, "budget", Some("manager"))
    );
    assert_eq!((approval.request.as_str(), approval.task_type.as_str()), ("100", "budget"));
    assert_eq!(approval.due_at, Some(after(approval.asked_at, 7 * DAY)));

    let unknown = process
        .approvals()
        .decide(task, "holiday", &Decision::approved("ada", 1))
        .await
        .unwrap_err()
        .to_string();
    assert!(unknown.contains(r#"does not wait for an approval named "holiday""#), "{unknown}");
    // Two at once: one of them is told that it came too late.
    let (ada, bob) = (Decision::approved("ada", 90_u64), Decision::<u64>::rejected("bob", "no"));
    let both = tokio::join!(
        process.approvals().decide(task, "budget", &ada),
        process.approvals().decide(task, "budget", &bob)
    );
    assert!(both.0.is_ok() && matches!(both.1, Err(Error::AlreadyDecided { .. })), "{both:?}");

    let second = loop {
        let approval = open(&process).await;
        if approval.name == "budget#2" {
            break approval;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    };
    assert_eq!((second.request.as_str(), second.due_at, second.assignee), ("200", None, None));
    process.approvals().decide(task, "budget#2", &Decision::approved("ada", ())).await.unwrap();
    assert_eq!(process.wait::<Option<u64>>(task).await.unwrap(), Some(90));
    assert!(
        process
            .approvals()
            .list(ApprovalFilter { limit: 10, ..ApprovalFilter::default() })
            .await
            .unwrap()
            .items
            .is_empty()
    );
    assert!(mails.lock().unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn people_are_reminded_and_then_others_are_asked_over_restarts() {
    let (harness, mails) = (Harness::new(), Mails::default());
    let mut process = start(&harness, &mails).await;
    let task = process.spawn::<budget>(100).max_attempts(1).await.unwrap().task_id;
    let began = open(&process).await.asked_at;
    for (mailed, assignee) in [(1, "manager"), (2, "manager"), (3, "director"), (4, "director")] {
        while mails.lock().unwrap().len() < mailed {
            tokio::time::sleep(Duration::from_secs(3600)).await;
        }
        process.kill().await;
        process = start(&harness, &mails).await;
        assert_eq!(open(&process).await.assignee.as_deref(), Some(assignee));
    }
    assert_eq!(*mails.lock().unwrap(), ["manager", "manager", "director", "manager"]);
    assert!(until(began, harness.now()) < 4 * DAY);
    let error = process.wait::<Option<u64>>(task).await.unwrap_err().to_string();
    assert!(error.contains("timed out"), "{error}");
    let took = until(began, harness.now());
    assert!(took >= 7 * DAY && took < 9 * DAY, "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_decision_of_another_type_fails_that_task_with_a_clear_error() {
    let (harness, mails) = (Harness::new(), Mails::default());
    let process = start(&harness, &mails).await;
    let task = process.spawn::<budget>(100).await.unwrap().task_id;
    open(&process).await;
    process.approvals().decide(task, "budget", &Decision::approved("ada", "ninety")).await.unwrap();
    let error = process.wait::<Option<u64>>(task).await.unwrap_err().to_string();
    assert!(error.contains("does not fit the type") && error.contains("expected u64"), "{error}");
}

/// Tasks that await an event of their own whose name begins as those of approvals do are none of a
/// page, and end none.
#[tokio::test(start_paused = true)]
async fn every_approval_is_on_some_page() {
    let (harness, mails) = (Harness::new(), Mails::default());
    let process = start(&harness, &mails).await;
    let waits =
        |(): (), ctx: TaskContext| async move { ctx.await_event::<()>("approval/x", None).await };
    process.register_fn("waits", waits).await.unwrap();
    let mut asked = Vec::new();
    for odd in [150, 1, 1, 1, 1] {
        for _ in 0..odd {
            process.spawn_named("waits", &()).await.unwrap();
        }
        // Ids of one millisecond are in no order.
        tokio::time::sleep(Duration::from_millis(2)).await;
        asked.push(process.spawn::<budget>(100).await.unwrap().task_id);
    }
    while process
        .tasks(TaskFilter::default())
        .await
        .unwrap()
        .items
        .iter()
        .any(|task| task.state != TaskState::Suspended)
    {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    for limit in [1, 2, 5, 100] {
        let (mut seen, mut behind) = (Vec::new(), None);
        loop {
            let page = process
                .approvals()
                .list(ApprovalFilter { after: behind, limit, ..ApprovalFilter::default() })
                .await
                .unwrap()
                .items;
            assert!(page.len() <= limit);
            let Some(last) = page.last() else { break };
            behind = Some(last.task_id);
            seen.extend(page.iter().map(|approval| approval.task_id));
        }
        assert!(seen.is_sorted() && seen.iter().all(|task| asked.contains(task)), "{seen:?}");
        assert_eq!(seen.len(), asked.len(), "with pages of {limit}");
    }
    assert_eq!(process.approvals().of_task(asked[1]).await.unwrap().len(), 1);
}

/// A decision that the store does not take is told in time, as every other write is.
#[tokio::test(start_paused = true)]
async fn a_decision_that_is_not_answered_is_an_error() {
    let (harness, mails) = (Harness::new(), Mails::default());
    let silent = Arc::new(AtomicBool::new(false));
    let away = silent.clone();
    let store =
        Intercepted::new(Arc::new(harness.store()), move |store, batch| match away.load(SeqCst) {
            true => Box::pin(std::future::pending()),
            false => store.commit(batch.into()),
        });
    let state = mails.clone();
    let process = harness
        .start_on(Arc::new(store), |builder| {
            builder.state(state).answer_timeout(Duration::from_secs(30))
        })
        .await
        .unwrap();
    process.register::<budget>().await.unwrap();
    process.start_worker(worker_options()).await;
    let task = process.spawn::<budget>(100).await.unwrap().task_id;
    open(&process).await;
    silent.store(true, SeqCst);
    let decision = Decision::approved("ada", 90);
    let answered =
        tokio::time::timeout(DAY, process.approvals().decide(task, "budget", &decision)).await;
    let error = answered.expect("it waits for ever").unwrap_err();
    assert!(matches!(error, Error::Store(StoreError::Unanswered(_))), "{error}");
}

/// Nobody was there to send them: one is sent late, and the next one in its time.
#[tokio::test(start_paused = true)]
async fn reminders_that_were_missed_are_not_sent_all_at_once() {
    let (harness, mails) = (Harness::new(), Mails::default());
    let hourly = |process: Process| async {
        let seen = mails.clone();
        let task = move |(): (), ctx: TaskContext| {
            let mails = seen.clone();
            async move {
                ctx.await_approval::<()>("hourly", &())
                    .remind_every(DAY / 24, move || mail(mails.clone(), "manager"))
                    .await
                    .map(|decision| decision.is_approved())
            }
        };
        process.register_fn("hourly", task).await.unwrap();
        process.start_worker(worker_options()).await;
        process
    };
    let process = hourly(harness.start().await).await;
    let task_id = process.spawn_named("hourly", &()).await.unwrap().task_id;
    let sent = || mails.lock().unwrap().len();
    tokio::time::sleep(DAY / 24 * 2 + DAY / 48).await;
    assert_eq!(sent(), 2);
    process.kill().await;
    tokio::time::sleep(10 * DAY).await;
    for (lives, expected) in [(1, 3), (2, 5)] {
        // The second life replays what the first one has left out.
        let process = hourly(harness.start().await).await;
        if lives == 1 {
            tokio::time::sleep(DAY / 96).await;
        } else {
            tokio::time::sleep(DAY / 24 * 2).await;
        }
        assert_eq!(sent(), expected, "life {lives}");
        process.kill().await;
    }
    let process = hourly(harness.start().await).await;
    process.approvals().decide(task_id, "hourly", &Decision::approved("ada", ())).await.unwrap();
    assert!(process.wait::<bool>(task_id).await.unwrap());
}
