//! The points of schedules: their versions, and the tasks that are spawned with a change.

use stepwell_core::store::{
    Batch, Command, NewTask, Next, ScheduleAction, ScheduleChange, ScheduleFilter, ScheduleOutcome,
    SchedulePlan, Scheduled, Spawned,
};
use stepwell_core::{Listed as _, Page, ScheduleVersion, TaskState, Timestamp};
use uuid::Uuid;

use crate::backend::Backend;
use crate::handle::{Handle, of};
use crate::make::*;
use crate::setup::{Setup, rounds, together};

const CHANGED: ScheduleOutcome = ScheduleOutcome::Changed { spawned: false };
const SPAWNED: ScheduleOutcome = ScheduleOutcome::Changed { spawned: true };
const REFUSED: ScheduleOutcome = ScheduleOutcome::Refused;

fn version(n: u128) -> ScheduleVersion {
    Uuid::from_u128(0xbbbb_0000_0000_0000 + n).into()
}

fn plan(n: u128, next_at: Option<Timestamp>) -> SchedulePlan {
    SchedulePlan { version: version(n), definition: number(n), next_at }
}

fn change(text: &str, action: ScheduleAction) -> ScheduleChange {
    ScheduleChange { name: name(text), action }
}

fn create(text: &str, n: u128, next_at: Option<Timestamp>) -> ScheduleChange {
    change(text, ScheduleAction::Create(plan(n, next_at)))
}

/// Returns a change from one version to another, with these tasks.
fn replace(
    text: &str,
    seen: u128,
    n: u128,
    spawns: impl IntoIterator<Item = NewTask>,
) -> ScheduleChange {
    let spawns = spawns.into_iter().collect();
    let (seen, plan) = (version(seen), plan(n, None));
    change(text, ScheduleAction::Replace { seen, plan, spawns, unless_running: false })
}

fn unless_running(mut change: ScheduleChange) -> ScheduleChange {
    if let ScheduleAction::Replace { unless_running, .. } = &mut change.action {
        *unless_running = true;
    }
    change
}

fn changes(schedules: impl IntoIterator<Item = ScheduleChange>) -> Batch {
    Batch { schedules: schedules.into_iter().collect(), ..Batch::default() }
}

impl Handle {
    async fn change(&self, change: ScheduleChange) -> ScheduleOutcome {
        self.commit(changes([change])).await.schedules[0]
    }

    async fn schedules(&self, which: ScheduleFilter) -> Page<Scheduled> {
        self.0.schedules(which).await.expect("the store fails")
    }

    async fn schedule(&self, text: &str) -> Option<Scheduled> {
        self.schedules(ScheduleFilter::Named(name(text))).await.items.pop()
    }
}

const ALL: ScheduleFilter = ScheduleFilter::All { behind: None };

fn next(limit: usize) -> ScheduleFilter {
    ScheduleFilter::Next { behind: None, limit }
}

/// Checks that a schedule is created where it does not exist, replaced where it is still the
/// version that was seen, and deleted where it exists.
pub async fn schedules(backend: &impl Backend) {
    let (setup, store) = Setup::with_handle(backend).await;
    let at = |seconds: u32| Some(setup.at(SECOND * seconds + MICROSECOND));
    assert_eq!(store.change(create("b", 1, at(2))).await, CHANGED);
    assert_eq!(store.change(create("b", 2, at(9))).await, REFUSED, "it is there");
    assert_eq!(store.change(replace("a", 1, 2, [])).await, REFUSED, "it is not there");
    assert_eq!(store.change(change("a", ScheduleAction::Delete)).await, REFUSED, "it is not there");
    let b = Scheduled { name: name("b"), plan: plan(1, at(2)), last_task: None };
    assert_eq!(store.schedule("b").await, Some(b.clone()));
    assert_eq!(store.schedule("a").await, None);

    // Capital letters come before small ones, and both before others, whatever the database's
    // language.
    for (text, n, next_at) in
        [("a", 3, at(2)), ("B", 4, at(1)), ("ä", 5, None), ("b'; --", 6, at(3))]
    {
        assert_eq!(store.change(create(text, n, next_at)).await, CHANGED);
    }
    let names = |schedules: Page<Scheduled>| -> Vec<_> {
        schedules.items.iter().map(|schedule| schedule.name.to_string()).collect()
    };
    let all = store.schedules(ALL).await;
    assert_eq!(all.next, None);
    let behind = Some(all.items[1].cursor());
    assert_eq!(names(all), ["B", "a", "b", "b'; --", "ä"]);
    assert_eq!(names(store.schedules(ScheduleFilter::All { behind }).await), ["b", "b'; --", "ä"]);
    assert_eq!(names(store.schedules(next(9)).await), ["B", "a", "b", "b'; --"]);
    let first = store.schedules(next(2)).await;
    let behind = first.next.clone();
    assert_eq!(names(first), ["B", "a"]);
    assert!(behind.is_some());
    let rest = store.schedules(ScheduleFilter::Next { behind, limit: 2 }).await;
    assert_eq!(rest.next, None);
    assert_eq!(names(rest), ["b", "b'; --"], "some are looked at in the same moment");

    let large = json(&format!("{{\"text\":\"{}\\u0000é\"}}", "x".repeat(1 << 20)));
    let large = SchedulePlan { version: version(7), definition: large, next_at: None };
    let action = |seen| ScheduleAction::Replace {
        seen: version(seen),
        plan: large.clone(),
        spawns: vec![new_task(1)],
        unless_running: false,
    };
    assert_eq!(store.change(change("b", action(9))).await, REFUSED, "it is another one by now");
    assert_eq!(store.schedule("b").await, Some(b));
    assert!(store.find(1).await.is_none(), "a refused change leaves no task");
    assert_eq!(store.change(change("b", action(1))).await, SPAWNED);
    let expected = Scheduled { name: name("b"), plan: large, last_task: Some(task_id(1)) };
    assert_eq!(store.schedule("b").await, Some(expected));
    assert_eq!(
        store.change(replace("b", 1, 8, [])).await,
        REFUSED,
        "each version is replaced once"
    );
    assert_eq!(names(store.schedules(next(9)).await), ["B", "a", "b'; --"]);
    assert_eq!(store.change(change("b", ScheduleAction::Delete)).await, CHANGED);
    assert_eq!(store.schedule("b").await, None);
    assert!(store.find(1).await.is_some(), "its tasks stay");
}

