//! Where and how the workloads run.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum as _;
use stepwell::WorkerOptions;

use crate::backend::{Backend, StoreKind};
use crate::server::{Schema, Server};

/// What the engine tells of itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Telemetry {
    pub(crate) measure: bool,
    pub(crate) keep_history: bool,
}

/// Where and how to run.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) store: StoreKind,
    pub(crate) dir: PathBuf,
    /// With PostgreSQL.
    pub(crate) server: Option<Arc<Server>>,
    pub(crate) concurrency: usize,
    pub(crate) telemetry: Telemetry,
    /// How many worker processes do the work; none when this process does it.
    pub(crate) processes: Option<u16>,
}

impl Setup {
    /// A new, empty store.
    pub(crate) fn backend(&self) -> Result<Backend> {
        Ok(match self.store {
            StoreKind::Sqlite => Backend::sqlite(&self.dir)?,
            StoreKind::Postgres => Backend::Postgres(self.schema()?),
            StoreKind::Memory => Backend::memory(),
        })
    }

    pub(crate) fn schema(&self) -> Result<Schema> {
        Ok(self.server()?.schema())
    }

    pub(crate) fn server(&self) -> Result<&Arc<Server>> {
        self.server.as_ref().context("PostgreSQL alone has a server")
    }

    /// Whether what is written goes to the disk that `dir` is on.
    pub(crate) fn writes_to_dir(&self) -> bool {
        match self.store {
            StoreKind::Sqlite => true,
            StoreKind::Postgres => self.server.as_ref().is_some_and(|server| server.is_own()),
            StoreKind::Memory => false,
        }
    }

    pub(crate) fn worker(&self) -> WorkerOptions {
        WorkerOptions::default().concurrency(self.concurrency)
    }

    /// This program once more, with the same store: to do what the hidden argument asks for.
    pub(crate) fn child(&self, argument: &str, value: &str) -> Result<Command> {
        let store = self.store.to_possible_value().context("every store has a name")?;
        let mut child = Command::new(std::env::current_exe()?);
        child.args([argument, value, "--store", store.get_name(), "--dir"]).arg(&self.dir);
        child.args(["--concurrency", &self.concurrency.to_string()]);
        if let Some(server) = &self.server {
            child.args(["--database-url", server.url()]);
        }
        Ok(child)
    }

    /// What this program says when it does so.
    pub(crate) async fn ask_child(&self, argument: &str, value: &str) -> Result<String> {
        let mut child = self.child(argument, value)?;
        let output = tokio::task::spawn_blocking(move || child.output()).await??;
        if !output.status.success() {
            bail!(
                "the measured process failed: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }
}
