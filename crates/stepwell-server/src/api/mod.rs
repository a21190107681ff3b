//! The HTTP API: its routes, and their description.

pub(crate) mod approvals;
mod document;
mod events;
pub(crate) mod health;
mod queues;
mod schedules;
pub(crate) mod tasks;
mod workers;

use std::sync::Arc;

use axum::extract::State;
use axum::{Json, Router};
use serde_json::{Value, json};

use crate::app::App;
use crate::guard::Base;
use document::Api;

/// Returns the routes below `/api/v1`, and their OpenAPI document.
pub(crate) fn router() -> (Router<Arc<App>>, Value) {
    let mut api = Api::new();
    tasks::add_to(&mut api);
    events::add_to(&mut api);
    approvals::add_to(&mut api);
    queues::add_to(&mut api);
    schedules::add_to(&mut api);
    workers::add_to(&mut api);
    let (router, document) = api.finish();
    (router.route("/openapi.json", axum::routing::get(openapi)), document)
}

/// Returns the OpenAPI document with the path at which this server is mounted.
async fn openapi(State(app): State<Arc<App>>, base: Option<axum::Extension<Base>>) -> Json<Value> {
    let base = base.map(|base| base.0).unwrap_or_default();
    let mut document = app.document.clone();
    document["servers"] = json!([{ "url": base.to("/api/v1") }]);
    Json(document)
}
