//! Who runs the servers: PostgreSQL and PgBouncer refuse to be run by root.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::process::run;

/// The user that servers run as: the user of this process, or another one when that is root.
#[derive(Clone, Debug)]
pub(crate) enum User {
    Myself,
    Other { name: &'static str, words_before: Vec<String> },
}

impl User {
    pub(crate) fn for_servers() -> Result<Self> {
        let id = |args: &[&str]| run(Command::new("id").args(args));
        // A system without `id` has no root either.
        if !id(&["-u"]).is_ok_and(|id| id == "0") {
            return Ok(Self::Myself);
        }
        let (name, group) = ["postgres", "nobody"]
            .into_iter()
            .find_map(|name| Some((name, id(&["-g", name]).ok()?)))
            .context(
                "root cannot run the server, and there is neither a user `postgres` nor `nobody`",
            )?;
        let ways = [
            vec!["runuser", "-u", name, "--"],
            vec!["setpriv", "--reuid", name, "--regid", &group, "--init-groups", "--"],
            vec!["su", "-s", "/bin/sh", "-c", r#"exec "$0" "$@""#, "--", name],
        ];
        let words_before = ways
            .into_iter()
            .find(|way| run(Command::new(way[0]).args(&way[1..]).arg("true")).is_ok())
            .with_context(|| {
                format!(
                    "root cannot run the server, and none of runuser, setpriv and su could become \
                     `{name}`"
                )
            })?;
        Ok(Self::Other { name, words_before: words_before.into_iter().map(String::from).collect() })
    }

    /// A call of the program as this user.
    pub(crate) fn command(&self, program: &Path) -> Command {
        match self {
            Self::Myself => Command::new(program),
            Self::Other { words_before, .. } => {
                let mut command = Command::new(&words_before[0]);
                command.args(&words_before[1..]).arg(program);
                command
            }
        }
    }

    /// Gives the folder and what is in it to this user.
    pub(crate) fn take(&self, folder: &Path) -> Result<()> {
        if let Self::Other { name, .. } = self {
            run(Command::new("chown").args(["-R", name]).arg(folder))?;
        }
        Ok(())
    }
}
