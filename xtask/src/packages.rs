//! Installing Debian's packages, and programs written in Python, where that can be done without
//! asking anybody.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, bail};

use crate::{cargo, process};

/// Installs those of the packages that are missing.
pub(crate) fn install(packages: &[&str]) -> Result<()> {
    let missing: Vec<_> =
        packages.iter().copied().filter(|package| !is_installed(package)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing.join(" ");
    if !process::succeeds(Command::new("apt-get").arg("--version")) {
        bail!("there is no apt-get to install it with (Debian's packages are {names})");
    }
    let is_root = process::output(Command::new("id").arg("-u"))? == "0";
    if !is_root && !process::succeeds(Command::new("sudo").args(["-n", "true"])) {
        bail!("to install it, as root: apt-get update && apt-get install {names}");
    }
    process::run(apt_get(is_root).arg("update"))?;
    process::run(
        apt_get(is_root).args(["install", "--yes", "--no-install-recommends"]).args(missing),
    )
}

/// Installs a Python package into an environment of its own below cargo's build output; the folder
/// of its programs.
pub(crate) fn install_python(name: &str, requirement: &str) -> Result<PathBuf> {
    let folder = cargo::target_dir()?.join("python").join(name);
    let programs = folder.join("bin");
    // Written last, so that an installation that was broken off is begun again.
    let installed = folder.join("installed");
    if fs::read_to_string(&installed).is_ok_and(|what| what == requirement) {
        return Ok(programs);
    }
    if !process::succeeds(Command::new("python3").args(["-c", "import ensurepip, venv"])) {
        install(&["python3", "python3-venv"])?;
    }
    process::run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder))?;
    process::run(Command::new(programs.join("pip")).args(["install", "--quiet", requirement]))?;
    fs::write(installed, requirement)?;
    Ok(programs)
}

fn is_installed(package: &str) -> bool {
    process::output(Command::new("dpkg-query").args([
        "--show",
        "--showformat=${db:Status-Status}",
        package,
    ]))
    .is_ok_and(|status| status == "installed")
}

fn apt_get(is_root: bool) -> Command {
    // By `env`, because sudo hands no variables on.
    let words = ["sudo", "-n", "env", "DEBIAN_FRONTEND=noninteractive", "apt-get"];
    let words = if is_root { &words[2..] } else { &words };
    let mut command = Command::new(words[0]);
    command.args(&words[1..]);
    command
}
