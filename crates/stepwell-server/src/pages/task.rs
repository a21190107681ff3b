//! The page of one task.

use std::sync::Arc;

use axum::Router;
use axum::response::Redirect;
use axum::routing::{get, post};
use maud::{Markup, html};
use serde::Deserialize;
use stepwell::{
    Durable, Entry, Failure, HistoryFilter, LogLine, Outcome, Progress, TaskFilter, TaskId,
    TaskInfo,
};

use super::layout::{button, confirmed, page};
use super::timeline::{ROWS, Starts, Timeline};
use super::words::{brief, duration, json, moment, number, state};
use super::{approvals, route, tasks};
use crate::access::Operation;
use crate::app::App;
use crate::call::{Call, Own};
use crate::extract::{Form, Path, Query, json_of};
use crate::problem::Problem;

/// The number of children that are shown.
const CHILDREN: usize = 50;
/// The maximum number of events of the history that are read for the timeline.
const HISTORY: usize = 50_000;

pub(super) fn add_to(router: Router<Arc<App>>) -> Router<Arc<App>> {
    router
        .route("/tasks/{task_id}", route(Operation::ReadTask, get(show)))
        .route("/tasks/{task_id}/cancel", route(Operation::CancelTask, post(cancel)))
        .route("/tasks/{task_id}/pause", route(Operation::PauseTask, post(pause)))
        .route("/tasks/{task_id}/resume", route(Operation::ResumeTask, post(resume)))
        .route("/tasks/{task_id}/retry", route(Operation::RetryTask, post(retry)))
        .route("/tasks/{task_id}/retrigger", route(Operation::RetriggerTask, post(retrigger)))
        .route("/tasks/{task_id}/delete", route(Operation::DeleteTask, post(delete)))
        .route("/tasks/{task_id}/send", route(Operation::SendMessage, post(send)))
}

#[derive(Deserialize)]
struct Part {
    /// The first row that is shown of a long timeline.
    #[serde(default)]
    from: usize,
}

async fn show(
    call: Call,
    Path(task_id): Path<TaskId>,
    Query(Part { from }): Query<Part>,
) -> Result<Markup, Problem> {
    let Own { client, task } = call.own(task_id).await?;
    let (journal, waits) = (client.journal(task_id).await?, client.waits(task_id).await?);
    let starts = starts(client, task_id).await?;
    let children = TaskFilter { parent: Some(task_id), limit: CHILDREN, ..TaskFilter::default() };
    let children = call.tasks(children).await?;
    let waiting = client.approvals().of_task(task_id).await?;
    let timeline = Timeline::new(&task, &journal, &waits, starts, call.now());
    let parts = parts(&call, task_id, from, timeline.len().max(journal.len()));
    let logs = LogLine::all(&journal);
    let content = html! {
        (head(&call, &task))
        @if let Some(progress) = Progress::latest(&journal) { (bar(&progress)) }
        @for approval in &waiting { (approvals::card(&call, approval)) }
        @if let Some(failure) = &task.failure { (why(&task, failure)) }
        h2 { "Timeline" }
        (parts)
        (timeline.draw(&call, from))
        (parts)
        div class="columns" {
            section { h2 { "Parameters" } (json(&task.params)) }
            section { h2 { "Output" } @match &task.output {
                Some(output) => (json(output)),
                None if task.state.is_finished() => p class="dim" { "none" },
                None => p class="dim" { "none yet" },
            } }
        }
        @if !children.items.is_empty() { h2 { "Children" } (tasks::table(&call, &children.items)) }
        @if children.next.is_some() {
            p { a href={ (call.base.to("/tasks")) "?parent=" (task_id) } { "All children" } }
        }
        @if !logs.is_empty() { h2 { "Log" } (log(&logs)) }
        details id="journal" {
            summary {
                "Journal, " (number(journal.len() as u64))
                @if journal.len() == 1 { " entry" } @else { " entries" }
            }
            (entries(&journal, from))
        }
        details id="facts" { summary { "Everything else" } (facts(&call, &task)) }
    };
    Ok(page(&call, "/tasks", task.task_type.as_str(), content))
}

/// Returns the times at which the task's steps began, as far as the history holds them.
async fn starts(client: &Durable, task_id: TaskId) -> Result<Starts, Problem> {
    let (mut starts, mut which) =
        (Starts::default(), HistoryFilter { task_id: Some(task_id), after: 0, limit: HISTORY });
    while which.limit > 0 {
        let part = client.history(which.clone()).await?;
        let Some(last) = part.items.last() else { break };
        (which.after, which.limit) = (last.id, which.limit - part.items.len());
        part.into_iter().for_each(|entry| starts.add(entry));
    }
    Ok(starts)
}

