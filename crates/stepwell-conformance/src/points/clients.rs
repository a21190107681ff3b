//! The point of concurrent clients, which do random things at once.

use std::collections::{BTreeMap, HashMap, HashSet};

use stepwell_core::store::{
    Batch, ClaimedTask, Command, Finish, NewTask, Next, Spawned, Transition,
};
use stepwell_core::{RunId, TaskId, TaskState, Timestamp};

use crate::backend::Backend;
use crate::handle::{Handle, of};
use crate::make::*;
use crate::setup::{Setup, together};

const CLIENTS: u128 = 4;
const BATCHES: usize = 40;

/// The actions of one client, as the store confirmed them.
#[derive(Default)]
struct Deeds {
    created: Vec<TaskId>,
    claimed: Vec<(TaskId, RunId, u128)>,
    finished: Vec<(TaskId, Finish)>,
    /// The number of accepted entries of each task.
    entries: BTreeMap<TaskId, u64>,
}

struct Client {
    store: Handle,
    worker: u128,
    random: u64,
    next_task: u128,
    /// The tasks that the client runs, and the last numbers in their journals.
    running: BTreeMap<TaskId, (RunId, u64)>,
    /// The journals of suspended tasks, which may come back without them.
    suspended: HashMap<(TaskId, RunId), u64>,
    deeds: Deeds,
}

impl Client {
    fn new(store: Handle, worker: u128) -> Self {
        Self {
            store,
            worker,
            random: worker as u64 * 7919,
            next_task: worker * 1_000_000,
            running: BTreeMap::new(),
            suspended: HashMap::new(),
            deeds: Deeds::default(),
        }
    }

    /// Draws a number below a limit.
    fn draw(&mut self, below: u64) -> u64 {
        self.random = self
            .random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) % below
    }

    /// Draws one of the tasks that any of the clients may have spawned.
    fn any_task(&mut self) -> u128 {
        let client = 1 + u128::from(self.draw(CLIENTS as u64));
        client * 1_000_000 + 1 + u128::from(self.draw(BATCHES as u64))
    }

    fn new_task(&mut self) -> NewTask {
        self.next_task += 1;
        let mut task = new_task(self.next_task);
        if self.draw(3) == 0 {
            task.idempotency_key = Some(name(&format!("key {}", self.draw(20))));
        }
        task.priority = self.draw(3) as i32;
        task.max_attempts = 1_000;
        task
    }

    fn transition(&mut self, task_id: TaskId, run_id: RunId, last_seq: u64) -> Transition {
        let mut transition = Transition::new(task_id, run_id, GO_ON);
        transition.entries = (1..=self.draw(3)).map(|n| step(last_seq + n, json("1"))).collect();
        if self.draw(4) == 0 {
            transition.spawns = vec![NewTask { parent: Some(task_id), ..self.new_task() }];
        }
        if self.draw(3) == 0 {
            transition.messages = vec![message(self.any_task(), "topic", json("1"))];
        }
        transition.next = match self.draw(8) {
            0 => complete(),
            1 => Next::Fail(failure("no")),
            2 => Next::Retry { failure: failure("no"), at: Timestamp::UNIX_EPOCH },
            3 => Next::Release,
            4 | 5 => {
                transition.waits_added = vec![for_message("topic", 1), for_event("the end")];
                SUSPEND
            }
            6 => LOOK,
            _ => GO_ON,
        };
        transition
    }

    fn batch(&mut self) -> Batch {
        let mut batch = claims([claim(self.worker, 2)]);
        let running: Vec<_> = self.running.iter().map(|(task_id, run)| (*task_id, *run)).collect();
        for (task_id, (run_id, last_seq)) in running {
            if self.draw(2) == 0 {
                let transition = self.transition(task_id, run_id, last_seq);
                batch.transitions.push(transition);
            }
        }
        batch.spawns = (0..self.draw(3)).map(|_| self.new_task()).collect();
        batch.messages =
            (0..self.draw(3)).map(|_| message(self.any_task(), "topic", json("1"))).collect();
        batch.events = (0..self.draw(2)).map(|n| event(&format!("event {n}"), json("1"))).collect();
        if self.draw(6) == 0 {
            batch.commands = vec![Command::Cancel(task_id(self.any_task()))];
        }
        batch.workers = vec![heartbeat(self.worker)];
        batch
    }

    async fn commit(&mut self, batch: Batch) {
        let spawned: Vec<_> = batch.spawns.iter().map(|task| task.task_id).collect();
        let sent: Vec<_> = batch
            .transitions
            .iter()
            .map(|t| {
                (
                    t.task_id,
                    t.run_id,
                    t.entries.len() as u64,
                    matches!(t.next, Next::Continue { .. }),
                )
            })
            .collect();
        let committed = self.store.commit(batch).await;
        for ((task_id, run_id, entries, goes_on), result) in
            sent.into_iter().zip(committed.transitions)
        {
            let applied =
                result.unwrap_or_else(|_| panic!("{task_id} was taken from a living worker"));
            *self.deeds.entries.entry(task_id).or_default() += entries;
            let last_seq = self.running.get(&task_id).unwrap().1 + entries;
            let stays = goes_on
                || (!applied.suspended && !applied.facts.is_empty())
                || applied.cancel_requested;
            if applied.suspended {
                self.suspended.insert((task_id, run_id), last_seq);
            }
            self.running.remove(&task_id);
            if stays && self.owns(task_id, run_id).await {
                self.running.insert(task_id, (run_id, last_seq));
            }
        }
        for (id, spawned) in spawned.into_iter().zip(committed.spawns) {
            if matches!(spawned, Spawned::Created { .. }) {
                self.deeds.created.push(id);
            }
        }
        self.deeds.finished.extend(committed.news.finished);
        for task in committed.claims.into_iter().flat_map(|claimed| claimed.tasks) {
            self.has_claimed(&task);
        }
    }

    /// Returns whether a run still owns its task; a task that was asked to cancel may have ended.
    async fn owns(&self, task_id: TaskId, run_id: RunId) -> bool {
        let task = self.store.0.task(task_id).await.unwrap();
        task.is_some_and(|task| task.run_id == run_id && task.state == TaskState::Running)
    }

    fn has_claimed(&mut self, task: &ClaimedTask) {
        let (task_id, run_id) = of(task);
        let last_seq = match &task.journal {
            Some(journal) => {
                assert!(
                    journal.iter().map(|entry| entry.seq).eq(1..=journal.len() as u64),
                    "{journal:#?}"
                );
                journal.len() as u64
            }
            None => *self
                .suspended
                .get(&(task_id, run_id))
                .expect("a task that this worker had suspended"),
        };
        self.deeds.claimed.push((task_id, run_id, self.worker));
        let had = self.running.insert(task_id, (run_id, last_seq));
        assert!(had.is_none(), "a task that runs was claimed");
    }
}

