//! The example `csv_import`, as a user runs it: killed, run again, its table looked at.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

mod example;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Instant;

use serde_json::{Value, json};
use stepwell::sqlite::rusqlite::{Connection, OpenFlags};
use tempfile::TempDir;

use crate::example::{PATIENCE, assert_plain, program, wait_until};

const ROWS: u32 = 6_000;
/// How many rows are in one batch: so few that a kill comes in the middle.
const BATCH: &str = "10";
const READINGS: &str = "CREATE TABLE readings (
    sensor INTEGER NOT NULL, place TEXT NOT NULL, celsius REAL CHECK (celsius > -273.15), note TEXT,
    UNIQUE (sensor, place)
) STRICT";

struct Scene {
    dir: TempDir,
}

impl Scene {
    fn new() -> Self {
        let scene = Self { dir: TempDir::new().unwrap() };
        fs::write(scene.path("readings.sql"), READINGS).unwrap();
        scene
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, file: &Path, args: &[&str]) -> Command {
        let mut command = Command::new(program("csv_import"));
        command.arg(file).arg("--database").arg(self.path("my.db")).args(args);
        command.stdin(Stdio::null()).env_remove("RUST_LOG");
        command
    }

    /// Imports the text as `readings.csv`. What the program answers, and what it says beside that.
    fn import(&self, text: impl AsRef<[u8]>, args: &[&str]) -> (Option<i32>, String, String) {
        fs::write(self.path("readings.csv"), text).unwrap();
        let output = self.command(&self.path("readings.csv"), args).output().unwrap();
        said(output)
    }

    fn number(&self, sql: &str) -> u64 {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY;
        let open = Connection::open_with_flags(self.path("my.db"), flags);
        let count = open.and_then(|conn| conn.query_row(sql, [], |row| row.get::<_, i64>(0)));
        count.unwrap_or(0).unsigned_abs()
    }
}

