//! The metrics that the store knows, in the format of Prometheus. Workers send their own metrics to
//! their own recorders ([`measure`](stepwell::DurableBuilder::measure)).

use std::fmt::{Display, Write as _};
use std::sync::Arc;

use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Extension, Router};
use stepwell::store::until;

use crate::access::Operation;
use crate::app::App;
use crate::call::Call;
use crate::problem::Problem;

const KIND: &str = "text/plain; version=0.0.4; charset=utf-8";

pub(crate) fn router() -> Router<Arc<App>> {
    Router::new().route("/metrics", get(metrics).layer(Extension(Operation::ReadOverview)))
}

async fn metrics(call: Call) -> Result<impl IntoResponse, Problem> {
    let (queues, workers) = (
        call.everything()?.client.queues().list().await?,
        call.everything()?.client.workers().list().await?,
    );
    let mut page = Page::default();
    page.gauge("stepwell_queue_tasks", "Tasks that have not ended");
    for queue in &queues {
        let name = queue.queue.as_str();
        for (state, count) in
            [("pending", queue.pending), ("running", queue.running), ("suspended", queue.suspended)]
        {
            page.value("stepwell_queue_tasks", &[("queue", name), ("state", state)], count);
        }
    }
    page.gauge(
        "stepwell_queue_oldest_seconds",
        "How long the task has waited that could have been claimed first",
    );
    let now = call.now();
    for queue in &queues {
        let waited = queue.ready_at.map_or(0.0, |ready_at| until(ready_at, now).as_secs_f64());
        page.value("stepwell_queue_oldest_seconds", &[("queue", queue.queue.as_str())], waited);
    }
    page.gauge("stepwell_queue_paused", "Whether a queue is paused");
    for queue in &queues {
        page.value(
            "stepwell_queue_paused",
            &[("queue", queue.queue.as_str())],
            u8::from(queue.paused),
        );
    }
    page.gauge("stepwell_worker_slots", "How many tasks a living worker runs at most");
    for worker in workers.iter().filter(|worker| worker.alive) {
        let labels =
            [("worker", worker.name.as_str()), ("worker_id", &worker.worker_id.to_string())];
        page.value("stepwell_worker_slots", &labels, worker.concurrency);
    }
    page.gauge("stepwell_worker_running", "How many tasks a living worker runs");
    for worker in workers.iter().filter(|worker| worker.alive) {
        let labels =
            [("worker", worker.name.as_str()), ("worker_id", &worker.worker_id.to_string())];
        page.value("stepwell_worker_running", &labels, worker.running);
    }
    Ok(([(header::CONTENT_TYPE, KIND)], page.0))
}

#[derive(Default)]
struct Page(String);

impl Page {
    fn gauge(&mut self, name: &str, help: &str) {
        // A write to a string does not fail.
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} gauge\n");
    }

    fn value(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        let labels: Vec<_> =
            labels.iter().map(|(label, value)| format!("{label}=\"{}\"", escaped(value))).collect();
        let _ = writeln!(self.0, "{name}{{{}}} {value}", labels.join(","));
    }
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_users_stay_within_their_quotes() {
        let mut page = Page::default();
        page.value("m", &[("queue", "a\"b\\c\nd")], 7);
        assert_eq!(page.0, "m{queue=\"a\\\"b\\\\c\\nd\"} 7\n");
    }
}
