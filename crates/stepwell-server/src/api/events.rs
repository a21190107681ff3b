//! The routes of events that tasks await, and of the stream of the tasks' history.

use std::collections::BTreeMap;

use axum::Json;
use axum::body::Body as Stream;
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use futures_util::stream;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use stepwell::store::have_labels;
use stepwell::{Name, Payload, TaskId};
use tokio::sync::mpsc;

use super::document::Api;
use super::tasks::labels;
use crate::access::Operation;
use crate::call::{Call, Wanted};
use crate::extract::{Body, Path, Query};
use crate::problem::Problem;

pub(super) fn add_to(api: &mut Api) {
    api.route(
        Method::POST,
        "/events",
        Operation::EmitEvent,
        "Emit an event: the first of its name stands",
    )
    .body::<Emit>()
    .answers::<Emitted>(StatusCode::OK)
    .does(emit);
    api.route(
        Method::GET,
        "/events",
        Operation::Watch,
        "Follow what happens to tasks, as server-sent events; goes on behind `Last-Event-ID`",
    )
    .query::<Filter>()
    .streams()
    .does(follow_many);
    api.route(
        Method::GET,
        "/tasks/{task_id}/events",
        Operation::ReadTask,
        "Follow what happens to a task, from its beginning; goes on behind `Last-Event-ID`",
    )
    .query::<After>()
    .streams()
    .does(follow_one);
}

/// An event to be emitted.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Emit {
    /// The name of the event.
    name: Name,
    /// The payload of the event.
    #[serde(default)]
    payload: Payload,
    /// The queue whose tasks receive the event. Without it, the tasks of all queues receive it.
    queue: Option<Name>,
}

/// The result of an emitted event.
#[derive(Serialize, JsonSchema)]
struct Emitted {
    /// Says whether the event was the first of its name, and stands.
    first: bool,
}

async fn emit(
    call: Call,
    Body(Emit { name, payload, queue }): Body<Emit>,
) -> Result<Json<Emitted>, Problem> {
    let client = &call.everything()?.client;
    let event = client.emit_event(&name, &payload);
    let first = match queue {
        Some(queue) => event.queue(queue.as_str()).await?,
        None => event.await?,
    };
    Ok(Json(Emitted { first }))
}

/// The start of a stream.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct After {
    /// The number of the last event that was seen. `Last-Event-ID` goes before it.
    after: Option<u64>,
}

/// The filter and the start of a stream.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Filter {
    /// The number of the last event that was seen. Without it, the stream begins now.
    /// `Last-Event-ID` goes before it.
    after: Option<u64>,
    /// The type of the tasks.
    #[serde(rename = "type")]
    task_type: Option<Name>,
    /// The queue of the tasks.
    queue: Option<Name>,
    /// A label of the tasks, as `name=value`. It may come several times.
    label: Vec<String>,
    /// The task that spawned the tasks.
    parent: Option<TaskId>,
}

fn last_seen(headers: &HeaderMap, after: Option<u64>) -> Result<Option<u64>, Problem> {
    let Some(id) = headers.get("last-event-id") else { return Ok(after) };
    let id = id.to_str().ok().and_then(|id| id.parse().ok());
    id.map(Some).ok_or_else(|| Problem::bad_request("Last-Event-ID is no number of an event"))
}

async fn follow_many(
    call: Call,
    headers: HeaderMap,
    Query(filter): Query<Filter>,
) -> Result<Response, Problem> {
    let Filter { after, task_type, queue, label, parent } = filter;
    let labels: BTreeMap<_, _> = labels(&label)?;
    let hidden = match parent {
        Some(parent) => !call.is_known(parent).await?,
        None => false,
    };
    let wants_all = (&task_type, &queue, &parent) == (&None, &None, &None) && labels.is_empty();
    let wanted: Wanted = Box::new(move |task| {
        !hidden
            && have_labels(&task.headers, &labels)
            && task_type.as_ref().is_none_or(|task_type| *task_type == task.task_type)
            && queue.as_ref().is_none_or(|queue| *queue == task.queue)
            && parent.is_none_or(|parent| task.parent == Some(parent))
    });
    let chunks =
        call.follow(None, last_seen(&headers, after)?, (!wants_all).then_some(wanted)).await?;
    Ok(stream_of(chunks))
}

async fn follow_one(
    call: Call,
    headers: HeaderMap,
    Path(task_id): Path<TaskId>,
    Query(After { after }): Query<After>,
) -> Result<Response, Problem> {
    call.own(task_id).await?;
    let after = last_seen(&headers, after)?.unwrap_or(0);
    Ok(stream_of(call.follow(Some(task_id), Some(after), None).await?))
}

fn stream_of(chunks: mpsc::Receiver<Bytes>) -> Response {
    let chunks = stream::unfold(chunks, |mut chunks| async move {
        let chunk: Result<Bytes, std::io::Error> = Ok(chunks.recv().await?);
        Some((chunk, chunks))
    });
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-cache, no-transform"),
        // Proxies that buffer answers (nginx) must not buffer this stream.
        (header::HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    (headers, Stream::from_stream(chunks)).into_response()
}