fn said(output: Output) -> (Option<i32>, String, String) {
    assert_plain(&output);
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// The row of that number, and whether the table takes it.
fn row(n: u32) -> (String, bool) {
    let (place, celsius) =
        (format!("\"room {n}, \"\"north\"\"\nof the house\""), f64::from(n % 400) / 10.0);
    match n % 1_000 {
        500 => (format!("{n},{place},{celsius}"), false),
        600 => (format!("{n},{place},warm,"), false),
        700 => (format!("{n},,{celsius},"), false),
        800 => (format!("{n},{place},-300,"), false),
        900 => (row(n - 1).0, false),
        _ => (
            format!("{n},{place},{celsius},{}", if n.is_multiple_of(3) { "" } else { "fine" }),
            true,
        ),
    }
}

#[test]
fn killed_half_way_it_goes_on_and_every_row_is_there_once() {
    let scene = Scene::new();
    let mut text = "sensor,place,celsius,note\n".to_owned();
    let mut bad = Vec::new();
    for n in 0..ROWS {
        let (row, good) = row(n);
        if !good {
            bad.push(1 + text.lines().count() as u64);
        }
        text += &row;
        text.push('\n');
    }
    let file = scene.path("readings.csv");
    fs::write(&file, text).unwrap();
    let create = scene.path("readings.sql");
    let args = ["--create", create.to_str().unwrap(), "--batch", BATCH, "--json"];

    let mut kills_in_work = 0;
    for part in 1..=3 {
        let mut child = scene
            .command(&file, &args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let enough = part * u64::from(ROWS) / 5;
        wait_until(&mut child, || scene.number("SELECT count(*) FROM csv_import_rows") >= enough);
        child.kill().unwrap();
        let output = child.wait_with_output().unwrap();
        if output.status.code().is_none() {
            kills_in_work += 1;
            assert_eq!(scene.number("SELECT count(*) FROM readings"), 0, "nobody sees half a file");
        }
    }
    assert!(kills_in_work > 0, "no kill came while it worked");

    let (code, answer, beside) = said(scene.command(&file, &args).output().unwrap());
    assert_eq!(code, Some(0), "{beside}");
    assert!(
        beside.starts_with("Going on: ") && beside.ends_with(" rows were read before.\n"),
        "{beside}"
    );
    let imported: Value = serde_json::from_str(&answer).unwrap();
    let good = u64::from(ROWS) - bad.len() as u64;
    assert_eq!((&imported["rows"], &imported["bad"]), (&json!(good), &json!(bad.len())));
    let lines: Vec<_> = imported["first_bad"]
        .as_array()
        .unwrap()
        .iter()
        .map(|bad| bad["line"].as_u64().unwrap())
        .collect();
    assert_eq!(lines, bad[..20]);
    let whys: Vec<_> = (0..5).map(|n| imported["first_bad"][n]["why"].as_str().unwrap()).collect();
    let expected = [
        "it has 3 fields in place of 4",
        "cannot store TEXT value in REAL column readings.celsius",
        "NOT NULL constraint failed: readings.place",
        "CHECK constraint failed: celsius > -273.15",
        "UNIQUE constraint failed: readings.sensor, readings.place",
    ];
    assert_eq!(whys, expected);

    assert_eq!(scene.number("SELECT count(*) FROM readings"), good);
    assert_eq!(scene.number("SELECT count(DISTINCT sensor) FROM readings"), good);
    let numbers = (0..u64::from(ROWS)).filter(|n| row(u32::try_from(*n).unwrap()).1).sum::<u64>();
    assert_eq!(scene.number("SELECT sum(sensor) FROM readings"), numbers);
    let as_written = "SELECT count(*) FROM readings WHERE celsius = sensor % 400 / 10.0
        AND place = format('room %d, \"north\"%sof the house', sensor, char(10))
        AND note IS iif(sensor % 3 = 0, NULL, 'fine')";
    assert_eq!(scene.number(as_written), good);
    assert_eq!(scene.number("SELECT count(*) FROM csv_import_rows"), 0);

    let (code, again, beside) = said(scene.command(&file, &args).output().unwrap());
    assert_eq!((code, again), (Some(0), answer));
    assert_eq!(beside, "This file was imported into the table \"readings\" before.\n");
    assert_eq!(scene.number("SELECT count(*) FROM readings"), good);
}

#[test]
fn a_file_that_changed_in_the_middle_is_another_and_leaves_nothing_behind() {
    let scene = Scene::new();
    let rows = |offset: u32| {
        let rows = (offset..offset + ROWS).map(|n| format!("{n},here,1.0,\n"));
        format!("sensor,place,celsius,note\n{}", rows.collect::<String>())
    };
    let create = scene.path("readings.sql");
    let args = ["--create", create.to_str().unwrap(), "--batch", BATCH];
    let file = scene.path("readings.csv");
    fs::write(&file, rows(0)).unwrap();
    let mut child =
        scene.command(&file, &args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_until(&mut child, || scene.number("SELECT count(*) FROM csv_import_rows") > 0);
    child.kill().unwrap();
    assert_eq!(child.wait().unwrap().code(), None, "it was to be killed in the middle");

    let (code, answer, beside) = scene.import(rows(ROWS), &args);
    assert_eq!(code, Some(0), "{beside}");
    assert_eq!(answer, "6000 rows imported into the table \"readings\", 0 bad rows skipped\n");
    assert_eq!(scene.number("SELECT min(sensor) FROM readings"), u64::from(ROWS));
    // The next worker does what is left to be done of the other one.
    let begun = Instant::now();
    while scene.number("SELECT count(*) FROM stepwell_tasks WHERE state = 'failed'") == 0 {
        assert!(begun.elapsed() < PATIENCE, "the first import does not end");
        assert_eq!(scene.import(rows(ROWS), &args).1, answer);
    }
    assert_eq!(scene.number("SELECT count(*) FROM csv_import_rows"), 0);
}

#[test]
fn the_sample_is_imported() {
    let scene = Scene::new();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("csv_import");
    let create = folder.join("zones.sql");
    let args = ["--create", create.to_str().unwrap()];
    let (code, answer, beside) =
        said(scene.command(&folder.join("zones.csv"), &args).output().unwrap());
    let expected = "312 rows imported into the table \"zones\", 0 bad rows skipped\n";
    assert_eq!((code, answer.as_str()), (Some(0), expected), "{beside}");
    assert_eq!(scene.number("SELECT count(*) FROM zones WHERE countries LIKE '%DE%'"), 2);
}

#[test]
fn what_cannot_be_imported_gets_a_clear_answer() {
    let scene = Scene::new();
    let create = scene.path("readings.sql");
    let create = ["--create", create.to_str().unwrap()];
    let failed = |text: &[u8], args: &[&str]| {
        let (code, answer, beside) = scene.import(text, args);
        assert_eq!((code, answer.as_str()), (Some(1), ""), "{beside}");
        assert!(beside.starts_with("csv_import: "), "{beside}");
        beside
    };
    let text = b"sensor,place\n1,here\n";
    let none = failed(text, &[]);
    assert!(
        none.contains("the database has no table \"readings\": create it, or give its SQL"),
        "{none}"
    );
    // It failed, and is not in the way of the next try.
    let other = failed(text, &["--table", "others", create[0], create[1]]);
    assert!(other.contains("the SQL of `--create` makes no table \"others\""), "{other}");
    let column = failed(b"sensor,colour\n1,red\n", &create);
    assert!(column.contains("the table \"readings\" has no column \"colour\""), "{column}");
    let empty = failed(b"", &create);
    assert!(empty.contains("has to name the columns of the table"), "{empty}");
    let (code, answer, _) = scene.import(b"sensor,place\r\n\r\n1,here\r\n\n2,\xff\r\n", &create);
    assert_eq!(code, Some(0));
    let expected = "1 rows imported into the table \"readings\", 1 bad rows skipped\n  line 5: its \
                    field 2 is not UTF-8\n";
    assert_eq!(answer, expected);
    let missing = said(scene.command(Path::new("/no/such/file"), &[]).output().unwrap()).2;
    assert!(missing.starts_with("csv_import: cannot open /no/such/file: "), "{missing}");
}
