//! The example `shipments` on a database: a process that works and one that emits, both killed
//! half-way.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};

use crate::example::{PATIENCE, program};

const SHIPMENTS: usize = 60;

pub(crate) fn command(database: &str, args: &[&str]) -> Command {
    let mut command = Command::new(program("shipments"));
    command.args(["--database", database]).args(args).env_remove("RUST_LOG");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A process whose lines are read as they come.
struct Running {
    child: Child,
    lines: Receiver<String>,
}

impl Running {
    fn start(database: &str, args: &[&str]) -> Self {
        let mut child = command(database, args).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (send, lines) = mpsc::channel();
        std::thread::spawn(move || stdout.lines().try_for_each(|line| send.send(line.unwrap())));
        Self { child, lines }
    }

    /// The next lines of the process; it must not end before.
    fn next(&self, count: usize) -> Vec<String> {
        (0..count).map(|_| self.lines.recv_timeout(PATIENCE).unwrap()).collect()
    }

    fn kill(mut self) -> Vec<String> {
        self.child.kill().unwrap();
        assert_eq!(self.child.wait().unwrap().code(), None, "it was to be killed in the middle");
        self.lines.iter().collect()
    }

    /// The last lines of the process, and what it says of mistakes.
    fn end(self) -> (Vec<String>, String) {
        let output = self.child.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
        (self.lines.iter().collect(), String::from_utf8(output.stderr).unwrap())
    }
}

/// The shipments and the events of a test: each third of the events is packed, picked up, or the
/// last.
fn write_files(folder: &Path) -> Vec<String> {
    let shipments = (0..SHIPMENTS).map(|n| {
        // The last one gets no events, and is late at once.
        let hours = if n + 1 == SHIPMENTS { 0 } else { 336 };
        format!(r#"{{"tracking":"T{n}","customer":"customer {n}","hours":{hours}}}"#)
    });
    fs::write(folder.join("shipments.jsonl"), shipments.collect::<Vec<_>>().join("\n")).unwrap();
    let mut events = Vec::new();
    for stage in 0..3 {
        for n in 0..SHIPMENTS - 1 {
            let what =
                ["packed", "picked_up", if n % 10 == 3 { "lost" } else { "delivered" }][stage];
            let (place, at) = ("Köln", "2026-11-20T08:12:00Z");
            events.push(format!(
                r#"{{"tracking":"T{n}","what":"{what}","place":"{place}","at":"{at}"}}"#
            ));
        }
    }
    fs::write(folder.join("events.jsonl"), events.join("\n")).unwrap();
    events
}

pub(crate) fn a_worker_and_an_emitter_killed_half_way_lose_no_event(database: &str) {
    let folder = tempfile::tempdir().unwrap();
    let events = write_files(folder.path());
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let work = ["work", &path("shipments.jsonl")];

    // Half of the events reach a worker, which is killed among them.
    let mut emitter = Running::start(database, &["emit", "-"]);
    let mut input = emitter.child.stdin.take().unwrap();
    let half = events.len() / 2;
    for event in &events[..half] {
        writeln!(input, "{event}").unwrap();
    }
    let worker = Running::start(database, &work);
    let mut told = worker.next(half / 2);
    told.extend(worker.kill());
    // Some more while nobody works. Then the emitter dies as well.
    let more = half + half / 2;
    for event in &events[half..more] {
        writeln!(input, "{event}").unwrap();
    }
    let emitted = emitter.next(more);
    assert_eq!(emitted[..2], ["packed:T0", "packed:T1"]);
    emitter.kill();

    // Everything is emitted again, and a new worker goes on.
    let worker = Running::start(database, &work);
    let (lines, said) = Running::start(database, &["emit", &path("events.jsonl")]).end();
    assert_eq!(said, "");
    let new = events.len() - more;
    assert_eq!(*lines.last().unwrap(), format!("{new} events emitted, {more} were known"));
    let (lines, said) = worker.end();
    assert_eq!(said, format!("{SHIPMENTS} of the {SHIPMENTS} shipments were followed before.\n"));
    told.extend(lines);
    assert_eq!(told.pop().unwrap(), "53 delivered, 6 lost, 1 late");

    let mut times = BTreeMap::<_, usize>::new();
    for line in &told {
        *times.entry(line.as_str()).or_default() += 1;
    }
    assert_eq!(times.len(), events.len(), "each event was told of");
    assert!(times.contains_key("T3 lost in Köln: told customer 3"), "{told:?}");
    assert!(
        times.values().all(|times| *times <= 2),
        "only what the kill cut off was told of twice"
    );
    // A worker runs one step of each task at a time.
    assert!(told.len() < events.len() + SHIPMENTS, "{} of {}", told.len(), events.len());
}
