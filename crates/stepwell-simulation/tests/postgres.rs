//! Some histories of the simulation on PostgreSQL, with each run of the tests. `cargo xtask sim
//! --postgres` plays more.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "a test ends by a panic")]

mod played;

use std::sync::Arc;

use stepwell_simulation::{Backend, Postgres};

use crate::played::histories;

#[test]
fn whatever_happens_the_guarantees_hold_on_postgres() {
    let url = std::env::var("TEST_POSTGRES_URL")
        .expect("this test needs PostgreSQL: run `cargo xtask test`");
    histories(0..16, &Backend::Postgres(Arc::new(Postgres::new(url).unwrap())), "--postgres ");
}
