//! The servers that the tests need. One that is missing is installed where nobody has to be asked;
//! tests whose server cannot be had are left out, loudly.

use std::env;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use throwaway::{DynamoDb, Postgres, Redis};

use crate::packages;
use crate::report::Report;

/// Names the PostgreSQL server that the tests use.
const POSTGRES_URL: &str = "TEST_POSTGRES_URL";
/// Names the Redis server.
const REDIS_URL: &str = "TEST_REDIS_URL";
/// Names the endpoint that answers as DynamoDB does.
const DYNAMODB_URL: &str = "TEST_DYNAMODB_URL";
/// What stands in for DynamoDB, on PyPI.
const MOTO: &str = "moto[server]>=5.1,<6";

/// What the tests find running. Dropping it stops what was started.
pub(crate) struct Servers {
    postgres: Option<Server<Postgres>>,
    redis: Option<Server<Redis>>,
    dynamodb: Option<Server<DynamoDb>>,
    /// Folders of programs that tests start themselves.
    programs: Vec<PathBuf>,
    not_run: Vec<NotRun>,
}

enum Server<S> {
    /// The environment names one, for this program and for the tests alike.
    Given,
    Started(S),
}

/// A suite that lacks its server.
struct NotRun {
    suite: &'static str,
    why: String,
}

impl Servers {
    /// Starts what can be had, and warns of what cannot.
    pub(crate) fn start() -> Self {
        let mut servers = Self::with_postgres();
        servers.redis = redis().map_err(|error| servers.leave_out("Redis suites", &error)).ok();
        let dynamodb = moto().and_then(|programs| {
            servers.programs.extend(programs.clone());
            dynamodb(programs)
        });
        servers.dynamodb =
            dynamodb.map_err(|error| servers.leave_out("DynamoDB suites", &error)).ok();
        servers
    }

    /// Starts PostgreSQL and nothing else.
    pub(crate) fn with_postgres() -> Self {
        let mut servers = Self {
            postgres: None,
            redis: None,
            dynamodb: None,
            programs: Vec::new(),
            not_run: Vec::new(),
        };
        servers.postgres =
            postgres().map_err(|error| servers.leave_out("PostgreSQL suites", &error)).ok();
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

    /// The beginnings of the names of test files whose server could not be had.
    pub(crate) fn missing(&self) -> Vec<&'static str> {
        let there = [
            ("postgres", self.postgres.is_some()),
            ("redis", self.redis.is_some()),
            ("dynamodb", self.dynamodb.is_some()),
        ];
        there.into_iter().filter(|(_, is_there)| !is_there).map(|(name, _)| name).collect()
    }

    /// Tells a command that runs tests where the servers are.
    pub(crate) fn show_to(&self, command: &mut Command) {
        if let Some(Server::Started(postgres)) = &self.postgres {
            command.env(POSTGRES_URL, postgres.url());
        }
        if let Some(Server::Started(redis)) = &self.redis {
            command.env(REDIS_URL, redis.url());
        }
        if let Some(Server::Started(dynamodb)) = &self.dynamodb {
            command.env(DYNAMODB_URL, dynamodb.url());
        }
        add_to_path(command, &self.programs);
    }

    /// Puts what was left out into the report. With `CI` set that is a failure, because nobody
    /// reads the warning.
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

/// Lets a command find the look-alike of DynamoDB, which is installed when it is missing.
pub(crate) fn show_moto_to(command: &mut Command) {
    match moto() {
        Ok(programs) => add_to_path(command, programs.as_slice()),
        Err(error) => warn(&format!("DynamoDB IS LEFT OUT: {error:#}")),
    }
}

fn add_to_path(command: &mut Command, programs: &[PathBuf]) {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&path).chain(programs.iter().cloned());
    if let Ok(path) = env::join_paths(folders) {
        command.env("PATH", path);
    }
}

fn is_given(variable: &str) -> bool {
    env::var_os(variable).is_some_and(|url| !url.is_empty())
}

fn postgres() -> Result<Server<Postgres>> {
    let installed = throwaway::postgres_binaries().is_some();
    if is_given(POSTGRES_URL) {
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

fn redis() -> Result<Server<Redis>> {
    if throwaway::redis_binary().is_none() {
        packages::install(&["redis-server"]).context("Redis is not installed")?;
    }
    Ok(if is_given(REDIS_URL) { Server::Given } else { Server::Started(Redis::start()?) })
}

/// The folder of moto's programs, where it is not in `PATH`. It is installed when it is missing.
fn moto() -> Result<Option<PathBuf>> {
    if throwaway::moto_binary().is_some() {
        return Ok(None);
    }
    packages::install_python("moto", MOTO)
        .map(Some)
        .context("moto, which stands in for DynamoDB, is not installed")
}

fn dynamodb(programs: Option<PathBuf>) -> Result<Server<DynamoDb>> {
    if is_given(DYNAMODB_URL) {
        return Ok(Server::Given);
    }
    let installed = programs.map(|programs| programs.join("moto_server"));
    Ok(Server::Started(
        installed.map_or_else(DynamoDb::start, |program| DynamoDb::start_with(&program))?,
    ))
}

/// Prints what must not be overlooked among the lines of a test run.
pub(crate) fn warn(text: &str) {
    let line = "=".repeat(100);
    eprintln!("\n{line}\nWARNING: {text}\n{line}");
}
