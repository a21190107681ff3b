//! A PgBouncer in front of a PostgreSQL server.

use std::process::{Child, Command, Stdio};
use std::{env, fs};

use anyhow::{Context as _, Result, bail};

use crate::guard::Guard;
use crate::process::{end_of_log, wait_until};
use crate::user::User;
use crate::{PASSWORD, Postgres, SUPERUSER, pgbouncer_binary, port};

/// A running PgBouncer in transaction mode: a client has a connection to the server only while its
/// transaction runs.
///
/// Dropping it stops PgBouncer and removes its folder.
#[derive(Debug)]
pub struct PgBouncer {
    guard: Guard,
    process: Child,
    port: u16,
}

impl PgBouncer {
    /// Starts PgBouncer with a pool of 3 connections, few enough that clients have to share them.
    pub fn start(postgres: &Postgres) -> Result<Self> {
        port::start_on_a_free_port(|port| Self::start_on(port, postgres))
    }

    fn start_on(port: u16, postgres: &Postgres) -> Result<Self> {
        let program = pgbouncer_binary().context("PgBouncer is not installed")?;
        let user = User::for_servers()?;
        let folder = tempfile::Builder::new().prefix("throwaway-").tempdir_in(env::temp_dir())?;
        let file = |name| folder.path().join(name);
        let (settings, users, log, pid) =
            (file("settings"), file("users"), file("log"), file("pid"));
        fs::write(&users, format!("\"{SUPERUSER}\" \"{PASSWORD}\"\n"))?;
        // Without a Unix socket, a port that is taken is an error.
        let text = format!(
            "[databases]
* = host=127.0.0.1 port={to}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {users}
pool_mode = transaction
default_pool_size = 3
ignore_startup_parameters = extra_float_digits
logfile = {log}
pidfile = {pid}
",
            to = postgres.port(),
            users = users.display(),
            log = log.display(),
            pid = pid.display(),
        );
        fs::write(&settings, text)?;
        user.take(folder.path())?;

        // By the number that PgBouncer wrote: the child may be the program that became another
        // user.
        let mut stop = Command::new("sh");
        stop.args(["-c", r#"kill -KILL "$(cat "$0")""#]).arg(&pid);
        let guard = Guard::new(folder, &stop)?;
        let mut command = user.command(&program);
        command.arg("--quiet").arg(&settings).current_dir(guard.folder());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let process = command.spawn().context("could not start PgBouncer")?;
        let mut pgbouncer = Self { guard, process, port };
        wait_until("PgBouncer listens", || {
            if let Some(status) = pgbouncer.process.try_wait()? {
                bail!("PgBouncer did not start ({status}); {}", end_of_log(&log));
            }
            // Written when it listens.
            Ok(fs::read_to_string(&pid).is_ok_and(|number| number.ends_with('\n')))
        })?;
        Ok(pgbouncer)
    }

    /// Where PgBouncer answers; user and password are those of the server.
    pub fn url(&self) -> String {
        crate::url(self.port)
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        self.guard.end();
        // By now it has ended, unless it never came so far as to write its number.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
