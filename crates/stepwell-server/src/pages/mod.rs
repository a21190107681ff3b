//! The dashboard: pages that the server draws, and that work without a script. A small script keeps
//! them up to date.

mod approvals;
mod assets;
mod chart;
mod layout;
mod login;
mod overview;
mod queues;
mod schedules;
mod task;
mod tasks;
mod timeline;
mod words;
mod workers;

use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse as _, Response};
use axum::routing::MethodRouter;
use sha2::{Digest as _, Sha256};

use crate::access::Operation;
use crate::app::App;
use crate::guard::Base;
use crate::problem::Problem;

/// Returns the pages that need authentication.
pub(crate) fn router() -> Router<Arc<App>> {
    let router = Router::new();
    let router = overview::add_to(router);
    let router = tasks::add_to(router);
    let router = task::add_to(router);
    let router = queues::add_to(router);
    let router = schedules::add_to(router);
    let router = workers::add_to(router);
    approvals::add_to(router).layer(from_fn(show))
}

/// Returns the pages that need no authentication.
pub(crate) fn open() -> Router<Arc<App>> {
    assets::add_to(login::add_to(Router::new())).layer(from_fn(show))
}

/// Returns a route for an operation.
fn route(operation: Operation, method: MethodRouter<Arc<App>>) -> MethodRouter<Arc<App>> {
    method.layer(axum::Extension(operation))
}

/// Turns problems into pages, and answers 304 when the client has seen the page in its present
/// state.
async fn show(request: Request, next: Next) -> Response {
    let base = request.extensions().get::<Base>().cloned().unwrap_or_default();
    let seen = request.headers().get(header::IF_NONE_MATCH).cloned();
    let is_get = request.method() == Method::GET;
    let response = next.run(request).await;
    if let Some(problem) = response.extensions().get::<Problem>() {
        return (problem.status(), layout::problem(&base, problem)).into_response();
    }
    match is_get && response.status() == StatusCode::OK {
        true => tagged(response, seen).await,
        false => response,
    }
}

async fn tagged(response: Response, seen: Option<HeaderValue>) -> Response {
    let (mut parts, body) = response.into_parts();
    // The page was drawn here, so it is in memory already.
    let Ok(body) = axum::body::to_bytes(body, usize::MAX).await else {
        return Problem::busy("the page could not be drawn").into_response();
    };
    let tag = format!("\"{}\"", hex::encode(&Sha256::digest(&body)[..12]));
    let Ok(tag) = HeaderValue::from_str(&tag) else {
        return Response::from_parts(parts, body.into());
    };
    let known = seen.as_ref() == Some(&tag);
    parts.headers.insert(header::ETAG, tag);
    if known {
        parts.status = StatusCode::NOT_MODIFIED;
        return Response::from_parts(parts, axum::body::Body::empty());
    }
    Response::from_parts(parts, body.into())
}
