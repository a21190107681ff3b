//! The parent task: lists a folder, has each changed file ingested by a child, and counts.

use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use anyhow::Context;
use futures_util::future::join_all;
use ignore::WalkBuilder;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use stepwell::sqlite::TransactionExt;
use stepwell::{SpawnOptions, Task, TaskContext, TaskError, TaskResult, async_trait};
use tokio::task::spawn_blocking;

use crate::ATTEMPTS;
use crate::aside::step_with_aside;
use crate::file::{FileParams, IngestFile};
use crate::index::{self, Outcome, Summary};
use crate::names::{escape, unescape};

/// How many children there are at a time. Each costs the parent two entries in its journal.
const CHUNK: usize = 256;

/// Where the index is; given to the tasks as state, because it may be called otherwise the next
/// time.
pub(crate) struct Database(pub(crate) PathBuf);

/// Ingests a folder.
pub(crate) struct IngestFolder;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct FolderParams {
    /// The folder's one true path, escaped.
    pub(crate) folder: String,
    /// Which ingest of this folder it is, from 1.
    pub(crate) run: i64,
    /// The size in bytes over which files are skipped.
    pub(crate) max_size: i64,
}

/// The queue of a folder's tasks. Each folder has its own, so that the ingest of one does not go on
/// with another's.
pub(crate) fn queue(folder: &str) -> String {
    format!("ingest-{}", &hex::encode(Sha256::digest(folder))[..16])
}

#[async_trait]
impl Task for IngestFolder {
    const NAME: &'static str = "ingest-folder";
    type Params = FolderParams;
    type Output = Summary;

    async fn run(params: FolderParams, ctx: TaskContext) -> TaskResult<Summary> {
        let database = ctx.state::<Database>()?.0.clone();
        ctx.transaction("tables", index::create_tables).await?;

        let walk = {
            let (folder, database) = (unescape(&params.folder)?, database.clone());
            move || walk(&folder, &database)
        };
        let found = step_with_aside(&ctx, "walk", {
            let walk = walk.clone();
            move || walk().map(|found| (found.len(), found))
        })
        .await?;
        let listed = ctx
            .transaction("list", {
                let params = params.clone();
                move |tx| index::record_listing(tx, &params, found.map_or_else(walk, Ok)?)
            })
            .await?;

        let mut summary = listed.summary;
        for first in (1..=listed.changed).step_by(CHUNK) {
            let files = ctx
                .step(("chunk", first), || {
                    let (database, folder) = (database.clone(), params.folder.clone());
                    async move {
                        spawn_blocking(move || {
                            index::changed_files(&database, &folder, first, CHUNK)
                        })
                        .await?
                    }
                })
                .await?;
            let children =
                files.into_iter().map(|(number, path)| ingest_file(&ctx, &params, number, path));
            for outcome in join_all(children).await {
                summary.count(&outcome?);
            }
        }
        ctx.transaction("tidy up", move |tx| index::forget_listing(tx, &params.folder)).await?;
        Ok(summary)
    }
}

async fn ingest_file(
    ctx: &TaskContext,
    folder: &FolderParams,
    number: i64,
    path: String,
) -> TaskResult<Outcome> {
    let params = FileParams { ingest: folder.clone(), number, path };
    let options = SpawnOptions::new().max_attempts(ATTEMPTS);
    let child = ctx.spawn::<IngestFile>(("file", number), params).options(options).await?;
    match ctx.join(&child).await {
        // One file that cannot be ingested does not keep the others from being.
        Err(TaskError::Child { failure, .. }) => Ok(Outcome::Failed(failure.to_string())),
        outcome => outcome,
    }
}

/// A file in the folder, or something in it that cannot be read.
pub(crate) struct Found {
    /// Its path within the folder, escaped.
    pub(crate) path: String,
    pub(crate) size: i64,
    /// In microseconds since 1970.
    pub(crate) modified: i64,
    /// Why it cannot be read.
    pub(crate) problem: Option<String>,
}

/// Lists the files that are neither hidden nor ignored by Git.
fn walk(folder: &Path, database: &Path) -> anyhow::Result<Vec<Found>> {
    std::fs::read_dir(folder)
        .with_context(|| format!("cannot list the folder {}", folder.display()))?;
    let mut all = Vec::new();
    for entry in WalkBuilder::new(folder).require_git(false).build() {
        let (path, problem) = match entry {
            Ok(entry) if entry.file_type().is_none_or(|kind| kind.is_dir()) => continue,
            Ok(entry) => (entry.into_path(), None),
            Err(error) => match path_of(&error) {
                Some(path) => (
                    path.to_owned(),
                    Some(error.io_error().map_or_else(|| error.to_string(), ToString::to_string)),
                ),
                None => return Err(error.into()),
            },
        };
        let mut found = Found {
            path: escape(path.strip_prefix(folder).unwrap_or(&path)),
            size: 0,
            modified: 0,
            problem,
        };
        if found.problem.is_none() {
            // Follows links, so that what is behind a broken one is missed here.
            match path.metadata() {
                Ok(metadata) if !metadata.is_file() || is_of_database(&path, database) => continue,
                Ok(metadata) => (found.size, found.modified) = size_and_time(&metadata),
                Err(error) => found.problem = Some(index::why_unreadable(&path, &error)),
            }
        }
        all.push(found);
    }
    Ok(all)
}

/// A file's size, and when it was last modified, in microseconds since 1970.
pub(crate) fn size_and_time(metadata: &std::fs::Metadata) -> (i64, i64) {
    let modified = metadata.modified().map_or(0, |time| match time.duration_since(UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_micros()).unwrap_or(i64::MAX),
        Err(before) => {
            i64::try_from(before.duration().as_micros()).map_or(i64::MIN, |micros| -micros)
        }
    });
    (i64::try_from(metadata.len()).unwrap_or(i64::MAX), modified)
}

/// Whether it is the index itself, or one of the files that SQLite and Stepwell keep beside it.
fn is_of_database(path: &Path, database: &Path) -> bool {
    let path =
        if path.is_symlink() { path.canonicalize().unwrap_or_default() } else { path.to_owned() };
    let (Some(name), Some(of)) = (path.file_name(), database.file_name()) else { return false };
    let rest = name.as_encoded_bytes().strip_prefix(of.as_encoded_bytes());
    path.parent() == database.parent()
        && rest.is_some_and(|rest| rest.is_empty() || rest[0] == b'-')
}

fn path_of(error: &ignore::Error) -> Option<&Path> {
    match error {
        ignore::Error::WithPath { path, .. } => Some(path),
        ignore::Error::WithDepth { err, .. } | ignore::Error::WithLineNumber { err, .. } => {
            path_of(err)
        }
        ignore::Error::Loop { child, .. } => Some(child),
        _ => None,
    }
}
