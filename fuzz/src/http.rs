//! The HTTP API and the dashboard, without a socket. An input is who asks (`tenant`, or anything
//! else for everybody), and then requests as text, apart by lines of `===`:
//!
//! ```text
//!   tenant
//!   POST /api/v1/tasks
//!   content-type: application/json
//!
//!   {"task_type": "double", "params": 7}
//! ```
//!
//! `OWN`, `ENDED` and `OTHER` stand for the ids of tasks: two of the tenant's, and one of another
//! tenant's.

use std::pin::pin;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Method, Request, StatusCode, header};
use axum::response::Response;
use futures_util::StreamExt as _;
use serde_json::Value;
use stepwell::testing::{Harness, Process, worker_options};
use stepwell::{Scope, SpawnOptions, TaskContext, TaskId, async_trait};
use stepwell_server::{Access, Identity, Server};
use tower::ServiceExt as _;

use crate::in_virtual_time;

/// What is in the other tenant's task, wherever there is room for it.
const SECRET: &str = "s3cr3t";
/// How long an answer is read for: a stream of events never ends.
const PATIENCE: Duration = Duration::from_secs(60);
/// The longest answer: nothing that was asked for has so much in it.
const LONGEST: usize = 4 << 20;

struct Tenants;

#[async_trait]
impl Access for Tenants {
    async fn authenticate(&self, headers: &HeaderMap) -> Option<Identity> {
        let scope = match headers.contains_key("x-fuzz-tenant") {
            true => scope("acme"),
            false => Scope::default(),
        };
        Some(Identity { name: None, scope })
    }
}

fn scope(tenant: &str) -> Scope {
    Scope::default().label("tenant", tenant)
}

pub(crate) fn run(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let (who, requests) = text.split_once('\n').unwrap_or((text, ""));
    in_virtual_time(async {
        let world = World::new(who == "tenant").await;
        let text = world.with_ids(requests);
        for request in text.split("\n===\n").take(8) {
            world.ask(request).await;
        }
        world.other_is_as_it_was().await;
    });
}

struct World {
    process: Process,
    router: Router,
    is_tenant: bool,
    own: TaskId,
    ended: TaskId,
    other: TaskId,
    other_before: String,
}

impl World {
    async fn new(is_tenant: bool) -> Self {
        let process =
            Harness::new().start_with(stepwell::DurableBuilder::keep_history).await.unwrap();
        let double = |n: u64, _: TaskContext| async move { Ok(n.wrapping_mul(2)) };
        let asks = |what: String, ctx: TaskContext| async move {
            let message: Value = ctx.recv("topic", None).await?;
            ctx.await_approval::<Value>("manager", &what).await?;
            Ok(message)
        };
        process.register_fn("double", double).await.unwrap();
        process.register_fn("asks", asks).await.unwrap();
        process.start_worker(worker_options()).await;
        let options =
            |tenant: &str| SpawnOptions::new().scope(scope(tenant)).label("tenant", tenant);
        let own = process.spawn_named("asks", &"a").options(options("acme")).await.unwrap().task_id;
        let ended =
            process.spawn_named("double", &7).options(options("acme")).await.unwrap().task_id;
        let secret = options("evil").header("note", SECRET).idempotency_key(SECRET);
        let other = process.spawn_named("asks", &SECRET).options(secret).await.unwrap().task_id;
        process.send(other, "topic", &SECRET).await.unwrap();
        process.wait::<u64>(ended).await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        let router = Server::new(process.client().clone()).access(Tenants).router();
        let other_before = exported(&process, other).await;
        Self { process, router, is_tenant, own, ended, other, other_before }
    }

    fn with_ids(&self, text: &str) -> String {
        let text = text.replace("OWN", &self.own.to_string());
        text.replace("ENDED", &self.ended.to_string()).replace("OTHER", &self.other.to_string())
    }

    async fn ask(&self, text: &str) {
        let (head, body) = text.split_once("\n\n").unwrap_or((text, ""));
        let mut lines = head.lines();
        let Some((method, path)) = lines.next().and_then(|line| line.split_once(' ')) else {
            return;
        };
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in lines.filter_map(|line| line.split_once(": ")) {
            request = request.header(name, value);
        }
        if self.is_tenant {
            request = request.header("x-fuzz-tenant", "yes");
        }
        if !head.contains("\nhost: ") {
            request = request.header(header::HOST, "localhost");
        }
        let Ok(request) = request.body(Body::from(body.to_owned())) else { return };
        let spawns = request.method() == Method::POST && request.uri().path() == "/api/v1/tasks";
        let response = self.router.clone().oneshot(request).await.unwrap();
        let answer = self.checked(text, response).await;
        if let Some(answer) = answer.filter(|_| spawns) {
            self.is_as_it_was_sent(body, &answer).await;
        }
    }

    /// Checks an answer. Returns what it says, when something was done.
    async fn checked(&self, text: &str, response: Response) -> Option<String> {
        let (status, headers) = (response.status(), response.headers().clone());
        let body = read(response).await;
        assert!(!status.is_server_error(), "{status} for {text:?}: {body}");
        if self.is_tenant && !text.contains(SECRET) {
            let shown = format!("{headers:?} {body}");
            assert!(!shown.contains(SECRET), "somebody else's secret for {text:?}: {shown}");
        }
        let kind = headers
            .get(header::CONTENT_TYPE)
            .and_then(|kind| kind.to_str().ok())
            .unwrap_or_default();
        if kind.contains("json") && !body.is_empty() {
            let json: Value = serde_json::from_str(&body).expect("what is called JSON is JSON");
            if kind.contains("problem") {
                assert_eq!(json["status"], status.as_u16());
                assert!(json["detail"].as_str().unwrap().len() > 8, "{json}");
            }
        }
        (status == StatusCode::CREATED).then_some(body)
    }

    /// A task that was spawned has the parameters that were sent.
    async fn is_as_it_was_sent(&self, sent: &str, answer: &str) {
        let (sent, answer): (Value, Value) =
            (serde_json::from_str(sent).unwrap(), serde_json::from_str(answer).unwrap());
        let task_id = answer["task_id"].as_str().unwrap().parse().unwrap();
        let task = self.process.task(task_id).await.unwrap().unwrap();
        assert_eq!(task.params.decode::<Value>().unwrap(), sent["params"]);
        assert_eq!(Some(task.task_type.as_str()), sent["task_type"].as_str());
        assert!(!self.is_tenant || task.scope == scope("acme"), "{:?}", task.scope);
    }

    async fn other_is_as_it_was(&self) {
        if self.is_tenant {
            assert_eq!(exported(&self.process, self.other).await, self.other_before);
        }
    }
}

async fn exported(process: &Process, task: TaskId) -> String {
    serde_json::to_string(&process.export(task).await.unwrap().record).unwrap()
}

async fn read(response: Response) -> String {
    let mut parts = response.into_body().into_data_stream();
    let mut body = Vec::new();
    let mut end = pin!(tokio::time::sleep(PATIENCE));
    loop {
        tokio::select! {
            part = parts.next() => match part {
                Some(part) => body.extend_from_slice(&part.expect("a part of the answer")),
                None => break,
            },
            () = &mut end => break,
        }
        assert!(body.len() < LONGEST, "a long answer");
    }
    String::from_utf8(body).unwrap_or_default()
}
