//! The routes of tasks.

use std::time::Duration;

use axum::Json;
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use stepwell::store::TRACE_HEADERS;
use stepwell::{
    Disposition, Entry, Error, Export, Failure, LogLine, Name, Page, Payload, SpawnOptions,
    SpawnResult, TaskFilter, TaskId, TaskInfo, TaskState,
};

use super::document::Api;
use crate::access::Operation;
use crate::call::{Call, Own};
use crate::extract::{Body, Path, Query};
use crate::problem::Problem;

/// The maximum number of tasks on one page.
const MAX_PAGE: usize = 1_000;
/// The maximum time that a client may wait for a result, in seconds.
const MAX_WAIT: u64 = 25;

pub(super) fn add_to(api: &mut Api) {
    use Operation as O;
    let ok = StatusCode::OK;
    api.route(Method::GET, "/tasks", O::ListTasks, "List tasks, the newest first")
        .query::<Filter>()
        .answers::<Tasks>(ok)
        .does(list);
    api.route(Method::POST, "/tasks", O::SpawnTask, "Spawn a task")
        .body::<Spawn>()
        .answers::<Spawned>(StatusCode::CREATED)
        .answers::<Spawned>(ok)
        .does(spawn);
    api.route(Method::POST, "/tasks/import", O::ImportTask, "Take in a task that was exported")
        .body::<Value>()
        .answers::<Imported>(StatusCode::CREATED)
        .does(import);
    add_records(api);
    add_actions(api);
    api.route(
        Method::GET,
        "/task-types",
        O::ListTaskTypes,
        "List the task types that were described",
    )
    .answers::<Vec<stepwell::TaskTypeInfo>>(ok)
    .does(task_types);
}

/// Adds the routes of what the store holds of one task.
fn add_records(api: &mut Api) {
    use Operation as O;
    let ok = StatusCode::OK;
    api.route(Method::GET, "/tasks/{task_id}", O::ReadTask, "Read a task")
        .answers::<TaskInfo>(ok)
        .does(read);
    api.route(Method::DELETE, "/tasks/{task_id}", O::DeleteTask, "Remove a task that has ended")
        .done()
        .does(delete);
    api.route(
        Method::GET,
        "/tasks/{task_id}/journal",
        O::ReadTask,
        "Read what a task did, in order",
    )
    .answers::<Journal>(ok)
    .does(journal);
    api.route(
        Method::GET,
        "/tasks/{task_id}/logs",
        O::ReadTask,
        "Read what a task wrote to its log",
    )
    .answers::<Logs>(ok)
    .does(logs);
    api.route(
        Method::GET,
        "/tasks/{task_id}/result",
        O::ReadTask,
        "Read how a task ended, or wait for it",
    )
    .query::<Wait>()
    .answers::<TaskResult>(ok)
    .answers::<TaskResult>(StatusCode::ACCEPTED)
    .does(result);
    api.route(
        Method::GET,
        "/tasks/{task_id}/export",
        O::ExportTask,
        "Write a task into a document",
    )
    .answers::<Value>(ok)
    .does(export);
}

/// Adds the routes that change the course of one task.
fn add_actions(api: &mut Api) {
    use Operation as O;
    api.route(
        Method::POST,
        "/tasks/{task_id}/cancel",
        O::CancelTask,
        "Cancel a task, and its children",
    )
    .done()
    .does(cancel);
    api.route(Method::POST, "/tasks/{task_id}/pause", O::PauseTask, "Let no worker claim a task")
        .done()
        .does(pause);
    api.route(Method::POST, "/tasks/{task_id}/resume", O::ResumeTask, "Let a paused task go on")
        .done()
        .does(resume);
    api.route(
        Method::POST,
        "/tasks/{task_id}/retry",
        O::RetryTask,
        "Run a failed or cancelled task again, from its journal",
    )
    .done()
    .does(retry);
    api.route(
        Method::POST,
        "/tasks/{task_id}/retrigger",
        O::RetriggerTask,
        "Spawn a task like this one, from the start",
    )
    .answers::<Spawned>(StatusCode::CREATED)
    .does(retrigger);
    api.route(
        Method::POST,
        "/tasks/{task_id}/messages",
        O::SendMessage,
        "Send a message to a task's mailbox",
    )
    .body::<Message>()
    .done()
    .does(send);
}

