//! Finding the installed programs.

use std::path::{Path, PathBuf};
use std::{env, fs};

const PROGRAMS: [&str; 5] = ["initdb", "pg_ctl", "postgres", "pg_basebackup", "psql"];

/// Where packages put PostgreSQL, one folder for each version, and what stands before the version
/// in its name.
const PACKAGES: [(&str, &str); 3] = [
    ("/usr/lib/postgresql", ""),
    ("/opt/homebrew/opt", "postgresql@"),
    ("/usr/local/opt", "postgresql@"),
];

/// The folder of PostgreSQL's programs: the first in `PATH` that has all of them, or else the
/// highest version that Debian's packages or Homebrew installed.
pub fn postgres_binaries() -> Option<PathBuf> {
    // A link in `PATH` leads to a folder that may hold what has no link.
    let in_path = search_path().into_iter().flat_map(|folder| {
        let linked = folder.join("initdb").canonicalize().ok();
        let target = linked.and_then(|initdb| initdb.parent().map(PathBuf::from));
        std::iter::once(folder).chain(target)
    });
    let packaged = PACKAGES.iter().flat_map(|(folder, before)| versions(Path::new(folder), before));
    in_path
        .chain(packaged.map(|version| version.join("bin")))
        .find(|folder| PROGRAMS.iter().all(|program| folder.join(program).is_file()))
}

/// The program `pgbouncer`, from `PATH` or `/usr/sbin`, which the `PATH` of a usual user lacks.
pub fn pgbouncer_binary() -> Option<PathBuf> {
    let mut folders = search_path();
    folders.push("/usr/sbin".into());
    folders.into_iter().map(|folder| folder.join("pgbouncer")).find(|program| program.is_file())
}

/// The first program of that name in `PATH`.
pub(crate) fn in_path(name: &str) -> Option<PathBuf> {
    search_path().into_iter().map(|folder| folder.join(name)).find(|program| program.is_file())
}

fn search_path() -> Vec<PathBuf> {
    env::var_os("PATH").iter().flat_map(env::split_paths).collect()
}

/// The folders named for a version, the highest first.
fn versions(folder: &Path, before: &str) -> Vec<PathBuf> {
    let names = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.file_name());
    let mut found: Vec<_> = names
        .filter_map(|name| {
            Some((version(name.to_str()?.strip_prefix(before)?)?, folder.join(name)))
        })
        .collect();
    found.sort();
    found.into_iter().rev().map(|(_, folder)| folder).collect()
}

/// A version as numbers, because as text "9" would be above "15".
fn version(text: &str) -> Option<Vec<u32>> {
    text.split('.').map(|part| part.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_version_comes_first() {
        let folder = tempfile::tempdir().unwrap();
        for name in
            ["postgresql@9.6", "postgresql@15", "postgresql@9.10", "postgresql", "postgresql@next"]
        {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        let found = versions(folder.path(), "postgresql@");
        let names = ["postgresql@15", "postgresql@9.10", "postgresql@9.6"];
        assert_eq!(found, names.map(|name| folder.path().join(name)));
    }
}
