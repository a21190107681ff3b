//! What modules import: no file that none of them knows, and no circles.

use std::collections::{BTreeMap, BTreeSet};

use syn::visit::{self, Visit};

use super::Finding;
use super::sources::{Sources, for_tests};

/// The folders and files of a crate, from the ground floor up: each imports from those below it
/// only.
const LAYERS: [(&str, &[&str]); 3] = [
    (
        "crates/stepwell-core",
        &["base", "store", "codec", "memory", "observe", "engine", "context", "workflow", "client"],
    ),
    (
        "crates/stepwell-postgres",
        &["values", "connection", "schema", "read", "beside", "batch", "work", "transaction"],
    ),
    (
        "crates/stepwell-sqlite",
        &["base", "file", "read", "state", "apply", "writer", "transaction", "tests"],
    ),
];

/// How many modules may import each other in a circle: two that belong together.
const CIRCLE: usize = 2;

/// Files below a crate's `src` that no `mod` names.
pub(super) fn dead_files(sources: &Sources) -> Vec<Finding> {
    let mut named = BTreeSet::new();
    for (path, file) in &sources.rust {
        let mut modules = Modules { inside: folder_of(path), named: &mut named };
        modules.visit_file(file);
    }
    let is_root = |path: &str| {
        let name = path.rsplit('/').next().unwrap_or(path);
        ["lib.rs", "main.rs", "build.rs"].contains(&name)
            || path.contains("/src/bin/")
            || !path.contains("/src/")
    };
    let dead = sources.rust.keys().filter(|path| !is_root(path) && !named.contains(*path));
    dead.map(|path| Finding::new("dead", path, 1, "no `mod` names this file")).collect()
}

/// The folder in which the modules of a file are.
fn folder_of(path: &str) -> String {
    let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
    match name {
        "lib.rs" | "main.rs" | "mod.rs" => folder.to_owned(),
        name => format!("{folder}/{}", name.trim_end_matches(".rs")),
    }
}

struct Modules<'a> {
    inside: String,
    named: &'a mut BTreeSet<String>,
}

impl<'ast> Visit<'ast> for Modules<'_> {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        let below = format!("{}/{}", self.inside, item.ident);
        if item.content.is_none() {
            self.named.extend([format!("{below}.rs"), format!("{below}/mod.rs")]);
            return;
        }
        let outside = std::mem::replace(&mut self.inside, below);
        visit::visit_item_mod(self, item);
        self.inside = outside;
    }
}

/// The modules of each crate, by their paths below its `src`.
fn crates(sources: &Sources) -> BTreeMap<&str, BTreeMap<&str, &syn::File>> {
    let mut crates = BTreeMap::<_, BTreeMap<_, _>>::new();
    for (path, file) in sources.libraries() {
        let Some((package, module)) = path.split_once("/src/") else { continue };
        crates.entry(package).or_default().insert(module, file);
    }
    crates
}

/// Imports that lead from a folder into one above it.
pub(super) fn upward(sources: &Sources) -> Vec<Finding> {
    let mut found = Vec::new();
    for (package, files) in crates(sources) {
        let Some((_, layers)) = LAYERS.iter().find(|(layered, _)| *layered == package) else {
            continue;
        };
        let height = |module: &str| {
            let folder = module.split("::").next().unwrap_or(module);
            layers.iter().position(|layer| *layer == folder)
        };
        let paths: BTreeMap<_, _> = files.keys().map(|path| (module_of(path), *path)).collect();
        for (module, imported) in graph(&files) {
            let file = format!("{package}/src/{}", paths.get(&module).copied().unwrap_or_default());
            let Some(own) = height(&module) else {
                found.push(Finding::new(
                    "layer",
                    &file,
                    1,
                    format!("`{module}` is in no layer: {layers:?}"),
                ));
                continue;
            };
            for other in
                imported.iter().filter(|other| height(other).is_some_and(|other| other > own))
            {
                let what = format!("`{module}` imports `{other}`, which is in a layer above");
                found.push(Finding::new("layer", &file, 1, what));
            }
        }
    }
    found
}

/// Circles of more than two modules, in each crate.
pub(super) fn cycles(sources: &Sources) -> Vec<Finding> {
    let mut found = Vec::new();
    for (package, files) in crates(sources) {
        let graph = graph(&files);
        for circle in circles(&graph).into_iter().filter(|circle| circle.len() > CIRCLE) {
            let what = format!("{} modules import each other: {}", circle.len(), circle.join(", "));
            found.push(Finding::new("circle", &format!("{package}/src"), 1, what));
        }
    }
    found
}

