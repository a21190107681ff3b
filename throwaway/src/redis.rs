//! A Redis server in a folder of its own.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::binaries::in_path;
use crate::one_process::OneProcess;
use crate::port;

/// A running Redis server that syncs every write to its disk before it answers.
///
/// Dropping it stops the server and removes its folder.
#[derive(Debug)]
pub struct Redis {
    server: OneProcess,
    port: u16,
}

/// The program `redis-server`, from `PATH`.
pub fn redis_binary() -> Option<PathBuf> {
    in_path("redis-server")
}

impl Redis {
    /// Starts a server.
    pub fn start() -> Result<Self> {
        Self::start_in(&env::temp_dir())
    }

    /// Starts a server with its data in a new folder in `parent`, for example on a disk that is to
    /// be measured.
    pub fn start_in(parent: &Path) -> Result<Self> {
        let program = redis_binary().context("Redis is not installed")?;
        port::start_on_a_free_port(|port| {
            let mut command = Command::new(&program);
            command.args(["--bind", "127.0.0.1", "--port", &port.to_string()]);
            command.args(["--appendonly", "yes", "--appendfsync", "always", "--save", ""]);
            Ok(Self { server: OneProcess::start("Redis", parent, &command, port)?, port })
        })
    }

    /// Where the server answers.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port)
    }

    /// The folder that holds the server's data and its log (`log`).
    pub fn folder(&self) -> &Path {
        self.server.folder()
    }
}
