//! The examples' programs, as their tests run them.

#![allow(dead_code, reason = "not each of the tests uses all of it")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::time::{Duration, Instant};
use std::{fs, thread};

/// How long something may take before it is stuck.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// An example's program, which `cargo test` builds beside its test.
pub(crate) fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let profile = test.parent().and_then(Path::parent).unwrap();
    let program = profile.join("examples").join(name);
    let written = |path: &Path| path.metadata().and_then(|metadata| metadata.modified()).ok();
    let sources = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap();
    let newest = sources.map(|source| written(&source.unwrap().path())).max().unwrap();
    if written(&program) < newest {
        // `--test …` and `--all-targets` do not build it.
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--package", "stepwell-examples", "--example", name, "--target-dir"]);
        build.arg(profile.parent().unwrap());
        if profile.ends_with("release") {
            build.arg("--release");
        }
        assert!(build.status().unwrap().success());
    }
    program
}

/// Waits until the condition holds, or the program has ended.
pub(crate) fn wait_until(child: &mut Child, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while child.try_wait().unwrap().is_none() && !holds() {
        assert!(begun.elapsed() < PATIENCE, "it takes too long");
        thread::yield_now();
    }
}

/// What a program says has no control characters, whatever its input has.
pub(crate) fn assert_plain(output: &Output) {
    for stream in [&output.stdout, &output.stderr] {
        let text = std::str::from_utf8(stream).unwrap();
        assert!(!text.contains(|c: char| c.is_control() && c != '\n'), "{text:?}");
    }
}
