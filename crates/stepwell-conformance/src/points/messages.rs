//! The points of messages, which come in order and are each received once.

use stepwell_core::store::{Command, CommandOutcome, Next, Purge, Transition};
use stepwell_core::{Payload, RunId, TaskId, TaskState, Timestamp};

use crate::backend::Backend;
use crate::handle::{Handle, of, payloads};
use crate::make::*;
use crate::setup::{Setup, rounds, together};

fn numbers(numbers: impl IntoIterator<Item = u128>) -> Vec<Payload> {
    numbers.into_iter().map(number).collect()
}

/// Receives the available messages, and returns their payloads.
async fn receive(store: &Handle, run: (TaskId, RunId)) -> Vec<Payload> {
    let facts = store.look(run).await;
    let mut received = Transition::new(run.0, run.1, GO_ON);
    received.received = facts.messages.iter().map(|message| message.id).collect();
    store.apply(received).await.unwrap();
    payloads(&facts)
}

/// Checks that a mailbox keeps its messages in order. A look returns at most as many messages as
/// there are waits, and returns each message until it is received.
pub async fn messages(backend: &impl Backend) {
    let (_setup, store) = Setup::with_handle(backend).await;
    let run = store.run_one(1).await;
    let other = store.run_one(2).await;
    assert!(
        store.send(message(1, "topic", number(1))).await,
        "it may come before anyone waits for it"
    );
    let sent =
        (2..=4).map(|n| message(1, "topic", number(n))).chain([message(1, "another", number(9))]);
    assert_eq!(store.commit(sending(sent)).await.messages, [true; 4]);
    assert!(store.look(run).await.is_empty());

    let waits = [for_message("topic", 1), for_message("topic", 2)];
    let looked = store.apply(awaiting(run, waits, SUSPEND)).await.unwrap();
    assert!(!looked.suspended, "it was suspended, though messages are there");
    assert_eq!(
        payloads(&looked.facts),
        numbers([1, 2]),
        "as many as are waited for, the first ones"
    );
    assert!(looked.facts.messages[0].id < looked.facts.messages[1].id);
    assert_eq!(looked.facts.messages[0].topic, name("topic"));

    let mut thief = Transition::new(other.0, other.1, GO_ON);
    thief.received = vec![looked.facts.messages[0].id];
    store.apply(thief).await.unwrap();
    assert_eq!(
        receive(&store, run).await,
        numbers([1, 2]),
        "another task took a message, or they do not stay"
    );
    assert_eq!(receive(&store, run).await, numbers([3, 4]));
    assert!(receive(&store, run).await.is_empty(), "a message came twice");
    store.send(message(1, "topic", number(5))).await;
    assert_eq!(receive(&store, run).await, numbers([5]));
    let mut both = awaiting(run, [for_message("another", 1)], LOOK);
    both.waits_removed = vec![for_message("topic", 2).key];
    assert_eq!(payloads(&store.apply(both).await.unwrap().facts), numbers([9]));
}

/// Checks that a message wakes a task that waits for its topic, and that a running task is
/// notified. A task that has ended refuses it.
pub async fn mailboxes(backend: &impl Backend) {
    let (_setup, store) = Setup::with_handle(backend).await;
    let [suspended, running, ended] =
        store.run((1..=3).map(new_task)).await.try_into().ok().unwrap();
    store.spawn([new_task(4)]).await;
    assert!(
        store
            .apply(awaiting(suspended, [for_message("topic", 1)], SUSPEND))
            .await
            .unwrap()
            .suspended
    );
    store.apply(awaiting(running, [for_message("topic", 1)], GO_ON)).await.unwrap();
    store.next(ended, complete()).await;

    let committed = store.commit(sending((1..=5).map(|n| message(n, "other", number(0))))).await;
    assert_eq!(committed.messages, [true, true, false, true, false]);
    assert!(committed.news.poked.is_empty(), "nobody waits for that topic");
    assert_eq!(store.state(1).await, TaskState::Suspended, "it does not wait for that topic");
    let committed = store.commit(sending((1..=5).map(|n| message(n, "topic", number(n))))).await;
    assert_eq!(committed.messages, [true, true, false, true, false]);
    assert_eq!(committed.news.poked, [running.0]);
    assert_eq!(store.state(1).await, TaskState::Pending);
    let claimed = store.claimed(1, 10).await;
    assert_eq!(claimed.poked, [running.0]);
    let woken = claimed.tasks.iter().find(|task| task.task_id == suspended.0).unwrap();
    assert_eq!(payloads(&woken.facts), [number(1)]);

    // A failed attempt drops its waits, but keeps the messages that it did not receive.
    store.next(running, Next::Retry { failure: failure("no"), at: Timestamp::UNIX_EPOCH }).await;
    let again = store.claim_one(1).await;
    assert!(again.waits.is_empty() && again.facts.is_empty());
    let looked = store.apply(awaiting(of(&again), [for_message("topic", 1)], LOOK)).await.unwrap();
    assert_eq!(payloads(&looked.facts), [number(2)]);
}

