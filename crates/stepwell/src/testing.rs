//! Tools for tests of durable programs: virtual time, crashes, a store in memory.
//!
//! In a test with a paused tokio clock, time passes only while every future waits, and then it
//! jumps: a task that sleeps for a week takes milliseconds.
//!
//! ```
//! use std::time::Duration;
//! use stepwell::testing::{Harness, worker_options};
//! use stepwell::{TaskContext};
//!
//! # // A doctest cannot be `#[tokio::test(start_paused = true)]`.
//! # let mut runtime = tokio::runtime::Builder::new_current_thread();
//! # runtime.enable_all().start_paused(true).build().unwrap().block_on(async {
//! let harness = Harness::new();
//! let process = harness.start().await;
//! process.register_fn("patient", |(): (), ctx: TaskContext| async move {
//!     ctx.sleep_for("a week", Duration::from_secs(7 * 24 * 3600)).await
//! }).await?;
//! let worker = process.start_worker(worker_options()).await;
//! let task = process.spawn_named("patient", &()).await?;
//! process.wait::<()>(task.task_id).await?;
//! # anyhow::Ok(())
//! # }).unwrap();
//! ```

mod dice;
mod fault;
mod fingerprint;
mod harness;
mod intercepted;
mod line;
mod moment;
mod open;
mod play;
mod runtime;
mod shrink;
mod world;

pub use dice::Dice;
pub use fault::{Fault, Faults, Outage, Planned};
pub use harness::{Harness, Process, worker_options};
pub use intercepted::Intercepted;
pub use play::{Play, Report, simulate};
pub use shrink::shrink;
pub use world::{Place, Seen, World};
