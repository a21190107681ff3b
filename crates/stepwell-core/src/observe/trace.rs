//! Spans of what the engine does, for whoever collects them with [`tracing`], and the trace that a
//! task is part of.
//!
//! ```text
//!   whoever spawns
//!      └ spawn ─────────┬ run, attempt 1 ──┬ step          INFO
//!        (the task's    │                  ├ step
//!        headers keep   │                  └ spawn ─── run of the child ─ …
//!        its context)   ├ run, attempt 2, or going on after a crash or a suspension
//!                       └ …
//!   claim, commit: about many tasks at once, so in no task's trace    DEBUG
//! ```
//!
//! With the feature `opentelemetry`, the context of the span `spawn` is written to the task's
//! headers as `traceparent` and `tracestate` ([W3C Trace Context](https://www.w3.org/TR/trace-context/)), and every run begins from there: one trace
//! holds the parent, its children, the retries, and what went on after a crash on another machine.

use tracing::level_filters::LevelFilter;
use tracing::{Span, debug_span, field::Empty, info_span};

use crate::base::failure::Failure;
use crate::base::ids::{RunId, TaskId, WorkerId};
use crate::base::journal::Key;
use crate::base::name::Name;
use crate::observe::measures::Ended;
use crate::store::headers::TRACE_HEADERS;
use crate::store::{Batch, Headers, NewTask};

/// A span, where somebody collects spans of its level. `tracing` by itself would make its fields
/// all the same wherever its bridge to `log` is compiled in, which `sqlx` asks for.
macro_rules! wanted {
    ($level:ident, $span:expr) => {
        if LevelFilter::current() >= LevelFilter::$level { $span } else { Span::none() }
    };
}

/// Around the spawn of a task.
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

/// A task that is made within that span carries its context, unless it was given another.
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

/// Headers of a task that is not part of the trace that they were made in.
pub(crate) fn untraced(mut headers: Headers) -> Headers {
    TRACE_HEADERS.iter().for_each(|name| _ = headers.remove(*name));
    headers
}

/// Around a run, up to its end or its suspension.
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

/// How the run ended, and why.
pub(crate) fn ended(span: &Span, ended: Ended, failure: Option<&Failure>) {
    span.record("outcome", ended.as_str());
    if let Some(failure) = failure {
        failed(span, failure);
    }
}

/// Why a run or a try failed.
pub(crate) fn failed(span: &Span, failure: &Failure) {
    span.record("otel.status_code", "ERROR");
    span.record("error", tracing::field::display(failure));
}

/// Around one try of a step.
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

/// Around a claim.
pub(crate) fn claim(worker_id: WorkerId, limit: usize) -> Span {
    wanted!(DEBUG, debug_span!(parent: None, "claim", %worker_id, limit, claimed = Empty))
}

/// Around the commit of a batch.
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

    /// Writes the current span's context, if somebody collects its trace.
    pub(super) fn inject(headers: &mut Headers) {
        let span = Span::current();
        if !span.is_disabled() {
            TraceContextPropagator::new().inject_context(&span.context(), &mut Write(headers));
        }
    }

    /// Makes the span part of the trace that the headers tell of.
    pub(super) fn adopt(headers: &Headers, span: &Span) {
        if !span.is_disabled() {
            // Without a collector there is nothing to be part of.
            let _ = span.set_parent(TraceContextPropagator::new().extract(&Read(headers)));
        }
    }
}
