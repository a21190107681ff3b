//! The copy of the sources in which bugs are seeded.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{fs, io};

use anyhow::{Context as _, Result, bail};

use super::bug::Bug;
use super::matching::places;
use crate::{cargo, process};

/// What the names of the workspace's own packages have in them.
const OWN: [&str; 3] = ["stepwell", "throwaway", "xtask"];

pub(super) struct Copy {
    pub(super) folder: PathBuf,
    target: PathBuf,
}

impl Copy {
    /// Makes the copy what the tree is. A file that is the same is left alone, so that cargo sees
    /// what has changed.
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
        if !copy.target.exists() {
            copy.take_dependencies(&cargo::target_dir()?)?;
        }
        Ok(copy)
    }

    /// Takes what cargo has built of other people's crates for the tree, which is the same for the
    /// copy.
    fn take_dependencies(&self, built: &Path) -> Result<()> {
        for folder in ["deps", "build", ".fingerprint"] {
            let from = built.join("debug").join(folder);
            for entry in fs::read_dir(&from).into_iter().flatten() {
                let path = entry?.path();
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                let is_a_library = folder != "deps" || name.starts_with("lib");
                if is_a_library && !OWN.iter().any(|own| name.contains(own)) {
                    take(&path, &self.target.join("debug").join(folder).join(name))?;
                }
            }
        }
        Ok(())
    }

    fn remove_others(&self, folder: &Path, listed: &BTreeSet<&str>) -> io::Result<()> {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            let name =
                path.strip_prefix(&self.folder).unwrap_or(&path).to_string_lossy().into_owned();
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
        let text = fs::read_to_string(self.folder.join(file))
            .with_context(|| format!("{name}: {file}"))?;
        match &places(&text, find)[..] {
            [place] => Ok([&text[..place.start], put, &text[place.end..]].concat()),
            all => bail!("{name}: {file} has its text {} times, and not once", all.len()),
        }
    }

    /// Removes the parts of crates that earlier builds have kept. The compiler cannot always build
    /// upon them.
    pub(super) fn forget_parts(&self) -> io::Result<()> {
        fs::remove_dir_all(self.target.join("debug/incremental"))
    }

    /// A call of cargo in the copy. Nobody debugs these programs.
    pub(super) fn cargo(&self) -> Result<Command> {
        let mut command = cargo::cargo()?;
        command.current_dir(&self.folder).env("CARGO_TARGET_DIR", &self.target);
        command.env("CARGO_PROFILE_DEV_DEBUG", "0").env("CARGO_INCREMENTAL", "1");
        Ok(command)
    }
}

/// Copies a file or a folder with its times, by which cargo knows what is fresh. Libraries are
/// links: cargo replaces them and never writes into them.
fn take(from: &Path, to: &Path) -> Result<()> {
    if from.is_dir() {
        fs::create_dir_all(to)?;
        for entry in fs::read_dir(from)? {
            let path = entry?.path();
            take(&path, &to.join(path.file_name().unwrap_or_default()))?;
        }
        return Ok(());
    }
    fs::create_dir_all(to.parent().unwrap_or(to))?;
    let is_a_library =
        from.extension().is_some_and(|kind| ["rlib", "rmeta", "so"].iter().any(|own| kind == *own));
    if is_a_library && fs::hard_link(from, to).is_ok() {
        return Ok(());
    }
    fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display()))?;
    let times = fs::FileTimes::new().set_modified(fs::metadata(from)?.modified()?);
    Ok(fs::File::options().append(true).open(to)?.set_times(times)?)
}
