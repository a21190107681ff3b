//! The engine of Stepwell. Applications depend on the `stepwell` crate, which re-exports what they need.

#![forbid(unsafe_code)]

mod child;
mod client;
mod codec;
mod commit;
mod context;
mod delivery;
mod encoded;
mod engine;
mod envelope;
mod error;
mod executor;
mod failure;
mod hub;
mod ids;
mod journal;
mod lifecycle;
mod memory;
mod name;
mod operations;
mod options;
mod payload;
mod payloads;
mod polled;
mod queue;
mod retry;
mod run;
mod runtime;
mod slots;
mod step;
pub mod store;
mod task;
mod task_error;
mod task_info;
mod time;
mod transition;
mod worker;
mod worker_info;

pub use async_trait::async_trait;
pub use child::Child;
pub use client::{Client, SpawnResult, State};
pub use codec::{Codec, CodecError, Place, ReadOnly};
pub use context::{Answered, TaskContext, Timeout};
pub use delivery::Delivery;
pub use encoded::Encoded;
pub use error::Error;
pub use failure::{Failure, FailureKind, Retry, panic_message};
pub use ids::{RunId, TaskId, WorkerId};
pub use journal::{Entry, Key, Kind, Outcome};
pub use lifecycle::{Lifecycle, Subscription};
pub use memory::{MemoryStore, crashed, deleted};
pub use name::{InvalidName, MAX_NAME_BYTES, Name, StepName};
pub use options::{Settings, SpawnOptions, WorkerOptions};
pub use payload::{Payload, PayloadError};
pub use queue::{QueueAction, QueueChange, QueueInfo, QueueLimits, RateLimit};
pub use retry::RetryStrategy;
pub use runtime::{BoxFuture, MaybeSend, MaybeSync, Runtime};
pub use step::{Closure, Step};
pub use store::{
    CancellationPolicy, Headers, NewEvent, NewMessage, NewTask, Store, StoreError, TaskFilter, TaskInfo,
    TaskState,
};
pub use task::Task;
pub use task_error::{ControlFlow, TaskError, TaskResult};
pub use time::{Timestamp, after, from_micros, until};
pub use tokio_util::sync::CancellationToken;
pub use worker::Worker;
pub use worker_info::{WorkerInfo, WorkerState};
