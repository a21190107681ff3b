//! The file: its rows, one by one, and what it is known by.

use std::io::Cursor;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use csv::{ErrorKind, Position, Reader, StringRecord, StringRecordsIntoIter};
use sha2::{Digest, Sha256};

/// A row of the file.
pub(crate) struct Row {
    /// The line that it begins on, from 1.
    pub(crate) line: u64,
    /// Its fields, or why it is none.
    pub(crate) fields: Result<StringRecord, String>,
}

/// The SHA-256 of the file, in hexadecimal.
pub(crate) fn hash(path: &Path) -> anyhow::Result<String> {
    Ok(hex::encode(Sha256::digest(read(path)?)))
}

/// The names of the columns, and how many rows there are.
pub(crate) fn look(path: &Path) -> anyhow::Result<(Vec<String>, usize)> {
    let mut reader = reader(path)?;
    let header =
        reader.headers().with_context(|| format!("the first line of {}", path.display()))?;
    let columns: Vec<_> = header.iter().map(str::to_owned).collect();
    let names = columns.iter().all(|name| !name.is_empty() && !name.contains(char::is_control));
    ensure!(
        names && !columns.is_empty(),
        "the first line of {} has to name the columns of the table",
        path.display()
    );
    Ok((columns, reader.into_records().count()))
}

/// The rows of a file, which is read into memory when the first is asked for.
pub(crate) struct Rows {
    path: PathBuf,
    records: Option<StringRecordsIntoIter<Cursor<Vec<u8>>>>,
    left: usize,
}

impl Rows {
    /// The file's rows, of which there are so many.
    pub(crate) fn new(path: &Path, count: usize) -> Self {
        Self { path: path.to_owned(), records: None, left: count }
    }

    fn read(&mut self) -> Row {
        let records = match &mut self.records {
            Some(records) => records,
            records => match reader(&self.path) {
                Ok(reader) => records.insert(reader.into_records()),
                Err(error) => return Row { line: 0, fields: Err(format!("{error:#}")) },
            },
        };
        let (line, fields) = match records.next() {
            Some(Ok(record)) => (line(record.position(), records.reader()), Ok(record)),
            Some(Err(error)) => (line(error.position(), records.reader()), Err(why(&error))),
            None => (
                line(Some(records.reader().position()), records.reader()),
                Err("it is gone".into()),
            ),
        };
        Row { line, fields }
    }
}

impl Iterator for Rows {
    type Item = Row;

    fn next(&mut self) -> Option<Row> {
        self.left = self.left.checked_sub(1)?;
        Some(self.read())
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Rows {}

/// The line at a position, behind the line ends that `csv` only skips when it reads on.
fn line(position: Option<&Position>, reader: &Reader<Cursor<Vec<u8>>>) -> u64 {
    let Some(position) = position else { return 0 };
    let start = usize::try_from(position.byte()).unwrap_or(usize::MAX);
    let rest = reader.get_ref().get_ref().get(start..).unwrap_or_default();
    let ends =
        rest.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).filter(|byte| **byte == b'\n');
    position.line() + ends.count() as u64
}

fn why(error: &csv::Error) -> String {
    match error.kind() {
        ErrorKind::UnequalLengths { expected_len, len, .. } => {
            format!("it has {len} fields in place of {expected_len}")
        }
        ErrorKind::Utf8 { err, .. } => format!("its field {} is not UTF-8", err.field() + 1),
        _ => error.to_string(),
    }
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

fn reader(path: &Path) -> anyhow::Result<Reader<Cursor<Vec<u8>>>> {
    Ok(Reader::from_reader(Cursor::new(read(path)?)))
}