/// Checks that the tasks of a change are spawned with it like any others, and that the claims of
/// its batch see them. Changes are applied in their order.
pub async fn scheduled_tasks(backend: &impl Backend) {
    let (setup, store) = Setup::with_handle(backend).await;
    store.signal(register(1)).await;
    store.change(create("a", 1, None)).await;
    let mut first = new_task(1);
    first.headers.insert("tick".into(), "now".into());
    first.priority = 7;
    let later = NewTask { start_at: Some(setup.at(SECOND)), ..new_task(2) };
    let keyed = |n| NewTask { concurrency_key: Some(name("key")), ..new_task(n) };
    let committed = store
        .commit(Batch {
            claims: vec![claim(1, 10)],
            spawns: vec![keyed(3)],
            ..changes([
                replace("a", 1, 2, [first.clone(), later, keyed(4)]),
                replace("a", 1, 3, [new_task(5)]),
                replace("a", 2, 3, []),
                create("b", 4, None),
                replace("b", 4, 5, [new_task(6)]),
            ])
        })
        .await;
    assert_eq!(committed.schedules, [SPAWNED, REFUSED, CHANGED, CHANGED, SPAWNED]);
    assert!(
        committed.news.ready.iter().any(|(queue, _)| queue.as_str() == "queue"),
        "it is told as news"
    );
    let mut claimed: Vec<_> = committed.claims[0].tasks.iter().map(|task| task.task_id).collect();
    assert_eq!(claimed[0], task_id(1), "the highest priority first");
    claimed.sort_unstable();
    assert_eq!(
        claimed,
        [1, 3, 6].map(task_id),
        "one is to start later, and one has to wait for its turn"
    );
    let task = &committed.claims[0].tasks[0];
    assert_eq!((task.task_id, &task.headers), (first.task_id, &first.headers));
    assert!(store.find(5).await.is_none(), "a refused change leaves no task");
    let schedule = store.schedule("a").await.unwrap();
    assert_eq!(
        (schedule.plan, schedule.last_task),
        (plan(3, None), Some(task_id(4))),
        "the last one, and it stays"
    );
    setup.advance(SECOND);
    assert_eq!(store.claim_one(1).await.task_id, task_id(2));
}

/// Checks that a change spawns nothing while the last task has not ended, but still takes effect.
pub async fn schedules_without_overlap(backend: &impl Backend) {
    let (_setup, store) = Setup::with_handle(backend).await;
    store.signal(register(1)).await;
    store.change(create("a", 0, None)).await;
    let mut seen = 0;
    let mut tick = async |n: u128| {
        seen += 1;
        store.change(unless_running(replace("a", seen - 1, seen, [new_task(n)]))).await
    };
    assert_eq!(tick(1).await, SPAWNED);
    assert_eq!(tick(2).await, CHANGED, "it is pending");
    let run = of(&store.claim_one(1).await);
    assert_eq!(tick(2).await, CHANGED, "it runs");
    assert!(store.next(run, SUSPEND).await.suspended);
    assert_eq!(tick(2).await, CHANGED, "it is suspended");
    assert!(store.find(2).await.is_none());
    assert_eq!(store.schedule("a").await.unwrap().last_task, Some(task_id(1)));
    store.command(Command::Cancel(task_id(1))).await;
    assert_eq!(tick(2).await, SPAWNED, "it was cancelled");
    store.next(of(&store.claim_one(1).await), complete()).await;
    assert_eq!(tick(3).await, SPAWNED, "it has completed");
    store.next(of(&store.claim_one(1).await), Next::Fail(failure("no"))).await;
    assert_eq!(tick(4).await, SPAWNED, "it has failed");
    store.command(Command::Cancel(task_id(4))).await;
    store.command(Command::Delete(task_id(4))).await;
    assert_eq!(tick(5).await, SPAWNED, "it is gone");
    assert_eq!(
        store.change(replace("a", seen, 99, [new_task(6)])).await,
        SPAWNED,
        "it may overlap"
    );
}