/// The filter of a list of tasks.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Filter {
    /// The state of the tasks.
    pub(crate) state: Option<TaskState>,
    /// The queue of the tasks.
    pub(crate) queue: Option<Name>,
    /// The type of the tasks.
    #[serde(rename = "type")]
    pub(crate) task_type: Option<Name>,
    /// A label of the tasks, as `name=value`. It may come several times.
    pub(crate) label: Vec<String>,
    /// The task that spawned the tasks.
    pub(crate) parent: Option<TaskId>,
    /// The last task of the page before. All tasks of this page are older.
    pub(crate) before: Option<TaskId>,
    /// The maximum number of tasks, up to 1,000. A page has fewer tasks when their payloads have
    /// 32 MiB together. Default: 100.
    #[schemars(range(min = 1, max = 1000))]
    pub(crate) limit: Option<usize>,
}

/// Reads the labels of a query, which are written as `name=value`.
pub(crate) fn labels<C: FromIterator<(String, String)>>(labels: &[String]) -> Result<C, Problem> {
    let read = |label: &String| {
        let (name, value) = label.split_once('=')?;
        Some((name.to_owned(), value.to_owned()))
    };
    let wrong = || Problem::bad_request("a label is written as name=value");
    labels.iter().map(|label| read(label).ok_or_else(wrong)).collect()
}

impl Filter {
    pub(crate) fn read(self) -> Result<TaskFilter, Problem> {
        let Self { state, queue, task_type, label, parent, before, limit } = self;
        let limit = limit.unwrap_or(100);
        if !(1..=MAX_PAGE).contains(&limit) {
            return Err(Problem::bad_request(format!(
                "limit is {limit}: it has to be from 1 to {MAX_PAGE}"
            )));
        }
        let labels = labels(&label)?;
        Ok(TaskFilter {
            state,
            queue,
            task_type,
            labels,
            parent,
            before,
            limit,
            ..TaskFilter::default()
        })
    }
}

/// A page of tasks.
#[derive(Serialize, JsonSchema)]
struct Tasks {
    /// The tasks.
    tasks: Vec<TaskInfo>,
    /// `before` of the next page, when there may be one.
    next: Option<TaskId>,
}

async fn list(call: Call, Query(filter): Query<Filter>) -> Result<Json<Tasks>, Problem> {
    let Page { items: tasks, next } = call.tasks(filter.read()?).await?;
    Ok(Json(Tasks { tasks, next }))
}

/// A task to be spawned.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Spawn {
    /// The type of the task, which some worker knows.
    task_type: Name,
    /// The parameters of the task.
    #[serde(default)]
    params: Payload,
    /// The options of the spawn.
    #[serde(default)]
    options: SpawnOptions,
}

/// The result of a spawn.
#[derive(Serialize, JsonSchema)]
struct Spawned {
    /// The task: a new one, or the one that has the idempotency or concurrency key.
    task_id: TaskId,
    /// Says whether the task is new, has the idempotency key, or waits to start and has the
    /// concurrency key.
    disposition: Disposition,
}

impl From<SpawnResult> for Spawned {
    fn from(SpawnResult { task_id, disposition, .. }: SpawnResult) -> Self {
        Self { task_id, disposition }
    }
}

async fn spawn(
    call: Call,
    headers: HeaderMap,
    Body(spawn): Body<Spawn>,
) -> Result<Response, Problem> {
    let Spawn { task_type, params, options } = spawn;
    // The caller's trace goes on in the task.
    let trace = |name| Some((name, headers.get(name)?.to_str().ok()?));
    let trace = TRACE_HEADERS.into_iter().filter_map(trace);
    let options = trace.fold(options, |options, (name, value)| options.header(name, value));
    let spawned = call.spawn(&task_type, &params, options).await?;
    let status = if spawned.created() { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(Spawned::from(spawned))).into_response())
}

async fn read(call: Call, Path(task_id): Path<TaskId>) -> Result<Json<TaskInfo>, Problem> {
    Ok(Json(call.own(task_id).await?.task))
}

async fn delete(call: Call, Path(task_id): Path<TaskId>) -> Result<StatusCode, Problem> {
    call.told(call.own(task_id).await?.client.delete(task_id).await).await?;
    call.forget(task_id).await;
    Ok(StatusCode::NO_CONTENT)
}

/// The journal of a task.
#[derive(Serialize, JsonSchema)]
struct Journal {
    /// The entries, in order.
    entries: Vec<Entry>,
    /// The waits of the task.
    waits: Vec<stepwell::store::Wait>,
}

async fn journal(call: Call, Path(task_id): Path<TaskId>) -> Result<Json<Journal>, Problem> {
    let Own { client, .. } = call.own(task_id).await?;
    let (entries, waits) = (client.journal(task_id).await?, client.waits(task_id).await?);
    Ok(Json(Journal { entries, waits }))
}

