//! The points of full answers: what is too long for one answer comes in parts, nothing is lost, and
//! nothing comes twice.

use std::collections::BTreeSet;

use stepwell_core::store::{
    Batch, Facts, Finish, Happening, HistoryFilter, NewTask, Next, ScheduleAction, ScheduleChange,
    ScheduleFilter, SchedulePlan, TaskFilter, Transition,
};
use stepwell_core::{ANSWER_BYTES, Listed, Name, Page, Payload, ScheduleVersion, Scope, TaskId};
use uuid::Uuid;

use crate::backend::Backend;
use crate::handle::of;
use crate::make::*;
use crate::setup::Setup;

/// The number of long payloads that need more than one answer, and fewer than two.
const MANY: u128 = 12;

/// Returns a payload of 4 MiB. A database that compresses payloads stores it in a few KiB.
fn long(n: u128) -> Payload {
    json(&format!("\"{n}{}\"", " ".repeat(4 << 20)))
}

/// Reads all pages of a list, and checks that no page is longer than an answer.
async fn pages<T: Listed>(mut read: impl AsyncFnMut(Option<T::Cursor>) -> Page<T>) -> Vec<T> {
    let (mut all, mut behind, mut count) = (Vec::new(), None, 0);
    loop {
        let page = read(behind).await;
        let before_the_last = page.items.iter().rev().skip(1).map(Listed::bytes).sum::<usize>();
        assert!(
            before_the_last < ANSWER_BYTES,
            "a page holds more than an answer: {before_the_last}"
        );
        assert!(!page.items.is_empty(), "a page is empty, and not the last");
        all.extend(page.items);
        behind = page.next;
        count += 1;
        if behind.is_none() {
            assert!(count > 1, "all of it is in one answer");
            return all;
        }
    }
}

/// Checks that a list of tasks with long payloads has short pages.
pub async fn long_lists(backend: &impl Backend) {
    let (_setup, store) = Setup::with_handle(backend).await;
    let own = Scope::default().queue(name("queue"));
    for n in 1..=MANY {
        let scope = if n % 3 == 0 { own.clone() } else { Scope::default() };
        // Some tasks have long parameters, and some have long outputs.
        let (params, output) = if n % 2 == 0 { (long(n), number(n)) } else { (number(n), long(n)) };
        let run = store.run([NewTask { params, scope, ..new_task(n) }]).await[0];
        store.next(run, Next::Complete(output)).await;
    }
    for scope in [Scope::default(), own] {
        for limit in [3, 100, usize::MAX] {
            let filter = TaskFilter { scope: scope.clone(), limit, ..TaskFilter::default() };
            let tasks = pages(async |before| {
                let page = store.page(TaskFilter { before, ..filter.clone() }).await;
                assert!(page.items.len() <= limit);
                page
            });
            let tasks = tasks.await;
            let ids: Vec<_> = tasks.iter().map(|task| task.task_id).collect();
            assert_eq!(ids, (1..=MANY).rev().map(task_id).collect::<Vec<_>>(), "{limit}");
            for task in tasks {
                let n = task.task_id.as_uuid().as_u128();
                let (params, output) =
                    if n % 2 == 0 { (long(n), number(n)) } else { (number(n), long(n)) };
                assert!(task.params == params && task.output == Some(output), "{n}");
            }
        }
    }
    let filter = TaskFilter { limit: 1, before: Some(task_id(2)), ..TaskFilter::default() };
    assert_eq!(store.page(filter).await.next, None, "the last one is no page's but its own");
}

/// Checks that the ends of tasks with long outputs are read in parts.
pub async fn long_ends(backend: &impl Backend) {
    let (_setup, store) = Setup::with_handle(backend).await;
    let runs = store.run((1..=MANY + 2).map(new_task)).await;
    for (n, run) in (1..=MANY).zip(&runs) {
        store.next(*run, Next::Complete(long(n))).await;
    }
    // One task has not ended, and one does not exist.
    let mut asked: Vec<_> = (1..=MANY + 3).rev().filter(|n| *n != MANY + 1).map(task_id).collect();
    let ends = pages(async |behind: Option<TaskId>| {
        asked.retain(|task| behind.is_none_or(|behind| *task > behind));
        store.0.ends(asked.clone()).await.unwrap()
    });
    let ended = (1..=MANY).map(|n| (task_id(n), Some(Finish::Completed(long(n)))));
    assert!(ends.await.into_iter().eq(ended.chain([(task_id(MANY + 2), None)])));
}

