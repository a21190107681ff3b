//! `cargo xtask test`: all tests. A short torture is among them; `cargo xtask torture` is the long
//! one.

use std::ffi::{OsStr, OsString};
use std::process::Command;

use anyhow::{Result, bail};

use crate::report::Report;
use crate::servers::Servers;
use crate::{cargo, faces, nextest, process};

/// The packages whose tests all need PostgreSQL. In other packages such tests are in files named
/// `postgres*`.
const POSTGRES_PACKAGES: [&str; 2] = ["stepwell-postgres", "throwaway"];

/// Runs the tests. `args` go to nextest; `profile` is a profile of `.config/nextest.toml`.
pub(crate) fn run(args: &[OsString], profile: Option<&str>) -> Result<()> {
    let mut report = Report::new("Test suites");
    let servers = Servers::start();
    let stores = if servers.has_postgres() { "SQLite and PostgreSQL" } else { "SQLite" };
    if nextest::available()? {
        report.run(&format!("unit and integration tests (cargo nextest, {stores})"), || {
            with_nextest(args, profile, &servers)
        });
    } else {
        report.run(&format!("unit and integration tests (cargo test, {stores})"), || {
            with_cargo_test(args, &servers)
        });
    }
    report.run("documentation tests", || {
        let mut command = cargo::cargo()?;
        command.args(["test", "--doc", "--workspace"]);
        choose_packages(&mut command, &servers);
        process::run(&mut command)
    });
    // Those who ask for certain tests do not ask for these.
    if args.is_empty() {
        faces::run(&mut report);
    }
    servers.note_in(&mut report);
    report.finish()
}

fn with_nextest(args: &[OsString], profile: Option<&str>, servers: &Servers) -> Result<()> {
    let mut command = cargo::cargo()?;
    command.args(["nextest", "run"]);
    servers.show_to(&mut command);
    // With both, cargo takes the whole workspace.
    if !names_a_package(args) {
        command.arg("--workspace");
    }
    if let Some(profile) = profile {
        command.args(["--profile", profile]);
    }
    if let Some(filter) = filter(&servers.missing()) {
        command.arg("--config-file").arg(nextest::config_with_filter(&filter)?);
    }
    process::run(command.args(args))
}

fn with_cargo_test(filters: &[OsString], servers: &Servers) -> Result<()> {
    if let Some(option) = filters.iter().find(|filter| is_option(filter)) {
        bail!("`{}` is an option of nextest, which is not installed", option.display());
    }
    for server in servers.missing() {
        eprintln!(
            "`cargo test` cannot leave out the files named {server}*; without their server they \
             fail."
        );
    }
    let mut command = cargo::cargo()?;
    command.args(["test", "--workspace", "--tests", "--no-fail-fast"]);
    choose_packages(&mut command, servers);
    process::run(command.arg("--").args(filters))
}

/// Has `cargo test` run what the servers are there for.
fn choose_packages(command: &mut Command, servers: &Servers) {
    servers.show_to(command);
    if !servers.has_postgres() {
        command.args(POSTGRES_PACKAGES.iter().flat_map(|package| ["--exclude", package]));
    }
}

/// Leaves out the tests whose server is missing.
fn filter(missing: &[&str]) -> Option<String> {
    let files = missing.iter().map(|server| format!("binary(/^{server}/)"));
    let packages = format!("package(/^({})$/)", POSTGRES_PACKAGES.join("|"));
    let without_postgres = missing.contains(&"postgres").then_some(packages);
    let left_out: Vec<_> = without_postgres.into_iter().chain(files).collect();
    (!left_out.is_empty()).then(|| format!("not ({})", left_out.join(" | ")))
}

fn names_a_package(args: &[OsString]) -> bool {
    let mut options = args.iter().take_while(|arg| *arg != "--").map(|arg| arg.as_encoded_bytes());
    options.any(|arg| arg.starts_with(b"-p") || arg.starts_with(b"--package"))
}

fn is_option(arg: &OsStr) -> bool {
    arg.as_encoded_bytes().starts_with(b"-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_whose_server_is_missing_are_left_out() {
        assert_eq!(filter(&[]), None);
        let both = filter(&["postgres", "redis"]).unwrap();
        let postgres = "package(/^(stepwell-postgres|throwaway)$/) | binary(/^postgres/)";
        assert_eq!(both, format!("not ({postgres} | binary(/^redis/))"));
        assert_eq!(filter(&["dynamodb"]).unwrap(), "not (binary(/^dynamodb/))");
    }

    #[test]
    fn only_options_name_packages() {
        let names =
            |args: &[&str]| names_a_package(&args.iter().map(OsString::from).collect::<Vec<_>>());
        assert!(
            names(&["-p", "stepwell"])
                && names(&["replay", "--package=stepwell"])
                && names(&["-pstepwell"])
        );
        assert!(!names(&["--profile", "ci", "replay"]) && !names(&["replay", "--", "-p"]));
    }
}
