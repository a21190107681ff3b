//! Spans of the engine's work, for a collector of [`tracing`] spans, and the trace that a task is
//! part of.
//!
//! ```text
//!   the spawning code
//!      └ spawn ─────────┬ run, attempt 1 ──┬ step          INFO
//!        (the task's    │                  ├ step
//!        headers keep   │                  └ spawn ─── run of the child ─ …
//!        its context)   ├ run, attempt 2, or going on after a crash or a suspension
//!                       └ …
//!   claim, commit: about many tasks at once, so in no task's trace    DEBUG
//! ```
//!
//! With the feature `opentelemetry`, the engine writes the context of the span `spawn` to the
//! task's headers as `traceparent` and `tracestate` ([W3C Trace
//! Context](https://www.w3.org/TR/trace-context/)). Every run begins from there, so that one trace
//! holds the parent, its children, the retries, and the runs after a crash on another machine.

use tracing::level_filters::LevelFilter;
use tracing::{Span, debug_span, field::Empty, info_span};

use crate::base::failure::Failure;
use crate::base::ids::{RunId, TaskId, WorkerId};
use crate::base::journal::Key;
use crate::base::name::Name;
use crate::observe::measures::Ended;
use crate::store::headers::TRACE_HEADERS;
use crate::store::{Batch, Headers, NewTask};

/// Makes a span, if a collector wants spans of its level.
///
/// `tracing` by itself would make the fields of the span in every build with its bridge to `log`,
/// which `sqlx` asks for.
macro_rules! wanted {
    ($level:ident, $span:expr) => {
        if LevelFilter::current() >= LevelFilter::$level { $span } else { Span::none() }
    };
}

/// Returns the span around the spawn of a task.
pub(crate) fn spawn(task_type: &str) -> Span {
    wanted!(
        INFO,
        info_span!(
            "spawn",
            otel.name = format!("spawn {task_type}"),
            otel.kind = "producer",
            task_type,
            task_id = Empty
        )
    )
}

/// Makes a task within the span, and writes the context of the span to its headers, unless they
/// have another one.
pub(crate) fn carried<E>(
    span: &Span,
    new: impl FnOnce() -> Result<NewTask, E>,
) -> Result<NewTask, E> {
    span.in_scope(|| {
        let mut task = new()?;
        span.record("task_id", tracing::field::display(task.task_id));
        if !TRACE_HEADERS.iter().any(|name| task.headers.contains_key(*name)) {
            context::inject(&mut task.headers);
        }
        Ok(task)
    })
}

/// Removes the trace from the headers of a task that is not part of it.
pub(crate) fn untraced(mut headers: Headers) -> Headers {
    TRACE_HEADERS.iter().for_each(|name| _ = headers.remove(*name));
    headers
}

/// Returns the span around a run, up to its end or its suspension.
pub(crate) fn run(
    task_type: &Name,
    (task_id, run_id): (TaskId, RunId),
    attempt: u32,
    headers: &Headers,
) -> Span {
    let span = wanted!(
        INFO,
        info_span!(
            parent: None,
            "run",
            otel.name = format!("run {task_type}"),
            otel.kind = "consumer",
            otel.status_code = Empty,
            %task_type,
            %task_id,
            %run_id,
            attempt,
            outcome = Empty,
            error = Empty,
        )
    );
    context::adopt(headers, &span);
    span
}

/// Records the end of a run in its span, with the failure if there is one.
pub(crate) fn ended(span: &Span, ended: Ended, failure: Option<&Failure>) {
    span.record("outcome", ended.as_str());
    if let Some(failure) = failure {
        failed(span, failure);
    }
}

/// Records the failure of a run or a try in its span.
pub(crate) fn failed(span: &Span, failure: &Failure) {
    span.record("otel.status_code", "ERROR");
    span.record("error", tracing::field::display(failure));
}

/// Returns the span around one try of a step.
pub(crate) fn step(key: &Key, tries: u32) -> Span {
    wanted!(
        INFO,
        info_span!(
            "step",
            otel.name = format!("{} {}", key.kind.as_str(), key.label()),
            otel.status_code = Empty,
            step = key.label(),
            tries,
            error = Empty,
        )
    )
}

/// Returns the span around a claim.
pub(crate) fn claim(worker_id: WorkerId, limit: usize) -> Span {
    wanted!(DEBUG, debug_span!(parent: None, "claim", %worker_id, limit, claimed = Empty))
}

/// Returns the span around the commit of a batch.
pub(crate) fn commit(batch: &Batch) -> Span {
    wanted!(
        DEBUG,
        debug_span!(
            parent: None,
            "commit",
            transitions = batch.transitions.len(),
            spawns = batch.spawns.len(),
            claims = batch.claims.len(),
        )
    )
}

#[cfg(not(feature = "opentelemetry"))]
mod context {
    use super::{Headers, Span};

    pub(super) fn inject(_: &mut Headers) {}

    pub(super) fn adopt(_: &Headers, _: &Span) {}
}

#[cfg(feature = "opentelemetry")]
mod context {
    use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator as _};
    use opentelemetry_sdk::propagation::TraceContextPropagator;
    use tracing_opentelemetry::OpenTelemetrySpanExt as _;

    use super::{Headers, Span, TRACE_HEADERS};

    struct Write<'a>(&'a mut Headers);

    impl Injector for Write<'_> {
        fn set(&mut self, key: &str, value: String) {
            // A trace without a state has an empty one.
            if !value.is_empty() {
                self.0.insert(key.to_owned(), value.into());
            }
        }
    }

    struct Read<'a>(&'a Headers);

    impl Extractor for Read<'_> {
        fn get(&self, key: &str) -> Option<&str> {
            self.0.get(key)?.as_str()
        }

        fn keys(&self) -> Vec<&str> {
            TRACE_HEADERS.into_iter().filter(|name| self.0.contains_key(*name)).collect()
        }
    }

    /// Writes the current span's context to the headers, if the span is collected.
    pub(super) fn inject(headers: &mut Headers) {
        let span = Span::current();
        if !span.is_disabled() {
            TraceContextPropagator::new().inject_context(&span.context(), &mut Write(headers));
        }
    }

    /// Makes the span part of the trace that the headers name.
    pub(super) fn adopt(headers: &Headers, span: &Span) {
        if !span.is_disabled() {
            // Without a collector there is no trace.
            let _ = span.set_parent(TraceContextPropagator::new().extract(&Read(headers)));
        }
    }
}
