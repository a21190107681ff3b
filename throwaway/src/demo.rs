//! The program `stepwell`, on its tour: a dashboard, an API, and a worker behind them.

use std::env;
use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::one_process::OneProcess;
use crate::port;

/// A running `stepwell demo`. Dropping it stops it, and its worker.
#[derive(Debug)]
pub struct Demo {
    _process: OneProcess,
    port: u16,
}

impl Demo {
    /// Starts this `stepwell`.
    pub fn start_with(program: &Path) -> Result<Self> {
        port::start_on_a_free_port(|port| {
            let mut command = Command::new(program);
            command.args(["demo", "--folder", "demo", "--listen", &format!("127.0.0.1:{port}")]);
            Ok(Self {
                _process: OneProcess::start("stepwell", &env::temp_dir(), &command, port)?,
                port,
            })
        })
    }

    /// Where the dashboard is.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}
