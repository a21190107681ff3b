//! The payloads and files that the user passes.

use std::io::Read as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use stepwell::Payload;

/// Parses a JSON argument: the text itself, `@file`, or `-` for the standard input. Without an
/// argument, the payload is null.
pub(crate) fn json(argument: Option<&str>) -> Result<Payload> {
    let (text, what) = match argument {
        None => return Ok(Payload::null()),
        Some("-") => (read(Path::new("-"))?, "the input".to_owned()),
        Some(argument) => match argument.strip_prefix('@') {
            Some(file) => (read(Path::new(file))?, file.to_owned()),
            None => (argument.to_owned(), format!("{argument:?}")),
        },
    };
    let advice = || format!("{what} is no JSON: a text is written in quotes, as in '\"text\"'");
    serde_json::from_str(&text).with_context(advice)
}

/// Returns the text of a file, or of the standard input for `-`.
pub(crate) fn read(file: &Path) -> Result<String> {
    if file == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).context("cannot read the input")?;
        return Ok(text);
    }
    std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
}
