//! A server and its folder end with the process that started them, even when that is killed.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result};
use tempfile::TempDir;

/// Waits until its standard input is closed, as it is when the process at the other end is gone for
/// whatever reason.
const SCRIPT: &str = r#"read -r _; "$@"; rm -rf -- "$0""#;

/// A folder, and a shell that waits for this process to end: then it stops the server and removes
/// the folder.
#[derive(Debug)]
pub(crate) struct Guard {
    folder: PathBuf,
    shell: Child,
}

impl Guard {
    /// Guards the folder and the server in it. `stop` may fail: perhaps the server is stopped
    /// already.
    pub(crate) fn new(folder: TempDir, stop: &Command) -> Result<Self> {
        let mut shell = Command::new("sh");
        shell.args(["-c", SCRIPT]).arg(folder.path()).arg(stop.get_program()).args(stop.get_args());
        shell.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).current_dir("/");
        // Ctrl-C in a terminal, and a test runner that ends a test, send their signal to a whole
        // group of processes.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut shell, 0);
        let shell = shell.spawn().context("could not start a shell")?;
        Ok(Self { folder: folder.keep(), shell })
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Stops the server and removes the folder.
    pub(crate) fn end(&mut self) {
        // Waiting closes the shell's input first. Nobody is left who could be told of an error.
        let _ = self.shell.wait();
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.end();
    }
}
