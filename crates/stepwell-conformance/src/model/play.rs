//! The execution of one sequence on both sides.

use std::fmt::Debug;
use std::time::Duration;

use stepwell_core::MemoryStore;
use stepwell_core::store::{
    Batch, Committed, Purge, ScheduleFilter, TaskFilter, TaskInfo, TaskState,
};
use stepwell_core::{Name, Payload, TaskId};

use super::World;
use super::normal::{Ids, Told};
use super::ops::Op;
use super::world::{scopes, seconds_in};
use crate::backend::Backend;
use crate::handle::Handle;
use crate::make::{claim, claims, name};
use crate::setup::Setup;

/// One of the two sides: a store, and what is known of it.
struct Side {
    handles: Vec<Handle>,
    turn: usize,
    world: World,
    ids: Ids,
}

impl Side {
    fn handle(&self) -> &Handle {
        &self.handles[self.turn % self.handles.len()]
    }

    /// Commits a batch, and returns the parts that are compared.
    async fn commit(&mut self, batch: Batch) -> Result<(Committed, Told, Vec<TaskInfo>), String> {
        self.turn += 1;
        let committed = self.handle().try_commit(batch).await;
        let mut committed = committed.map_err(|error| format!("the store failed: {error}"))?;
        self.world.learn_runs(&committed);
        let mut tasks = self.handle().all().await;
        let told = self.ids.committed(&mut committed, &tasks)?;
        self.world.messages.append(&mut self.ids.new_messages);
        self.ids.infos(&mut tasks);
        Ok((committed, told, tasks))
    }

    /// Returns the messages that a task has not received.
    async fn mailbox(&self, task_id: TaskId) -> Result<Vec<(Name, Payload)>, String> {
        let page = self.handle().0.messages(task_id, None).await.map_err(text)?;
        Ok(page.items.into_iter().map(|message| (message.topic, message.payload)).collect())
    }

    /// Purges the tasks that ended before this moment.
    async fn purge(&self) -> Result<usize, String> {
        let purge = Purge { before: self.world.now, state: None, limit: 1_000 };
        self.handle().0.purge(purge).await.map_err(text)
    }

    async fn list(&mut self, filter: &TaskFilter) -> Vec<TaskInfo> {
        let mut tasks = self.handle().list(filter.clone()).await;
        self.ids.infos(&mut tasks);
        tasks
    }
}

/// Plays a sequence. The error says where the store differs.
pub(super) async fn play(
    backend: &impl Backend,
    handles: usize,
    batches: &[Vec<Op>],
) -> Result<(), String> {
    let setup = Setup::new(backend).await;
    let side =
        |handles| Side { handles, turn: 0, world: World::new(setup.now()), ids: Ids::default() };
    let memory = Handle(std::sync::Arc::new(MemoryStore::new(setup.clock.clone())));
    let (mut model, mut store) = (side(vec![memory]), side(setup.handles(handles).await));
    for (n, ops) in batches.iter().enumerate() {
        for _ in 0..seconds_in(ops) {
            setup.advance(Duration::from_secs(1));
            // This batch claims nothing, but the store does what is due.
            let due = || claims([claim(0, 0)]);
            both(&format!("what is due before batch {n}"), &mut model, &mut store, due(), due())
                .await?;
        }
        (model.world.now, store.world.now) = (setup.now(), setup.now());
        let (expected, got) = (model.world.batch(ops), store.world.batch(ops));
        both(&format!("batch {n}"), &mut model, &mut store, expected, got).await?;
        if ops.iter().any(|op| matches!(op, Op::Purge)) {
            let what = format!("a purge behind batch {n}");
            same(&what, &model.purge().await?, &store.purge().await?)?;
        }
    }
    let filters = [
        ScheduleFilter::All { behind: None },
        ScheduleFilter::Next { behind: None, limit: 1 },
        ScheduleFilter::Named(name("schedule1")),
    ];
    for which in filters {
        let expected = model.handle().0.schedules(which.clone()).await;
        same("the schedules", &expected, &store.handle().0.schedules(which).await)?;
    }
    for task_id in model.world.tasks.clone() {
        let expected = model.handle().0.journal(task_id).await;
        same("a journal", &expected, &store.handle().0.journal(task_id).await)?;
        let expected = model.handle().0.task(task_id).await.map(Vec::from_iter);
        let got = store.handle().0.task(task_id).await.map(Vec::from_iter);
        let (mut expected, mut got) = (expected.map_err(text)?, got.map_err(text)?);
        model.ids.infos(&mut expected);
        store.ids.infos(&mut got);
        same("a task", &expected, &got)?;
        same("a mailbox", &model.mailbox(task_id).await?, &store.mailbox(task_id).await?)?;
    }
    lists(&mut model, &mut store).await
}

fn text(error: impl ToString) -> String {
    error.to_string()
}

async fn both(
    what: &str,
    model: &mut Side,
    store: &mut Side,
    expected: Batch,
    got: Batch,
) -> Result<(), String> {
    let (expected, told, tasks) = model.commit(expected).await?;
    let (got, mut told_by_store, tasks_of_store) = store.commit(got).await?;
    told_by_store.allow_more(&told);
    let (expected, got) =
        (format!("{expected:#?}\n{told:#?}"), format!("{got:#?}\n{told_by_store:#?}"));
    if expected != got {
        return Err(format!("{what}, of which the model says\n{expected}\nand the store\n{got}"));
    }
    same(&format!("the tasks after {what}"), &tasks, &tasks_of_store)
}

/// Compares the lists of all filters, one page at a time.
async fn lists(model: &mut Side, store: &mut Side) -> Result<(), String> {
    let parent = model.world.task(1);
    for state in [None].into_iter().chain(TaskState::ALL.map(Some)) {
        let [_, tenant, of_queue] = scopes();
        let all = TaskFilter { state, limit: 2, ..TaskFilter::default() };
        let of_type = Some(name("type1"));
        for mut filter in [
            all.clone(),
            TaskFilter { queue: Some(name("queue1")), task_type: of_type.clone(), ..all.clone() },
            TaskFilter { parent: Some(parent), ..all.clone() },
            TaskFilter { scope: tenant, ..all.clone() },
            TaskFilter { scope: of_queue, task_type: of_type, ..all },
        ] {
            loop {
                let expected = model.list(&filter).await;
                same("a list", &expected, &store.list(&filter).await)?;
                filter.before = expected.last().map(|task| task.task_id);
                if filter.before.is_none() {
                    break;
                }
            }
        }
    }
    Ok(())
}

fn same(what: &str, expected: &impl Debug, got: &impl Debug) -> Result<(), String> {
    if format!("{expected:?}") == format!("{got:?}") {
        return Ok(());
    }
    Err(format!("{what}, of which the model says\n{expected:#?}\nand the store\n{got:#?}"))
}
