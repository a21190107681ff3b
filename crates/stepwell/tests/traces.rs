//! Traces, as OpenTelemetry collects them: one holds a task, its children, its retries, and what
//! went on after a crash.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::unit_arg,
    missing_docs,
    reason = "a test ends by a panic"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use opentelemetry::trace::{Status, TracerProvider as _};
use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider, SpanData};
use stepwell::testing::{Harness, Process, worker_options};
use stepwell::*;
use tracing::Instrument as _;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt as _;

/// What collects the spans of this thread.
struct Collector {
    exporter: InMemorySpanExporter,
    _provider: SdkTracerProvider,
    _guard: tracing::subscriber::DefaultGuard,
}

impl Collector {
    fn new(level: LevelFilter) -> Self {
        let exporter = InMemorySpanExporter::default();
        let provider = SdkTracerProvider::builder().with_simple_exporter(exporter.clone()).build();
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
        let subscriber = tracing_subscriber::registry().with(level).with(layer);
        let guard = tracing::subscriber::set_default(subscriber);
        Self { exporter, _provider: provider, _guard: guard }
    }

    /// The spans that have ended, in the order in which they began.
    fn spans(&self) -> Vec<SpanData> {
        let mut spans = self.exporter.get_finished_spans().unwrap();
        spans.sort_by_key(|span| span.start_time);
        spans
    }

    fn named(&self, name: &str) -> Vec<SpanData> {
        self.spans().into_iter().filter(|span| span.name == name).collect()
    }
}

fn field(span: &SpanData, name: &str) -> Option<String> {
    let found = span.attributes.iter().find(|attribute| attribute.key.as_str() == name)?;
    Some(found.value.as_str().into_owned())
}

#[stepwell::task]
async fn child(n: u32, ctx: TaskContext) -> TaskResult<u32> {
    ctx.step("double", || async { Ok(n * 2) }).await
}

#[stepwell::task]
async fn parent(n: u32, ctx: TaskContext) -> TaskResult<u32> {
    let attempts = ctx.state::<Arc<AtomicU32>>()?;
    let tries = AtomicU32::new(0);
    ctx.step("charge", || async {
        match tries.fetch_add(1, Ordering::SeqCst) {
            0 => anyhow::bail!("declined"),
            _ => Ok(()),
        }
    })
    .retry(RetryStrategy::Fixed { delay: Duration::from_secs(1) })
    .await?;
    let double = ctx.spawn::<child>("child", n).await?;
    let double = ctx.join(&double).await?;
    ctx.await_event::<()>("go on", None).await?;
    ctx.step("ship", || async {
        match attempts.fetch_add(1, Ordering::SeqCst) {
            0 => anyhow::bail!("no ship"),
            _ => Ok(double),
        }
    })
    .await
}

async fn start(harness: &Harness, attempts: &Arc<AtomicU32>) -> Process {
    let process = harness.start_with(|builder| builder.state(attempts.clone())).await.unwrap();
    process.register::<parent>().await.unwrap();
    process.register::<child>().await.unwrap();
    process.start_worker(worker_options()).await;
    process
}

