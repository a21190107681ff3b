//! The servers that the tests need. One that is missing is installed where nobody has to be asked; tests whose server
//! cannot be had are left out, loudly.

use std::env;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use throwaway::Postgres;

use crate::packages;
use crate::report::Report;

/// Names the PostgreSQL server that the tests use.
const POSTGRES_URL: &str = "TEST_POSTGRES_URL";

/// What the tests find running. Dropping it stops what was started.
pub(crate) struct Servers {
    postgres: Option<Server>,
    not_run: Vec<NotRun>,
}

enum Server {
    /// The environment names one, for this program and for the tests alike.
    Given,
    Started(Postgres),
}

/// A suite that lacks its server.
struct NotRun {
    suite: &'static str,
    why: String,
}

impl Servers {
    /// Starts what can be had, and warns of what cannot.
    pub(crate) fn start() -> Self {
        let mut servers = Self { postgres: None, not_run: Vec::new() };
        match postgres() {
            Ok(server) => servers.postgres = Some(server),
            Err(error) => servers.leave_out("PostgreSQL suites", &error),
        }
        // PgBouncer stands before PostgreSQL; the tests start it themselves.
        if servers.has_postgres()
            && let Err(error) = pgbouncer()
        {
            servers.leave_out("PgBouncer suites", &error);
        }
        servers
    }

    pub(crate) fn has_postgres(&self) -> bool {
        self.postgres.is_some()
    }

    /// Tells a command that runs tests where the servers are.
    pub(crate) fn show_to(&self, command: &mut Command) {
        if let Some(Server::Started(postgres)) = &self.postgres {
            command.env(POSTGRES_URL, postgres.url());
        }
    }

    /// Puts what was left out into the report. With `CI` set that is a failure, because nobody reads the warning.
    pub(crate) fn note_in(&self, report: &mut Report) {
        for NotRun { suite, why } in &self.not_run {
            if env::var_os("CI").is_some() {
                report.run(suite, || bail!("NOT RUN: {why}"));
            } else {
                report.not_run(suite, why.lines().next().unwrap_or_default());
            }
        }
    }

    fn leave_out(&mut self, suite: &'static str, error: &anyhow::Error) {
        let why = format!("{error:#}");
        warn(&format!("THE {} DO NOT RUN: {why}", suite.to_uppercase()));
        self.not_run.push(NotRun { suite, why });
    }
}

fn postgres() -> Result<Server> {
    let installed = throwaway::postgres_binaries().is_some();
    if env::var_os(POSTGRES_URL).is_some_and(|url| !url.is_empty()) {
        if !installed {
            warn("PostgreSQL is not installed: tests that start a server of their own will fail");
        }
        return Ok(Server::Given);
    }
    if !installed {
        packages::install(&["postgresql"]).context("PostgreSQL is not installed")?;
    }
    Ok(Server::Started(Postgres::start()?))
}

fn pgbouncer() -> Result<()> {
    if throwaway::pgbouncer_binary().is_none() {
        packages::install(&["pgbouncer"]).context("PgBouncer is not installed")?;
    }
    Ok(())
}

/// Prints what must not be overlooked among the lines of a test run.
fn warn(text: &str) {
    let line = "=".repeat(100);
    eprintln!("\n{line}\nWARNING: {text}\n{line}");
}
