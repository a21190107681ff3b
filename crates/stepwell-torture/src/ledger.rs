//! The ledger, a file beside the database. Every process appends a line to it when a closure starts
//! or when a client's call is answered. The ledger and the database together show what really ran.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use stepwell::{RunId, TaskContext, TaskId};
use uuid::Uuid;

/// The length of every line with its newline, in bytes. The length divides a page, so no line
/// crosses from one page into the next. The write of a killed process may be cut off between two
/// pages.
const LINE: usize = 256;

/// The meaning of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// The closure of a step or of an item starts.
    Step,
    /// The closure of a compensation starts.
    Undo,
    /// A client has received its answer.
    Answered,
}

/// A line of the ledger.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    pub(crate) what: What,
    pub(crate) task: TaskId,
    /// The run that writes; the nil id in a client's line.
    pub(crate) run: RunId,
    /// The number of the process that writes.
    pub(crate) process: u32,
    /// The time by the clock of the process, in milliseconds since 1970.
    pub(crate) millis: u64,
    /// The name of what starts or was answered.
    pub(crate) name: String,
    /// The result of a step. The result is unique, so the journal shows which start became the
    /// step's result. The line of a compensation has the result of the step that is undone.
    pub(crate) value: String,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.what {
            What::Step => "step",
            What::Undo => "undo",
            What::Answered => "answered",
        };
        let Self { task, run, process, millis, name, value, .. } = self;
        write!(f, "{what} {task} {run} {process} {millis} {name} {value}")
    }
}

impl FromStr for Line {
    type Err = anyhow::Error;

    fn from_str(line: &str) -> Result<Self> {
        let words: Vec<_> = line.split_whitespace().collect();
        let [what, task, run, process, millis, name, value] = words.as_slice() else {
            bail!("a broken line in the ledger: {line:?}")
        };
        let what = match *what {
            "step" => What::Step,
            "undo" => What::Undo,
            "answered" => What::Answered,
            _ => bail!("an unknown line in the ledger: {line:?}"),
        };
        Ok(Self {
            what,
            task: task.parse()?,
            run: run.parse()?,
            process: process.parse()?,
            millis: millis.parse()?,
            name: (*name).to_owned(),
            value: (*value).to_owned(),
        })
    }
}

/// The writing end of a ledger, for one process.
pub(crate) struct Ledger {
    file: File,
    process: u32,
}

impl Ledger {
    pub(crate) fn open(folder: &Path, process: u32) -> Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(folder.join("ledger"))?;
        Ok(Self { file, process })
    }

    /// Records that a step's closure starts, and returns the step's result.
    pub(crate) fn begin(&self, ctx: &TaskContext, name: &str) -> Result<String> {
        let nonce = Uuid::from_u128(rand::random()).simple().to_string();
        self.note(What::Step, ctx.task_id, ctx.run_id, name, &nonce)?;
        Ok(nonce)
    }

    /// Records that the compensation of a step with this result starts.
    pub(crate) fn undo(&self, ctx: &TaskContext, name: &str, given: &str) -> Result<()> {
        self.note(What::Undo, ctx.task_id, ctx.run_id, name, given)
    }

    /// Records that a client has received an answer about a task.
    pub(crate) fn answered(&self, task: TaskId, name: &str) -> Result<()> {
        self.note(What::Answered, task, Uuid::nil().into(), name, "-")
    }

    fn note(&self, what: What, task: TaskId, run: RunId, name: &str, value: &str) -> Result<()> {
        let millis = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis().try_into()?;
        let (process, name, value) = (self.process, name.to_owned(), value.to_owned());
        let line = Line { what, task, run, process, millis, name, value }.to_string();
        let line = format!("{line:<width$}\n", width = LINE - 1);
        anyhow::ensure!(line.len() == LINE, "the line is too long: {line}");
        // One write call appends the line to the file, so lines of several processes do not mix.
        Ok((&self.file).write_all(line.as_bytes())?)
    }
}

/// The reading end of a ledger.
pub(crate) struct Reader {
    file: File,
    rest: Vec<u8>,
}

impl Reader {
    pub(crate) fn open(folder: &Path) -> Result<Self> {
        let path = folder.join("ledger");
        OpenOptions::new().create(true).append(true).open(&path)?;
        Ok(Self { file: File::open(path)?, rest: Vec::new() })
    }

    /// Returns the lines that were written since the last call.
    pub(crate) fn read(&mut self) -> Result<Vec<Line>> {
        self.file.read_to_end(&mut self.rest)?;
        let whole = self.rest.len() / LINE * LINE;
        let lines = std::str::from_utf8(&self.rest[..whole]).context("the ledger is not text")?;
        let lines = lines.lines().map(str::parse).collect::<Result<_>>()?;
        self.rest.drain(..whole);
        Ok(lines)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_back_as_they_were_written_and_none_crosses_a_page() {
        let folder = tempfile::tempdir().unwrap();
        let (task, ledger) =
            (TaskId::from(Uuid::from_u128(7)), Ledger::open(folder.path(), u32::MAX).unwrap());
        let mut reader = Reader::open(folder.path()).unwrap();
        for number in 0..100 {
            ledger.answered(task, &format!("{number}:0")).unwrap();
        }
        let lines = reader.read().unwrap();
        assert_eq!((lines.len(), lines[99].name.as_str(), lines[99].task), (100, "99:0", task));
        assert!(reader.read().unwrap().is_empty());
        assert_eq!(
            (std::fs::metadata(folder.path().join("ledger")).unwrap().len(), 4096 % LINE),
            (25_600, 0)
        );
    }
}
