//! Payloads that are compressed or encrypted before the database keeps them.
//!
//! ```
//! # #[cfg(all(feature = "compression", feature = "encryption", feature = "sqlite"))]
//! # #[tokio::main]
//! # async fn main() -> anyhow::Result<()> {
//! use stepwell::Durable;
//! use stepwell::codec::{Compression, Encryption, Key};
//!
//! # let (new, old) = ("Rqo0pVFpKKSzJBzzZFEvWfcQPmqlHJVeEYiJC1HtNxI=", "pWqTZTuXK0gv1wZwJH4cHUqhLgDRzmsN4v5iOQC8Xmo=");
//! // From wherever secrets are kept; `openssl rand -base64 32` makes one.
//! let key = Key::from_base64("2026-11", new)?;
//! let last_years = Key::from_base64("2025-10", old)?;
//! let client = Durable::builder()
//!     .database_url("sqlite::memory:")
//!     .codec(Compression::new())
//!     .codec(Encryption::new(key).also_reads(last_years))
//!     .build()
//!     .await?;
//! # client.register_fn("double", |n: u64, _ctx: stepwell::TaskContext| async move { Ok(n * 2) }).await?;
//! # let worker = client.start_worker(stepwell::WorkerOptions::default()).await;
//! # let task = client.spawn_named("double", &21, stepwell::SpawnOptions::new()).await?;
//! # assert_eq!(client.wait::<u64>(task.task_id).await?, 42);
//! # worker.shutdown().await;
//! # Ok(())
//! # }
//! # #[cfg(not(all(feature = "compression", feature = "encryption", feature = "sqlite")))]
//! # fn main() {}
//! ```
//!
//! Codecs are applied to parameters, outputs, what is journaled, events, messages, and to what
//! failures say. Names (of tasks, steps, events, topics, queues), keys of idempotency and
//! concurrency, headers, times and states are kept as they are: the database finds tasks by them.
//! `docs/operations/payloads.md` says more: what is bound to what, how keys are changed, and what
//! the limits are.
//!
//! A payload that cannot be decoded fails the attempt that reads it, with an error that says which
//! it is and what to do. The task's code is not asked, and the journal stays as it was: with the
//! right key, the next attempt, or [`Client::retry`](crate::Client::retry), goes on from where the
//! task was.

#[cfg(feature = "compression")]
mod compression;
#[cfg(feature = "encryption")]
mod encryption;

#[cfg(feature = "compression")]
pub use compression::Compression;
#[cfg(feature = "encryption")]
pub use encryption::{Encryption, InvalidKey, Key};
