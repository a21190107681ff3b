//! The engine of Stepwell. Applications depend on the `stepwell` crate, which re-exports what they need.

#![forbid(unsafe_code)]

mod failure;
mod ids;
mod journal;
mod memory;
mod name;
mod payload;
mod retry;
mod runtime;
pub mod store;
mod task_error;
mod time;

pub use failure::{Failure, FailureKind, Retry};
pub use ids::{RunId, TaskId, WorkerId};
pub use journal::{Entry, Key, Kind, Outcome};
pub use memory::{MemoryStore, crashed, deleted};
pub use name::{InvalidName, MAX_NAME_BYTES, Name, StepName};
pub use payload::{Payload, PayloadError};
pub use retry::RetryStrategy;
pub use runtime::{BoxFuture, MaybeSend, MaybeSync, Runtime};
pub use store::{
    CancellationPolicy, Headers, NewEvent, NewMessage, NewTask, Store, StoreError, TaskFilter, TaskInfo,
    TaskState,
};
pub use task_error::{ControlFlow, TaskError, TaskResult};
pub use time::{Timestamp, after, from_micros, until};