fn head(call: &Call, task: &TaskInfo) -> Markup {
    let to = |action: &str| call.base.to(&format!("/tasks/{}/{action}", task.task_id));
    let finished = task.state.is_finished();
    html! {
        div class="head" {
            div {
                h1 {
                    (task.task_type) " " (state(task.state))
                    @if task.paused { " " span class="state paused" { "paused" } }
                }
                p class="dim" {
                    code class="id" { (task.task_id) }
                    @let queue = super::queues::encoded(task.queue.as_str());
                    " · queue "
                    a href={ (call.base.to("/tasks")) "?queue=" (queue) } { (task.queue) }
                    " · attempt " (task.attempt) " of " (task.max_attempts)
                    " · spawned " (moment(task.spawned_at))
                    @if let Some(parent) = task.parent {
                        " · by " a href=(call.base.to(&format!("/tasks/{parent}"))) { "its parent" }
                    }
                    @if task.cancel_requested && !finished { " · " strong { "asked to cancel" } }
                }
            }
            div class="actions" {
                @if !finished {
                    @if task.paused {
                        (button(&to("resume"), "Resume"))
                    } @else {
                        (button(&to("pause"), "Pause"))
                    }
                    (confirmed(&to("cancel"), "Cancel", "The task is told to end, and its children \
                                                         with it.", "danger"))
                    details class="confirm" id="send" {
                        summary class="button" { "Send…" }
                        form method="post" action=(to("send")) class="stack" {
                            label { "Topic" input name="topic" required id="send-topic"; }
                            label {
                                "JSON"
                                textarea name="payload" rows="3" spellcheck="false"
                                    id="send-payload" {}
                            }
                            button class="primary" { "Send" }
                        }
                    }
                } @else {
                    @if task.state != stepwell::TaskState::Completed {
                        (button(&to("retry"), "Retry"))
                    }
                    (button(&to("retrigger"), "Run anew"))
                    (confirmed(&to("delete"), "Delete", "The task, its journal and its log are \
                                                         removed.", "danger"))
                }
            }
        }
    }
}

fn bar(progress: &Progress) -> Markup {
    html! {
        p class="progress" {
            progress max=[progress.total] value=[progress.total.map(|_| progress.current)] {}
            " " (number(progress.current))
            @if let Some(total) = progress.total { " of " (number(total)) }
            @if let Some(message) = &progress.message { " · " (message) }
        }
    }
}

fn why(task: &TaskInfo, failure: &Failure) -> Markup {
    let title =
        if task.state.is_finished() { "Why it failed" } else { "Why its last attempt failed" };
    html! {
        section class="failure" {
            h2 { (title) }
            (chain(failure))
            @if !failure.compensation_errors.is_empty() {
                h3 { "What could not be undone" }
                ul { @for error in &failure.compensation_errors {
                    li { strong { (error.name) } (chain(&error.failure)) }
                } }
            }
            @if let Some(backtrace) = &failure.backtrace {
                details id="backtrace" { summary { "Backtrace" } pre { (backtrace) } }
            }
        }
    }
}

fn chain(failure: &Failure) -> Markup {
    html! {
        p class="message" { (failure.message) }
        @if !failure.causes.is_empty() {
            ol class="causes" { @for cause in &failure.causes { li { "because: " (cause) } } }
        }
    }
}

/// Draws links to the other parts of the timeline, when it has more rows than one page shows.
fn parts(call: &Call, task_id: TaskId, from: usize, all: usize) -> Markup {
    let path = call.base.to(&format!("/tasks/{task_id}"));
    html! {
        @if all > ROWS {
            nav class="pages" aria-label="Parts of the timeline" {
                @if from > 0 {
                    a href={ (path) "?from=" (from.saturating_sub(ROWS)) } { "Earlier" }
                }
                span class="dim" {
                    (number(from as u64 + 1)) " to " (number((from + ROWS).min(all) as u64))
                    " of " (number(all as u64))
                }
                @if from + ROWS < all { a href={ (path) "?from=" (from + ROWS) } { "Later" } }
            }
        }
    }
}

