//! `cargo xtask torture`: real processes and servers, killed by the thousand.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::report::Report;
use crate::{cargo, packages, process, servers};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// How many processes to kill over a SQLite file
    #[arg(long, default_value_t = 10_000)]
    kills: u64,
    /// How many processes to kill over PostgreSQL
    #[arg(long, default_value_t = 2_000)]
    postgres_kills: u64,
    /// Decides what goes wrong
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many kills there are before what was recorded is checked
    #[arg(long, default_value_t = 500)]
    window: u64,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let mut report = Report::new("Torture");
    // What is missing is left out, and the torture says so.
    for (package, what) in [("faketime", "wrong clocks"), ("iproute2", "hosts without a network")] {
        if let Err(error) = packages::install(&[package]) {
            servers::warn(&format!("without {package} there are no {what}: {error:#}"));
        }
    }
    let torture = |store: &str, kills: u64| -> Result<()> {
        let mut command: Command = cargo::cargo()?;
        command.args([
            "run",
            "--release",
            "--package",
            "stepwell-torture",
            "--",
            "run",
            "--store",
            store,
        ]);
        command.args(["--kills", &kills.to_string(), "--window", &options.window.to_string()]);
        process::run(command.args(["--seed", &options.seed.to_string()]))
    };
    ensure!(options.window > 0, "a window has a kill at least");
    if options.kills > 0 {
        report
            .run(&format!("SQLite, {} kills", options.kills), || torture("sqlite", options.kills));
    }
    if options.postgres_kills > 0 {
        report.run(&format!("PostgreSQL, {} kills", options.postgres_kills), || {
            if throwaway::postgres_binaries().is_none() {
                packages::install(&["postgresql"]).context("PostgreSQL is not installed")?;
            }
            if throwaway::pgbouncer_binary().is_none()
                && let Err(error) = packages::install(&["pgbouncer"])
            {
                servers::warn(&format!("without PgBouncer there is no pooler: {error:#}"));
            }
            torture("postgres", options.postgres_kills)
        });
    }
    report.finish()
}
