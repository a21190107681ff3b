//! Durable execution for Rust. You write ordinary `async` code, and every step's result is
//! journaled. When the process dies, a worker that is alive continues the task from the last
//! journaled step.
//!
//! ```
//! use std::time::Duration;
//! use stepwell::{Durable, TaskContext, TaskResult, WorkerOptions};
//!
//! #[stepwell::task]
//! async fn order(item: String, ctx: TaskContext) -> TaskResult<String> {
//!     // Journaled: it does not run again after a crash.
//!     let receipt = ctx.step("charge", || async { Ok(format!("receipt for {item}")) }).await?;
//!     // Plain tokio, durable: whichever came first comes first again in a replay.
//!     let packed: Option<String> = tokio::select! {
//!         packed = ctx.await_event("packed", None) => Some(packed?),
//!         _ = ctx.sleep_for("deadline", Duration::from_millis(10)) => None,
//!     };
//!     Ok(packed.unwrap_or(receipt))
//! }
//!
//! # #[tokio::main]
//! # async fn main() -> anyhow::Result<()> {
//! let client = Durable::builder().database_url("sqlite::memory:").build().await?;
//! client.register::<order>().await?;
//! let worker = client.start_worker(WorkerOptions::default()).await;
//! let task = client.spawn::<order>("teapot".into()).await?;
//! let result: String = client.wait(task.task_id).await?;
//! assert_eq!(result, "receipt for teapot");
//! worker.shutdown().await;
//! # Ok(())
//! # }
//! ```
//!
//! Start with [`Durable::builder`], [`Task`] and [`TaskContext`].
//!
//! # Crate features
//!
//! | feature | default | what it adds |
//! | --- | --- | --- |
//! | `sqlite` | yes | The embedded SQLite store, for `sqlite://…` URLs. It needs a C compiler. |
//! | `postgres` | no | The PostgreSQL store, for `postgres://…` URLs. It needs Rust 1.94. |
//! | `compression` | no | Payloads that are compressed with zstd, in the module `codec`. |
//! | `encryption` | no | Payloads that are encrypted with AES-256-GCM, in the module `codec`. |
//! | `schemas` | no | JSON schemas of task types, and checks by them: `client.register_described`. |
//! | `opentelemetry` | no | Traces that continue from a spawn to the runs of its task. |
//! | `testing` | no | The module `testing`: virtual time and crashes, for tests. |

#![cfg_attr(docsrs, feature(doc_cfg))]
#![forbid(unsafe_code)]

#[cfg(any(feature = "compression", feature = "encryption"))]
pub mod codec;
mod durable;
#[cfg(feature = "testing")]
pub mod testing;
mod tokio_runtime;

pub use durable::{DATABASE_URL_VARIABLE, DEFAULT_DATABASE_URL, Durable, DurableBuilder};
// The client, and what it is built from.
pub use stepwell_core::{
    CancellationPolicy, CancellationToken, Client, Coalesce, Disposition, Emit, Error, Headers,
    MAX_HEADERS_BYTES, MAX_LABELS, RetryStrategy, Scope, Spawn, SpawnOptions, SpawnResult,
    TICK_HEADER, async_trait,
};
// Tasks, and what their code calls.
pub use stepwell_core::{
    Answered, AwaitApproval, Child, Cleanup, Closure, ControlFlow, Delivery, ErrorPolicy,
    InputHash, InvalidInputHash, ItemCounts, ItemError, ItemProgress, Items, ItemsReport, Retry,
    SpawnChild, Step, StepCache, StepCacheError, Task, TaskContext, TaskError, TaskResult, Timeout,
};
// Workers, queues, schedules and approvals.
pub use stepwell_core::{
    ApprovalFilter, ApprovalInfo, Approvals, CatchUp, Decision, InvalidSchedule, Overlap,
    QueueInfo, QueueLimits, Queues, RateLimit, Schedule, ScheduleInfo, Schedules, Timing, Worker,
    WorkerInfo, WorkerOptions, WorkerState, Workers,
};
// Workflows.
pub use stepwell_core::{
    AfterLoop, AfterStep, Edge, Graph, GraphNode, HasHandler, NodeKind, Snapshot, Whole, Workflow,
    WorkflowContext, WorkflowError,
};
// What a client reads.
pub use stepwell_core::{
    CompensationError, Entry, Export, Failure, FailureKind, HistoryEntry, HistoryFilter,
    ImportError, Key, Kind, Lifecycle, LogLevel, LogLine, Outcome, Page, Payload, PayloadError,
    Progress, RunId, Sources, Subscription, TaskFilter, TaskId, TaskInfo, TaskState, TaskTypeInfo,
    WorkerId,
};
// Names, options and values.
pub use stepwell_core::{
    InvalidName, InvalidOptions, MAX_NAME_BYTES, MAX_STEP_NAME_BYTES, Name, StepName, Timestamp,
};
// What a program may implement: codecs, runtimes.
pub use stepwell_core::{
    BoxFuture, Codec, CodecError, MaybeSend, MaybeSync, Place, ReadOnly, Runtime,
};
// Stores for the builder; the module `store` has the rest of their contract.
pub use stepwell_core::{MemoryStore, Store, StoreError};

