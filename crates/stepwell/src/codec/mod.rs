//! Payloads that are compressed or encrypted before the database keeps them.
//!
//! ```
//! # #[cfg(all(feature = "compression", feature = "encryption", feature = "sqlite"))]
//! # #[tokio::main]
//! # async fn main() -> anyhow::Result<()> {
//! use stepwell::Durable;
//! use stepwell::codec::{Compression, Encryption, Key};
//!
//! # let new = "Rqo0pVFpKKSzJBzzZFEvWfcQPmqlHJVeEYiJC1HtNxI=";
//! # let old = "pWqTZTuXK0gv1wZwJH4cHUqhLgDRzmsN4v5iOQC8Xmo=";
//! // From wherever secrets are kept; `openssl rand -base64 32` makes one.
//! let key = Key::from_base64("2026-11", new)?;
//! let last_years = Key::from_base64("2025-10", old)?;
//! let client = Durable::builder()
//!     .database_url("sqlite::memory:")
//!     .codec(Compression::new())
//!     .codec(Encryption::new(key).also_reads(last_years))
//!     .build()
//!     .await?;
//! # client.register_fn("double", |n: u64, _ctx: stepwell::TaskContext| async move {
//! #     Ok(n * 2)
//! # }).await?;
//! # let worker = client.start_worker(stepwell::WorkerOptions::default()).await;
//! # let task = client.spawn_named("double", &21).options(stepwell::SpawnOptions::new()).await?;
//! # assert_eq!(client.wait::<u64>(task.task_id).await?, 42);
//! # worker.shutdown().await;
//! # Ok(())
//! # }
//! # #[cfg(not(all(feature = "compression", feature = "encryption", feature = "sqlite")))]
//! # fn main() {}
//! ```
//!
//! Codecs are applied to the parameters and outputs of tasks, to journaled results, events and
//! messages, and to the texts of failures. The following values stay in plain text, because the
//! database finds tasks by them: names (of tasks, steps, events, topics, queues), idempotency keys,
//! concurrency keys, headers, times and states. `docs/operations/payloads.md` describes the places
//! that payloads are bound to, how keys are changed, and the limits.
//!
//! A payload that cannot be decoded fails the attempt that reads it, with an error that names the
//! payload and says what to do. The task's code does not run on, and the journal is not changed.
//! When the right key is configured, the next attempt continues from where the task was. The same
//! holds for [`Client::retry`](crate::Client::retry).

#[cfg(feature = "compression")]
mod compression;
#[cfg(feature = "encryption")]
mod encryption;

#[cfg(feature = "compression")]
pub use compression::Compression;
#[cfg(feature = "encryption")]
pub use encryption::{Encryption, InvalidKey, Key};
