//! Tests of the PostgreSQL store against a real server: `cargo xtask test` starts one, or
//! `TEST_POSTGRES_URL` names one.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::unit_arg,
    missing_docs,
    reason = "a test ends by a panic"
)]

mod asynchronous_failover;
mod bad_input;
mod clocks;
mod conformance;
mod damaged_rows;
mod database;
mod exactly_once;
mod full_disk;
mod long_answers;
mod lossy_network;
mod lost_answers;
mod plans;
mod schedules;
mod settings;
mod standby;
mod tls;
mod user_transactions;
