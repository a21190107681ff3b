//! Routes that describe themselves. Each route is one line of the router and one operation of the
//! OpenAPI document, so neither exists without the other.

use std::sync::Arc;

use axum::handler::Handler;
use axum::http::{Method, StatusCode};
use axum::routing::{MethodFilter, on};
use axum::{Extension, Router};
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};

use crate::access::Operation;
use crate::app::App;
use crate::problem::Problem;

/// The builder of the API's router and of its document.
pub(crate) struct Api {
    router: Router<Arc<App>>,
    /// The schemas of request bodies. The schemas of answers are separate, because a type may
    /// differ between the two.
    requests: SchemaGenerator,
    answers: SchemaGenerator,
    paths: Map<String, Value>,
}

/// The builder of one route and of its description.
pub(crate) struct Route<'a> {
    api: &'a mut Api,
    method: Method,
    path: &'static str,
    operation: Operation,
    description: Map<String, Value>,
}

impl Api {
    pub(crate) fn new() -> Self {
        let settings = || {
            let mut settings = SchemaSettings::draft2020_12();
            settings.definitions_path = "/components/schemas".into();
            settings.meta_schema = None;
            settings
        };
        Self {
            router: Router::new(),
            requests: settings().for_deserialize().into_generator(),
            answers: settings().for_serialize().into_generator(),
            paths: Map::new(),
        }
    }

    /// Begins a route. The summary says what the route does. The words in braces in its path are
    /// its parameters.
    pub(crate) fn route(
        &mut self,
        method: Method,
        path: &'static str,
        operation: Operation,
        summary: &str,
    ) -> Route<'_> {
        let ids = ["task_id", "worker_id"];
        let names = path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
        let parameters = names.map(|name| {
            let schema = match ids.contains(&name) {
                true => json!({ "type": "string", "format": "uuid" }),
                false => json!({ "type": "string", "minLength": 1 }),
            };
            json!({ "name": name, "in": "path", "required": true, "schema": schema })
        });
        let problem = self.answers.subschema_for::<Problem>();
        let content = json!({ "application/problem+json": { "schema": problem } });
        let description = json!({
            "summary": summary,
            "operationId": operation_id(&method, path),
            "tags": [path.split('/').nth(1).unwrap_or_default()],
            "parameters": parameters.collect::<Vec<_>>(),
            "responses": {
                "default": { "description": "Why it was not done", "content": content },
            },
        });
        let Value::Object(description) = description else {
            unreachable!("it was written as an object")
        };
        Route { api: self, method, path, operation, description }
    }

    /// Returns the router and the document.
    pub(crate) fn finish(mut self) -> (Router<Arc<App>>, Value) {
        let mut schemas = self.answers.take_definitions(true);
        schemas.extend(self.requests.take_definitions(true));
        let document = json!({
            "openapi": "3.1.0",
            "info": {
                "title": "Stepwell",
                "version": env!("CARGO_PKG_VERSION"),
                "description": "Tasks of a durable execution engine: spawn them, look at them, act \
                                on them.",
                "license": { "name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0" },
            },
            "security": [{ "token": [] }, {}],
            "paths": self.paths,
            "components": {
                "schemas": schemas,
                "securitySchemes": { "token": { "type": "http", "scheme": "bearer" } },
            },
        });
        (self.router, document)
    }
}

/// Returns the id of an operation: `get_tasks_task_id_journal` for `GET /tasks/{task_id}/journal`.
fn operation_id(method: &Method, path: &str) -> String {
    let words =
        path.split('/').map(|part| part.trim_matches(['{', '}'])).filter(|part| !part.is_empty());
    words
        .fold(method.as_str().to_lowercase(), |id, word| format!("{id}_{}", word.replace('-', "_")))
}

impl Route<'_> {
    /// Adds the parameters of a query.
    pub(crate) fn query<T: JsonSchema>(mut self) -> Self {
        let schema = SchemaSettings::draft2020_12()
            .with(|settings| settings.inline_subschemas = true)
            .for_deserialize()
            .into_generator()
            .into_root_schema_for::<T>()
            .to_value();
        for (name, mut schema) in schema["properties"].as_object().cloned().unwrap_or_default() {
            forget_null(&mut schema);
            let description =
                schema.as_object_mut().and_then(|schema| schema.remove("description"));
            let parameter = json!({
                "name": name,
                "in": "query",
                "schema": schema,
                "description": description,
            });
            if let Some(list) = self.description["parameters"].as_array_mut() {
                list.push(parameter);
            }
        }
        self
    }

    /// Adds a JSON body.
    pub(crate) fn body<T: JsonSchema>(mut self) -> Self {
        let schema = self.api.requests.subschema_for::<T>();
        let content = json!({ "application/json": { "schema": schema } });
        self.description
            .insert("requestBody".into(), json!({ "required": true, "content": content }));
        self
    }

    /// Adds an answer with a JSON body.
    pub(crate) fn answers<T: JsonSchema>(self, status: StatusCode) -> Self {
        let schema = self.api.answers.subschema_for::<T>();
        self.answers_with(status, json!({ "application/json": { "schema": schema } }))
    }

    /// Adds an answer that is a stream of events.
    pub(crate) fn streams(self) -> Self {
        self.answers_with(
            StatusCode::OK,
            json!({ "text/event-stream": { "schema": { "type": "string" } } }),
        )
    }

    /// Adds an answer without a body, which says that the operation is done.
    pub(crate) fn done(self) -> Self {
        self.answers_with(StatusCode::NO_CONTENT, json!({}))
    }

    fn answers_with(mut self, status: StatusCode, content: Value) -> Self {
        let reason = status.canonical_reason().unwrap_or_default();
        self.description["responses"][status.as_str()] =
            json!({ "description": reason, "content": content });
        self
    }

    /// Ends the route with its handler.
    pub(crate) fn does<H: Handler<T, Arc<App>>, T: 'static>(self, handler: H) {
        let Self { api, method, path, operation, description } = self;
        let item = api.paths.entry(path).or_insert_with(|| json!({}));
        item[method.as_str().to_lowercase()] = Value::Object(description);
        // Every method that is used here has a filter.
        let filter = MethodFilter::try_from(method).unwrap_or(MethodFilter::TRACE);
        let router = std::mem::take(&mut api.router);
        api.router = router.route(path, on(filter, handler).layer(Extension(operation)));
    }
}

/// Removes null from a parameter's schema: a parameter of a query is there or not, and never null.
fn forget_null(schema: &mut Value) {
    let Some(schema) = schema.as_object_mut() else { return };
    if let Some(Value::Array(types)) = schema.get_mut("type") {
        types.retain(|name| name != "null");
        if let [one] = &types[..] {
            let one = one.clone();
            schema.insert("type".into(), one);
        }
    }
    if let Some(Value::Array(any)) = schema.get_mut("anyOf") {
        any.retain(|schema| schema["type"] != "null");
        if let [Value::Object(one)] = &any[..] {
            let one = one.clone();
            schema.remove("anyOf");
            for (name, value) in one {
                schema.entry(name).or_insert(value);
            }
        }
    }
    schema.remove("default");
}
