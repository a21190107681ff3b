//! The suite finds what it is there to find: each of these stores has one fault, of the sort that
//! real ones have.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use stepwell::testing::Intercepted;
use stepwell_conformance::{Backend, Clock, points, run};
use stepwell_core::store::{
    Batch, ClaimedTask, Command, CommandOutcome, Committed, Next, ScheduleAction, ScheduleFilter,
    Spawned, TaskState, Transition,
};
use stepwell_core::{Failure, FailureKind, Store, StoreError, TaskFilter, Timestamp, async_trait};
use support::Memory;

type Answer = Result<Committed, StoreError>;

/// What is wrong with a store: how it commits.
#[async_trait]
trait Fault: Default + Send + Sync + 'static {
    async fn commit(&self, store: &dyn Store, batch: Batch) -> Answer;
}

/// Memory, with that fault in all its handles.
#[derive(Default)]
struct With<F>(Arc<F>);

impl<F: Fault> Backend for With<F> {
    type Database = <Memory as Backend>::Database;

    async fn create(&self) -> Self::Database {
        Memory.create().await
    }

    async fn connect(&self, database: &Self::Database, clock: Arc<Clock>) -> Arc<dyn Store> {
        let fault = self.0.clone();
        Arc::new(Intercepted::new(Memory.connect(database, clock).await, move |store, batch| {
            let fault = fault.clone();
            Box::pin(async move { fault.commit(&*store, batch).await })
        }))
    }

    fn refuses_duplicates(&self) -> bool {
        false
    }
}

/// Runs points against a store with that fault.
macro_rules! with {
    ($fault:ty: $($point:ident),+) => {
        run(stringify!($($point),+), || async {
            $(points::$point(&With::<$fault>::default()).await;)+
        })
    };
}

/// Takes every run that writes for the owner.
#[derive(Default)]
struct NoFence;

#[async_trait]
impl Fault for NoFence {
    async fn commit(&self, store: &dyn Store, mut batch: Batch) -> Answer {
        for transition in &mut batch.transitions {
            if let Some(task) = store.task(transition.task_id).await? {
                transition.run_id = task.run_id;
            }
        }
        store.commit(batch.into()).await
    }
}

#[test]
#[should_panic(expected = "the run is unknown: accepted")]
fn a_missing_fence_is_found() {
    with!(NoFence: fencing);
}

#[test]
#[should_panic(expected = "the run lost its lease: accepted")]
fn a_missing_fence_is_found_after_a_lost_lease() {
    with!(NoFence: fencing_after_a_lost_lease);
}

/// Now and then gives a task that another one has.
#[derive(Default)]
struct GivesTwice {
    claims: AtomicUsize,
    given: Mutex<Option<ClaimedTask>>,
}

#[async_trait]
impl Fault for GivesTwice {
    async fn commit(&self, store: &dyn Store, batch: Batch) -> Answer {
        let mut committed = store.commit(batch.into()).await?;
        for claimed in committed.claims.iter_mut().filter(|claimed| !claimed.tasks.is_empty()) {
            let given = self.given.lock().unwrap().replace(claimed.tasks[0].clone());
            if self.claims.fetch_add(1, Ordering::SeqCst) == 40 {
                claimed.tasks.extend(given);
            }
        }
        Ok(committed)
    }
}

#[test]
#[should_panic(expected = "was claimed twice")]
fn a_task_that_is_given_twice_is_found() {
    with!(GivesTwice: exclusive_claims);
}

/// Looks first, and suspends then, whatever has come in between.
#[derive(Default)]
struct LooksThenSuspends;

