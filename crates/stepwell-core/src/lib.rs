//! The engine of Stepwell. Applications depend on the `stepwell` crate, which re-exports what they need.

#![forbid(unsafe_code)]
// What happens follows from what was asked and from the runtime's randomness, and so a simulation can be run again.
#![warn(clippy::iter_over_hash_type)]

mod approval;
mod bisect;
mod child;
mod circle;
mod client;
mod codec;
mod codec_error;
mod commit;
mod compensation;
mod context;
mod crash;
mod delivery;
mod encoded;
mod ending;
mod engine;
mod envelope;
mod error;
mod executor;
mod export;
mod failure;
mod guard;
mod headers;
mod history;
mod holdings;
mod hub;
mod ids;
mod input_hash;
mod invalid_options;
mod item_progress;
mod item_work;
mod items;
mod journal;
mod lifecycle;
mod measures;
mod memory;
mod name;
mod notes;
mod operations;
mod page;
mod payload;
mod payloads;
mod polled;
mod queue;
mod record;
mod registry;
mod retention;
mod retry;
mod run;
mod runtime;
mod schedule;
mod scheduled;
mod scheduler;
#[cfg(feature = "schemas")]
mod schema;
mod scope;
mod settings;
mod shield;
mod slots;
mod spawn_options;
mod step;
mod step_cache;
pub mod store;
mod strict;
mod suspects;
mod task;
mod task_error;
mod task_info;
mod task_log;
mod text;
mod ticks;
mod time;
mod trace;
mod transition;
mod unreadable;
mod witness;
mod worker;
mod worker_info;
mod worker_options;
mod workflow;

pub use approval::{ApprovalInfo, AwaitApproval, Decision};
pub use async_trait::async_trait;
pub use child::{Child, Disposition};
pub use circle::{blocked, waits_for_ever};
#[doc(hidden)]
pub use client::Asked;
pub use client::{Client, SpawnResult, State};
pub use codec::{Codec, Place, ReadOnly};
pub use codec_error::CodecError;
pub use compensation::Cleanup;
pub use context::{Answered, TaskContext, Timeout};
pub use crash::{SUSPECT_CRASHES, crash_limit, crashed, crashes_after_another};
pub use delivery::Delivery;
pub use encoded::Encoded;
pub use ending::deleted;
pub use ending::{begun_anew, cancelled, compensating, end_of};
pub use error::Error;
pub use export::{Export, ImportError};
pub use failure::{CompensationError, Failure, FailureKind, Retry, Sources};
pub use guard::{Guarded, Panic, discard, guard};
pub use headers::TRACE_HEADERS;
pub use headers::{MAX_HEADERS_BYTES, MAX_LABELS};
pub use history::HistoryEntry;
pub use ids::{RunId, ScheduleVersion, TaskId, WorkerId};
pub use input_hash::{InputHash, InvalidInputHash};
pub use invalid_options::InvalidOptions;
pub use item_progress::{ErrorPolicy, ItemCounts, ItemError, ItemProgress, ItemsReport};
pub use item_work::{WorkError, Worked, work_on_items};
pub use items::Items;
pub use journal::{Entry, Key, Kind, Outcome};
pub use lifecycle::{Lifecycle, Subscription};
pub use memory::MemoryStore;
pub use name::{InvalidName, MAX_NAME_BYTES, MAX_STEP_NAME_BYTES, Name, StepName};
pub use notes::{LogLevel, LogLine, Progress};
pub use page::{ANSWER_BYTES, ANSWER_ITEMS, Listed, Page, Room};
pub use payload::{Payload, PayloadError};
pub use queue::{QueueAction, QueueChange, QueueInfo, QueueLimits, RateLimit};
pub use record::TaskRecord;
pub use retry::RetryStrategy;
pub use runtime::{BoxFuture, MaybeSend, MaybeSync, Runtime};
pub use schedule::{CatchUp, InvalidSchedule, Overlap, Schedule, ScheduleInfo, TICK_HEADER, Timing};
pub use scope::{Scope, have_labels, labels};
pub use settings::Settings;
pub use spawn_options::SpawnOptions;
pub use step::{Closure, Step};
pub use step_cache::{StepCache, StepCacheError};
pub use store::{
    CancellationPolicy, Coalesce, Headers, HistoryFilter, NewEvent, NewMessage, NewTask, Store, StoreError,
    TaskFilter, TaskInfo, TaskState, TaskTypeInfo,
};
pub use task::Task;
pub use task_error::{ControlFlow, TaskError, TaskResult, closure_failure};
pub use time::{Timestamp, after, from_micros, until};
pub use tokio_util::sync::CancellationToken;
pub use unreadable::{UnknownWord, Unreadable};
pub use worker::Worker;
pub use worker_info::{OtherWorker, WATCHED, WorkerInfo, WorkerState, WorkerStatus};
pub use worker_options::WorkerOptions;
pub use workflow::{
    AfterLoop, AfterStep, Edge, Graph, GraphNode, HasHandler, NodeKind, Snapshot, Whole, Workflow,
    WorkflowContext, WorkflowError,
};
