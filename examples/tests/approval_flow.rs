//! The example `approval_flow`, as a user runs it: submitted in one database, decided in another.
#![allow(clippy::unwrap_used, missing_docs, reason = "a test ends by a panic")]

mod example;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use crate::example::program;

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[output.stdout.as_slice(), output.stderr.as_slice()].concat())
        .into_owned()
}

#[test]
fn expenses_are_submitted_in_one_database_and_decided_in_another() {
    let folder = tempfile::tempdir().unwrap();
    let program = program("approval_flow");
    let run = |database: &str, args: &[&str]| {
        let mut command = Command::new(&program);
        command.current_dir(folder.path()).args(["--database", database]).args(args);
        let output = command.output().unwrap();
        (output.status.success(), text(&output))
    };
    let expenses = Path::new(env!("CARGO_MANIFEST_DIR")).join("approval_flow/expenses.json");
    let (ok, said) = run("a.db", &["submit", expenses.to_str().unwrap()]);
    assert!(ok && said.matches("checked ").count() == 3, "{said}");
    let (ok, said) = run("a.db", &["submit", expenses.to_str().unwrap()]);
    assert!(ok && said.is_empty(), "each is submitted once: {said}");
    let (ok, said) = run("a.db", &["export", "moved"]);
    assert!(ok && said.matches("exported ").count() == 3, "{said}");
    fs::remove_file(folder.path().join("a.db")).unwrap();

    let (ok, said) = run("b.db", &["import", "moved"]);
    assert!(ok && said.matches("imported ").count() == 3, "{said}");
    assert!(said.matches("wait for ada since").count() == 3 && !said.contains("checked"), "{said}");
    let (ok, said) = run("b.db", &["import", "moved"]);
    assert!(ok && said.matches("the store has the task already").count() == 3, "{said}");
    let (ok, said) = run("b.db", &["decide", "hotel", "--by", "ada", "--amount", "180"]);
    assert!(
        ok && said.contains("paid 180 EUR to grace, approved by ada")
            && said.contains("reimbursed 180"),
        "{said}"
    );
    let (ok, said) = run("b.db", &["decide", "dinner", "--by", "ada", "--reject", "no business"]);
    assert!(ok && said.contains("dinner: rejected by ada: no business"), "{said}");
    let (ok, said) = run("b.db", &["decide", "hotel", "--by", "bob"]);
    assert!(!ok && said.contains(r#"nothing named "hotel" waits for a decision"#), "{said}");
    let (_, said) = run("b.db", &["list"]);
    assert!(said.lines().count() == 1 && said.starts_with("train: 64 EUR of alan"), "{said}");

    let document =
        fs::read_dir(folder.path().join("moved")).unwrap().next().unwrap().unwrap().path();
    let changed = fs::read_to_string(&document).unwrap().replace("EUR", "USD");
    fs::write(&document, changed).unwrap();
    let (ok, said) = run("c.db", &["import", "moved"]);
    assert!(!ok && said.contains("is damaged: its checksum is another one"), "{said}");
}
