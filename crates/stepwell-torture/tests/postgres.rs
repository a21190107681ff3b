//! A short torture of PostgreSQL servers. `cargo xtask torture` is the long one.

#![allow(clippy::panic, missing_docs, reason = "a test ends by a panic")]

use stepwell_torture::{Options, Store, run};

async fn torture(first: u64) {
    let options = Options {
        store: Store::Postgres,
        kills: 24,
        kills_per_window: 24,
        seed: rand::random(),
        first,
        program: env!("CARGO_BIN_EXE_stepwell-torture").into(),
    };
    match run(options).await {
        Ok(report) => println!("{report}"),
        Err(error) => panic!("{error:#}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_or_done_twice_behind_a_pooler_and_bad_connections() {
    torture(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nor_when_a_replica_takes_the_place_of_its_primary() {
    torture(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_there_is_whole_when_the_replica_lacks_what_came_last() {
    torture(2).await;
}
