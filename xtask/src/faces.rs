//! The dashboard in a real browser, and the API against its own description, both over `stepwell
//! demo`.

use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use throwaway::Demo;

use crate::report::Report;
use crate::{cargo, packages, process, servers};

/// What drives the browser, from npm.
const PLAYWRIGHT: &str = "playwright-core@1.65.1";
/// What tries the API with all that its description allows, and more, from PyPI.
const SCHEMATHESIS: &str = "schemathesis>=4.3,<5";
/// How many requests are made up for each operation.
const EXAMPLES: &str = "10";

/// Runs both. What they need is installed where that needs nobody's leave; otherwise they are left
/// out, loudly.
pub(crate) fn run(report: &mut Report) {
    part(report, "dashboard in Chromium", browser, |browser| in_browser(&browser));
    let schemathesis = || packages::install_python("schemathesis", SCHEMATHESIS);
    part(report, "API against its description (schemathesis)", schemathesis, |programs| {
        described(&programs)
    });
}

fn part<T>(
    report: &mut Report,
    name: &str,
    tools: impl FnOnce() -> Result<T>,
    run: impl FnOnce(T) -> Result<()>,
) {
    match tools() {
        Ok(tools) => report.run(name, || run(tools)),
        Err(error) if env::var_os("CI").is_some() => {
            report.run(name, || bail!("NOT RUN: {error:#}"));
        }
        Err(error) => {
            let why = format!("{error:#}");
            servers::warn(&format!("NOT RUN: {name}: {why}"));
            report.not_run(name, why.lines().next().unwrap_or_default());
        }
    }
}

/// Builds the program and starts it.
fn demo() -> Result<Demo> {
    // With the tests: by itself it would be built with other features, and with it most of what it
    // is made of.
    process::run(cargo::cargo()?.args(["test", "--quiet", "--workspace", "--no-run"]))?;
    Demo::start_with(&cargo::target_dir()?.join("debug").join("stepwell"))
}

struct Browser {
    chromium: PathBuf,
    /// Where playwright-core is installed.
    node_modules: PathBuf,
}

fn browser() -> Result<Browser> {
    let chromium = match find_chromium() {
        Some(chromium) => chromium,
        None => {
            packages::install(&["chromium"]).context("Chromium is not installed")?;
            find_chromium().context("Chromium was installed, and is not in PATH")?
        }
    };
    if !process::succeeds(Command::new("npm").arg("--version")) {
        packages::install(&["nodejs", "npm"]).context("Node.js is not installed")?;
    }
    let folder = cargo::target_dir()?.join("node").join("playwright");
    // Written last, so that an installation that was broken off is begun again.
    let installed = folder.join("installed");
    if fs::read_to_string(&installed).ok().as_deref() != Some(PLAYWRIGHT) {
        fs::create_dir_all(&folder)?;
        let install =
            ["install", "--no-save", "--no-audit", "--no-fund", "--loglevel=error", "--prefix"];
        process::run(Command::new("npm").args(install).arg(&folder).arg(PLAYWRIGHT))?;
        fs::write(installed, PLAYWRIGHT)?;
    }
    Ok(Browser { chromium, node_modules: folder.join("node_modules") })
}

fn find_chromium() -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let mut places = env::split_paths(&path).flat_map(|folder| names.map(|name| folder.join(name)));
    places.find(|place| place.is_file())
}

fn in_browser(Browser { chromium, node_modules }: &Browser) -> Result<()> {
    let demo = demo()?;
    let test = cargo::root()?.join("crates/stepwell-server/e2e/dashboard.test.mjs");
    let mut node = Command::new("node");
    node.args(["--test", "--test-timeout=180000"]).arg(test);
    node.env("STEPWELL_URL", demo.url()).env("CHROMIUM", chromium).env("PLAYWRIGHT", node_modules);
    node.env("SCREENSHOTS", cargo::target_dir()?.join("screenshots"));
    process::run(&mut node)
}

fn described(programs: &std::path::Path) -> Result<()> {
    let demo = demo()?;
    let checks = ["not_a_server_error", "content_type_conformance", "response_schema_conformance"];
    let mut schemathesis = Command::new(programs.join("schemathesis"));
    schemathesis.arg("run").arg(format!("{}/api/v1/openapi.json", demo.url()));
    schemathesis.args(["--checks", &checks.join(",")]).args(["--max-examples", EXAMPLES]);
    // What waits by itself is tried elsewhere.
    let waits = ["get_events", "get_tasks_task_id_events", "get_tasks_task_id_result"];
    schemathesis.args(waits.iter().flat_map(|id| ["--exclude-operation-id", id]));
    schemathesis.args(["--phases", "coverage,fuzzing", "--seed", "1"]);
    schemathesis.current_dir(env::temp_dir());
    process::run(&mut schemathesis)
}