async fn until_it_waits(process: &Process, task_id: TaskId) {
    while process.task(task_id).await.unwrap().unwrap().state != TaskState::Suspended
        || process.journal(task_id).await.unwrap().len() < 4
    {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn one_trace_holds_a_task_its_child_its_retries_and_what_went_on_after_a_crash() {
    let collector = Collector::new(LevelFilter::INFO);
    let (harness, attempts) = (Harness::new(), Arc::default());
    let first = start(&harness, &attempts).await;
    let request = tracing::info_span!("request");
    let task = first.spawn::<parent>(21).into_future().instrument(request.clone()).await.unwrap();
    drop(request);
    until_it_waits(&first, task.task_id).await;
    first.kill().await;

    let second = start(&harness, &attempts).await;
    second.emit_event("go on", &()).await.unwrap();
    assert_eq!(second.wait::<u32>(task.task_id).await.unwrap(), 42);
    second.shutdown(Duration::ZERO).await;

    let spans = collector.spans();
    let trace = collector.named("request")[0].span_context.trace_id();
    let stray: Vec<_> = spans
        .iter()
        .filter(|span| span.span_context.trace_id() != trace)
        .map(|span| &span.name)
        .collect();
    assert!(stray.is_empty(), "{stray:?}");

    let spawn = &collector.named("spawn parent")[0];
    assert_eq!(spawn.parent_span_id, collector.named("request")[0].span_context.span_id());
    assert_eq!(field(spawn, "task_id").unwrap(), task.task_id.to_string());
    let runs = collector.named("run parent");
    assert!(runs.iter().all(|run| run.parent_span_id == spawn.span_context.span_id()));
    assert!(runs.iter().all(|run| field(run, "task_id").unwrap() == task.task_id.to_string()));
    let outcomes: Vec<_> = runs.iter().filter_map(|run| field(run, "outcome")).collect();
    assert_eq!(outcomes.last().unwrap(), "completed");
    assert_eq!(outcomes.iter().filter(|outcome| *outcome == "retried").count(), 1, "{outcomes:?}");
    let failed =
        runs.iter().find(|run| field(run, "outcome").as_deref() == Some("retried")).unwrap();
    assert!(matches!(failed.status, Status::Error { .. }), "{:?}", failed.status);

    // A step that is replayed has no span, and a try that failed says so.
    let tries = collector.named("step charge");
    assert_eq!(tries.len(), 2);
    assert!(matches!(tries[0].status, Status::Error { .. }) && tries[1].status == Status::Unset);
    assert!(
        tries
            .iter()
            .all(|step| runs.iter().any(|run| run.span_context.span_id() == step.parent_span_id))
    );
    assert_eq!(collector.named("step ship").len(), 2);

    // The child's spawn is in a run of its parent, and only once.
    let spawns = collector.named("spawn child");
    assert_eq!(spawns.len(), 1);
    assert!(runs.iter().any(|run| run.span_context.span_id() == spawns[0].parent_span_id));
    let child = &collector.named("run child")[0];
    assert_eq!(child.parent_span_id, spawns[0].span_context.span_id());
}

#[tokio::test(start_paused = true)]
async fn tasks_of_their_own_have_traces_of_their_own_and_batches_are_in_none_of_them() {
    let collector = Collector::new(LevelFilter::DEBUG);
    let (harness, attempts) = (Harness::new(), Arc::default());
    let process = start(&harness, &attempts).await;
    let one = process.spawn::<child>(1).await.unwrap();
    process.wait::<u32>(one.task_id).await.unwrap();
    let again = process.retrigger(one.task_id).await.unwrap();
    process.wait::<u32>(again.task_id).await.unwrap();
    process.shutdown(Duration::ZERO).await;

    let trace = |span: &SpanData| span.span_context.trace_id();
    let runs = collector.named("run child");
    assert_eq!(runs.len(), 2);
    assert_ne!(trace(&runs[0]), trace(&runs[1]));
    let batches: Vec<_> =
        ["claim", "commit"].iter().flat_map(|name| collector.named(name)).collect();
    assert!(!collector.named("claim").is_empty() && !collector.named("commit").is_empty());
    assert!(batches.iter().all(|batch| runs.iter().all(|run| trace(run) != trace(batch))));
}

#[tokio::test(start_paused = true)]
async fn a_trace_from_elsewhere_is_carried_on_and_none_is_made_up_where_none_is_collected() {
    let (harness, attempts) = (Harness::new(), Arc::default());
    let process = start(&harness, &attempts).await;
    let untraced = process.spawn::<child>(1).await.unwrap();
    process.wait::<u32>(untraced.task_id).await.unwrap();
    assert!(process.task(untraced.task_id).await.unwrap().unwrap().headers.is_empty());

    let collector = Collector::new(LevelFilter::INFO);
    let from_elsewhere = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let options = SpawnOptions::new().header("traceparent", from_elsewhere);
    let task = process.spawn::<child>(1).options(options).await.unwrap();
    process.wait::<u32>(task.task_id).await.unwrap();
    process.shutdown(Duration::ZERO).await;
    let run = &collector.named("run child")[0];
    assert_eq!(run.span_context.trace_id().to_string(), "0af7651916cd43dd8448eb211c80319c");
    assert_eq!(run.parent_span_id.to_string(), "b7ad6b7169203331");
}
