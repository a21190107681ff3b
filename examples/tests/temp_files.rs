//! The example `temp_files`, as a user runs it: killed half-way, and run again.
#![cfg(unix)]
#![allow(clippy::unwrap_used, missing_docs, reason = "a test ends by a panic")]

mod example;

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use stepwell_checkpoint::Checkpoint;
use stepwell_checkpoint::key_value::Files;

use crate::example::program;

const FILES: usize = 60;

fn names(folder: &Path) -> BTreeSet<String> {
    let names = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name != ".checkpoint").collect()
}

#[tokio::test]
async fn killed_half_way_and_run_again_it_sorts_every_file_once_and_leaves_no_temporary_file() {
    let folder = tempfile::tempdir().unwrap();
    let (input, output) = (folder.path().join("in"), folder.path().join("out"));
    fs::create_dir(&input).unwrap();
    let number = |n: usize| n.wrapping_mul(2_654_435_761) % 1_000_003;
    for file in 0..FILES {
        let lines: Vec<_> =
            (0..500).map(|line| format!("{:07}\n", number(file * 1_000 + line))).collect();
        fs::write(input.join(format!("file {file:02}.txt")), lines.concat()).unwrap();
    }
    let mut command = Command::new(program("temp_files"));
    command.args([&input, &output]);

    let mut first = command.stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(first.stdout.take().unwrap()).lines();
    // Killed while it sorts the thirtieth file, or soon after.
    assert_eq!(
        lines.take(30).map(Result::unwrap).filter(|line| line.starts_with("sorting ")).count(),
        30
    );
    first.kill().unwrap();
    first.wait().unwrap();
    let store = Files::open(output.join(".checkpoint")).await.unwrap();
    let left = Checkpoint::inspect(&store, "temp_files").await.unwrap().unwrap().status;
    assert!((25..FILES).contains(&left.done.len()), "{left:?}");
    let sorted_before = names(&output);

    let second = command.output().unwrap();
    let told = String::from_utf8(second.stdout).unwrap();
    assert!(second.status.success(), "{}", String::from_utf8_lossy(&second.stderr));
    let again: BTreeSet<_> =
        told.lines().filter_map(|line| line.strip_prefix("sorting ")).collect();
    assert_eq!(again.len(), FILES - left.done.len());
    assert!(
        left.done
            .iter()
            .all(|step| !again.iter().any(|name| step.starts_with(&format!("sort:{name}:"))))
    );
    assert_eq!(told.matches("removed ").count(), left.cleanups.len());
    assert!(told.ends_with("30000 lines are sorted\n"), "{told}");
    assert!(sorted_before.iter().filter(|name| !name.starts_with('.')).count() >= left.done.len());

    assert_eq!(names(&output), names(&input));
    for name in names(&input) {
        let mut lines: Vec<_> =
            fs::read_to_string(input.join(&name)).unwrap().lines().map(str::to_owned).collect();
        lines.sort_unstable();
        let sorted = fs::read_to_string(output.join(&name)).unwrap();
        assert!(sorted.lines().eq(lines.iter().map(String::as_str)), "{name}");
    }
    assert!(Checkpoint::inspect(&store, "temp_files").await.unwrap().is_none());
}
