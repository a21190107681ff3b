//! A database with tasks, and a router over it.

#![allow(dead_code, reason = "each test uses some of it")]

use axum::Router;
use axum::body::Body;
use axum::http::{Method, Request, StatusCode, header};
use axum::response::Response;
use serde_json::Value;
use stepwell::{Durable, SpawnOptions, TaskContext, TaskId, TaskResult, TaskState, WorkerOptions};
use tower::ServiceExt as _;

#[stepwell::task]
pub(crate) async fn refund(amount: u64, ctx: TaskContext) -> TaskResult<u64> {
    ctx.log(stepwell::LogLevel::Info, "a refund", [("amount", amount.into())]);
    let checked = ctx.step("check", || async move { Ok(amount) }).await?;
    let decision = ctx.await_approval::<u64>("manager", &checked).await?;
    Ok(if decision.is_approved() { amount } else { 0 })
}

#[stepwell::task]
pub(crate) async fn double(number: u64, ctx: TaskContext) -> TaskResult<u64> {
    ctx.step("double", || async move { Ok(number * 2) }).await
}

/// With a worker that knows the types.
pub(crate) async fn client() -> Durable {
    let client =
        Durable::builder().database_url("sqlite::memory:").keep_history().build().await.unwrap();
    client.register::<refund>().await.unwrap();
    client.register::<double>().await.unwrap();
    client.start_worker(WorkerOptions::new()).await;
    client
}

pub(crate) async fn waiting_refund(client: &Durable, tenant: &str) -> TaskId {
    let options = SpawnOptions::new().label("tenant", tenant);
    let task_id = client.spawn::<refund>(7).options(options).await.unwrap().task_id;
    while client.task(task_id).await.unwrap().unwrap().state != TaskState::Suspended {
        tokio::task::yield_now().await;
    }
    task_id
}

/// A request as a program on this machine sends it.
pub(crate) fn request(method: Method, path: &str) -> Request<Body> {
    Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, "localhost")
        .body(Body::empty())
        .unwrap()
}

pub(crate) fn get(path: &str) -> Request<Body> {
    request(Method::GET, path)
}

pub(crate) fn post(path: &str, body: &Value) -> Request<Body> {
    let mut request = request(Method::POST, path);
    request.headers_mut().insert(header::CONTENT_TYPE, "application/json".parse().unwrap());
    *request.body_mut() = Body::from(body.to_string());
    request
}

pub(crate) async fn send(router: &Router, request: Request<Body>) -> Response {
    router.clone().oneshot(request).await.unwrap()
}

pub(crate) async fn text(response: Response) -> String {
    let bytes = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// The status, and the JSON; null when there is none.
pub(crate) async fn ask(router: &Router, request: Request<Body>) -> (StatusCode, Value) {
    let response = send(router, request).await;
    let status = response.status();
    let text = text(response).await;
    (status, if text.is_empty() { Value::Null } else { serde_json::from_str(&text).unwrap() })
}
