//! The example `ingest`, as a user runs it: killed, run again, searched.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

mod example;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use stepwell::sqlite::rusqlite::{Connection, OpenFlags};
use tempfile::TempDir;

use crate::example::{assert_plain, program, wait_until};

/// A folder with files of all sorts, and a place for the database beside it.
struct Scene {
    dir: TempDir,
    /// The text files by the escaped form of their names, with their hashes.
    texts: BTreeMap<String, String>,
    binary: u64,
    too_large: u64,
    unreadable: u64,
}

impl Scene {
    fn empty() -> Self {
        let dir = TempDir::new().unwrap();
        fs::create_dir(dir.path().join("files")).unwrap();
        Self { dir, texts: BTreeMap::new(), binary: 0, too_large: 0, unreadable: 0 }
    }

    fn of_all_sorts() -> Self {
        let mut scene = Self::empty();
        for i in 0..240 {
            let text =
                format!("# File {i}\n\nThe word{i} is here, and common words are everywhere.\n");
            scene.text(&format!("part{}/sub/file{i}.md", i % 7), text.as_bytes());
        }
        scene.text("empty.txt", b"");
        scene.text("übergröße 📦.md", "Die Straße nach Überlingen".as_bytes());
        scene.text("it's \"quoted\"; DROP TABLE documents;--.txt", b"a name like an attack");
        scene.text("-dash --search.txt", b"a name like an option");
        scene.text("mostly.txt", &[&b"mostly text ".repeat(50)[..], b"caf\xe9"].concat());
        scene.text("escape.txt", b"an \x1b[31mescape\x1b[0m sequence");
        for (name, shown) in [
            (&b"new\nline.txt"[..], r"new\u{a}line.txt"),
            (b"no utf-8 \xff\xfe.txt", r"no utf-8 \xff\xfe.txt"),
            (b"back\\slash \\xff.txt", r"back\\slash \\xff.txt"),
        ] {
            scene.write(name, b"an odd name");
            scene.texts.insert(shown.to_owned(), hash(b"an odd name"));
        }
        for i in 0..20_u8 {
            scene.write(format!("binary/{i}.bin").as_bytes(), &[b'x', 0, i]);
        }
        scene.write(b"binary/latin-1.txt", b"caf\xe9 na\xefve");
        scene.binary = 21;
        for i in 0..20 {
            scene.write(format!("large/{i}.txt").as_bytes(), "large ".repeat(1_000).as_bytes());
        }
        scene.too_large = 20;
        for i in 0..5 {
            symlink("nowhere", scene.path(format!("broken{i}").as_bytes())).unwrap();
        }
        scene.unreadable = 5;
        // Not for root, who may read everything.
        scene.write(b"forbidden.txt", b"forbidden");
        let forbidden = scene.path(b"forbidden.txt");
        fs::set_permissions(&forbidden, std::os::unix::fs::PermissionsExt::from_mode(0o000))
            .unwrap();
        if fs::read(&forbidden).is_ok() {
            scene.texts.insert("forbidden.txt".into(), hash(b"forbidden"));
        } else {
            scene.unreadable += 1;
        }
        // A pipe would be waited for.
        assert!(Command::new("mkfifo").arg(scene.path(b"pipe")).status().unwrap().success());
        scene.write(b".gitignore", b"ignored/\n");
        scene.write(b"ignored/file.txt", b"ignored");
        scene
    }

    fn path(&self, name: &[u8]) -> PathBuf {
        self.dir.path().join("files").join(OsStr::from_bytes(name))
    }

    fn write(&self, name: &[u8], bytes: &[u8]) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    fn text(&mut self, name: &str, bytes: &[u8]) {
        self.write(name.as_bytes(), bytes);
        self.texts.insert(name.to_owned(), hash(bytes));
    }

    fn database(&self) -> PathBuf {
        // In the folder itself, which must not index it.
        self.path(b"index.sqlite")
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(program("ingest"));
        command
            .arg("--database")
            .arg(self.database())
            .args(args)
            .stdin(Stdio::null())
            .env_remove("RUST_LOG");
        command
    }

    fn ingest(&self) -> Command {
        let mut command = self.command(&["--max-size", "4K", "--json"]);
        command.arg(self.dir.path().join("files"));
        command
    }

