//! `cargo xtask bugs`: seeds one bug after the other into a copy of the sources, and sees that the
//! tests that are named for it fail.
//!
//! The copy lies below the target folder, and has a target folder of its own: the tree that a
//! developer works in is never touched, and from one bug to the next cargo builds only what the two
//! have changed.

mod bug;
mod copy;
mod engine;
mod jobs;
mod matching;
mod postgres;
mod server;
mod sqlite;
mod table;
mod values;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use jiff::Zoned;

use crate::nextest;
use crate::report::Report;
use crate::servers::Servers;
use bug::{Bug, Test, all, fails, hangs, postgres_version};
use copy::Copy;
use table::Table;

/// What nextest ends with when tests have failed, and when they could not be built.
const FAILED: i32 = 100;
const NOT_BUILT: i32 = 101;

/// What the compiler says when it has found a fault of its own.
const COMPILER_FAULT: &str = "error: internal compiler error";

/// Members that have no library, and so add nothing to what `--lib` builds but the features of
/// their dependencies; these features are nearly all that the workspace has.
const WITH_ALL_FEATURES: [&str; 9] = [
    "--package=stepwell-bench",
    "--package=stepwell-cli",
    "--package=stepwell-examples",
    "--package=xtask",
    "--features=stepwell/compression",
    "--features=stepwell/encryption",
    "--features=stepwell/opentelemetry",
    "--features=stepwell/schemas",
    "--features=stepwell/testing",
];

#[derive(clap::Args, Default)]
pub(crate) struct Options {
    /// Only the bug of that name; may be given several times
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Only bugs without a row in docs/how-it-is-tested.md
    #[arg(long, conflicts_with = "only")]
    new: bool,
    /// Only the K-th of N parts of the list, K from 1 on
    #[arg(long, value_name = "K/N", conflicts_with = "only")]
    part: Option<Part>,
    /// Write what was caught into docs/how-it-is-tested.md, beside what earlier runs have written
    /// there
    #[arg(long)]
    write: bool,
}

/// A part of the list.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Part {
    place: usize,
    of: usize,
}

impl FromStr for Part {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (place, of) = text.split_once('/').context("it has to be K/N")?;
        let part = Self { place: place.parse()?, of: of.parse()? };
        ensure!((1..=part.of).contains(&part.place), "K has to be from 1 to N");
        Ok(part)
    }
}

impl Options {
    fn chosen(&self, table: &Table) -> Result<Vec<&'static Bug>> {
        let unknown = self.only.iter().find(|name| all().all(|bug| bug.name != **name));
        ensure!(
            unknown.is_none(),
            "there is no bug named {:?}",
            unknown.map_or("", String::as_str)
        );
        let Part { place, of } = self.part.unwrap_or(Part { place: 1, of: 1 });
        let named =
            |bug: &&Bug| self.only.is_empty() || self.only.iter().any(|name| name == bug.name);
        let named: Vec<_> =
            all().filter(named).filter(|bug| !(self.new && table.has(bug))).collect();
        Ok(named[named.len() * (place - 1) / of..named.len() * place / of].to_vec())
    }
}

pub(crate) fn run(options: &Options) -> Result<()> {
    ensure!(nextest::available()?, "the seeded bugs need cargo-nextest");
    let mut report = Report::new("Seeded bugs");
    let mut table = Table::of_the_page()?;
    let chosen = options.chosen(&table)?;
    let servers = chosen.iter().any(|bug| bug.needs_postgres()).then(Servers::with_postgres);
    let version =
        if servers.as_ref().is_some_and(Servers::has_postgres) { postgres_version() } else { 0 };
    let can_be_seen = |bug: &&Bug| !bug.needs_postgres() || version >= bug.since();
    let (bugs, left_out): (Vec<_>, Vec<_>) = chosen.into_iter().partition(can_be_seen);
    let runner = Runner { copy: Copy::of_the_tree()?, servers };
    let moved: Vec<_> = bugs.iter().filter_map(|bug| runner.copy.with(bug).err()).collect();
    let moved = moved.iter().fold(String::new(), |all, error| format!("{all}\n  {error}"));
    ensure!(moved.is_empty(), "entries whose code has moved:{moved}");
    eprintln!("\n{} seeded bugs. First, their tests in the unchanged tree…", bugs.len());
    let begun = Instant::now();
    let unchanged = runner.unchanged(&bugs)?;
    eprintln!("that took {:.0} s\n", begun.elapsed().as_secs_f64());
    let mut seeded = 0;
    for bug in bugs {
        report.run(bug.name, || {
            let caught = bug.tests.iter().try_for_each(|test| passes(test, &unchanged));
            let caught = caught.and_then(|()| runner.seed(bug));
            seeded += 1;
            table.note(bug, caught.as_ref().ok().cloned());
            if options.write {
                table.write(&last_run(seeded, begun.elapsed()))?;
            }
            eprintln!("{}: caught by {}", bug.name, caught?);
            Ok(())
        });
    }
    for bug in left_out {
        report.not_run(bug.name, format!("it takes PostgreSQL {}", bug.since()));
    }
    runner.servers.iter().for_each(|servers| servers.note_in(&mut report));
    report.finish()
}