/// Checks many clients that commit random batches at once. Afterwards every task exists once, in
/// one state, and its journal holds all that was accepted. No run had two owners, nothing ended
/// twice, and everything that is left can be ended.
pub async fn concurrent_clients(backend: &impl Backend) {
    let setup = Setup::new(backend).await;
    let handles = setup.handles(CLIENTS as usize).await;
    let working = (1..=CLIENTS).zip(&handles).map(|(worker, store)| {
        let mut client = Client::new(store.clone(), worker);
        async move {
            client.store.signal(register(worker)).await;
            for _ in 0..BATCHES {
                let batch = client.batch();
                client.commit(batch).await;
            }
            client.deeds
        }
    });
    let mut all = Deeds::default();
    for deeds in together(working).await {
        all.created.extend(deeds.created);
        all.claimed.extend(deeds.claimed);
        all.finished.extend(deeds.finished);
        for (task_id, count) in deeds.entries {
            *all.entries.entry(task_id).or_default() += count;
        }
    }
    check(&handles[0], &all).await;
    end_all(&handles[0]).await;
}

async fn check(store: &Handle, all: &Deeds) {
    let tasks = store.all().await;
    let ids: HashSet<_> = tasks.iter().map(|task| task.task_id).collect();
    assert_eq!(ids.len(), tasks.len(), "a task is there twice");
    let created: HashSet<_> = all.created.iter().copied().collect();
    assert!(created.is_subset(&ids), "a task is missing");
    assert!(created.len() == all.created.len(), "a task was created twice");
    let mut keys = HashSet::new();
    assert!(
        tasks.iter().filter_map(|task| task.idempotency_key.clone()).all(|key| keys.insert(key))
    );
    for task in &tasks {
        let journal = store.0.journal(task.task_id).await.unwrap();
        let accepted = all.entries.get(&task.task_id).copied().unwrap_or_default();
        assert!(
            journal.iter().map(|entry| entry.seq).eq(1..=accepted),
            "{}: {journal:#?}",
            task.task_id
        );
        let ended = all.finished.iter().filter(|(id, _)| *id == task.task_id).count();
        assert_eq!(ended, usize::from(task.state.is_finished()), "how often {task:#?} has ended");
        assert_eq!(task.finished_at.is_some(), task.state.is_finished());
    }
    let mut owners = HashMap::new();
    for (task_id, run_id, worker) in &all.claimed {
        let owner = *owners.entry(run_id).or_insert((task_id, worker));
        assert_eq!(owner, (task_id, worker), "run {run_id} had two owners");
    }
}

/// Emits the event that suspended tasks wait for, and ends everything.
async fn end_all(store: &Handle) {
    store.emit(event("the end", json("1"))).await;
    let stop = (1..=CLIENTS).map(deregister);
    store.commit(signals(stop)).await;
    store.signal(register(99)).await;
    let ends = |task: &ClaimedTask| Transition::new(task.task_id, task.run_id, complete());
    loop {
        let claimed = store.claim(99, 50).await;
        if claimed.is_empty() {
            break;
        }
        let committed = store.commit(transitions(claimed.iter().map(ends))).await;
        assert!(committed.transitions.iter().all(Result::is_ok));
    }
    for task in store.all().await {
        assert!(task.state.is_finished(), "it cannot be ended: {task:#?}");
    }
}