    fn ingested(&self) -> Value {
        let output = self.ingest().output().unwrap();
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn search(&self, args: &[&str]) -> Vec<String> {
        let output = self.command(&["--json", "--search"]).args(args).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let hits: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
        hits.iter().map(|hit| hit["path"].as_str().unwrap().to_owned()).collect()
    }

    fn open(&self) -> Connection {
        Connection::open_with_flags(self.database(), OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap()
    }

    fn number(&self, sql: &str) -> u64 {
        self.open().query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap().try_into().unwrap()
    }

    /// The index holds each text file once, as it is, and nothing else.
    fn check_index(&self) {
        let conn = self.open();
        let mut select =
            conn.prepare("SELECT path, hash FROM documents WHERE skipped IS NULL").unwrap();
        let rows = select.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
        let rows: Vec<(String, String)> = rows.collect::<Result<_, _>>().unwrap();
        assert_eq!(rows.len(), self.texts.len());
        assert_eq!(rows.into_iter().collect::<BTreeMap<_, _>>(), self.texts);
        let texts = self.texts.len() as u64;
        assert_eq!(self.number("SELECT count(*) FROM documents_fts"), texts);
        let matching = "SELECT count(*) FROM documents_fts AS f JOIN documents AS d ON d.id = \
                        f.rowid AND d.path = f.path";
        assert_eq!(self.number(matching), texts);
        assert_eq!(self.number("SELECT count(*) FROM ingest_files"), 0);
        for (reason, count) in [
            ("binary", self.binary),
            ("too_large", self.too_large),
            ("unreadable", self.unreadable),
        ] {
            let sql = format!(
                "SELECT count(*) FROM documents WHERE skipped = '{reason}' AND detail <> ''"
            );
            assert_eq!(self.number(&sql), count, "{reason}");
        }
    }

    /// The summary's counts add up, with so many files indexed and the rest unchanged.
    fn check_summary(&self, summary: &Value, indexed: u64, removed: u64) {
        let texts = self.texts.len() as u64;
        let skipped = json!({
            "binary": self.binary,
            "too_large": self.too_large,
            "unreadable": self.unreadable,
        });
        assert_eq!(summary["indexed"], indexed, "{summary}");
        assert_eq!(summary["unchanged"], texts - indexed, "{summary}");
        assert_eq!(summary["removed"], removed, "{summary}");
        assert_eq!(summary["skipped"], skipped, "{summary}");
        assert_eq!(summary["failed"], 0, "{summary}");
        assert_eq!(
            summary["files"],
            texts + self.binary + self.too_large + self.unreadable,
            "{summary}"
        );
        assert_eq!(
            summary["unreadable"].as_array().unwrap().len() as u64,
            self.unreadable,
            "{summary}"
        );
    }
}

fn hash(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

#[test]
fn a_killed_ingest_goes_on_and_indexes_every_file_once() {
    let mut scene = Scene::of_all_sorts();
    let mut kills = 0;
    let mut kills_in_work = 0;
    let summary = loop {
        let mut child =
            scene.ingest().stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        if kills < 12 {
            // Half of the kills come at any moment, half of them once there is something to lose.
            let done = if kills % 2 == 0 { 0 } else { 15 + 15 * kills };
            wait_until(&mut child, || {
                let count = |conn: Connection| {
                    conn.query_row("SELECT count(*) FROM documents", [], |row| row.get(0))
                };
                let flags = OpenFlags::SQLITE_OPEN_READ_ONLY;
                done == 0
                    || Connection::open_with_flags(scene.database(), flags)
                        .and_then(count)
                        .is_ok_and(|count: i64| count >= done)
            });
            std::thread::sleep(Duration::from_micros(rand::random_range(0..40_000)));
            kills_in_work += i64::from(done > 0 && child.try_wait().unwrap().is_none());
            child.kill().unwrap();
        }
        let output = child.wait_with_output().unwrap();
        if output.status.code().is_some() {
            assert!(output.status.success(), "{output:?}");
            assert_plain(&output);
            break Some(serde_json::from_slice::<Value>(&output.stdout).unwrap());
        }
        kills += 1;
        let completed = "SELECT count(*) FROM stepwell_tasks WHERE task_type = 'ingest-folder' AND \
                         state = 'completed'";
        if kills >= 2 && scene.number(completed) > 0 {
            // The work was done by the time of the kill, and its summary was to be printed.
            break None;
        }
    };
    assert!(kills_in_work > 0, "no kill came while it worked");
    if let Some(summary) = summary {
        // None was found to be in the index already: so none was written twice.
        scene.check_summary(&summary, scene.texts.len() as u64, 0);
        assert_eq!(summary["continued"], true);
        assert_eq!(summary["run"], 1);
    }
    scene.check_index();
    assert_eq!(
        scene.number("SELECT count(*) FROM stepwell_tasks WHERE task_type = 'ingest-folder'"),
        1
    );
    assert_eq!(scene.number("SELECT count(*) FROM stepwell_tasks WHERE state <> 'completed'"), 0);

    let again = scene.ingested();
    scene.check_summary(&again, 0, 0);
    assert_eq!((&again["run"], &again["continued"]), (&json!(2), &json!(false)));
    scene.check_index();

    scene.text("part0/sub/file0.md", b"changed into something else");
    scene.text("part1/added.md", b"added, with a zebra");
    // It becomes text, and another ceases to be.
    scene.text("binary/0.bin", b"no longer binary");
    scene.write("part2/sub/file2.md".as_bytes(), b"now binary\0");
    scene.texts.remove("part2/sub/file2.md");
    fs::remove_file(scene.path(b"part1/sub/file1.md")).unwrap();
    scene.texts.remove("part1/sub/file1.md");
    let changed = scene.ingested();
    scene.check_summary(&changed, 3, 1);
    scene.check_index();
    assert_eq!(scene.search(&["zebra"]), ["part1/added.md"]);
    assert_eq!(scene.search(&["word0"]), [""; 0]);
    assert_eq!(scene.search(&["word1"]), [""; 0]);
    assert_eq!(scene.search(&["word2"]), [""; 0]);
}

#[test]
fn a_search_finds_words_and_takes_none_for_an_operator() {
    let scene = Scene::of_all_sorts();
    let output = scene.ingest().output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(scene.search(&["word17"]), ["part3/sub/file17.md"]);
    assert_eq!(scene.search(&["word17 everywhere"]), ["part3/sub/file17.md"]);
    assert_eq!(scene.search(&["strasse uberlingen"]), [""; 0]);
    assert_eq!(scene.search(&["straße uberlingen"]), ["übergröße 📦.md"]);
    assert_eq!(scene.search(&["common", "--limit", "3"]).len(), 3);
    assert_eq!(scene.search(&["common", "--limit", "1000"]).len(), 240);
    assert_eq!(scene.search(&["word17 OR word18"]), [""; 0]);
    assert_eq!(scene.search(&["\"word17 (* everywhere:"]), ["part3/sub/file17.md"]);

    let shown = scene.command(&["--search", "escape sequence"]).output().unwrap();
    assert_plain(&shown);
    let text = String::from_utf8(shown.stdout).unwrap();
    assert!(text.contains("/files/escape.txt\n    an [31mescape[0m sequence\n"), "{text}");
    let none = scene.command(&["--search", "nowhereatall"]).output().unwrap();
    assert!(none.status.success());
    assert_eq!(
        String::from_utf8(none.stdout).unwrap(),
        "No document has all of the words \"nowhereatall\".\n"
    );
    let nothing = scene.command(&["--search", " (* "]).output().unwrap();
    assert!(!nothing.status.success());
    assert!(String::from_utf8(nothing.stderr).unwrap().contains("there is nothing to search for"));
}

#[test]
fn the_report_is_plain_and_names_what_cannot_be_read() {
    let scene = Scene::of_all_sorts();
    let folder = scene.path(b"");
    let output = scene.command(&["--max-size", "4K"]).arg(folder).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_plain(&output);
    let text = String::from_utf8(output.stdout).unwrap();
    let skipped = format!("21 binary, 20 too large, {} unreadable\n", scene.unreadable);
    assert!(text.contains(&skipped), "{text}");
    assert!(text.contains("    broken0: broken symbolic link\n"), "{text}");
    assert!(text.contains(&format!("indexed    {:>8}", scene.texts.len())), "{text}");
}

#[test]
fn what_cannot_be_ingested_gets_a_clear_answer() {
    let scene = Scene::empty();
    let run = |args: &[&str]| {
        let output = scene.command(args).output().unwrap();
        assert_plain(&output);
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        (output.status.code().unwrap(), text)
    };
    let (code, text) = run(&["/no/such/folder"]);
    assert_eq!((code, text.as_str()), (1, "ingest: there is no folder /no/such/folder\n"));
    let (code, text) = run(&[program("ingest").to_str().unwrap()]);
    assert!(code == 1 && text.contains("is not a folder: give the one that it is in"), "{text}");
    let (code, text) = run(&["--search", "word"]);
    assert!(code == 1 && text.contains("make one with `ingest <folder>` first"), "{text}");
    let (code, text) = run(&[scene.path(b"").to_str().unwrap()]);
    assert!(code == 0 && text.contains("There are no text files in this folder"), "{text}");
    let (code, text) = run(&["--max-size", "much"]);
    assert!(code == 2 && text.contains("give a number of bytes"), "{text}");
}

#[test]
fn an_interrupt_stops_it_in_order() {
    let mut scene = Scene::empty();
    for i in 0..1_500 {
        scene.text(&format!("{i}.txt"), format!("file number {i}").as_bytes());
    }
    let mut child = scene
        .ingest()
        .args(["--concurrency", "1"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_until(&mut child, || {
        scene.database().exists()
            && scene.open().query_row("SELECT 1 FROM documents", [], |_| Ok(())).is_ok()
    });
    assert!(
        Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success()
    );
    let output = child.wait_with_output().unwrap();
    assert_plain(&output);
    assert_eq!(output.status.code(), Some(130), "{output:?}");
    assert!(
        String::from_utf8(output.stderr).unwrap().contains("Run the same command again to go on.")
    );
    assert_eq!(scene.number("SELECT count(*) FROM stepwell_tasks WHERE state = 'running'"), 0);

    let output = scene.ingest().output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.starts_with("Going on with ") && said.contains(" of 1500 files were done before.\n"),
        "{said}"
    );
    scene.check_summary(&serde_json::from_slice(&output.stdout).unwrap(), 1_500, 0);
    scene.check_index();
}
