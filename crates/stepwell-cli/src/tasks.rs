//! The command `stepwell tasks`.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use stepwell::{
    Disposition, Durable, Error, Export, LogLine, Name, Page, SpawnOptions, TaskFilter, TaskId,
    TaskInfo,
};

use crate::args::{Filter, Ids, Tasks};
use crate::screen::{Screen, moment, standing};
use crate::timeline::Shown;
use crate::{input, timeline, watch};

/// The number of children that are shown with a task.
const CHILDREN: usize = 20;

pub(crate) async fn run(client: &Durable, command: Tasks, screen: &Screen) -> Result<ExitCode> {
    match command {
        Tasks::List(filter) => list(client, filter, screen).await?,
        Tasks::Show { task_id } => {
            let shown = look(client, task_id).await?;
            screen.show(&shown, || timeline::draw(&shown, screen.width))?;
        }
        Tasks::Watch { task_id } => return watch::run(client, task_id, screen).await,
        Tasks::Spawn {
            task_type,
            params,
            queue,
            priority,
            max_attempts,
            idempotency_key,
            concurrency_key,
            delay,
            labels,
        } => {
            let mut options = SpawnOptions::new().priority(priority);
            options = set(options, queue, SpawnOptions::queue);
            options = set(options, max_attempts, SpawnOptions::max_attempts);
            options = set(options, idempotency_key, SpawnOptions::idempotency_key);
            options = set(options, concurrency_key, SpawnOptions::concurrency_key);
            options = set(options, delay.map(Into::into), SpawnOptions::delay);
            options = labels
                .into_iter()
                .fold(options, |options, (name, value)| options.label(name, value));
            let spawn = client.spawn_named(&task_type, &input::json(params.as_deref())?);
            let spawned = spawn.options(options).await?;
            let json = serde_json::json!({
                "task_id": spawned.task_id,
                "disposition": spawned.disposition,
            });
            screen.show(&json, || match spawned.disposition {
                Disposition::Created => spawned.task_id.to_string(),
                Disposition::Existing => format!("{} was there before", spawned.task_id),
                Disposition::Coalesced => {
                    format!("{} waits to start and does for this one", spawned.task_id)
                }
            })?;
        }
        Tasks::Cancel(ids) => each(ids, "cancelled", screen, |id| client.cancel(id)).await?,
        Tasks::Pause(ids) => each(ids, "paused", screen, |id| client.pause(id)).await?,
        Tasks::Resume(ids) => each(ids, "resumed", screen, |id| client.resume(id)).await?,
        Tasks::Retry(ids) => each(ids, "will run again:", screen, |id| client.retry(id)).await?,
        Tasks::Delete(ids) => each(ids, "deleted", screen, |id| client.delete(id)).await?,
        Tasks::Retrigger(ids) => retrigger(client, ids, screen).await?,
        Tasks::Export { task_id, output } => export(client, task_id, &output, screen).await?,
        Tasks::Import { file } => {
            let export = Export::from_json(&input::read(&file)?).map_err(Error::Import)?;
            let task_id = client.import(export).await?;
            screen.show(&serde_json::json!({ "task_id": task_id }), || {
                format!("took in {task_id}")
            })?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn set<T>(
    options: SpawnOptions,
    value: Option<T>,
    with: impl FnOnce(SpawnOptions, T) -> SpawnOptions,
) -> SpawnOptions {
    match value {
        Some(value) => with(options, value),
        None => options,
    }
}

/// Applies an operation to several tasks, up to the first one that it fails for.
async fn each<F>(ids: Ids, done: &str, screen: &Screen, act: impl Fn(TaskId) -> F) -> Result<()>
where
    F: Future<Output = Result<(), Error>>,
{
    for task_id in ids.task_ids {
        act(task_id).await?;
        screen.done(&format!("{done} {task_id}"))?;
    }
    Ok(())
}

/// Spawns a task like each of these tasks.
async fn retrigger(client: &Durable, ids: Ids, screen: &Screen) -> Result<()> {
    for task_id in ids.task_ids {
        let spawned = client.retrigger(task_id).await?;
        screen.show(&serde_json::json!({ "task_id": spawned.task_id, "like": task_id }), || {
            format!("spawned {}, like {task_id}", spawned.task_id)
        })?;
    }
    Ok(())
}

/// Writes a task into a file, or to the output for the path `-`.
async fn export(client: &Durable, task_id: TaskId, path: &Path, screen: &Screen) -> Result<()> {
    let document = client.export(task_id).await?.to_json()?;
    if path.as_os_str() == "-" {
        return screen.text(&document);
    }
    std::fs::write(path, document).with_context(|| format!("cannot write {}", path.display()))?;
    screen.done(&format!("wrote {task_id} to {}", path.display()))
}

async fn list(client: &Durable, filter: Filter, screen: &Screen) -> Result<()> {
    let Filter { state, queue, task_type, labels, parent, before, limit } = filter;
    let mut filter = TaskFilter {
        state,
        queue: queue.map(Name::new).transpose()?,
        task_type: task_type.map(Name::new).transpose()?,
        labels: labels.into_iter().collect(),
        parent,
        before,
        limit,
        ..TaskFilter::default()
    };
    let mut list = screen.parts(|task: &TaskInfo| {
        [
            task.task_id.to_string(),
            task.task_type.to_string(),
            task.queue.to_string(),
            standing(task),
            format!("{}/{}", task.attempt, task.max_attempts),
            moment(task.spawned_at),
        ]
    });
    let next = loop {
        let Page { items, next } = client.tasks(filter.clone()).await?;
        list.add(&items)?;
        filter.limit -= items.len().min(filter.limit);
        match next {
            Some(_) if filter.limit > 0 => filter.before = next,
            next => break next,
        }
    };
    list.end(["TASK", "TYPE", "QUEUE", "STATE", "ATTEMPT", "SPAWNED"], "no tasks")?;
    match next {
        Some(next) if !screen.is_json() => {
            screen.text(&format!("\nthere may be more: --before {next}"))
        }
        _ => Ok(()),
    }
}

async fn look(client: &Durable, task_id: TaskId) -> Result<Shown> {
    let task = client.task(task_id).await?.ok_or(Error::NotFound(task_id))?;
    let (journal, waits) = (client.journal(task_id).await?, client.waits(task_id).await?);
    let children = TaskFilter { parent: Some(task_id), limit: CHILDREN, ..TaskFilter::default() };
    Ok(Shown {
        task,
        logs: LogLine::all(&journal),
        journal,
        waits,
        children: client.tasks(children).await?.items,
    })
}
