//! Throwaway servers do what a test asks of them, and leave nothing behind.

#![allow(clippy::unwrap_used, missing_docs, reason = "a test ends by a panic")]

use std::io::{BufRead as _, BufReader};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use throwaway::{PgBouncer, Postgres, Stop, pgbouncer_binary, postgres_binaries};

/// What psql prints for a statement at a URL, or what it says when it fails.
fn psql(url: &str, statement: &str) -> Result<String, String> {
    let program = postgres_binaries().unwrap().join("psql");
    let output = Command::new(program).args(["-XAtq", url, "-c", statement]).output().unwrap();
    let text = |bytes| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(30), "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn answers(port: u16) -> bool {
    TcpStream::connect(("127.0.0.1", port)).is_ok()
}

#[test]
fn a_server_answers_and_is_durable() {
    let postgres = Postgres::start().unwrap();
    let value = |name: &str| psql(&postgres.url(), &format!("SHOW {name}")).unwrap();
    let names =
        ["fsync", "synchronous_commit", "full_page_writes", "max_connections", "server_encoding"];
    assert_eq!(names.map(value), ["on", "on", "on", "200", "UTF8"]);
}

#[test]
fn a_wrong_password_is_refused() {
    let postgres = Postgres::start().unwrap();
    let refused = psql(&postgres.url().replace("secret", "guess"), "SELECT 1").unwrap_err();
    assert!(refused.contains("password authentication failed"), "{refused}");
}

#[test]
fn settings_and_place_are_the_callers_to_choose() {
    let parent = tempfile::tempdir().unwrap();
    // For the server's user, who may be another one.
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(parent.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let settings = [("max_connections", "17"), ("application_name", r"it's a \ name")];
    let postgres = Postgres::start_in(parent.path(), &settings).unwrap();
    assert_eq!(postgres.folder().parent(), Some(parent.path()));
    assert_eq!(postgres.sql("SHOW max_connections").unwrap(), "17");
    let set = "SELECT setting FROM pg_file_settings WHERE name = 'application_name'";
    assert_eq!(postgres.sql(set).unwrap(), r"it's a \ name");
}

#[test]
fn a_server_that_does_not_start_says_why() {
    let error = Postgres::with_settings(&[("no_such_setting", "1")]).unwrap_err();
    assert!(format!("{error:#}").contains("unrecognized configuration parameter"), "{error:#}");
}

#[test]
fn data_survives_stops() {
    let postgres = Postgres::start().unwrap();
    let url = postgres.url();
    psql(&url, "CREATE TABLE kept (number integer)").unwrap();
    for (how, rows) in [(Stop::Immediate, "1"), (Stop::Fast, "2")] {
        psql(&url, "INSERT INTO kept VALUES (1)").unwrap();
        postgres.stop(how).unwrap();
        assert!(!answers(postgres.port()));
        postgres.start_again().unwrap();
        assert_eq!(psql(&url, "SELECT count(*) FROM kept").unwrap(), rows);
    }
}

#[test]
fn a_replica_gets_rows_and_can_be_promoted() {
    let primary = Postgres::start().unwrap();
    primary.sql("CREATE TABLE copied (number integer)").unwrap();
    let replica = primary.replica().unwrap();
    primary.sql("INSERT INTO copied VALUES (1)").unwrap();
    eventually("the row is copied", || replica.sql("SELECT count(*) FROM copied").unwrap() == "1");
    let refused = replica.sql("INSERT INTO copied VALUES (2)").unwrap_err();
    assert!(format!("{refused:#}").contains("read-only transaction"), "{refused:#}");

    primary.stop(Stop::Immediate).unwrap();
    replica.promote().unwrap();
    replica.sql("INSERT INTO copied VALUES (2)").unwrap();
    assert_eq!(psql(&replica.url(), "SELECT count(*) FROM copied").unwrap(), "2");
}

#[test]
fn a_commit_waits_for_a_synchronous_replica() {
    let primary = Postgres::start().unwrap();
    primary.sql("CREATE TABLE copied (number integer)").unwrap();
    primary.use_synchronous("replica").unwrap();
    let mut waiting = Command::new(postgres_binaries().unwrap().join("psql"))
        .args(["-Xq", &primary.url(), "-c", "INSERT INTO copied VALUES (1)"])
        .spawn()
        .unwrap();
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    eventually("the commit waits", || primary.sql(waits).unwrap() == "1");

    let replica = primary.replica().unwrap();
    assert!(waiting.wait().unwrap().success());
    let state = "SELECT application_name, sync_state FROM pg_stat_replication";
    eventually("the replica is synchronous", || primary.sql(state).unwrap() == "replica|sync");

    // Alone, the replica waits for nobody.
    primary.stop(Stop::Immediate).unwrap();
    replica.promote().unwrap();
    replica.sql("INSERT INTO copied VALUES (2)").unwrap();
}

#[test]
fn a_dropped_server_leaves_nothing() {
    let postgres = Postgres::start().unwrap();
    let (port, folder) = (postgres.port(), postgres.folder().to_owned());
    assert!(answers(port) && folder.exists());
    drop(postgres);
    assert!(!answers(port) && !folder.exists());
}

/// The program that the next test kills: this test's own binary.
#[test]
#[ignore = "started by the test that kills it"]
fn program_with_a_server() {
    let postgres = Postgres::start().unwrap();
    println!("\nserver {} {}", postgres.port(), postgres.folder().display());
    std::thread::sleep(Duration::from_secs(60));
}

#[test]
fn a_killed_process_leaves_nothing() {
    let mut program = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "--nocapture", "program_with_a_server"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(program.stdout.take().unwrap()).lines();
    let line =
        lines.find_map(|line| line.unwrap().strip_prefix("server ").map(String::from)).unwrap();
    let (port, folder) = line.split_once(' ').unwrap();
    let port = port.parse().unwrap();
    assert!(answers(port));
    program.kill().unwrap();
    program.wait().unwrap();
    eventually("the server and its folder are gone", || {
        !answers(port) && !Path::new(folder).exists()
    });
}

#[test]
fn pgbouncer_shares_connections_between_transactions() {
    if pgbouncer_binary().is_none() {
        eprintln!("NOT RUN: PgBouncer is not installed");
        return;
    }
    let postgres = Postgres::start().unwrap();
    let pgbouncer = PgBouncer::start(&postgres).unwrap();
    assert_ne!(pgbouncer.url(), postgres.url());
    for _ in 0..5 {
        assert_eq!(psql(&pgbouncer.url(), "SELECT 1").unwrap(), "1");
    }
    let connections = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'psql'";
    assert_eq!(psql(&pgbouncer.url(), connections).unwrap(), "1");
    let refused = psql(&pgbouncer.url().replace("secret", "guess"), "SELECT 1").unwrap_err();
    assert!(refused.contains("authentication failed"), "{refused}");

    let url = pgbouncer.url();
    drop(pgbouncer);
    assert!(psql(&url, "SELECT 1").unwrap_err().contains("Connection refused"));
}
