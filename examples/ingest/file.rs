//! The child task: reads one file and puts it into the index.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use stepwell::sqlite::TransactionExt;
use stepwell::{Task, TaskContext, TaskResult, async_trait};

use crate::aside::step_with_aside;
use crate::folder::{FolderParams, size_and_time};
use crate::index::{self, Outcome, Reason};
use crate::names::unescape;

/// The longest title, in characters.
const MAX_TITLE: usize = 120;
/// A file that was modified within this time before it was read may be modified again without a
/// change of its time.
const CLOCK_STEP: Duration = Duration::from_secs(2);

/// Ingests a file.
pub(crate) struct IngestFile;

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct FileParams {
    /// The ingest that it belongs to.
    #[serde(flatten)]
    pub(crate) ingest: FolderParams,
    /// Its number among the changed files.
    pub(crate) number: i64,
    /// Its path within the folder, escaped.
    pub(crate) path: String,
}

#[async_trait]
impl Task for IngestFile {
    const NAME: &'static str = "ingest-file";
    type Params = FileParams;
    type Output = Outcome;

    async fn run(params: FileParams, ctx: TaskContext) -> TaskResult<Outcome> {
        let path = unescape(&params.ingest.folder)?.join(unescape(&params.path)?);
        let max_size = params.ingest.max_size;
        let read = move || Content::read(&path, max_size);
        let content = step_with_aside(&ctx, "read", {
            let read = read.clone();
            move || Ok(read()).map(|content| (content.outline(), content))
        })
        .await?;
        // After a crash between the two, the file is read again: its text was not journaled.
        ctx.transaction("index", move |tx| {
            index::record_file(tx, &params, &content.unwrap_or_else(read))
        })
        .await
    }
}

/// What a file holds.
pub(crate) struct Content {
    pub(crate) size: i64,
    /// When it was modified, in microseconds since 1970.
    pub(crate) modified: i64,
    /// Whether that was long enough ago for the next change to have another time.
    pub(crate) settled: bool,
    pub(crate) text: Result<Text, (Reason, String)>,
}

/// The text of a file.
pub(crate) struct Text {
    /// The SHA-256 of the file's bytes, in hexadecimal.
    pub(crate) hash: String,
    pub(crate) title: String,
    pub(crate) text: String,
}

impl Content {
    fn read(path: &Path, max_size: i64) -> Self {
        let mut content = Self {
            size: 0,
            modified: 0,
            settled: false,
            text: Err((Reason::Binary, String::new())),
        };
        content.text = content.read_text(path, max_size);
        content
    }

    fn read_text(&mut self, path: &Path, max_size: i64) -> Result<Text, (Reason, String)> {
        let unreadable =
            |error: &std::io::Error| (Reason::Unreadable, index::why_unreadable(path, error));
        // Looked at before it is read: a change in between shows as another time at the next
        // ingest. And before it is opened: to open a pipe would wait for its other end.
        let metadata = path.metadata().map_err(|error| unreadable(&error))?;
        if !metadata.is_file() {
            return Err((Reason::Unreadable, "no longer a file".into()));
        }
        (self.size, self.modified) = size_and_time(&metadata);
        let age = metadata
            .modified()
            .ok()
            .and_then(|modified| SystemTime::now().duration_since(modified).ok());
        self.settled = age.is_some_and(|age| age > CLOCK_STEP);
        let limit = u64::try_from(max_size).unwrap_or(0);
        let mut bytes =
            Vec::with_capacity(usize::try_from(self.size.min(max_size)).unwrap_or(0) + 1);
        File::open(path)
            .and_then(|file| file.take(limit.saturating_add(1)).read_to_end(&mut bytes))
            .map_err(|error| unreadable(&error))?;
        if bytes.len() as u64 > limit {
            return Err((Reason::TooLarge, format!("over {max_size} bytes")));
        }
        self.size = i64::try_from(bytes.len()).unwrap_or(i64::MAX);
        let hash = hex::encode(Sha256::digest(&bytes));
        let text = decode(bytes).ok_or((Reason::Binary, "not UTF-8 text".to_owned()))?;
        Ok(Text { hash, title: title(&text), text })
    }

    /// What the journal keeps of it.
    fn outline(&self) -> Outline {
        match &self.text {
            Ok(text) => Outline::Text { size: self.size, hash: text.hash.clone() },
            Err((reason, detail)) => Outline::Skipped { reason: *reason, detail: detail.clone() },
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Outline {
    Text { size: i64, hash: String },
    Skipped { reason: Reason, detail: String },
}

/// The bytes as text, if that is what they are: UTF-8 without NUL, with less than one wrong
/// character in a hundred.
fn decode(bytes: Vec<u8>) -> Option<String> {
    if bytes.contains(&0) {
        return None;
    }
    let mut text = match String::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            let (mut right, mut wrong) = (0, 0);
            for chunk in error.as_bytes().utf8_chunks() {
                right += chunk.valid().chars().count();
                wrong += usize::from(!chunk.invalid().is_empty());
            }
            if wrong * 100 >= right + wrong {
                return None;
            }
            String::from_utf8_lossy(error.as_bytes()).into_owned()
        }
    };
    if text.starts_with('\u{feff}') {
        text.remove(0);
    }
    Some(text)
}

/// The first line that says something, without the signs of headings and comments.
fn title(text: &str) -> String {
    let signs = |c: char| c.is_whitespace() || c.is_control() || "#/*!<>-=;%\"'".contains(c);
    let line =
        text.lines().take(100).map(|line| line.trim_matches(signs)).find(|line| !line.is_empty());
    line.unwrap_or_default().chars().filter(|c| !c.is_control()).take(MAX_TITLE).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_utf_8_but_for_a_character_in_a_hundred() {
        assert_eq!(decode(b"".to_vec()).as_deref(), Some(""));
        assert_eq!(decode("\u{feff}naïve".into()).as_deref(), Some("naïve"));
        assert_eq!(decode(b"nul\0nul".to_vec()), None);
        let latin_1 = [&b"x".repeat(200)[..], b"caf\xe9"].concat();
        assert_eq!(decode(latin_1).map(|text| text.ends_with("caf\u{fffd}")), Some(true));
        assert_eq!(decode(b"caf\xe9".to_vec()), None);
    }

    #[test]
    fn a_title_is_the_first_line_that_says_something() {
        assert_eq!(title("\n//! ---\n/// # The engine #\nmore"), "The engine");
        assert_eq!(title("\u{1b}[1m\tx\n"), "[1m\tx".replace('\t', ""));
        assert_eq!(title(""), "");
    }
}
