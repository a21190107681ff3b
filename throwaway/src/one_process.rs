//! Servers that are one process with a port, and keep everything in their folder.

use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::guard::Guard;
use crate::process::{end_of_log, wait_until};

/// Becomes the server, after it has written down which process that is.
const SCRIPT: &str = r#"echo $$ > pid; exec "$0" "$@" > log 2>&1"#;

/// A server that listens.
#[derive(Debug)]
pub(crate) struct OneProcess {
    guard: Guard,
    process: Child,
}

impl OneProcess {
    /// Starts the command in a new folder in `parent`, and waits until it listens on the port.
    pub(crate) fn start(name: &str, parent: &Path, command: &Command, port: u16) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("throwaway-")
            .tempdir_in(std::path::absolute(parent)?)
            .with_context(|| format!("no folder could be made in {}", parent.display()))?;
        let mut stop = Command::new("sh");
        stop.args(["-c", r#"kill -KILL "$(cat "$0")""#]).arg(folder.path().join("pid"));
        let guard = Guard::new(folder, &stop)?;
        let log = guard.folder().join("log");
        let mut shell = Command::new("sh");
        shell.args(["-c", SCRIPT]).arg(command.get_program()).args(command.get_args());
        shell.current_dir(guard.folder()).env("LC_ALL", "C");
        shell.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let process = shell.spawn().with_context(|| format!("could not start {name}"))?;
        let mut server = Self { guard, process };
        wait_until(&format!("{name} listens"), || {
            if let Some(status) = server.process.try_wait()? {
                bail!("{name} did not start ({status}); {}", end_of_log(&log));
            }
            Ok(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok())
        })?;
        Ok(server)
    }

    /// The folder in which the server runs.
    pub(crate) fn folder(&self) -> &Path {
        self.guard.folder()
    }
}

impl Drop for OneProcess {
    fn drop(&mut self) {
        self.guard.end();
        // By now it has ended, unless it never came so far as to write its number.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
