//! The example `shipments`, as a user runs it, on PostgreSQL.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

mod example;
mod two_processes;

#[test]
fn a_worker_and_an_emitter_killed_half_way_lose_no_event() {
    let server = throwaway::Postgres::start().unwrap();
    two_processes::a_worker_and_an_emitter_killed_half_way_lose_no_event(&server.url());
}
