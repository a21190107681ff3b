//! The places of tasks: a file, or servers. A place has a *chronicle*, a table that the database
//! itself fills in the engine's transactions. The chronicle records the owner of a task at each
//! journaled entry, and each change of a task's state.

pub(crate) mod postgres;
mod proxy;
pub(crate) mod sqlite;

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use stepwell::{RunId, TaskId};

use postgres::Cluster;
use sqlite::File;

/// The time for which a query is repeated while the server is away.
const PATIENCE: Duration = Duration::from_secs(60);

/// A row of the chronicle.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    /// The number of the row. For one task, the numbers follow the order of commits.
    pub(crate) number: u64,
    pub(crate) what: Event,
    pub(crate) task: TaskId,
    /// The task's run at that moment.
    pub(crate) run: RunId,
}

/// The event that a row records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// The task has this state from now on, or another run: `running`, `suspended`…
    State(String),
    /// The entry with this number was journaled.
    Entry(u64),
    /// The task was claimed while it was paused.
    PausedClaim,
}

impl Event {
    /// Returns whether the task ended with this event.
    pub(crate) fn is_end(&self) -> bool {
        let Self::State(state) = self else { return false };
        matches!(state.as_str(), "completed" | "failed" | "cancelled")
    }
}

/// A place of tasks.
pub(crate) enum Place {
    Sqlite(Box<File>),
    Postgres(Box<Cluster>),
}

impl Place {
    /// Returns the URL for the host's own client.
    pub(crate) fn url(&self) -> String {
        match self {
            Self::Sqlite(file) => file.url(),
            Self::Postgres(cluster) => cluster.url(),
        }
    }

    /// Returns the prefixes of the names of the chronicle and of the engine's tables.
    fn prefix(&self) -> (&'static str, &'static str) {
        match self {
            Self::Sqlite(_) => ("", "stepwell_"),
            Self::Postgres(_) => ("stepwell.", "stepwell."),
        }
    }

    /// Creates the chronicle in a database that has the engine's tables.
    pub(crate) fn prepare(&self) -> Result<()> {
        match self {
            Self::Sqlite(file) => file.run(sqlite::CHRONICLE),
            Self::Postgres(cluster) => cluster.sql(postgres::CHRONICLE).map(drop),
        }
    }

    /// Returns the rows of a query as text. The query is repeated while a server does not answer.
    fn rows(&self, sql: &str) -> Result<Vec<Vec<String>>> {
        match self {
            Self::Sqlite(file) => file.rows(sql),
            Self::Postgres(cluster) => {
                let begun = std::time::Instant::now();
                loop {
                    match cluster.sql(sql) {
                        Ok(rows) => {
                            let words = |line: &str| line.split('|').map(str::to_owned).collect();
                            return Ok(rows.lines().map(words).collect());
                        }
                        Err(error) if begun.elapsed() > PATIENCE => return Err(error),
                        Err(_) => std::thread::sleep(Duration::from_millis(100)),
                    }
                }
            }
        }
    }

    /// Returns the rows of the chronicle from a number on: all rows, or only those that end tasks.
    pub(crate) fn chronicle(&self, from: u64, ends: bool) -> Result<Vec<Row>> {
        let which = if ends { "AND what IN ('completed', 'failed', 'cancelled')" } else { "" };
        let table = self.prefix().0;
        let sql = format!(
            "SELECT n, what, task, run, seq FROM {table}chronicle WHERE n >= {from} {which} ORDER \
             BY n"
        );
        let row = |words: Vec<String>| {
            let [number, what, task, run, seq] = words.as_slice() else {
                bail!("not a row: {words:?}")
            };
            let what = match what.as_str() {
                "entry" => Event::Entry(seq.parse()?),
                "paused claim" => Event::PausedClaim,
                state => Event::State(state.to_owned()),
            };
            Ok(Row { number: number.parse()?, what, task: task.parse()?, run: run.parse()? })
        };
        let rows = self.rows(&sql)?;
        rows.into_iter()
            .map(|words| row(words.clone()).with_context(|| format!("{words:?}")))
            .collect()
    }

    /// Returns how long the oldest transaction has been open. A commit that waits for a replica is
    /// not visible, although its task has ended before.
    pub(crate) fn oldest_transaction(&self) -> Result<Duration> {
        let Self::Postgres(_) = self else { return Ok(Duration::ZERO) };
        let rows = self.rows(
            "SELECT coalesce(
                ceil(extract(epoch FROM clock_timestamp() - min(xact_start)) * 1000), 0)::bigint
            FROM pg_stat_activity WHERE application_name = 'stepwell'",
        )?;
        let millis = rows.first().and_then(|row| row.first()).context("no row")?;
        Ok(Duration::from_millis(millis.parse()?))
    }

    /// Deletes the rows of the chronicle.
    pub(crate) fn forget(&self) -> Result<()> {
        let sql = format!("DELETE FROM {}chronicle", self.prefix().0);
        self.rows(&sql).map(drop)
    }

    /// Returns the tables that should have no rows and have some, each with its number of rows.
    pub(crate) fn left(&self) -> Result<Vec<String>> {
        let tables: &[&str] = match self {
            Self::Sqlite(_) => &["tasks", "journal", "waits", "messages", "labels", "needs"],
            Self::Postgres(_) => &[
                "tasks",
                "live_tasks",
                "outcomes",
                "journal",
                "waits",
                "messages",
                "labels",
                "needs",
            ],
        };
        let mut left = Vec::new();
        for table in tables {
            let rows = self.rows(&format!("SELECT count(*) FROM {}{table}", self.prefix().1))?;
            let count = rows.first().and_then(|row| row.first()).map_or("?", String::as_str);
            if count != "0" {
                left.push(format!("{table}: {count}"));
            }
        }
        Ok(left)
    }
}
