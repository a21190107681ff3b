//! Something that answers as DynamoDB does: moto, a Python program.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::binaries::in_path;
use crate::one_process::OneProcess;
use crate::port;

/// A running moto server, which keeps its tables in memory. Every access key is good for it.
///
/// Dropping it stops the server.
#[derive(Debug)]
pub struct DynamoDb {
    _server: OneProcess,
    port: u16,
}

/// The program `moto_server`, from `PATH`.
pub fn moto_binary() -> Option<PathBuf> {
    in_path("moto_server")
}

impl DynamoDb {
    /// Starts the server that is in `PATH`.
    pub fn start() -> Result<Self> {
        let program = moto_binary().context(
            "moto is not installed: `python3 -m venv moto && moto/bin/pip install 'moto[server]'`, \
             and put moto/bin into PATH",
        )?;
        Self::start_with(&program)
    }

    /// Starts this `moto_server`.
    pub fn start_with(program: &Path) -> Result<Self> {
        port::start_on_a_free_port(|port| {
            let mut command = Command::new(program);
            command.args(["--host", "127.0.0.1", "--port", &port.to_string()]);
            Ok(Self { _server: OneProcess::start("moto", &env::temp_dir(), &command, port)?, port })
        })
    }

    /// Where the server answers.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}