#[async_trait]
impl Fault for LooksThenSuspends {
    async fn commit(&self, store: &dyn Store, mut batch: Batch) -> Answer {
        let Some(Transition { task_id, run_id, waits_added, next, .. }) = batch
            .transitions
            .first_mut()
            .filter(|first| matches!(first.next, Next::Suspend { .. }))
        else {
            return store.commit(batch.into()).await;
        };
        let mut suspends = Transition::new(*task_id, *run_id, next.clone());
        let waits: Vec<_> = waits_added.iter().map(|wait| wait.key.clone()).collect();
        *next = Next::Continue { collect: true };
        let mut committed = store.commit(batch.into()).await?;
        if let Ok(looked) = &mut committed.transitions[0]
            && looked.facts.is_empty()
        {
            tokio::time::sleep(Duration::from_millis(1)).await;
            // Twice: as it should be, and, should that have found something, without looking.
            for waits_removed in [Vec::new(), waits] {
                let next = suspends.next.clone();
                let again = Transition::new(suspends.task_id, suspends.run_id, next);
                suspends.waits_removed = waits_removed;
                let batch = Batch { transitions: vec![suspends], ..Batch::default() };
                let done = store.commit(batch.into()).await?.transitions.remove(0);
                looked.suspended |= done.is_ok_and(|done| done.suspended);
                suspends = again;
            }
        }
        Ok(committed)
    }
}

#[test]
#[should_panic(expected = "its wake-up was lost")]
fn a_lost_wake_up_is_found() {
    with!(LooksThenSuspends: wake_ups_by_events);
}

/// Looks whether the key is there, and inserts the task then, without another look at what that
/// did.
#[derive(Default)]
struct LooksThenSpawns;

#[async_trait]
impl Fault for LooksThenSpawns {
    async fn commit(&self, store: &dyn Store, batch: Batch) -> Answer {
        let keys: Vec<_> = batch.spawns.iter().map(|task| task.idempotency_key.clone()).collect();
        let there = store.tasks(TaskFilter { limit: 10_000, ..TaskFilter::default() }).await?;
        tokio::task::yield_now().await;
        let mut committed = store.commit(batch.into()).await?;
        for (key, spawned) in keys.iter().zip(&mut committed.spawns) {
            if key.is_some() && !there.items.iter().any(|task| task.idempotency_key == *key) {
                *spawned = Spawned::Created { claimed: false };
            }
        }
        Ok(committed)
    }
}

#[test]
#[should_panic(expected = "someone got another task than the one that is there")]
fn a_race_for_a_key_is_found() {
    with!(LooksThenSpawns: idempotency_races);
}

/// Looks at what a schedule is by now, instead of what it was when it was seen.
#[derive(Default)]
struct Unversioned;

#[async_trait]
impl Fault for Unversioned {
    async fn commit(&self, store: &dyn Store, mut batch: Batch) -> Answer {
        for change in &mut batch.schedules {
            let there = store.schedules(ScheduleFilter::Named(change.name.clone())).await?;
            if let (ScheduleAction::Replace { seen, .. }, [there]) =
                (&mut change.action, &there.items[..])
            {
                *seen = there.plan.version;
            }
        }
        store.commit(batch.into()).await
    }
}

#[test]
#[should_panic(expected = "one tick, one task")]
fn a_tick_that_is_come_to_twice_is_found() {
    with!(Unversioned: schedules_under_races);
}

/// Spawns a schedule's tasks in a commit of their own, whatever became of the change.
#[derive(Default)]
struct SpawnsApart;

#[async_trait]
impl Fault for SpawnsApart {
    async fn commit(&self, store: &dyn Store, batch: Batch) -> Answer {
        let spawns = batch.schedules.iter().flat_map(|change| change.spawns().to_vec()).collect();
        store.commit(Batch { spawns, ..Batch::default() }.into()).await?;
        store.commit(batch.into()).await
    }
}

#[test]
#[should_panic(expected = "a refused change leaves no task")]
fn a_task_without_its_tick_is_found() {
    with!(SpawnsApart: schedules);
}

/// Has no room for all that has arrived, and does not say so.
#[derive(Default)]
struct SaysThatThisIsAll;

