//! Throwaway servers for tests and benchmarks, started from the programs that are installed.
//!
//! ```no_run
//! let postgres = throwaway::Postgres::start()?;
//! println!("{}", postgres.url());
//! # anyhow::Ok(())
//! ```
//!
//! Each server has a new folder and a free port of 127.0.0.1. Both are gone when the value is
//! dropped, and also when the process that started it is killed.

#![forbid(unsafe_code)]

mod binaries;
mod demo;
mod dynamodb;
mod guard;
mod one_process;
mod pgbouncer;
mod port;
mod postgres;
mod process;
mod redis;
mod replica;
mod user;

pub use crate::binaries::{pgbouncer_binary, postgres_binaries};
pub use crate::demo::Demo;
pub use crate::dynamodb::{DynamoDb, moto_binary};
pub use crate::pgbouncer::PgBouncer;
pub use crate::postgres::{Postgres, Stop};
pub use crate::redis::{Redis, redis_binary};

/// The superuser of every server.
const SUPERUSER: &str = "stepwell";
const PASSWORD: &str = "secret";

/// Where the server on this port answers.
fn url(port: u16) -> String {
    format!("postgres://{SUPERUSER}:{PASSWORD}@127.0.0.1:{port}/postgres")
}