/// What the page says of the run that was its last.
fn last_run(bugs: usize, took: Duration) -> String {
    let (day, minutes) = (Zoned::now().date(), took.as_secs().div_ceil(60));
    let bugs = if bugs == 1 { "one bug".to_owned() } else { format!("{bugs} bugs") };
    format!("The last run, of {bugs} on {day}, took {minutes} min.")
}

/// How a test ended, of which binary.
type End = (String, String, String);

struct Runner {
    copy: Copy,
    servers: Option<Servers>,
}

impl Runner {
    /// Runs these tests in the copy. Returns how they ended; `None` when they could not be built.
    ///
    /// Dependencies have the features that they have in the whole workspace, whatever is chosen,
    /// and are built once.
    fn test(&self, tests: &[Test]) -> Result<Option<Vec<End>>> {
        let mut runs = BTreeMap::<_, Vec<_>>::new();
        for test in tests {
            runs.entry((test.binary == "lib").then_some(test.package)).or_default().push(test);
        }
        let mut ends = Vec::new();
        for (library, tests) in runs {
            let mut command = self.copy.cargo()?;
            command.args(["nextest", "run", "--profile", "bugs", "--color", "never"]);
            if let Some(package) = library {
                command.args(["--lib", "--package", package]).args(WITH_ALL_FEATURES);
            } else {
                let binaries: BTreeSet<_> = tests.iter().map(|test| test.binary).collect();
                command
                    .arg("--workspace")
                    .args(binaries.iter().flat_map(|binary| ["--test", binary]));
            }
            let one = |test: &&Test| {
                format!("(binary_id(={}) & test(/(^|::){}$/))", test.id(), test.name)
            };
            command.args(["-E", &tests.iter().map(one).collect::<Vec<_>>().join(" | ")]);
            self.servers.iter().for_each(|servers| servers.show_to(&mut command));
            let mut output = command.output().context("could not start cargo")?;
            if String::from_utf8_lossy(&output.stderr).contains(COMPILER_FAULT) {
                self.copy.forget_parts()?;
                output = command.output().context("could not start cargo")?;
            }
            let printed = String::from_utf8_lossy(&output.stderr);
            match output.status.code() {
                Some(0 | FAILED) => ends.extend(ends_of(&printed)),
                Some(NOT_BUILT) => {
                    eprintln!("{printed}");
                    return Ok(None);
                }
                _ => bail!("{printed}"),
            }
        }
        Ok(Some(ends))
    }

    /// How the tests of these bugs end while nothing is wrong.
    fn unchanged(&self, bugs: &[&Bug]) -> Result<Vec<End>> {
        let tests: Vec<_> = bugs.iter().flat_map(|bug| bug.tests).copied().collect();
        self.test(&tests)?.ok_or_else(|| anyhow!("the unchanged tree does not compile"))
    }

    /// Runs the tests of a bug with the bug. Returns those that have caught it, which have to be
    /// all of them.
    fn seed(&self, bug: &Bug) -> Result<String> {
        let path = self.copy.folder.join(bug.file);
        let sound = fs::read_to_string(&path)?;
        fs::write(&path, self.copy.with(bug)?)?;
        let ends = self.test(bug.tests);
        fs::write(&path, sound)?;
        let ends = ends?.ok_or_else(|| anyhow!("did not compile: an error of the entry"))?;
        let (mut caught, mut survived) = (Vec::new(), Vec::new());
        for test in bug.tests {
            let mut own = ends.iter().filter(|(_, binary, name)| test.is(binary, name)).peekable();
            ensure!(own.peek().is_some(), "{} {} did not run", test.id(), test.name);
            for (how, _, name) in own {
                let by = format!("`{}::{name}`", test.binary);
                match (how.as_str(), test.hangs) {
                    ("PASS", _) => survived.push(by),
                    ("TIMEOUT", false) => survived.push(format!("{by} (it hung)")),
                    _ => caught.push(by),
                }
            }
        }
        ensure!(survived.is_empty(), "SURVIVED {}", survived.join(", "));
        Ok(caught.join(", "))
    }
}

/// Sees that a test ran in the unchanged tree and passed.
fn passes(test: &Test, unchanged: &[End]) -> Result<()> {
    let mut own = unchanged.iter().filter(|(_, binary, name)| test.is(binary, name)).peekable();
    ensure!(own.peek().is_some(), "no test {} runs in {}", test.name, test.id());
    let failed = own.find(|(how, ..)| how != "PASS").map(|(how, ..)| how);
    ensure!(failed.is_none(), "{failed:?} in the unchanged tree: {} {}", test.id(), test.name);
    Ok(())
}

/// How each test ended, from what nextest prints: `    FAIL [   0.015s] (1/2) stepwell::retries
/// a_name`.
fn ends_of(printed: &str) -> Vec<End> {
    let end = |line: &str| {
        let (how, rest) = line.trim_start().split_once(" [")?;
        let mut words = rest.split_once(']')?.1.split_whitespace().rev();
        let (name, binary) = (words.next()?, words.next()?);
        let ended = !matches!(how, "SLOW" | "TERMINATING")
            && how.chars().all(|c| c.is_ascii_uppercase() || c == '-');
        ended.then(|| (how.to_owned(), binary.to_owned(), name.to_owned()))
    };
    printed.lines().filter_map(end).collect()
}

#[cfg(test)]
mod tests;