/// The contract of a store, its types, and the rules that stores share, for authors of stores.
///
/// The crate `stepwell-conformance` checks a store.
pub mod store {
    pub use stepwell_core::store::*;
    pub use stepwell_core::{
        ANSWER_BYTES, ANSWER_ITEMS, Encoded, Guarded, Listed, NewEvent, NewMessage, NewTask,
        OtherWorker, Panic, QueueAction, QueueChange, Room, SUSPECT_CRASHES, ScheduleVersion,
        SpawnRequest, TRACE_HEADERS, TaskRecord, UnknownWord, Unreadable, UserTransaction, WATCHED,
        WorkerStatus, after, blocked, cancelled, compensating, crash_limit, crashed,
        crashes_after_another, deleted, discard, end_of, from_micros, guard, have_labels, labels,
        retry_entry, until, waits_for_ever,
    };
}
/// Turns an `async fn` whose last parameter is a [`TaskContext`] into a task type.
///
/// The macro defines a type with the function's name, for [`Client::register`] and
/// [`Client::spawn`]. The function itself stays callable. The task type has the function's name, or
/// the name of `#[stepwell::task(name = "…")]`. A single parameter beside the context is the task's
/// `Params`; several parameters are a tuple.
///
/// ```
/// use stepwell::{Task, TaskContext, TaskResult};
///
/// #[stepwell::task]
/// async fn greet(name: String, ctx: TaskContext) -> TaskResult<String> {
///     ctx.step("greeting", || async { Ok(format!("Hello, {name}!")) }).await
/// }
///
/// #[stepwell::task(name = "sum-up")]
/// async fn sum(a: u64, b: u64, _ctx: TaskContext) -> TaskResult<u64> {
///     Ok(a + b)
/// }
///
/// assert_eq!((greet::NAME, sum::NAME), ("greet", "sum-up"));
/// ```
pub use stepwell_macros::task;
#[cfg(feature = "postgres")]
pub use stepwell_postgres as postgres;
#[cfg(feature = "sqlite")]
pub use stepwell_sqlite as sqlite;
pub use tokio_runtime::TokioRuntime;

/// Items that the macro's code uses; not part of the public API.
#[doc(hidden)]
pub mod macro_support {
    /// A return type of a task's function.
    pub trait Returned {
        /// The type of the task's output.
        type Output;
    }

    impl<T> Returned for stepwell_core::TaskResult<T> {
        type Output = T;
    }
}

/// Documents whose code examples are compiled and run with the tests.
#[cfg(all(doctest, feature = "sqlite"))]
mod documents {
    #[doc = include_str!("../../../docs/coming-from/durable.md")]
    struct Durable;
    #[doc = include_str!("../../../docs/coming-from/durably.md")]
    struct Durably;
    #[doc = include_str!("../../../docs/coming-from/strav-durable.md")]
    struct StravDurable;
}

#[cfg(all(
    doctest,
    feature = "sqlite",
    feature = "postgres",
    feature = "testing",
    feature = "schemas"
))]
mod guide {
    #[doc = include_str!("../../../docs/introduction.md")]
    struct Introduction;
    #[doc = include_str!("../../../docs/guide/quick-start.md")]
    struct QuickStart;
    #[doc = include_str!("../../../docs/guide/steps.md")]
    struct Steps;
    #[doc = include_str!("../../../docs/guide/waiting.md")]
    struct Waiting;
    #[doc = include_str!("../../../docs/guide/failure.md")]
    struct Failure;
    #[doc = include_str!("../../../docs/guide/many-items.md")]
    struct ManyItems;
    #[doc = include_str!("../../../docs/guide/workflows.md")]
    struct Workflows;
    #[doc = include_str!("../../../docs/guide/your-data.md")]
    struct YourData;
    #[doc = include_str!("../../../docs/guide/queues-and-workers.md")]
    struct QueuesAndWorkers;
    #[doc = include_str!("../../../docs/guide/testing.md")]
    struct Testing;
    #[doc = include_str!("../../../docs/guide/watching.md")]
    struct Watching;
}
