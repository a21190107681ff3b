//! The engine of Stepwell.
//!
//! Applications depend on the `stepwell` crate, which re-exports the items that they need.
//!
//! # Crate features
//!
//! | feature | default | what it adds |
//! | --- | --- | --- |
//! | `schemas` | no | JSON schemas of task types, and checks by them. |
//! | `opentelemetry` | no | Traces that continue from a spawn to the runs of its task. |

#![cfg_attr(docsrs, feature(doc_cfg))]
#![forbid(unsafe_code)]
// A simulation can be repeated, because the engine's behaviour follows only from its input and the
// runtime's randomness.
#![warn(clippy::iter_over_hash_type)]

mod base;
mod client;
mod codec;
mod context;
mod engine;
mod memory;
mod observe;
pub mod store;
mod workflow;

pub use async_trait::async_trait;
pub use base::codec_error::CodecError;
pub use base::failure::{CompensationError, Failure, FailureKind, Retry, Sources};
pub use base::guard::{Guarded, Panic, discard, guard};
pub use base::ids::{RunId, ScheduleVersion, TaskId, WorkerId};
pub use base::input_hash::{InputHash, InvalidInputHash};
pub use base::invalid_options::InvalidOptions;
pub use base::journal::{Entry, Key, Kind, Outcome};
pub use base::name::{InvalidName, MAX_NAME_BYTES, MAX_STEP_NAME_BYTES, Name, StepName};
pub use base::payload::{Payload, PayloadError};
pub use base::retry::RetryStrategy;
pub use base::runtime::{BoxFuture, MaybeSend, MaybeSync, Runtime};
pub use base::time::{Timestamp, after, from_micros, until};
pub use base::unreadable::{OutOfRange, UnknownWord, Unreadable};
pub use client::approvals::{ApprovalFilter, Approvals};
pub use client::emit::Emit;
pub use client::error::Error;
pub use client::export::{Export, ImportError};
pub use client::queues::Queues;
pub use client::schedules::Schedules;
pub use client::spawn::{Spawn, SpawnRequest, SpawnResult};
pub use client::transaction::UserTransaction;
pub use client::workers::Workers;
pub use client::{Client, State};
pub use codec::encoded::Encoded;
pub use codec::{Codec, Place, ReadOnly};
pub use context::approval::{ApprovalInfo, AwaitApproval, Decision};
pub use context::children::SpawnChild;
pub use context::item_progress::{ErrorPolicy, ItemCounts, ItemError, ItemProgress, ItemsReport};
pub use context::item_work::{WorkError, Worked, work_on_items};
pub use context::items::Items;
pub use context::task::Task;
pub use context::{Answered, TaskContext, Timeout};
pub use engine::run::child::{Child, Disposition};
pub use engine::run::compensation::Cleanup;
pub use engine::run::delivery::Delivery;
pub use engine::run::step::{Closure, Step};
pub use engine::run::step_cache::{StepCache, StepCacheError};
pub use engine::settings::Settings;
pub use engine::task_error::{ControlFlow, TaskError, TaskResult, closure_failure};
pub use engine::worker::Worker;
pub use engine::worker_options::WorkerOptions;
pub use memory::MemoryStore;
pub use observe::history::HistoryEntry;
pub use observe::lifecycle::{Lifecycle, Subscription};
pub use observe::notes::{LogLevel, LogLine, Progress};
pub use store::headers::TICK_HEADER;
pub use store::headers::TRACE_HEADERS;
pub use store::headers::have_labels;
pub use store::headers::labels;
pub use store::headers::{MAX_HEADERS_BYTES, MAX_LABELS};
pub use store::page::{ANSWER_BYTES, ANSWER_ITEMS, Listed, Page, Room};
pub use store::queue::{QueueAction, QueueChange, QueueInfo, QueueLimits, RateLimit};
pub use store::record::TaskRecord;
pub use store::rules::circle::{blocked, waits_for_ever};
pub use store::rules::crash::{SUSPECT_CRASHES, crash_limit, crashed, crashes_after_another};
pub use store::rules::ending::deleted;
pub use store::rules::ending::{cancelled, compensating, end_of, retry_entry};
pub use store::schedule::{CatchUp, Overlap, Schedule, ScheduleInfo};
pub use store::scope::Scope;
pub use store::spawn_options::SpawnOptions;
pub use store::timing::InvalidSchedule;
pub use store::timing::Timing;
pub use store::worker_info::{OtherWorker, WATCHED, WorkerInfo, WorkerState, WorkerStatus};
pub use store::{
    CancellationPolicy, Coalesce, Headers, HistoryFilter, NewEvent, NewMessage, NewTask, Store,
    StoreError, TaskFilter, TaskInfo, TaskState, TaskTypeInfo,
};
pub use tokio_util::sync::CancellationToken;
pub use workflow::{
    AfterLoop, AfterStep, Edge, Graph, GraphNode, HasHandler, NodeKind, Snapshot, Whole, Workflow,
    WorkflowContext, WorkflowError,
};

/// The examples of the page that crates.io shows.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
