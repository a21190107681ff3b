//! A workflow as a picture.

use std::fmt::Write as _;

use serde::Serialize;

use super::Workflow;
use super::node::{Body, Node};

/// The shape of a [`Workflow`], for JSON and for [Mermaid](https://mermaid.js.org).
///
/// ```
/// # use stepwell_core::Workflow;
/// let workflow = Workflow::new("order").step("charge", |_| async { Ok(()) }).step("ship", |_| async { Ok(()) });
/// assert!(workflow.graph().to_mermaid().contains("n0 --> n1"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Graph {
    /// The workflow's name.
    pub workflow: String,
    /// Its parts; the ends of edges are places in this list.
    pub nodes: Vec<GraphNode>,
    /// What may come after what.
    pub edges: Vec<Edge>,
}

/// A part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GraphNode {
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: NodeKind,
    /// Whether it is undone when the workflow fails.
    pub compensated: bool,
}

/// What a part is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeKind {
    /// A step.
    Step,
    /// Parts that run at the same time.
    Parallel,
    /// Parts of which one runs.
    Route,
    /// A step that is done again and again.
    Loop,
    /// A sleep.
    Sleep,
    /// A wait for a signal.
    Signal,
    /// A child task.
    Child,
}

/// What may come after what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Edge {
    /// What comes first.
    pub from: usize,
    /// What may follow.
    pub to: usize,
    /// The name of the route, or `again` for a loop.
    pub label: Option<String>,
}

impl<L> Workflow<L> {
    /// The workflow's shape.
    pub fn graph(&self) -> Graph {
        let mut graph = Graph { workflow: self.name.clone(), nodes: Vec::new(), edges: Vec::new() };
        graph.add_all(&self.nodes);
        graph
    }
}

impl Graph {
    fn add_all(&mut self, nodes: &[Node]) {
        let mut before: Vec<usize> = Vec::new();
        for node in nodes {
            let (first, last) = self.add(node);
            self.edges.extend(before.into_iter().map(|from| Edge { from, to: first, label: None }));
            before = last;
        }
    }

    /// Adds a part with those within it. Gives where it begins, and its ends.
    fn add(&mut self, node: &Node) -> (usize, Vec<usize>) {
        let (kind, compensated) = match &node.body {
            Body::Step(step) => (NodeKind::Step, step.undo.is_some()),
            Body::Loop(this) => (NodeKind::Loop, this.step.undo.is_some()),
            Body::Parallel(_) => (NodeKind::Parallel, false),
            Body::Route { .. } => (NodeKind::Route, false),
            Body::Sleep(_) => (NodeKind::Sleep, false),
            Body::Signal { .. } => (NodeKind::Signal, false),
            Body::Child { .. } => (NodeKind::Child, false),
        };
        let first = self.nodes.len();
        self.nodes.push(GraphNode { name: node.name.clone(), kind, compensated });
        if kind == NodeKind::Loop {
            self.edges.push(Edge { from: first, to: first, label: Some("again".into()) });
        }
        let mut ends = Vec::new();
        for inner in node.body.inner() {
            let (to, last) = self.add(inner);
            let label = (kind == NodeKind::Route).then(|| inner.name.clone());
            self.edges.push(Edge { from: first, to, label });
            ends.extend(last);
        }
        (first, if ends.is_empty() { vec![first] } else { ends })
    }

    /// The graph as a Mermaid flowchart.
    pub fn to_mermaid(&self) -> String {
        let mut text = String::from("flowchart TD\n");
        for (n, GraphNode { name, kind, compensated }) in self.nodes.iter().enumerate() {
            let (open, close) = match kind {
                NodeKind::Step => ("[", "]"),
                NodeKind::Loop => ("[/", "/]"),
                NodeKind::Parallel => ("[[", "]]"),
                NodeKind::Route => ("{", "}"),
                NodeKind::Sleep => ("([", "])"),
                NodeKind::Signal => (">", "]"),
                NodeKind::Child => ("[(", ")]"),
            };
            let undone = if *compensated { " ↩" } else { "" };
            // Writing to a string does not fail.
            let _ = writeln!(text, "    n{n}{open}\"{}{undone}\"{close}", escape(name));
        }
        for Edge { from, to, label } in &self.edges {
            let label =
                label.as_ref().map_or(String::new(), |label| format!("|\"{}\"|", escape(label)));
            let _ = writeln!(text, "    n{from} -->{label} n{to}");
        }
        text
    }
}

/// Mermaid has its own entities for what would end a text.
fn escape(text: &str) -> String {
    text.replace('#', "#35;")
        .replace('"', "#quot;")
        .replace('<', "#lt;")
        .replace('>', "#gt;")
        .replace('\n', " ")
}