fn log(lines: &[LogLine]) -> Markup {
    html! {
        ol class="log" { @for line in lines.iter().rev().take(ROWS).rev() {
            li class={ "level " (line.level.as_str()) } {
                (moment(line.at)) " " span class="tag" { (line.level.as_str()) } " " (line.message)
                @for (name, value) in &line.fields { " " span class="label" { (name) "=" (value) } }
            }
        } }
    }
}

fn entries(journal: &[Entry], from: usize) -> Markup {
    html! {
        div class="scroll" { table {
            thead { tr {
                th class="number" { "#" } th { "Kind" } th { "Name" } th { "What was delivered" }
                th { "When" }
            } }
            tbody { @for entry in journal.iter().skip(from).take(ROWS) {
                tr {
                    td class="number" { (entry.seq) }
                    td { (entry.key.kind.as_str()) }
                    td { (entry.key.label()) }
                    td class="value" { @match &entry.outcome {
                        Outcome::Done(value) => code { (brief(value)) },
                        Outcome::Failed(failure) => span class="wrong" { (failure) },
                        Outcome::Retrying { failure, .. } => span class="again" { (failure) },
                    } }
                    td { (moment(entry.at)) }
                }
            } }
        } }
    }
}

fn facts(call: &Call, task: &TaskInfo) -> Markup {
    html! {
        dl {
            dt { "Run" } dd { code { (task.run_id) } }
            dt { "Priority" } dd { (task.priority) }
            @if let Some(at) = task.started_at { dt { "Started" } dd { (moment(at)) } }
            @if let Some(at) = task.finished_at { dt { "Ended" } dd { (moment(at)) } }
            @if let Some(at) = task.due_at { dt { "Due" } dd { (moment(at)) } }
            @if let Some(at) = task.cancel_at { dt { "Cancelled at" } dd { (moment(at)) } }
            @if let Some(time) = task.max_duration { dt { "May take" } dd { (duration(time)) } }
            @if let Some(key) = &task.idempotency_key { dt { "Idempotency key" } dd { (key) } }
            @if let Some(key) = &task.concurrency_key { dt { "Concurrency key" } dd { (key) } }
            @if let Some(version) = &task.code_version { dt { "Code version" } dd { (version) } }
            @for (name, value) in &task.headers { dt { (name) } dd { (value) } }
            dt { "As JSON" } dd {
                @let answer = call.base.to(&format!("/api/v1/tasks/{}", task.task_id));
                a href=(answer) { "task" } ", " a href={ (answer) "/journal" } { "journal" }
            }
        }
    }
}

async fn cancel(call: Call, Path(task_id): Path<TaskId>) -> Result<Redirect, Problem> {
    call.own(task_id).await?.client.cancel(task_id).await?;
    Ok(back_to(&call, task_id))
}

async fn pause(call: Call, Path(task_id): Path<TaskId>) -> Result<Redirect, Problem> {
    call.own(task_id).await?.client.pause(task_id).await?;
    Ok(back_to(&call, task_id))
}

async fn resume(call: Call, Path(task_id): Path<TaskId>) -> Result<Redirect, Problem> {
    call.own(task_id).await?.client.resume(task_id).await?;
    Ok(back_to(&call, task_id))
}

async fn retry(call: Call, Path(task_id): Path<TaskId>) -> Result<Redirect, Problem> {
    call.told(call.own(task_id).await?.client.retry(task_id).await).await?;
    Ok(back_to(&call, task_id))
}

async fn retrigger(call: Call, Path(task_id): Path<TaskId>) -> Result<Redirect, Problem> {
    let new = call.own(task_id).await?.client.retrigger(task_id).await?.task_id;
    Ok(back_to(&call, new))
}

async fn delete(call: Call, Path(task_id): Path<TaskId>) -> Result<Redirect, Problem> {
    call.told(call.own(task_id).await?.client.delete(task_id).await).await?;
    call.forget(task_id).await;
    Ok(Redirect::to(&call.base.to("/tasks")))
}

#[derive(Deserialize)]
struct Message {
    topic: String,
    payload: String,
}

async fn send(
    call: Call,
    Path(task_id): Path<TaskId>,
    Form(Message { topic, payload }): Form<Message>,
) -> Result<Redirect, Problem> {
    let Own { client, .. } = call.own(task_id).await?;
    client.send(task_id, topic, &json_of("the message", &payload)?).await?;
    Ok(back_to(&call, task_id))
}

fn back_to(call: &Call, task_id: TaskId) -> Redirect {
    Redirect::to(&call.base.to(&format!("/tasks/{task_id}")))
}