#[async_trait]
impl Fault for SaysThatThisIsAll {
    async fn commit(&self, store: &dyn Store, batch: Batch) -> Answer {
        let mut committed = store.commit(batch.into()).await?;
        let looked = committed.transitions.iter_mut().flatten().map(|applied| &mut applied.facts);
        let claimed = committed.claims.iter_mut().flat_map(|claimed| &mut claimed.tasks);
        looked.chain(claimed.map(|task| &mut task.facts)).for_each(|facts| facts.more = false);
        Ok(committed)
    }
}

#[test]
#[should_panic(expected = "a task is not told that there is more")]
fn what_is_left_out_for_good_is_found() {
    with!(SaysThatThisIsAll: long_facts);
}

/// Keeps times to the millisecond.
#[derive(Default)]
struct Coarse;

#[async_trait]
impl Fault for Coarse {
    async fn commit(&self, store: &dyn Store, mut batch: Batch) -> Answer {
        for transition in &mut batch.transitions {
            if let Next::Suspend { wake_at: Some(wake_at) } = &mut transition.next {
                *wake_at = Timestamp::from_millisecond(wake_at.as_millisecond()).unwrap();
            }
        }
        store.commit(batch.into()).await
    }
}

#[test]
#[should_panic(expected = "at step 0")]
fn a_timer_that_is_early_is_found() {
    with!(Coarse: timers);
}

/// Takes a task that is given back for one that has failed.
#[derive(Default)]
struct Blames;

#[async_trait]
impl Fault for Blames {
    async fn commit(&self, store: &dyn Store, mut batch: Batch) -> Answer {
        for transition in &mut batch.transitions {
            if matches!(transition.next, Next::Release) {
                let failure = Failure::new(FailureKind::Error, "released");
                transition.next = Next::Retry { failure, at: store.now() };
            }
        }
        store.commit(batch.into()).await
    }
}

#[test]
#[should_panic(expected = "the store differs from the model")]
fn the_model_finds_what_nobody_thought_of() {
    with!(Blames: model);
}

/// Says that it has woken whatever it was asked to wake.
#[derive(Default)]
struct WakesAll;

#[async_trait]
impl Fault for WakesAll {
    async fn commit(&self, store: &dyn Store, batch: Batch) -> Answer {
        let asked: Vec<_> =
            batch.commands.iter().map(|command| matches!(command, Command::Wake(_))).collect();
        let mut committed = store.commit(batch.into()).await?;
        for (outcome, wakes) in committed.commands.iter_mut().zip(asked) {
            if wakes && matches!(outcome, CommandOutcome::NotAllowed(TaskState::Running)) {
                *outcome = CommandOutcome::Done;
            }
        }
        Ok(committed)
    }
}

#[test]
#[should_panic(expected = "Wake of a task that is Live(Live { activity: Running")]
fn a_command_that_a_state_does_not_allow_is_found() {
    with!(WakesAll: states_and_commands);
}

/// Forgets the pause of a task whose run ends it.
#[derive(Default)]
struct ForgetsPauses;

#[async_trait]
impl Fault for ForgetsPauses {
    async fn commit(&self, store: &dyn Store, mut batch: Batch) -> Answer {
        let asked = batch.commands.len();
        let fails = |next: &Next| matches!(next, Next::Fail(_) | Next::Cancel);
        let ending = batch.transitions.iter().filter(|transition| fails(&transition.next));
        let resumes: Vec<_> = ending.map(|t| Command::Resume(t.task_id)).collect();
        batch.commands.extend(resumes);
        let mut committed = store.commit(batch.into()).await?;
        committed.commands.truncate(asked);
        Ok(committed)
    }
}

#[test]
#[should_panic(expected = "Failed of Live { activity: Running")]
fn a_pause_that_a_compensation_ends_is_found() {
    with!(ForgetsPauses: states_and_ends);
}

/// The faults that show only under load do not show otherwise.
#[test]
fn races_are_found_by_races_only() {
    with!(LooksThenSuspends: events_wake_once, events, mailboxes, suspension);
    with!(LooksThenSpawns: idempotency_keys);
    with!(GivesTwice: claim_order);
}