/// The log of a task.
#[derive(Serialize, JsonSchema)]
struct Logs {
    /// The lines, the oldest first.
    logs: Vec<LogLine>,
}

async fn logs(call: Call, Path(task_id): Path<TaskId>) -> Result<Json<Logs>, Problem> {
    Ok(Json(Logs { logs: call.own(task_id).await?.client.logs(task_id).await? }))
}

/// The time to wait.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Wait {
    /// The time to wait for a task that has not ended, in seconds, up to 25. Default: 0.
    #[schemars(range(max = 25))]
    #[serde(default)]
    wait: u64,
}

/// The state of a task, and its result when it has ended.
#[derive(Serialize, JsonSchema)]
struct TaskResult {
    /// The state of the task.
    state: TaskState,
    /// The output of the task.
    output: Option<Payload>,
    /// The reason why the task failed.
    failure: Option<Failure>,
}

async fn result(
    call: Call,
    Path(task_id): Path<TaskId>,
    Query(Wait { wait }): Query<Wait>,
) -> Result<Response, Problem> {
    if wait > MAX_WAIT {
        return Err(Problem::bad_request(format!(
            "wait is {wait}: it has to be at most {MAX_WAIT}"
        )));
    }
    let Own { client, mut task } = call.own(task_id).await?;
    if !task.state.is_finished() && wait > 0 {
        let wait = Duration::from_secs(wait);
        match tokio::time::timeout(wait, client.wait::<Payload>(task_id)).await {
            // The error tells the client nothing that the task itself does not tell.
            Err(_) | Ok(Ok(_) | Err(Error::TaskFailed { .. } | Error::TaskCancelled(_))) => {}
            Ok(Err(error)) => return Err(error.into()),
        }
        task = call.own(task_id).await?.task;
    }
    let status = if task.state.is_finished() { StatusCode::OK } else { StatusCode::ACCEPTED };
    let TaskInfo { state, output, failure, .. } = task;
    Ok((status, Json(TaskResult { state, output, failure })).into_response())
}

async fn export(call: Call, Path(task_id): Path<TaskId>) -> Result<Json<Payload>, Problem> {
    let Own { client, task } = call.own(task_id).await?;
    let mut export = client.export(task_id).await?;
    export.record.info.parent = task.parent;
    let json = export
        .to_json()
        .map_err(|source| Error::Payload { what: "the document".into(), source })?;
    Ok(Json(Payload::from_json(json)))
}

/// A task that was taken in.
#[derive(Serialize, JsonSchema)]
struct Imported {
    /// The task.
    task_id: TaskId,
}

async fn import(
    call: Call,
    Body(document): Body<Payload>,
) -> Result<(StatusCode, Json<Imported>), Problem> {
    let export = Export::from_json(document.as_str()).map_err(Error::from)?;
    let task_id = call.everything()?.client.import(export).await?;
    call.forget(task_id).await;
    Ok((StatusCode::CREATED, Json(Imported { task_id })))
}

async fn cancel(call: Call, Path(task_id): Path<TaskId>) -> Result<StatusCode, Problem> {
    call.own(task_id).await?.client.cancel(task_id).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn pause(call: Call, Path(task_id): Path<TaskId>) -> Result<StatusCode, Problem> {
    call.own(task_id).await?.client.pause(task_id).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn resume(call: Call, Path(task_id): Path<TaskId>) -> Result<StatusCode, Problem> {
    call.own(task_id).await?.client.resume(task_id).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn retry(call: Call, Path(task_id): Path<TaskId>) -> Result<StatusCode, Problem> {
    call.told(call.own(task_id).await?.client.retry(task_id).await).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn retrigger(
    call: Call,
    Path(task_id): Path<TaskId>,
) -> Result<(StatusCode, Json<Spawned>), Problem> {
    let spawned = call.own(task_id).await?.client.retrigger(task_id).await?;
    Ok((StatusCode::CREATED, Json(spawned.into())))
}

/// A message for a task.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Message {
    /// The topic of the message.
    topic: Name,
    /// The payload of the message.
    #[serde(default)]
    payload: Payload,
}

async fn send(
    call: Call,
    Path(task_id): Path<TaskId>,
    Body(Message { topic, payload }): Body<Message>,
) -> Result<StatusCode, Problem> {
    call.own(task_id).await?.client.send(task_id, &topic, &payload).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn task_types(call: Call) -> Result<Json<Vec<stepwell::TaskTypeInfo>>, Problem> {
    Ok(Json(call.task_types().await?))
}
