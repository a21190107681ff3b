//! Scopes: parts of the tasks that are kept apart, as the tenants of an application are.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::base::invalid_options::InvalidOptions;
use crate::base::name::{InvalidName, Name};
use crate::store::Headers;
use crate::store::headers::{have_labels, is_label};

/// A part of the tasks that is kept apart: the tasks of a queue, the tasks with certain labels, or
/// both.
///
/// A task that was spawned [in a scope](crate::SpawnOptions::scope) has the scope's queue and
/// labels. Its keys are the scope's own: no task of another scope has the same idempotency or
/// concurrency key. Its children are in its scope as well.
///
/// A scope holds the tasks that were spawned in it or in a scope [within](Scope::holds) it. A scope
/// also holds a task that the application itself spawned in no scope, if the task has the scope's
/// queue and labels. It never holds a task of a scope that is not within it, whatever headers that
/// task was given.
///
/// ```
/// use stepwell_core::Scope;
///
/// let acme = Scope::default().label("tenant", "acme");
/// let sales = acme.clone().label("team", "sales");
/// assert!(acme.holds(&sales) && !sales.holds(&acme));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Scope {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    queue: Option<Name>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    labels: BTreeMap<String, String>,
}

impl Scope {
    /// Narrows the scope to the tasks of this queue.
    pub fn queue(mut self, queue: Name) -> Self {
        self.queue = Some(queue);
        self
    }

    /// Narrows the scope to the tasks with this [label](crate::labels).
    pub fn label(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.insert(name.into(), value.into());
        self
    }

    /// Returns whether the scope holds every task, as the default does.
    pub fn is_all(&self) -> bool {
        self.queue.is_none() && self.labels.is_empty()
    }

    /// Returns whether all tasks of the other scope are in this one, because the other scope asks
    /// for all that this one asks for.
    pub fn holds(&self, other: &Self) -> bool {
        self.queue.as_ref().is_none_or(|queue| other.queue.as_ref() == Some(queue))
            && self.labels.iter().all(|(name, value)| other.labels.get(name) == Some(value))
    }

    /// Returns whether the scope holds a task with this queue and these headers that was spawned in
    /// the scope `scope`.
    pub fn has(&self, queue: &Name, headers: &Headers, scope: &Self) -> bool {
        self.queue.as_ref().is_none_or(|own| own == queue)
            && have_labels(headers, &self.labels)
            && (scope.is_all() || self.holds(scope))
    }

    /// Returns the queue of the scope's tasks, if they share one.
    pub fn only_queue(&self) -> Option<&Name> {
        self.queue.as_ref()
    }

    /// Returns the labels that the scope's tasks have, by name.
    pub fn labels(&self) -> &BTreeMap<String, String> {
        &self.labels
    }

    /// Returns the labels as pairs; `None` when one of them is no [label](crate::labels).
    ///
    /// No task is in a scope with such a label.
    pub fn possible_labels(&self) -> Option<Vec<(&str, &str)>> {
        let pair = |(name, value)| is_label(name, value).then_some((name, value));
        self.labels.iter().map(|(name, value)| pair((name.as_str(), value.as_str()))).collect()
    }

    /// Returns the scope as stores keep it: JSON, which is the same for equal scopes only, or empty
    /// text for the default.
    pub fn to_text(&self) -> String {
        if self.is_all() {
            return String::new();
        }
        // Written by hand, because an error of a serialiser would leave only the text of the scope
        // that holds every task.
        let json = |text: &str| serde_json::Value::from(text).to_string();
        let queue = self.queue.as_ref().map(|queue| format!("\"queue\":{}", json(queue.as_str())));
        let labels: Vec<_> = self
            .labels
            .iter()
            .map(|(name, value)| format!("{}:{}", json(name), json(value)))
            .collect();
        let labels = (!labels.is_empty()).then(|| format!("\"labels\":{{{}}}", labels.join(",")));
        format!("{{{}}}", Vec::from_iter(queue.into_iter().chain(labels)).join(","))
    }

    /// Reads the text that [`to_text`](Scope::to_text) wrote.
    ///
    /// # Errors
    /// The text is neither empty nor the JSON of a scope.
    pub fn from_text(text: &str) -> Result<Self, serde_json::Error> {
        match text {
            "" => Ok(Self::default()),
            text => serde_json::from_str(text),
        }
    }

    /// Checks that tasks can have the scope's labels, because the scope would never find a task
    /// without one of them.
    pub(crate) fn check<E: From<InvalidName> + From<InvalidOptions>>(&self) -> Result<(), E> {
        self.labels.iter().try_for_each(|(name, value)| {
            Name::new(name)?;
            Name::new(value)?;
            match is_label(name, value) {
                true => Ok(()),
                false => Err(InvalidOptions::Scope { name: name.clone() }.into()),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::headers::labels;

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    #[test]
    fn labels_are_short_texts_of_the_top_level() {
        let long = "x".repeat(513);
        let headers = serde_json::json!({
            "tenant": "acme", "nested": { "tenant": "evil" }, "number": 7, "empty": "",
            "nul": "a\0b", "long": long,
            (long.as_str()): "long", "traceparent": "00-1-2-01", "": "unnamed",
        });
        let headers: Headers = serde_json::from_value(headers).unwrap();
        assert_eq!(labels(&headers).collect::<Vec<_>>(), [("tenant", "acme")]);
    }

    #[test]
    fn a_scope_has_what_is_within_it_and_what_the_application_put_there() {
        let acme = Scope::default().label("tenant", "acme");
        let (queue, headers) = (name("q"), Headers::from([("tenant".into(), "acme".into())]));
        let with = |scope: &Scope| acme.has(&queue, &headers, scope);
        assert!(with(&Scope::default()) && with(&acme) && with(&acme.clone().queue(name("q"))));
        assert!(
            !with(&Scope::default().queue(name("q"))),
            "of another scope, with a label as ours"
        );
        assert!(!acme.clone().queue(name("q")).has(&queue, &headers, &acme));
        assert!(!acme.has(&queue, &Headers::new(), &Scope::default()));
        assert!(Scope::default().has(&queue, &headers, &Scope::default().label("a", "b")));
    }

    #[test]
    fn a_scopes_text_is_its_own() {
        let scopes = [
            Scope::default(),
            Scope::default().queue(name("acme")),
            Scope::default().label("acme", "b/c"),
            Scope::default().label("acme/b", "c"),
            Scope::default().label("queue", "acme"),
            Scope::default().label("a", "\",\"b\":\"").label("b", "x"),
            Scope::default().label("a", "").label("b", "\":\"x"),
            Scope::default().label("ü\n\u{1}", "\\").queue(name("ü \"q\"")),
        ];
        for (n, scope) in scopes.iter().enumerate() {
            assert_eq!(Scope::from_text(&scope.to_text()).unwrap(), *scope);
            // Earlier versions wrote the same text, by which rows are found.
            let json = serde_json::to_string(scope).unwrap();
            assert_eq!(scope.to_text(), if scope.is_all() { String::new() } else { json });
            assert!(scopes.iter().skip(n + 1).all(|other| other.to_text() != scope.to_text()));
        }
    }
}
