//! The copy of the sources in which bugs are seeded.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{fs, io};

use anyhow::{Context as _, Result, bail};

use super::bug::Bug;
use crate::{cargo, process};

pub(super) struct Copy {
    pub(super) folder: PathBuf,
    target: PathBuf,
}

impl Copy {
    /// Makes the copy what the tree is. A file that is the same is left alone, so that cargo sees what has changed.
    pub(super) fn of_the_tree() -> Result<Self> {
        let (root, below) = (cargo::root()?, cargo::target_dir()?.join("bugs"));
        let copy = Self { folder: below.join("tree"), target: below.join("target") };
        let mut list = Command::new("git");
        list.current_dir(&root).args(["ls-files", "--cached", "--others", "--exclude-standard"]);
        let listed = process::output(&mut list)?;
        let listed: BTreeSet<_> = listed.lines().filter(|file| root.join(file).is_file()).collect();
        for file in &listed {
            let (from, to) = (fs::read(root.join(file))?, copy.folder.join(file));
            if fs::read(&to).is_ok_and(|there| there == from) {
                continue;
            }
            fs::create_dir_all(to.parent().unwrap_or(&to))?;
            fs::write(&to, from).with_context(|| format!("cannot write {}", to.display()))?;
        }
        copy.remove_others(&copy.folder, &listed)?;
        Ok(copy)
    }

    fn remove_others(&self, folder: &Path, listed: &BTreeSet<&str>) -> io::Result<()> {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            let name = path.strip_prefix(&self.folder).unwrap_or(&path).to_string_lossy().into_owned();
            if path.is_dir() {
                self.remove_others(&path, listed)?;
            } else if !listed.contains(name.as_str()) {
                fs::remove_file(&path)?;
            }
        }
        Ok(())
    }

    /// The bug's file with the bug.
    pub(super) fn with(&self, bug: &Bug) -> Result<String> {
        let Bug { name, file, find, put, .. } = bug;
        let text = fs::read_to_string(self.folder.join(file)).with_context(|| format!("{name}: {file}"))?;
        match text.matches(find).count() {
            1 => Ok(text.replacen(find, put, 1)),
            times => bail!("{name}: {file} has its text {times} times, and not once"),
        }
    }

    /// A call of cargo in the copy. Nobody debugs these programs.
    pub(super) fn cargo(&self) -> Result<Command> {
        let mut command = cargo::cargo()?;
        command.current_dir(&self.folder).env("CARGO_TARGET_DIR", &self.target);
        command.env("CARGO_PROFILE_DEV_DEBUG", "0").env("CARGO_INCREMENTAL", "1");
        Ok(command)
    }
}