/// Checks that a mailbox of long messages is read in parts, and is imported unchanged into another
/// store.
pub async fn long_mailboxes(backend: &impl Backend) {
    let (_setup, store) = Setup::with_handle(backend).await;
    store.spawn([new_task(1), new_task(2)]).await;
    for n in 1..=MANY {
        store.commit(sending([message(1, "topic", long(n)), message(2, "topic", number(n))])).await;
    }
    let messages = pages(async |behind| store.0.messages(task_id(1), behind).await.unwrap()).await;
    assert!(
        messages
            .iter()
            .map(|message| &message.payload)
            .eq(&(1..=MANY).map(long).collect::<Vec<_>>())
    );
    let short = store.0.messages(task_id(2), None).await.unwrap();
    assert_eq!((short.items.len(), short.next), (MANY as usize, None));
    assert_eq!(store.0.messages(task_id(9), None).await.unwrap(), Page::default());
}

/// Checks that a history of long events is read in parts.
pub async fn long_histories(backend: &impl Backend) {
    let (_setup, store) = Setup::with_handle(backend).await;
    store.spawn([new_task(1), new_task(2)]).await;
    let happening = |n| Happening {
        task_id: task_id(1 + n % 2),
        at: store.0.now(),
        name: name("event"),
        event: long(n),
    };
    for n in 1..=MANY * 2 {
        store.0.record(vec![happening(n)]).await.unwrap();
    }
    for (task, odd) in [(None, None), (Some(task_id(1)), Some(0)), (Some(task_id(2)), Some(1))] {
        let events = pages(async |behind: Option<u64>| {
            let which = HistoryFilter { task_id: task, after: behind.unwrap_or(0), limit: 100 };
            store.0.history(which).await.unwrap()
        });
        let expected = (1..=MANY * 2).filter(|n| odd.is_none_or(|odd| n % 2 == odd)).map(long);
        assert!(
            events.await.into_iter().map(|(_, happening)| happening.event).eq(expected),
            "{task:?}"
        );
    }
}

/// Checks that schedules with long parameters are read in parts, in either order.
pub async fn long_schedules(backend: &impl Backend) {
    let (setup, store) = Setup::with_handle(backend).await;
    for n in 1..=MANY {
        let version: ScheduleVersion = Uuid::from_u128(n).into();
        // Three schedules at a time are due in the same moment, in the opposite order of their
        // names.
        let next_at = Some(setup.at(SECOND * u32::try_from(MANY - n).unwrap() / 3));
        let plan = SchedulePlan { version, definition: long(n), next_at };
        let change =
            ScheduleChange { name: name(&format!("{n:02}")), action: ScheduleAction::Create(plan) };
        store.commit(Batch { schedules: vec![change], ..Batch::default() }).await;
    }
    let all =
        pages(async |behind| store.0.schedules(ScheduleFilter::All { behind }).await.unwrap())
            .await;
    assert!(
        all.iter()
            .map(|schedule| &schedule.plan.definition)
            .eq(&(1..=MANY).map(long).collect::<Vec<_>>())
    );
    let mut expected: Vec<_> =
        all.iter().map(|schedule| (schedule.plan.next_at, schedule.name.clone())).collect();
    expected.sort_unstable();
    for limit in [2, 100] {
        let next = pages(async |behind| {
            store.0.schedules(ScheduleFilter::Next { behind, limit }).await.unwrap()
        });
        let next: Vec<_> = next.await.iter().map(Listed::cursor).collect();
        assert_eq!(next, expected);
    }
}

/// Checks that waits are read in parts, each task with all of its waits.
pub async fn long_waits(backend: &impl Backend) {
    const WAITS: usize = 800;
    let (_setup, store) = Setup::with_handle(backend).await;
    let runs = store.run((1..=30).map(new_task)).await;
    let target = |n: usize| format!("w/{n:0>500}");
    for run in &runs {
        store
            .apply(awaiting(*run, (0..WAITS).map(|n| for_event(&target(n))), GO_ON))
            .await
            .unwrap();
    }
    for limit in [20, usize::MAX] {
        let waits = pages(async |behind| {
            store.0.waits(Scope::default(), "w/".into(), behind, limit).await.unwrap()
        });
        let waits = waits.await;
        assert!(waits.iter().map(|(task, _)| *task).eq(runs.iter().map(|(task, _)| *task)));
        assert!(waits.iter().all(|(_, waits)| waits.len() == WAITS));
    }
}

/// Returns the number of bytes of what has arrived.
fn bytes(facts: &Facts) -> usize {
    let events = facts.events.iter().map(|(_, payload)| payload.as_str().len());
    let messages = facts.messages.iter().map(|message| message.payload.as_str().len());
    let children = facts.children.iter().map(|(_, end)| end.bytes());
    events.chain(messages).chain(children).sum()
}

/// The facts that a run has received. What a run has received is removed, and no longer awaited.
#[derive(Default)]
struct Taken {
    events: BTreeSet<Name>,
    messages: Vec<Payload>,
    children: BTreeSet<TaskId>,
}

