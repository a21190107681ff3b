//! The fuzz targets: one function for each thing that Stepwell parses.
//!
//! A target gets any bytes. It panics when a promise is broken: not only when Stepwell panics, but
//! also when what was accepted does not come back as it was, when an error says nothing, or when an
//! input takes too long. cargo-fuzz runs the targets for any time (`cargo xtask fuzz --seconds N`),
//! and the tests of this crate run each of them on its seeds and on some thousand mutations of
//! these.

#![forbid(unsafe_code)]
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a target panics where a promise is broken"
)]

mod checkpoint;
mod database;
mod envelope;
mod export;
mod http;
mod journal;
mod json;
mod schedule;
mod url;
mod value;

use std::fmt::Display;
use std::future::Future;
use std::time::{Duration, Instant};

/// How long one input may take, also where the targets are built for debugging.
const LIMIT: Duration = Duration::from_secs(20);

/// The longest error, beside what it repeats of the input.
const LONGEST_ERROR: usize = 64 << 10;

/// Something that Stepwell parses.
pub struct Target {
    /// The name of its program, and of the folder of its seeds.
    pub name: &'static str,
    /// How often the tests run it on a mutated input: fewer times where a run takes longer.
    pub runs: usize,
    run: fn(&[u8]),
}

/// All targets.
pub const TARGETS: [Target; 10] = [
    Target { name: "json", runs: 100_000, run: json::run },
    Target { name: "value", runs: 50_000, run: value::run },
    Target { name: "envelope", runs: 10_000, run: envelope::run },
    Target { name: "export", runs: 1_000, run: export::run },
    Target { name: "checkpoint", runs: 20_000, run: checkpoint::run },
    Target { name: "schedule", runs: 10_000, run: schedule::run },
    Target { name: "url", runs: 50_000, run: url::run },
    Target { name: "http", runs: 500, run: http::run },
    Target { name: "journal", runs: 3_000, run: journal::run },
    Target { name: "database", runs: 300, run: database::run },
];

/// Runs the target of that name on an input.
///
/// # Panics
/// When a promise is broken, and when there is no such target.
pub fn run(name: &str, data: &[u8]) {
    let target = TARGETS.iter().find(|target| target.name == name).expect("a target of that name");
    let begin = Instant::now();
    (target.run)(data);
    assert!(begin.elapsed() < LIMIT, "it took {:?}", begin.elapsed());
}

/// Runs a future on a clock that goes on when everything waits.
fn in_virtual_time<T>(future: impl Future<Output = T>) -> T {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_time().start_paused(true).build().unwrap().block_on(future)
}

/// Returns what an error says, which is something, and no book.
#[track_caller]
fn said(error: impl Display, input: usize) -> String {
    let said = error.to_string();
    assert!(said.trim().len() > 8, "an error that says nothing: {said:?}");
    // Text that is repeated may be escaped.
    assert!(said.len() < LONGEST_ERROR + 8 * input, "an error of {} bytes", said.len());
    said
}
