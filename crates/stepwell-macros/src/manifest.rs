//! The name by which a crate imports `stepwell`, from its manifest.
//!
//! A parser of TOML would be most of what this crate compiles. This module reads only what a
//! renamed dependency needs, `name = { package = "stepwell" }` in its several forms. It takes the
//! default name where it understands nothing.

use std::path::{Path, PathBuf};
use std::{env, fs};

const DEFAULT: &str = "stepwell";

/// Returns the name for the crate that is being compiled.
pub(crate) fn name_of_stepwell() -> String {
    let folder = env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from).unwrap_or_default();
    let Ok(manifest) = fs::read_to_string(folder.join("Cargo.toml")) else {
        return DEFAULT.to_owned();
    };
    name_in(&manifest, || workspace_of(&folder)).unwrap_or_else(|| DEFAULT.to_owned())
}

/// Returns the manifest of the workspace that the folder belongs to.
fn workspace_of(folder: &Path) -> Option<String> {
    let manifests =
        folder.ancestors().filter_map(|f| fs::read_to_string(f.join("Cargo.toml")).ok());
    manifests.into_iter().find(|manifest| manifest.contains("[workspace"))
}

fn name_in(manifest: &str, workspace: impl FnOnce() -> Option<String>) -> Option<String> {
    let dependencies = dependencies(manifest, "");
    if dependencies.iter().any(|dependency| dependency.name == DEFAULT) {
        return None;
    }
    if let Some(renamed) = dependencies.iter().find(|dependency| dependency.is_stepwell) {
        return Some(renamed.name.clone());
    }
    if !dependencies.iter().any(|dependency| dependency.is_inherited) {
        return None;
    }
    let inherited = self::dependencies(&workspace()?, "workspace.");
    let mut names = inherited.into_iter().filter(|dependency| dependency.is_stepwell);
    names
        .find(|named| dependencies.iter().any(|used| used.is_inherited && used.name == named.name))
        .map(|named| named.name)
}

/// One line about a dependency. A dependency may have several lines.
struct Dependency {
    name: String,
    /// The line names the package `stepwell`.
    is_stepwell: bool,
    /// The line leaves the rest to the workspace.
    is_inherited: bool,
}

/// Returns what the tables of dependencies say, of all kinds and all targets.
fn dependencies(manifest: &str, prefix: &str) -> Vec<Dependency> {
    let (mut found, mut table) = (Vec::new(), String::new());
    for line in logical_lines(manifest) {
        if let Some(header) = line.strip_prefix('[') {
            table = header.trim_end().trim_end_matches(']').replace(['"', '\'', ' '], "");
            continue;
        }
        let Some((key, value)) = line.split_once('=') else { continue };
        let key = key.replace(['"', '\'', ' '], "");
        let path = format!("{table}.{key}");
        let at = match prefix {
            "" => path.find("dependencies."),
            _ => path.find(&format!("{prefix}dependencies.")).map(|at| at + prefix.len()),
        };
        if prefix.is_empty() && path.starts_with("workspace.") {
            continue;
        }
        let Some(at) = at else { continue };
        let (name, setting) = match path[at + "dependencies.".len()..].split_once('.') {
            Some((name, setting)) => (name.to_owned(), format!("{setting}={value}")),
            None => (path[at + "dependencies.".len()..].to_owned(), value.to_owned()),
        };
        let setting: String = setting.chars().filter(|c| !c.is_whitespace()).collect();
        let says = |what: &str| {
            setting.starts_with(what)
                || setting.contains(&format!("{{{what}"))
                || setting.contains(&format!(",{what}"))
        };
        found.push(Dependency {
            // The name in code.
            name: name.replace('-', "_"),
            is_stepwell: says("package=\"stepwell\"") || says("package='stepwell'"),
            is_inherited: says("workspace=true"),
        });
    }
    found
}

/// Returns the lines without comments. A value whose brackets are open goes on in the next line.
fn logical_lines(manifest: &str) -> Vec<String> {
    let (mut lines, mut line, mut depth) = (Vec::new(), String::new(), 0_i32);
    for text in manifest.lines() {
        let mut quote = None;
        for c in text.chars() {
            match (quote, c) {
                (None, '#') => break,
                (None, '"' | '\'') => quote = Some(c),
                (Some(open), _) if open == c => quote = None,
                (None, '[' | '{') => depth += 1,
                (None, ']' | '}') => depth -= 1,
                _ => {}
            }
            line.push(c);
        }
        if depth <= 0 {
            depth = 0;
            lines.push(std::mem::take(&mut line).trim().to_owned());
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(manifest: &str) -> Option<String> {
        name_in(manifest, || None)
    }

    #[test]
    fn the_usual_name_needs_nothing() {
        for manifest in [
            "",
            "[dependencies]\nstepwell = \"0.1\"",
            "[dependencies]\nstepwell.workspace = true",
            "[dev-dependencies.stepwell]\nversion = \"0.1\"",
            "[dependencies]\nother = { package = \"stepwell-core\" }",
            "[dependencies]\n# durable = { package = \"stepwell\" }",
            "[package]\nname = \"x\"\npackage = \"stepwell\"",
            "[workspace.dependencies]\ndurable = { package = \"stepwell\" }",
            "[dependencies]\nold = { package = \"stepwell\" }\nstepwell = \"0.2\"",
        ] {
            assert_eq!(name(manifest), None, "{manifest}");
        }
    }

    #[test]
    fn a_renamed_dependency_is_found_in_each_form() {
        for manifest in [
            "[dependencies]\ndurable = { package = \"stepwell\", version = \"0.1\" }",
            "[dependencies]\ndurable={version='0.1',package='stepwell'} # as it was",
            "[dev-dependencies]\n\"durable\" = { version = \"0.1\", package = \"stepwell\" }",
            "[dependencies.durable]\nversion = \"0.1\"\npackage = \"stepwell\"",
            "[dependencies]\ndurable.version = \"0.1\"\ndurable.package = \"stepwell\"",
            "[target.'cfg(unix)'.dependencies]\ndurable = { package = \"stepwell\" }",
            "[target.\"cfg(unix)\".dependencies.durable]\npackage = \"stepwell\"",
            "[dependencies]\ndurable = { features = [\n\"a\", # b\n], package = \"stepwell\" }",
        ] {
            assert_eq!(name(manifest).as_deref(), Some("durable"), "{manifest}");
        }
        let hyphen = "[dependencies]\nmy-tasks = { package = \"stepwell\" }";
        assert_eq!(name(hyphen).as_deref(), Some("my_tasks"));
    }

    #[test]
    fn a_workspace_may_rename_it() {
        let workspace = "[workspace]\nmembers = [\n\"a\",\n]\n\n[workspace.dependencies]\n\
                         serde = \"1\"\ndurable = { package = \"stepwell\", version = \"0.1\" }";
        for manifest in [
            "[dependencies]\ndurable.workspace = true",
            "[dependencies]\ndurable = { workspace = true, features = [\"postgres\"] }",
            "[dependencies.durable]\nworkspace = true",
        ] {
            let found = name_in(manifest, || Some(workspace.to_owned()));
            assert_eq!(found.as_deref(), Some("durable"), "{manifest}");
        }
        let unused = "[dependencies]\nserde.workspace = true\ndurable = \"1\"";
        assert_eq!(name_in(unused, || Some(workspace.to_owned())), None);
    }
}