/// Checks that a mailbox outlasts the failure or the cancellation of its task. A retry receives the
/// messages that the task had not received, in order and once. The mailbox is removed with the
/// task, and when the task completes. A task that has ended accepts no further messages.
pub async fn mailboxes_of_retried_tasks(backend: &impl Backend) {
    let (setup, store) = Setup::with_handle(backend).await;
    let kept = async |n| {
        let mailbox = store.0.messages(task_id(n), None).await.unwrap().items;
        mailbox.into_iter().map(|message| message.payload).collect::<Vec<_>>()
    };
    let fail = || Next::Fail(failure("no").permanent());
    let send = async |n| {
        for message in (1..=3).map(|message_n| message(n, "topic", number(message_n))) {
            assert!(store.send(message).await);
        }
        assert!(store.send(message(n, "other", number(9))).await);
    };
    for (n, next) in [(1, fail()), (2, Next::Cancel)] {
        let run = store.run_one(n).await;
        send(n).await;
        store.apply(awaiting(run, [for_message("topic", 1)], GO_ON)).await.unwrap();
        assert_eq!(receive(&store, run).await, numbers([1]));
        store.next(run, next).await;
        assert_eq!(kept(n).await, numbers([2, 3, 9]));
        assert!(!store.send(message(n, "topic", number(4))).await, "it has ended");
        store.command(Command::Retry(task_id(n))).await;
        assert!(store.send(message(n, "topic", number(4))).await);
        let again = store.claim_one(1).await;
        assert!(again.facts.is_empty(), "it waits for nothing yet");
        let waits = [for_message("topic", 1), for_message("topic", 2)];
        store.apply(awaiting(of(&again), waits, GO_ON)).await.unwrap();
        assert_eq!(receive(&store, of(&again)).await, numbers([2, 3]));
        assert_eq!(receive(&store, of(&again)).await, numbers([4]));
        assert!(receive(&store, of(&again)).await.is_empty(), "a message came twice");
        assert_eq!(kept(n).await, numbers([9]));
        store.next(of(&again), complete()).await;
        assert_eq!(kept(n).await, [], "it has completed");
    }

    // A task is cancelled while it waits, and keeps the messages that it has not seen.
    let run = store.run_one(3).await;
    assert!(
        store.apply(awaiting(run, [for_message("topic", 1)], SUSPEND)).await.unwrap().suspended
    );
    send(3).await;
    store.command(Command::Cancel(task_id(3))).await;
    store.command(Command::Retry(task_id(3))).await;
    let again = store.claim_one(1).await;
    let looked =
        store.apply(awaiting(of(&again), [for_message("topic", 1)], SUSPEND)).await.unwrap();
    assert_eq!((looked.suspended, payloads(&looked.facts)), (false, numbers([1])));
    store.next(of(&again), fail()).await;

    // No message is left for a new task with the same id.
    let run = store.run_one(4).await;
    send(4).await;
    store.next(run, fail()).await;
    assert_eq!(store.command(Command::Delete(task_id(3))).await, CommandOutcome::Done);
    setup.advance(SECOND);
    let purge = Purge { before: setup.now(), state: Some(TaskState::Failed), limit: 9 };
    assert_eq!(store.0.purge(purge).await.unwrap(), 1);
    for n in [3, 4] {
        assert_eq!(kept(n).await, []);
        let run = store.run_one(n).await;
        assert!(
            store.apply(awaiting(run, [for_message("topic", 1)], SUSPEND)).await.unwrap().suspended
        );
    }
}

/// Checks that the messages of one sender arrive in the order in which they were sent, however many
/// senders there are, and that all messages arrive.
pub async fn messages_from_many(backend: &impl Backend) {
    let setup = Setup::new(backend).await;
    let handles = setup.handles(4).await;
    let run = handles[0].run_one(1).await;
    let waits = (1..=200).map(|ordinal| for_message("topic", ordinal));
    handles[0].apply(awaiting(run, waits, GO_ON)).await.unwrap();
    let mut count = 0;
    for round in rounds().take(15) {
        let senders = (0..3).zip(&handles[1..]).map(|(sender, store)| {
            let store = store.clone();
            async move {
                for n in 0..4 {
                    store
                        .send(message(1, "topic", number(sender * 1_000_000 + round * 1_000 + n)))
                        .await;
                }
            }
        });
        together(senders).await;
        count += 12;
        let facts = handles[0].look(run).await;
        assert_eq!(facts.messages.len(), count, "messages were lost");
        assert!(facts.messages.is_sorted_by(|a, b| a.id < b.id));
        for sender in 0..3_u64 {
            let sent: Vec<u64> = payloads(&facts).iter().map(|n| n.decode().unwrap()).collect();
            let of_sender = sent.into_iter().filter(|n| n / 1_000_000 == sender);
            assert!(of_sender.is_sorted(), "a later message came before an earlier one");
        }
    }
}
