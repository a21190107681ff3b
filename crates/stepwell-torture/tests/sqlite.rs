//! A short torture of a SQLite file. `cargo xtask torture` is the long one.

#![allow(clippy::panic, missing_docs, reason = "a test ends by a panic")]

use stepwell_torture::{Options, Store, run};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_or_done_twice_when_processes_that_share_a_file_are_killed() {
    let options = Options {
        store: Store::Sqlite,
        kills: 150,
        kills_per_window: 75,
        seed: rand::random(),
        first: 0,
        program: env!("CARGO_BIN_EXE_stepwell-torture").into(),
    };
    match run(options).await {
        Ok(report) => println!("{report}"),
        Err(error) => panic!("{error:#}"),
    }
}