/// Checks that one handle spawns a tick's task, however many handles come to the tick.
pub async fn schedules_under_races(backend: &impl Backend) {
    let setup = Setup::new(backend).await;
    let handles = setup.handles(4).await;
    handles[0].change(create("a", 0, None)).await;
    for round in rounds() {
        let attempts = (0..).zip(handles.clone()).map(|(n, handle)| async move {
            let n = (round + 1) * 10 + n;
            let seen = if round == 0 { 0 } else { round };
            let plan = SchedulePlan { version: version(round + 1), ..plan(n, None) };
            let spawns = vec![new_task(n)];
            let action = ScheduleAction::Replace {
                seen: version(seen),
                plan,
                spawns,
                unless_running: false,
            };
            // The batch contains another item, so that a batch with a refused change has something
            // to commit.
            let batch =
                Batch { spawns: vec![new_task(n + 1_000_000)], ..changes([change("a", action)]) };
            (n, handle.commit(batch).await.schedules[0])
        });
        let outcomes = together(attempts).await;
        let spawned: Vec<_> =
            outcomes.iter().filter(|(_, outcome)| *outcome == SPAWNED).map(|(n, _)| *n).collect();
        assert_eq!(spawned.len(), 1, "one tick, one task: {outcomes:?}");
        let schedule = handles[0].schedule("a").await.unwrap();
        assert_eq!(
            (schedule.plan.definition, schedule.last_task),
            (number(spawned[0]), Some(task_id(spawned[0])))
        );
        for (n, _) in outcomes {
            assert_eq!(
                handles[0].find(n).await.is_some(),
                n == spawned[0],
                "a refused change leaves no task"
            );
            assert!(handles[0].find(n + 1_000_000).await.is_some(), "nor does it undo the others");
        }
    }
}

/// Checks several schedules that several handles create, change and delete at once, in any order:
/// no batch fails.
pub async fn schedules_in_any_order(backend: &impl Backend) {
    let setup = Setup::new(backend).await;
    let handles = setup.handles(3).await;
    for round in rounds() {
        let names = ["a", "b", "c", "d"];
        let attempts = (0..).zip(handles.clone()).map(|(n, handle)| async move {
            let mut order = names;
            order.rotate_left(n);
            let n = round * 100 + n as u128 * 10;
            let create = (0..).zip(order).map(|(i, text)| create(text, n + i, None));
            let created = handle.commit(changes(create)).await.schedules;
            order.reverse();
            let replace = (0..)
                .zip(order)
                .map(|(i, text)| replace(text, n + 3 - i, n + 3 - i, [new_task(n + i)]));
            let replaced = handle.commit(changes(replace)).await.schedules;
            // Each handle replaces what it created.
            assert!(
                created
                    .iter()
                    .rev()
                    .zip(&replaced)
                    .all(|(a, b)| (*a == CHANGED) == (*b == SPAWNED))
            );
            created.iter().filter(|created| **created == CHANGED).count()
        });
        assert_eq!(
            together(attempts).await.iter().sum::<usize>(),
            names.len(),
            "each is created once"
        );
        assert_eq!(handles[0].count(TaskState::Pending).await, names.len() * (round as usize + 1));
        let deletes = handles.iter().cloned().map(|handle| async move {
            let deletes = names.map(|text| change(text, ScheduleAction::Delete));
            handle
                .commit(changes(deletes))
                .await
                .schedules
                .iter()
                .filter(|deleted| **deleted == CHANGED)
                .count()
        });
        assert_eq!(
            together(deletes).await.iter().sum::<usize>(),
            names.len(),
            "each is deleted once"
        );
    }
}

/// Checks that a tick and its task are one: when the batch is refused as a whole, the schedule is
/// unchanged.
pub async fn schedules_are_atomic(backend: &impl Backend) {
    let (_setup, store) = Setup::with_handle(backend).await;
    store.change(create("a", 1, None)).await;
    assert_eq!(store.spawn([new_task(1)]).await, [Spawned::Created { claimed: false }]);
    if backend.refuses_duplicates() {
        let twice = changes([create("b", 2, None), replace("a", 1, 2, [new_task(2), new_task(1)])]);
        assert!(store.try_commit(twice).await.is_err(), "a task's id is taken");
        assert_eq!(store.schedule("b").await, None);
        let schedule = store.schedule("a").await.unwrap();
        assert_eq!((schedule.plan, schedule.last_task), (plan(1, None), None));
        assert!(store.find(2).await.is_none());
    }
    assert_eq!(store.change(replace("a", 1, 2, [new_task(2)])).await, SPAWNED);
}
