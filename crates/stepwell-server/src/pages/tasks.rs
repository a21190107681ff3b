//! The page that lists tasks.

use std::sync::Arc;

use axum::Router;
use axum::response::{IntoResponse as _, Redirect, Response};
use axum::routing::get;
use maud::{Markup, html};
use serde::Deserialize;
use serde_json::Value;
use stepwell::store::{TRACE_HEADERS, until};
use stepwell::{Page, TaskFilter, TaskId, TaskInfo, TaskState};

use super::layout::{nothing, page};
use super::queues::encoded;
use super::route;
use super::words::{brief, duration, moment, state};
use crate::access::Operation;
use crate::api::tasks::Filter;
use crate::app::App;
use crate::call::Call;
use crate::extract::Query;
use crate::problem::Problem;

const PAGE: usize = 50;

pub(super) fn add_to(router: Router<Arc<App>>) -> Router<Arc<App>> {
    router.route("/tasks", route(Operation::ListTasks, get(list)))
}

/// The fields of the search form; an empty field does not filter.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Search {
    /// The id of a task.
    id: String,
    state: String,
    #[serde(rename = "type")]
    task_type: String,
    queue: String,
    label: String,
    parent: String,
    before: Option<TaskId>,
}

impl Search {
    fn filter(&self) -> Result<TaskFilter, Problem> {
        fn read<T: std::str::FromStr>(text: &str) -> Result<Option<T>, Problem> {
            match text.trim() {
                "" => Ok(None),
                text => {
                    let wrong = |_| Problem::bad_request(format!("{text:?} is no id of a task"));
                    text.parse().map(Some).map_err(wrong)
                }
            }
        }
        let name = |text: &str| match text.trim() {
            "" => Ok(None),
            text => stepwell::Name::new(text)
                .map(Some)
                .map_err(|error| Problem::bad_request(error.to_string())),
        };
        let labels = self.label.split_whitespace().map(ToOwned::to_owned).collect();
        let filter = Filter {
            state: TaskState::parse(&self.state),
            queue: name(&self.queue)?,
            task_type: name(&self.task_type)?,
            label: labels,
            parent: read(&self.parent)?,
            before: self.before,
            limit: Some(PAGE),
        };
        filter.read()
    }

    /// Returns the query of the page after a task.
    fn behind(&self, task_id: TaskId) -> String {
        let fields = [
            ("state", &self.state),
            ("type", &self.task_type),
            ("queue", &self.queue),
            ("label", &self.label),
            ("parent", &self.parent),
        ];
        let fields = fields.into_iter().filter(|(_, value)| !value.is_empty());
        let fields = fields.map(|(name, value)| format!("{name}={}&", encoded(value)));
        format!("?{}before={task_id}", fields.collect::<String>())
    }
}

async fn list(call: Call, Query(search): Query<Search>) -> Result<Response, Problem> {
    if !search.id.trim().is_empty() {
        let id = search.id.trim();
        let task_id: TaskId =
            id.parse().map_err(|_| Problem::bad_request(format!("{id:?} is no id of a task")))?;
        return Ok(Redirect::to(&call.base.to(&format!("/tasks/{task_id}"))).into_response());
    }
    let Page { items: tasks, next } = call.tasks(search.filter()?).await?;
    let content = html! {
        h1 { "Tasks" }
        (form(&search))
        @if tasks.is_empty() && next.is_none() {
            (nothing("No tasks pass", html! { "Nothing is there that passes these filters." }))
        } @else {
            (table(&call, &tasks))
            nav class="pages" aria-label="Pages of the list" {
                @if search.before.is_some() { a href=(call.base.to("/tasks")) { "Newest" } }
                @if let Some(next) = next {
                    a rel="next" href={ (call.base.to("/tasks")) (search.behind(next)) } { "Older" }
                }
            }
        }
    };
    Ok(page(&call, "/tasks", "Tasks", content).into_response())
}

fn form(search: &Search) -> Markup {
    html! {
        form class="filters" method="get" role="search" {
            label { "State" select name="state" id="filter-state" {
                option value="" { "any" }
                @for state in TaskState::ALL {
                    option value=(state.as_str()) selected[search.state == state.as_str()] {
                        (state.as_str())
                    }
                }
            } }
            label { "Type" input name="type" value=(search.task_type) id="filter-type"; }
            label { "Queue" input name="queue" value=(search.queue) id="filter-queue"; }
            label {
                "Labels"
                input name="label" value=(search.label) placeholder="tenant=acme" id="filter-label";
            }
            label { "Task id" input name="id" value=(search.id) id="filter-id" spellcheck="false"; }
            @if !search.parent.is_empty() {
                input type="hidden" name="parent" value=(search.parent);
            }
            button class="primary" { "Filter" }
        }
    }
}

/// Returns the headers of a task that people read, without the trace headers.
fn labels(task: &TaskInfo) -> impl Iterator<Item = (&String, &Value)> {
    task.headers.iter().filter(|(name, _)| !TRACE_HEADERS.contains(&name.as_str()))
}

pub(super) fn table(call: &Call, tasks: &[TaskInfo]) -> Markup {
    html! {
        div class="scroll" { table class="tasks" {
            thead { tr {
                th { "Task" } th { "State" } th { "Queue" } th class="number" { "Attempt" }
                th { "Spawned" } th class="number" { "Took" } th { "Parameters" }
            } }
            tbody { @for task in tasks {
                tr {
                    th scope="row" {
                        a href=(call.base.to(&format!("/tasks/{}", task.task_id))) {
                            (task.task_type)
                        }
                        @for (name, value) in labels(task) { @if let Some(value) = value.as_str() {
                            " " span class="label" { (name) "=" (value) }
                        } }
                    }
                    td {
                        (state(task.state))
                        @if task.paused { " " span class="state paused" { "paused" } }
                    }
                    td { (task.queue) }
                    td class="number" { (task.attempt) "/" (task.max_attempts) }
                    td { (moment(task.spawned_at)) }
                    td class="number" { @match task.finished_at {
                        Some(at) => (duration(until(task.spawned_at, at))),
                        None => "–",
                    } }
                    td class="value" { code { (brief(&task.params)) } }
                }
            } }
        } }
    }
}