type Graph = BTreeMap<String, BTreeSet<String>>;

/// Which modules import which. What a folder's own module and those in it import of each other does
/// not count: the folder is one idea, and its module is its face.
fn graph(files: &BTreeMap<&str, &syn::File>) -> Graph {
    let names: BTreeMap<_, _> = files.keys().map(|path| (module_of(path), *path)).collect();
    let mut graph = Graph::new();
    for (path, file) in files {
        let own = module_of(path);
        let mut imports = Imports { own: &own, known: &names, found: BTreeSet::new() };
        imports.visit_file(file);
        let mut imported = imports.found;
        // The crate's root names all of them.
        imported.retain(|other| {
            !other.is_empty() && !is_within(other, &own) && !is_within(&own, other)
        });
        if !own.is_empty() {
            graph.insert(own, imported);
        }
    }
    graph
}

/// Whether a module is another one, or in it.
fn is_within(module: &str, outer: &str) -> bool {
    module.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// The module of a file, as `engine::run`; the root is empty.
fn module_of(path: &str) -> String {
    let path = path.trim_end_matches(".rs").trim_end_matches("/mod");
    if path == "lib" || path == "main" { String::new() } else { path.replace('/', "::") }
}

struct Imports<'a> {
    own: &'a str,
    known: &'a BTreeMap<String, &'a str>,
    found: BTreeSet<String>,
}

impl Imports<'_> {
    /// Adds the module that a path leads into.
    fn add(&mut self, segments: &[String]) {
        let mut module: Vec<&str> = match segments.first().map(String::as_str) {
            Some("crate") => Vec::new(),
            Some("super" | "self") => self.own.split("::").collect(),
            _ => return,
        };
        for segment in segments {
            match segment.as_str() {
                "crate" | "self" => {}
                "super" => _ = module.pop(),
                name => {
                    module.push(name);
                    if !self.known.contains_key(&module.join("::")) {
                        module.pop();
                        break;
                    }
                }
            }
        }
        self.found.insert(module.join("::"));
    }

    fn tree(&mut self, tree: &syn::UseTree, before: &mut Vec<String>) {
        match tree {
            syn::UseTree::Path(path) => {
                before.push(path.ident.to_string());
                self.tree(&path.tree, before);
                before.pop();
            }
            syn::UseTree::Name(name) => self.leaf(&name.ident, before),
            syn::UseTree::Rename(rename) => self.leaf(&rename.ident, before),
            syn::UseTree::Glob(_) => self.add(before),
            syn::UseTree::Group(group) => {
                group.items.iter().for_each(|tree| self.tree(tree, before));
            }
        }
    }

    fn leaf(&mut self, ident: &syn::Ident, before: &mut Vec<String>) {
        before.push(ident.to_string());
        self.add(before);
        before.pop();
    }
}

impl<'ast> Visit<'ast> for Imports<'_> {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if !for_tests(&item.attrs) {
            visit::visit_item_mod(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        if !for_tests(&item.attrs) {
            self.tree(&item.tree, &mut Vec::new());
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments: Vec<_> =
            path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        self.add(&segments);
        visit::visit_path(self, path);
    }
}

/// The strongly connected parts of a graph, each in order: what can be reached from each other.
fn circles(graph: &Graph) -> Vec<Vec<String>> {
    let reach: BTreeMap<_, _> = graph.keys().map(|from| (from, reachable(graph, from))).collect();
    let mut found = BTreeSet::new();
    for (from, there) in &reach {
        let back = |to: &&String| reach.get(to).is_some_and(|back| back.contains(*from));
        let circle: Vec<_> = there.iter().filter(back).cloned().collect();
        if circle.len() > 1 {
            found.insert(circle);
        }
    }
    found.into_iter().collect()
}

fn reachable(graph: &Graph, from: &str) -> BTreeSet<String> {
    let (mut found, mut open) = (BTreeSet::new(), vec![from.to_owned()]);
    while let Some(module) = open.pop() {
        for next in graph.get(&module).into_iter().flatten() {
            if found.insert(next.clone()) {
                open.push(next.clone());
            }
        }
    }
    found
}
