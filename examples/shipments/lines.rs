//! Files with a value in JSON in each line.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use anyhow::Context;
use serde::de::DeserializeOwned;

/// The values of a file, or of the standard input when the path is `-`, each as soon as its line is
/// there.
pub(crate) fn read<T: DeserializeOwned>(
    path: &Path,
) -> anyhow::Result<impl Iterator<Item = anyhow::Result<T>>> {
    let (input, name): (Box<dyn BufRead>, _) = if path == Path::new("-") {
        (Box::new(std::io::stdin().lock()), "the standard input".to_owned())
    } else {
        let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        (Box::new(BufReader::new(file)), path.display().to_string())
    };
    let lines = input.lines().enumerate();
    let lines =
        lines.filter(|(_, line)| line.as_ref().map_or(true, |line| !line.trim().is_empty()));
    Ok(lines.map(move |(line, text)| {
        let read =
            text.map_err(anyhow::Error::from).and_then(|text| Ok(serde_json::from_str(&text)?));
        read.with_context(|| format!("line {} of {name}", line + 1))
    }))
}
