//! The graph of a workflow.

use std::fmt::Write as _;

use serde::Serialize;

use super::Workflow;
use super::node::{Body, Node};

/// The shape of a [`Workflow`], for JSON and for [Mermaid](https://mermaid.js.org).
///
/// ```
/// # use stepwell_core::Workflow;
/// let workflow = Workflow::new("order")
///     .step("charge", |_| async { Ok(()) })
///     .step("ship", |_| async { Ok(()) });
/// assert!(workflow.graph().to_mermaid().contains("n0 --> n1"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Graph {
    /// The workflow's name.
    pub workflow: String,
    /// The workflow's parts; the ends of edges are indexes into this list.
    pub nodes: Vec<GraphNode>,
    /// The pairs of parts that may follow each other.
    pub edges: Vec<Edge>,
}

/// A part of a workflow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GraphNode {
    /// The part's name.
    pub name: String,
    /// The part's kind.
    pub kind: NodeKind,
    /// `true` when the part has a compensation.
    pub compensated: bool,
}

/// The kind of a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeKind {
    /// A step.
    Step,
    /// Parts that run at the same time.
    Parallel,
    /// Parts of which one runs.
    Route,
    /// A step that repeats.
    Loop,
    /// A sleep.
    Sleep,
    /// A wait for a signal.
    Signal,
    /// A child task.
    Child,
}

/// A pair of parts, of which the second may follow the first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Edge {
    /// The index of the first part.
    pub from: usize,
    /// The index of the part that may follow.
    pub to: usize,
    /// The name of the route, or `again` for a loop.
    pub label: Option<String>,
}

impl<L> Workflow<L> {
    /// Returns the workflow's graph.
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

    /// Adds a part with the parts within it, and returns its first node and its ends.
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

    /// Returns the graph as a Mermaid flowchart.
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
            // A write to a string does not fail.
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

/// Escapes characters that would end a text, for which Mermaid has its own entities.
fn escape(text: &str) -> String {
    text.replace('#', "#35;")
        .replace('"', "#quot;")
        .replace('<', "#lt;")
        .replace('>', "#gt;")
        .replace('\n', " ")
}
