//! What a seeded bug is, and the list of them.

use std::process::Command;

use crate::process;

/// A fault, made by hand, and the tests of which each has to fail by it.
pub(super) struct Bug {
    pub(super) name: &'static str,
    /// What breaks for a user.
    pub(super) breaks: &'static str,
    /// The guarantee, by its number or its words in ARCHITECTURE.md.
    pub(super) guarantee: &'static str,
    pub(super) file: &'static str,
    /// The text that is replaced. It must occur once in the file.
    pub(super) find: &'static str,
    pub(super) put: &'static str,
    pub(super) tests: &'static [Test],
}

/// A test, by its package, its binary (`lib` for the unit tests) and the end of its path.
#[derive(Clone, Copy)]
pub(super) struct Test {
    pub(super) package: &'static str,
    pub(super) binary: &'static str,
    pub(super) name: &'static str,
    /// Whether the bug lets it wait for ever, so that it fails when nextest's profile `bugs` ends
    /// it.
    pub(super) hangs: bool,
    /// The first version of PostgreSQL with which it fails.
    since: u32,
}

pub(super) const fn fails(package: &'static str, binary: &'static str, name: &'static str) -> Test {
    Test { package, binary, name, hangs: false, since: 0 }
}

pub(super) const fn hangs(package: &'static str, binary: &'static str, name: &'static str) -> Test {
    Test { hangs: true, ..fails(package, binary, name) }
}

impl Test {
    pub(super) const fn since(self, postgres: u32) -> Self {
        Self { since: postgres, ..self }
    }

    /// What nextest calls its binary.
    pub(super) fn id(&self) -> String {
        match self.binary {
            "lib" => self.package.to_owned(),
            binary => format!("{}::{binary}", self.package),
        }
    }

    pub(super) fn is(&self, binary: &str, name: &str) -> bool {
        let path = name.strip_suffix(self.name);
        binary == self.id() && path.is_some_and(|path| path.is_empty() || path.ends_with("::"))
    }

    fn needs_postgres(&self) -> bool {
        self.package == "stepwell-postgres" || self.binary.starts_with("postgres")
    }
}

impl Bug {
    pub(super) fn needs_postgres(&self) -> bool {
        self.tests.iter().any(Test::needs_postgres)
    }

    /// The version of PostgreSQL that it takes to see its tests fail.
    pub(super) fn since(&self) -> u32 {
        self.tests.iter().map(|test| test.since).max().unwrap_or_default().max(1)
    }
}

/// The version of the PostgreSQL that tests start; 0 when there is none.
pub(super) fn postgres_version() -> u32 {
    let Some(programs) = throwaway::postgres_binaries() else { return 0 };
    let said = process::output(Command::new(programs.join("postgres")).arg("--version"))
        .unwrap_or_default();
    said.split([' ', '.']).find_map(|word| word.parse().ok()).unwrap_or_default()
}

/// All of them, in an order in which neighbours have much in common to be built.
pub(super) fn all() -> impl Iterator<Item = &'static Bug> {
    use super::{engine, jobs, postgres, server, sqlite, values};
    [engine::BUGS, jobs::BUGS, values::BUGS, sqlite::BUGS, server::BUGS, postgres::BUGS]
        .into_iter()
        .flatten()
}