impl Taken {
    fn take(&mut self, facts: Facts, transition: &mut Transition) {
        // All items except the last one fit into the answer; the last one has 4 MiB.
        assert!(
            bytes(&facts) < ANSWER_BYTES + (4 << 20),
            "an answer holds too much: {}",
            bytes(&facts)
        );
        for (name, _) in facts.events {
            transition.waits_removed.push(for_event(name.as_str()).key);
            assert!(self.events.insert(name), "an event comes twice");
        }
        for message in facts.messages {
            self.messages.push(message.payload);
            let ordinal = u32::try_from(self.messages.len()).unwrap();
            transition.waits_removed.push(for_message("topic", ordinal).key);
            transition.received.push(message.id);
        }
        for (child, _) in facts.children {
            transition.waits_removed.push(for_child(child.as_uuid().as_u128()).key);
            assert!(self.children.insert(child), "a child's end comes twice");
        }
    }

    fn is_all(&self) -> bool {
        self.events.len() == 6
            && self.messages == (1..=6).map(long).collect::<Vec<_>>()
            && self.children.len() == 6
    }
}

/// Checks that what has arrived for runs comes in parts, and that a run with more to come is not
/// suspended.
pub async fn long_facts(backend: &impl Backend) {
    let (_setup, store) = Setup::with_handle(backend).await;
    let parents = store.run([new_task(1), new_task(2)]).await;
    let children = store.run((11..=16).map(|n| child_of(1, n))).await;
    let waits = || {
        let events = (1..=6).map(|n| for_event(&format!("event{n}")));
        events.chain((1..=6).map(|n| for_message("topic", n))).chain((11..=16).map(for_child))
    };
    for parent in &parents {
        assert!(store.apply(awaiting(*parent, waits(), SUSPEND)).await.unwrap().suspended);
    }
    for n in 1..=6 {
        store.emit(event(&format!("event{n}"), long(n))).await;
        store.commit(sending([message(1, "topic", long(n)), message(2, "topic", long(n))])).await;
    }
    for (n, child) in (1..).zip(children) {
        store.next(child, Next::Complete(long(n))).await;
    }

    // A claim by another worker returns, for both tasks together, as much as an answer holds.
    store.signal(register(2)).await;
    let claimed = store.claim(2, 2).await;
    assert!(
        claimed.iter().map(|task| bytes(&task.facts)).sum::<usize>() < ANSWER_BYTES + (4 << 20)
    );
    assert!(claimed.iter().all(|task| task.facts.more), "a task is not told that there is more");
    let mut runs: Vec<_> =
        claimed.into_iter().map(|task| (of(&task), task.facts, Taken::default())).collect();
    assert_eq!(runs.len(), 2);

    // The rest comes with transitions that would suspend the tasks.
    for round in 0.. {
        assert!(round < 20, "something never arrives");
        let mut batch = Batch::default();
        for (run, facts, taken) in &mut runs {
            let mut next = Transition::new(run.0, run.1, SUSPEND);
            taken.take(std::mem::take(facts), &mut next);
            batch.transitions.push(next);
        }
        let looked = store.commit(batch).await.transitions;
        let mut held = 0;
        for ((_, facts, taken), looked) in runs.iter_mut().zip(looked) {
            let looked = looked.unwrap();
            assert_eq!(looked.suspended, looked.facts.is_empty(), "nothing has arrived");
            assert!(
                !looked.suspended || taken.is_all(),
                "it was suspended, and not all has arrived"
            );
            held += bytes(&looked.facts);
            *facts = looked.facts;
        }
        assert!(held < ANSWER_BYTES + (4 << 20), "an answer holds too much for two: {held}");
        // A suspended task no longer belongs to its run.
        runs.retain(|(_, facts, _)| !facts.is_empty());
        if runs.is_empty() {
            assert!(round > 2, "more came at once than an answer holds");
            return;
        }
    }
}

/// Checks that a journal that is too long for a claim is left out of it, and can be read by itself.
pub async fn long_journals(backend: &impl Backend) {
    let (_setup, store) = Setup::with_handle(backend).await;
    let runs = store.run([new_task(1), new_task(2)]).await;
    for run in &runs {
        for n in 1..=MANY {
            store.journals(*run, vec![step(n as u64, long(n))]).await;
        }
        store.next(*run, Next::Release).await;
    }
    store.signal(register(2)).await;
    for task in store.claim(2, 2).await {
        let journal = match task.journal {
            Some(journal) => journal,
            None => store.0.journal(task.task_id).await.unwrap(),
        };
        let entries = (1..=MANY).map(|n| step(n as u64, long(n)));
        assert!(journal.into_iter().eq(entries), "{}", task.task_id);
    }
}
