//! The example `shipments`, as a user runs it, on SQLite.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

mod example;
mod two_processes;

use std::fs;

#[test]
fn a_worker_and_an_emitter_killed_half_way_lose_no_event() {
    let folder = tempfile::tempdir().unwrap();
    let database = format!("sqlite://{}/shipments.db", folder.path().display());
    two_processes::a_worker_and_an_emitter_killed_half_way_lose_no_event(&database);
}

#[test]
fn what_is_wrong_gets_a_clear_answer() {
    let folder = tempfile::tempdir().unwrap();
    let said = |args: &[&str]| {
        let output = two_processes::command("sqlite::memory:", args).output().unwrap();
        crate::example::assert_plain(&output);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    let file = |text: &str| {
        let path = folder.path().join("lines.jsonl");
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let shipment = r#"{"tracking":"T1","customer":"Ada","hours":1}"#;
    for (text, answer) in [
        ("", "holds no shipments"),
        ("{}", "line 1 of "),
        (
            &*shipment.replace("Ada", r"\u001b[31m"),
            "each text has to have 1 to 100 printable characters",
        ),
        (&*format!("{shipment}\n{shipment}"), "T1 is in "),
    ] {
        let said = said(&["work", &file(text)]);
        assert!(said.starts_with("shipments: ") && said.contains(answer), "{said}");
    }
    let said_of_event =
        said(&["emit", &file(r#"{"tracking":"T1","what":"eaten","place":"x","at":"2026-11-20"}"#)]);
    assert!(said_of_event.contains("unknown variant `eaten`"), "{said_of_event}");
    let said_of_file = said(&["emit", "/no/such/file"]);
    assert!(said_of_file.contains("cannot open /no/such/file"), "{said_of_file}");
}

#[test]
fn a_database_that_is_none_gets_a_clear_answer() {
    let output = std::process::Command::new(example::program("shipments"))
        .args(["--database", "mysql://localhost", "emit", "/dev/null"])
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("the scheme `mysql` is unknown"), "{said}");
}
