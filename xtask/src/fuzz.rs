//! `cargo xtask fuzz`: the fuzz targets, each for some time, by cargo-fuzz.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::{fs, thread};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;

use crate::report::Report;
use crate::{cargo, process};

/// How libFuzzer tells how many inputs it has tried.
const EXECUTED: &str = "stat::number_of_executed_units:";

#[derive(Args)]
pub(crate) struct Options {
    /// A target, and no others; may be given several times
    #[arg(long = "target", value_name = "NAME")]
    targets: Vec<String>,
    /// For how many seconds each target runs
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// The sanitizer: `address`, which also sees what C code does, or `none`, which is faster
    #[arg(long, default_value = "address")]
    sanitizer: String,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let fuzz = cargo::root()?.join("fuzz");
    let targets = chosen(&fuzz, &options.targets)?;
    ensure!(
        process::succeeds(nightly()?.arg("--version")),
        "fuzzing needs a nightly toolchain: rustup toolchain install nightly --profile minimal"
    );
    ensure!(
        process::succeeds(nightly()?.args(["fuzz", "--version"])),
        "fuzzing needs cargo-fuzz: cargo install --locked cargo-fuzz"
    );
    let mut report = Report::new("Fuzz targets");
    let mut executed = BTreeMap::new();
    process::run(cargo_fuzz("build", options)?.args(only(&targets)))?;
    for target in &targets {
        report.run(target, || {
            let (count, result) = fuzz_target(&fuzz, target, options)?;
            executed.insert(target.clone(), count);
            result
        });
    }
    eprintln!();
    for (target, count) in executed {
        eprintln!("  {target:12} {count:>12} executions");
    }
    report.finish()
}

/// The name that cargo-fuzz is to build; it builds all when it is given none.
fn only(targets: &[String]) -> &[String] {
    if let [_] = targets { targets } else { &[] }
}

/// The targets that are asked for, or all that have seeds.
fn chosen(fuzz: &Path, asked: &[String]) -> Result<Vec<String>> {
    let mut known = Vec::new();
    for folder in fs::read_dir(fuzz.join("seeds"))? {
        known.push(folder?.file_name().to_string_lossy().into_owned());
    }
    known.sort();
    if let Some(unknown) = asked.iter().find(|name| !known.contains(name)) {
        bail!("there is no target {unknown:?}: there are {}", known.join(", "));
    }
    Ok(if asked.is_empty() { known } else { asked.to_vec() })
}

fn nightly() -> Result<Command> {
    let mut command = Command::new("rustup");
    command.current_dir(cargo::root()?).args(["run", "nightly", "cargo"]);
    cargo::forget_this_package(&mut command);
    // It names the cargo that runs this program.
    command.env_remove("CARGO");
    Ok(command)
}

fn cargo_fuzz(what: &str, options: &Options) -> Result<Command> {
    let mut command = nightly()?;
    command.args(["fuzz", what, "--features", "libfuzzer", "--sanitizer", &options.sanitizer]);
    Ok(command)
}

/// Runs a target. Returns how many inputs it has tried, and whether one of them failed.
fn fuzz_target(fuzz: &Path, target: &str, options: &Options) -> Result<(u64, Result<()>)> {
    // What it finds is kept for the next time, beside what is built.
    let found = cargo::target_dir()?.join("fuzz").join(target);
    fs::create_dir_all(&found)?;
    let mut command = cargo_fuzz("run", options)?;
    command.arg(target).arg(&found).arg(fuzz.join("seeds").join(target)).arg("--");
    command.arg(format!("-max_total_time={}", options.seconds));
    command.args(["-print_final_stats=1", "-timeout=30", "-rss_limit_mb=4096", "-max_len=16384"]);
    let mut child = command.stderr(Stdio::piped()).spawn().context("could not start cargo-fuzz")?;
    let stderr = child.stderr.take().context("cargo-fuzz has no stderr")?;
    let reader = thread::spawn(move || {
        let mut count = 0;
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            eprintln!("{line}");
            if let Some(number) = line.strip_prefix(EXECUTED) {
                count = number.trim().parse().unwrap_or(0);
            }
        }
        count
    });
    let status = child.wait()?;
    let Ok(count) = reader.join() else { bail!("what cargo-fuzz says could not be read") };
    let result = match status.success() {
        true => Ok(()),
        false => {
            Err(anyhow::anyhow!("{target} failed: its input is below fuzz/artifacts/{target}"))
        }
    };
    Ok((count, result))
}
