//! The conditions of a list: which of the rows a filter asks for.

use sqlx::types::Uuid;
use stepwell_core::Scope;

use crate::connection::call::Query;
use crate::values::columns::is_own;

/// Additional conditions of a statement, and the values of their parameters.
pub(crate) struct Asked {
    pub(crate) sql: String,
    values: Vec<Value>,
    /// The number of the statement's parameters before these values.
    before: usize,
}

#[derive(Clone)]
pub(crate) enum Value {
    Text(String),
    Id(Uuid),
}

impl Asked {
    pub(crate) fn after(before: usize) -> Self {
        Self { sql: String::new(), values: Vec::new(), before }
    }

    /// Adds a condition that ends with the value, such as `queue =`.
    pub(crate) fn add(&mut self, condition: &str, value: Value) {
        let parameter = self.parameter(value);
        self.sql.extend([" AND ", condition, " ", &parameter]);
    }

    pub(crate) fn add_text(&mut self, condition: &str, text: &str) {
        self.add(condition, Value::Text(text.to_owned()));
    }

    /// Adds a value, and returns the parameter that stands for it.
    fn parameter(&mut self, value: Value) -> String {
        self.values.push(value);
        format!("${}", self.before + self.values.len())
    }

    /// Joins the rows of a label in the table with this alias. For a label of the scope, only the
    /// tasks match that have the label by their own scope.
    pub(crate) fn label(&mut self, alias: &str, (name, value): (&str, &str), scope: &Scope) {
        self.add_text(&format!("{alias}.name ="), name);
        self.add_text(&format!("{alias}.value ="), value);
        if !scope.is_all() && is_own(scope, name, value) {
            self.sql.push_str(&format!(" AND {alias}.own"));
        }
    }

    /// Adds the condition that a task is in the scope, apart from its labels. A task with its own
    /// scope is in it when its scope is within this one.
    pub(crate) fn scope(&mut self, scope: &Scope, schema: &str) {
        if let Some(queue) = scope.only_queue() {
            self.add_text("t.queue =", queue.as_str());
        }
        if !scope.is_all() {
            let other = self.parameter(Value::Text(scope.to_text()));
            let within = format!("{schema}.is_within(p_scope => t.scope, p_other => {other})");
            self.sql.push_str(&format!(" AND (t.scope IS NULL OR {within})"));
        }
    }

    pub(crate) fn bind(&self, query: Query) -> Query {
        self.values.iter().cloned().fold(query, |query, value| match value {
            Value::Text(text) => query.bind(text),
            Value::Id(id) => query.bind(id),
        })
    }
}
