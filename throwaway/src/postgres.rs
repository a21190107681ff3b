//! A PostgreSQL server in a folder of its own.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fmt::Write as _};

use anyhow::{Context as _, Result};

use crate::guard::Guard;
use crate::process::{end_of_log, run};
use crate::user::User;
use crate::{PASSWORD, SUPERUSER, port, postgres_binaries};

/// A running PostgreSQL server, as durable as PostgreSQL is by default.
///
/// Dropping it stops the server and removes its folder.
#[derive(Debug)]
pub struct Postgres {
    guard: Guard,
    programs: Programs,
    port: u16,
}

/// How to stop a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Connections are ended and everything is written: the way a server is usually stopped.
    Fast,
    /// As after a crash: the next start has to recover from the log.
    Immediate,
}

impl Postgres {
    /// Starts a server with PostgreSQL's default settings.
    pub fn start() -> Result<Self> {
        Self::with_settings(&[])
    }

    /// Starts a server with these settings, each a name and a value of `postgresql.conf`.
    pub fn with_settings(settings: &[(&str, &str)]) -> Result<Self> {
        Self::start_in(&env::temp_dir(), settings)
    }

    /// Starts a server with its data in a new folder in `parent`, for example on a disk that is to
    /// be measured.
    pub fn start_in(parent: &Path, settings: &[(&str, &str)]) -> Result<Self> {
        let mut postgres = Self::prepare(parent)?;
        postgres.create_data()?;
        postgres.set(&[("listen_addresses", "127.0.0.1"), ("max_connections", "200")])?;
        postgres.set(settings)?;
        postgres.start_somewhere()?;
        Ok(postgres)
    }

    /// A server that has a folder, but no data yet.
    pub(crate) fn prepare(parent: &Path) -> Result<Self> {
        let binaries = postgres_binaries().context("PostgreSQL's programs are not installed")?;
        let programs = Programs { binaries, user: User::for_servers()? };
        let folder = tempfile::Builder::new()
            .prefix("throwaway-")
            .tempdir_in(std::path::absolute(parent)?)
            .with_context(|| format!("no folder could be made in {}", parent.display()))?;
        let mut stop = programs.command("pg_ctl");
        stop.args(["stop", "--mode=immediate", "--pgdata"]).arg(data_in(folder.path()));
        Ok(Self { guard: Guard::new(folder, &stop)?, programs, port: 0 })
    }

    fn create_data(&self) -> Result<()> {
        let password = self.folder().join("password");
        fs::write(&password, PASSWORD)?;
        self.give_folder()?;
        // Not every macOS has C.UTF-8; both sort by code points.
        let locale = if cfg!(target_os = "macos") { "C" } else { "C.UTF-8" };
        let mut initdb = self.command("initdb");
        initdb
            .args(["--username", SUPERUSER, "--auth-host=scram-sha-256", "--auth-local=trust"])
            .args(["--encoding=UTF8", "--locale", locale, "--no-sync", "--no-instructions"])
            .arg("--pwfile")
            .arg(password)
            .arg("--pgdata")
            .arg(self.data());
        run(&mut initdb)?;
        Ok(())
    }

    /// Starts the server on a port that it chooses.
    pub(crate) fn start_somewhere(&mut self) -> Result<()> {
        let socket_folder = self.folder().display().to_string();
        self.set(&[("unix_socket_directories", &socket_folder)])?;
        port::start_on_a_free_port(|port| {
            self.port = port;
            self.set(&[("port", &port.to_string())])?;
            self.start_again()
        })
    }

    /// Where the server answers its superuser, with the password.
    pub fn url(&self) -> String {
        crate::url(self.port)
    }

    /// The port of 127.0.0.1 that the server listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The folder that holds the server's data (`data`), its log (`log`) and its Unix socket.
    pub fn folder(&self) -> &Path {
        self.guard.folder()
    }

    /// Stops the server. Its data stays, for [`start_again`](Self::start_again).
    pub fn stop(&self, how: Stop) -> Result<()> {
        let mode = match how {
            Stop::Fast => "--mode=fast",
            Stop::Immediate => "--mode=immediate",
        };
        self.pg_ctl(&["stop", mode])
    }

    /// Starts the server that was stopped or has crashed, with the same port and data.
    pub fn start_again(&self) -> Result<()> {
        let log = self.folder().join("log");
        let mut start = self.command("pg_ctl");
        start.arg("start").arg("--pgdata").arg(self.data()).arg("--log").arg(&log);
        run(&mut start)
            .with_context(|| format!("PostgreSQL did not start; {}", end_of_log(&log)))?;
        Ok(())
    }

    /// Runs one statement with psql, as the superuser, and gives the rows as text: `|` between
    /// columns, no headings.
    pub fn sql(&self, statement: &str) -> Result<String> {
        let mut psql = self.command("psql");
        psql.args([
            "--no-psqlrc",
            "--quiet",
            "--tuples-only",
            "--no-align",
            "--dbname",
            &self.url(),
        ]);
        run(psql.args(["--command", statement]))
    }

    /// Adds settings to the file that PostgreSQL reads last, where what comes later wins.
    pub(crate) fn set(&self, settings: &[(&str, &str)]) -> Result<()> {
        let mut lines = String::new();
        for (name, value) in settings {
            writeln!(lines, "{name} = '{}'", value.replace('\\', r"\\").replace('\'', "''"))?;
        }
        let file = self.data().join("postgresql.auto.conf");
        OpenOptions::new().append(true).open(file)?.write_all(lines.as_bytes())?;
        Ok(())
    }

    pub(crate) fn pg_ctl(&self, args: &[&str]) -> Result<()> {
        run(self.command("pg_ctl").args(args).arg("--pgdata").arg(self.data()))?;
        Ok(())
    }

    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = self.programs.command(program);
        // Where this process stands may be closed to the user that runs the server.
        command.current_dir(self.folder());
        command
    }

    /// Lets the user that runs the server write to the folder.
    pub(crate) fn give_folder(&self) -> Result<()> {
        self.programs.user.take(self.folder())
    }

    pub(crate) fn data(&self) -> PathBuf {
        data_in(self.folder())
    }
}

fn data_in(folder: &Path) -> PathBuf {
    folder.join("data")
}

/// PostgreSQL's programs and who runs them.
#[derive(Debug)]
struct Programs {
    binaries: PathBuf,
    user: User,
}

impl Programs {
    fn command(&self, name: &str) -> Command {
        let mut command = self.user.command(&self.binaries.join(name));
        // The variables of a person's own server must not reach this one.
        for (variable, _) in env::vars_os() {
            if variable.as_encoded_bytes().starts_with(b"PG") {
                command.env_remove(variable);
            }
        }
        // Messages in English, whatever the person reads.
        command.env("LC_ALL", "C");
        command
    }
}
