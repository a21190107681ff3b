//! Two scopes never meet, whatever they are called and whatever they ask for: what one does is in
//! nothing that the other gets, and changes nothing of the other's.

#![allow(clippy::unwrap_used, missing_docs, reason = "a test ends by a panic")]

mod common;

use std::collections::BTreeSet;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Method, Request, StatusCode};
use common::{ask, double, get, post, refund, request, send, text};
use futures_util::StreamExt as _;
use proptest::collection::{btree_map, vec};
use proptest::option::of;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Value, json};
use stepwell::{Durable, Name, Scope, TaskFilter, TaskId, TaskState, WorkerOptions};
use stepwell_server::{Access, Identity, Operation, Server, async_trait};

const QUEUES: [&str; 4] = ["a", "b", "a/b", "tenant=a"];
const NAMES: [&str; 5] = ["tenant", "queue", "a", "tenant=a/a", "labels"];
const VALUES: [&str; 6] = ["a", "b", "a/b", "a%", "\"a\"", "{\"tenant\":\"a\"}"];

/// Everybody is of the scope that they say, and may do whatever a scope can be allowed.
struct Scoped;

#[async_trait]
impl Access for Scoped {
    async fn authenticate(&self, headers: &HeaderMap) -> Option<Identity> {
        let scope = serde_json::from_slice(headers.get("x-scope")?.as_bytes()).ok()?;
        Some(Identity { name: None, scope })
    }

    async fn authorize(&self, _: &Identity, _: Operation, _: Option<&stepwell::TaskInfo>) -> bool {
        true
    }
}

/// A client of a scope, and what it asks for.
#[derive(Clone, Debug)]
struct Tenant {
    scope: Scope,
    queue: Option<&'static str>,
    headers: Vec<(&'static str, &'static str)>,
    coalesce: &'static str,
    /// The scope that they ask to spawn in.
    names: Option<Scope>,
}

fn scope() -> impl Strategy<Value = Scope> {
    let labels = btree_map(prop::sample::select(&NAMES), prop::sample::select(&VALUES), 0..3);
    let scope = (of(prop::sample::select(&QUEUES)), labels).prop_map(|(queue, labels)| {
        let all = Scope::default();
        let scope = labels.into_iter().fold(all, |scope, (name, value)| scope.label(name, value));
        queue.into_iter().fold(scope, |scope, queue| scope.queue(Name::new(queue).unwrap()))
    });
    scope.prop_filter("a tenant", |scope| !scope.is_all())
}

fn tenant() -> impl Strategy<Value = Tenant> {
    let headers = vec((prop::sample::select(&NAMES), prop::sample::select(&VALUES)), 0..4);
    let coalesce = prop::sample::select(&["reuse", "replace", "reject"]);
    (scope(), of(prop::sample::select(&QUEUES)), headers, coalesce, of(scope())).prop_map(
        |(scope, queue, headers, coalesce, names)| Tenant {
            scope,
            queue,
            headers,
            coalesce,
            names,
        },
    )
}

/// A client that asks for nothing in particular.
fn simply(scope: Scope) -> Tenant {
    Tenant { scope, queue: None, headers: Vec::new(), coalesce: "replace", names: None }
}

impl Tenant {
    fn of(&self, mut request: Request<Body>) -> Request<Body> {
        let scope = serde_json::to_string(&self.scope).unwrap().parse().unwrap();
        request.headers_mut().insert("x-scope", scope);
        request
    }

    async fn spawn(&self, router: &Router, task_type: &str, more: Value) -> (StatusCode, Value) {
        let mut options = json!({ "headers": { "x": { "tenant": "a" } }, "queue": self.queue });
        for (name, value) in &self.headers {
            options["headers"][name] = (*value).into();
        }
        options.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let mut body = json!({ "task_type": task_type, "params": 7, "options": options });
        if let Some(names) = &self.names {
            body["options"]["scope"] = serde_json::to_value(names).unwrap();
            let (status, spawned) = ask(router, self.of(post("/api/v1/tasks", &body))).await;
            if status != StatusCode::FORBIDDEN {
                return (status, spawned);
            }
            body["options"].as_object_mut().unwrap().remove("scope");
        }
        ask(router, self.of(post("/api/v1/tasks", &body))).await
    }

    /// Spawns a task of each sort: one that ends, one that waits for a decision, one that waits
    /// for its turn. The same keys for all tenants.
    async fn act(&self, router: &Router) -> Vec<TaskId> {
        let later = json!({ "after": { "secs": 3_600, "nanos": 0 } });
        let mut tasks = Vec::new();
        for (task_type, more) in [
            ("double", json!({ "idempotency_key": "order-1" })),
            ("double", json!({ "idempotency_key": "a/order-1" })),
            ("refund", json!({})),
            (
                "double",
                json!({ "concurrency_key": "k", "coalesce": self.coalesce, "start": later }),
            ),
        ] {
            let (status, spawned) = self.spawn(router, task_type, more).await;
            assert_eq!(
                (status, &spawned["disposition"]),
                (StatusCode::CREATED, &json!("created")),
                "{spawned}"
            );
            tasks.push(spawned["task_id"].as_str().unwrap().parse().unwrap());
        }
        tasks
    }

    /// All that the tenant gets to see without knowing any task but its own.
    async fn sees(&self, router: &Router, last: TaskId) -> Vec<String> {
        let mut paths: Vec<_> =
            ["/tasks", "/approvals", "/", "/queues", "/schedules", "/workers", "/metrics"]
                .into_iter()
                .map(ToOwned::to_owned)
                .collect();
        for path in ["tasks", "approvals", "queues", "schedules", "workers", "task-types"] {
            paths.push(format!("/api/v1/{path}"));
        }
        for (name, value) in NAMES.iter().zip(VALUES) {
            let label = format!("{name}={value}");
            let label: String = form_urlencoded::byte_serialize(label.as_bytes()).collect();
            paths.push(format!("/api/v1/tasks?label={label}"));
        }
        for queue in QUEUES {
            paths.push(format!("/api/v1/tasks?queue={queue}"));
            paths.push(format!("/tasks?queue={queue}&state=suspended"));
        }
        let mut seen = Vec::new();
        for path in paths {
            seen.push(text(send(router, self.of(get(&path))).await).await);
        }
        // Page by page, with the cursors.
        let mut next = Some(String::new());
        while let Some(before) = next {
            let (_, page) =
                ask(router, self.of(get(&format!("/api/v1/tasks?limit=1{before}")))).await;
            next = page["next"].as_str().map(|task_id| format!("&before={task_id}"));
            seen.push(page.to_string());
        }
        seen.push(self.hears(router, last).await);
        seen
    }

    /// What there is in the stream of events, up to the end of a task of the tenant's own.
    async fn hears(&self, router: &Router, last: TaskId) -> String {
        let response = send(router, self.of(get("/api/v1/events?after=0"))).await;
        assert_eq!(response.status(), StatusCode::OK);
        let (mut body, mut heard) = (response.into_body().into_data_stream(), String::new());
        let ends = |heard: &str| {
            heard
                .split("\n\n")
                .any(|event| event.contains("task:complete") && event.contains(&last.to_string()))
        };
        while !ends(&heard) {
            heard.push_str(std::str::from_utf8(&body.next().await.unwrap().unwrap()).unwrap());
        }
        heard
    }
}

async fn client() -> Durable {
    let client =
        Durable::builder().database_url("sqlite::memory:").keep_history().build().await.unwrap();
    client.register::<refund>().await.unwrap();
    client.register::<double>().await.unwrap();
    client
        .start_worker(WorkerOptions::new().queues(QUEUES.into_iter().chain(["default"])).unwrap())
        .await;
    client
}

async fn wait_for(client: &Durable, task_id: TaskId, state: TaskState) {
    while client.task(task_id).await.unwrap().unwrap().state != state {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// What a request about a task is answered, but for the task's id.
async fn answer(
    router: &Router,
    tenant: &Tenant,
    method: &Method,
    path: &str,
    id: &str,
) -> (StatusCode, String) {
    let mut asking = request(method.clone(), &path.replace("{id}", id));
    if *method == Method::POST {
        let body = match path.contains("approvals") {
            true => json!({ "approved": true, "by": "me" }),
            false => json!({ "topic": "t", "payload": 1 }),
        };
        asking = post(&path.replace("{id}", id), &body);
    }
    let response = send(router, tenant.of(asking)).await;
    (response.status(), text(response).await.replace(id, "{id}"))
}

async fn meet(one: Tenant, other: Tenant) {
    let client = client().await;
    let router = Server::new(client.clone()).access(Scoped).router();
    let ones = one.act(&router).await;
    let others = other.act(&router).await;
    assert_eq!(
        ones.iter().chain(&others).collect::<BTreeSet<_>>().len(),
        8,
        "each has tasks of its own"
    );
    for tasks in [&ones, &others] {
        wait_for(&client, tasks[0], TaskState::Completed).await;
        wait_for(&client, tasks[1], TaskState::Completed).await;
        wait_for(&client, tasks[2], TaskState::Suspended).await;
        // It was replaced by nobody.
        wait_for(&client, tasks[3], TaskState::Pending).await;
    }
    let anybody = client.tasks(TaskFilter::default()).await.unwrap();
    assert_eq!(anybody.items.len(), 8);
    let unknown = "01900000-0000-7000-8000-000000000000";
    for (tenant, own, theirs, of_other) in
        [(&one, &ones, &others, &other.scope), (&other, &others, &ones, &one.scope)]
    {
        let seen = tenant.sees(&router, own[1]).await;
        let shows = |task: &TaskId| seen.iter().any(|text| text.contains(&task.to_string()));
        assert!(own.iter().all(shows), "{tenant:?} does not see its own");
        // Who holds the other scope, as a team's tenant does, sees its tasks.
        if tenant.scope.holds(of_other) {
            assert!(theirs.iter().all(shows), "{tenant:?} does not see those within its scope");
            continue;
        }
        for task in theirs {
            let shown = seen.iter().find(|text| text.contains(&task.to_string()));
            assert!(shown.is_none(), "{tenant:?} of {of_other:?} sees {shown:?}");
            let id = task.to_string();
            for (method, path) in [
                (Method::GET, "/api/v1/tasks/{id}"),
                (Method::GET, "/api/v1/tasks/{id}/journal"),
                (Method::GET, "/api/v1/tasks/{id}/logs"),
                (Method::GET, "/api/v1/tasks/{id}/result?wait=1"),
                (Method::GET, "/api/v1/tasks/{id}/export"),
                (Method::GET, "/api/v1/tasks/{id}/events"),
                (Method::GET, "/tasks/{id}"),
                (Method::GET, "/api/v1/tasks?parent={id}"),
                (Method::POST, "/api/v1/tasks/{id}/cancel"),
                (Method::POST, "/api/v1/tasks/{id}/pause"),
                (Method::POST, "/api/v1/tasks/{id}/retrigger"),
                (Method::POST, "/api/v1/tasks/{id}/messages"),
                (Method::POST, "/api/v1/tasks/{id}/approvals/manager"),
                (Method::DELETE, "/api/v1/tasks/{id}"),
            ] {
                let got = answer(&router, tenant, &method, path, &id).await;
                let expected = answer(&router, tenant, &method, path, unknown).await;
                assert_eq!(got, expected, "{method} {path} tells that there is such a task");
            }
        }
    }
}

#[test]
fn no_two_scopes_meet() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let mut runner =
        TestRunner::new(Config { cases: 40, failure_persistence: None, ..Config::default() });
    let cases =
        (tenant(), tenant()).prop_filter("two scopes", |(one, other)| one.scope != other.scope);
    runner
        .run(&cases, |(one, other)| {
            runtime.block_on(meet(one, other));
            Ok(())
        })
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_scopes_that_were_seen_to_meet_do_not() {
    let tenant = |scope: Scope, headers: &[(&'static str, &'static str)]| Tenant {
        headers: headers.to_vec(),
        ..simply(scope)
    };
    let label = |value: &str| Scope::default().label("tenant", value);
    let queue = |name: &str| Scope::default().queue(Name::new(name).unwrap());
    meet(tenant(queue("a"), &[]), tenant(queue("b"), &[])).await;
    meet(tenant(label("a/b"), &[]), tenant(label("a"), &[])).await;
    meet(tenant(queue("a"), &[("tenant", "a")]), tenant(label("a"), &[])).await;
    meet(Tenant { queue: Some("a"), ..tenant(label("a"), &[]) }, tenant(queue("a"), &[])).await;
    // A scope within the own one that is within the other's as well.
    let both = Some(queue("a").label("tenant", "a"));
    meet(Tenant { names: both.clone(), ..simply(queue("a")) }, simply(label("a"))).await;
    meet(Tenant { names: both, ..simply(label("a")) }, simply(queue("a"))).await;
    let team = label("a").label("team", "b");
    meet(
        Tenant { names: Some(team), ..simply(label("a")) },
        simply(Scope::default().label("team", "b")),
    )
    .await;
}

/// What a scope cannot confine is refused to it, whatever `authorize` says.
#[tokio::test(flavor = "multi_thread")]
async fn what_concerns_all_is_for_those_of_no_scope() {
    let client = client().await;
    let router = Server::new(client.clone()).access(Scoped).router();
    let tenant = simply(Scope::default().label("tenant", "a"));
    for (method, path) in [
        (Method::GET, "/api/v1/queues"),
        (Method::POST, "/api/v1/queues/a/pause"),
        (Method::GET, "/api/v1/schedules"),
        (Method::GET, "/api/v1/workers"),
        (Method::POST, "/api/v1/tasks/import"),
        (Method::POST, "/api/v1/events"),
        (Method::GET, "/metrics"),
    ] {
        let (status, _) = answer(&router, &tenant, &method, path, "").await;
        assert_eq!(status, StatusCode::FORBIDDEN, "{method} {path}");
    }
    assert!(!client.queues().list().await.unwrap().iter().any(|queue| queue.paused));
}

/// A scope that is named beside the tenant's own is refused, also one within it.
#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_spawns_into_its_own_scope_only() {
    let router = Server::new(client().await).access(Scoped).router();
    let own = Scope::default().label("tenant", "a");
    let tenant = simply(own.clone());
    for (scope, expected) in [
        (own.clone(), StatusCode::CREATED),
        (Scope::default().label("tenant", "b"), StatusCode::FORBIDDEN),
        (own.label("team", "b"), StatusCode::FORBIDDEN),
    ] {
        let headers = json!({ "tenant": "a", "team": "b" });
        let options = json!({ "headers": headers, "scope": scope });
        let body = json!({ "task_type": "double", "params": 7, "options": options });
        let (status, answer) = ask(&router, tenant.of(post("/api/v1/tasks", &body))).await;
        assert_eq!(status, expected, "{scope:?}: {answer}");
    }
}

/// A task that was spawned for a tenant by a task of another tenant: nothing tells the first tenant
/// of that one.
#[tokio::test(flavor = "multi_thread")]
async fn a_parent_of_another_scope_is_hidden_also_in_errors() {
    let client = client().await;
    let scope = Scope::default().label("tenant", "a");
    let of_child = scope.clone();
    let platform = move |(): (), ctx: stepwell::TaskContext| {
        let options = stepwell::SpawnOptions::new().queue("a").scope(of_child.clone());
        async move {
            ctx.spawn::<double>("child", 4).options(options).await?;
            ctx.await_event::<()>("go", None).await
        }
    };
    client.register_fn("platform", platform).await.unwrap();
    let worker = client.start_worker(WorkerOptions::new().queues(["default"]).unwrap()).await;
    let parent = client
        .spawn_named("platform", &())
        .options(stepwell::SpawnOptions::new())
        .await
        .unwrap()
        .task_id;
    let children = TaskFilter { parent: Some(parent), ..TaskFilter::default() };
    let child = loop {
        if let Some(child) = client.tasks(children.clone()).await.unwrap().items.pop() {
            break child.task_id;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    };
    wait_for(&client, child, TaskState::Completed).await;
    let router = Server::new(client.clone()).access(Scoped).router();
    let tenant = simply(scope);
    for (method, path, expected) in [
        (Method::GET, format!("/api/v1/tasks/{child}"), StatusCode::OK),
        (Method::GET, "/api/v1/tasks".into(), StatusCode::OK),
        (Method::GET, format!("/api/v1/tasks/{child}/export"), StatusCode::OK),
        (Method::GET, format!("/api/v1/tasks/{child}/journal"), StatusCode::OK),
        (Method::GET, format!("/tasks/{child}"), StatusCode::OK),
        (Method::DELETE, format!("/api/v1/tasks/{child}"), StatusCode::CONFLICT),
        (Method::POST, format!("/tasks/{child}/delete"), StatusCode::CONFLICT),
    ] {
        let response = send(&router, tenant.of(request(method.clone(), &path))).await;
        assert_eq!(response.status(), expected, "{method} {path}");
        let text = text(response).await;
        assert!(!text.contains(&parent.to_string()), "{method} {path} tells of its parent: {text}");
    }
    let all = request(Method::DELETE, &format!("/api/v1/tasks/{child}"));
    let (_, problem) = ask(&router, simply(Scope::default()).of(all)).await;
    assert!(problem["detail"].as_str().unwrap().contains(&parent.to_string()), "{problem}");
    worker.shutdown().await;
}

/// That a task was not there is not remembered: it may be imported.
#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_comes_back_is_there_at_once() {
    let client = client().await;
    let family = |(): (), ctx: stepwell::TaskContext| async move {
        let child = ctx.spawn::<double>("child", 4).await?;
        ctx.join::<u64>(&child).await
    };
    client.register_fn("family", family).await.unwrap();
    let worker = client.start_worker(WorkerOptions::new().queues(["default"]).unwrap()).await;
    let router = Server::new(client.clone()).access(Scoped).router();
    let (tenant, all) = (simply(Scope::default().label("tenant", "a")), simply(Scope::default()));
    let spawn = json!({ "task_type": "family", "params": null });
    let (_, spawned) = ask(&router, tenant.of(post("/api/v1/tasks", &spawn))).await;
    let parent: TaskId = spawned["task_id"].as_str().unwrap().parse().unwrap();
    client.wait::<u64>(parent).await.unwrap();
    let child =
        client.tasks(TaskFilter { parent: Some(parent), ..TaskFilter::default() }).await.unwrap();
    let family = [parent, child.items[0].task_id];
    let mut documents = Vec::new();
    for task_id in family {
        let path = format!("/api/v1/tasks/{task_id}");
        documents.push(ask(&router, all.of(get(&format!("{path}/export")))).await.1);
        let (status, problem) = ask(&router, all.of(request(Method::DELETE, &path))).await;
        assert_eq!(status, StatusCode::NO_CONTENT, "{problem}");
    }
    let children = || tenant.of(get(&format!("/api/v1/tasks?parent={parent}")));
    assert_eq!(ask(&router, children()).await.1["tasks"], json!([]));
    for document in &documents {
        let (status, problem) = ask(&router, all.of(post("/api/v1/tasks/import", document))).await;
        assert_eq!(status, StatusCode::CREATED, "{problem}");
    }
    assert_eq!(ask(&router, children()).await.1["tasks"][0]["task_id"], family[1].to_string());
    worker.shutdown().await;
}

/// A child is in the scope of its parent, with the scope's labels and keys.
#[tokio::test(flavor = "multi_thread")]
async fn children_are_in_the_scope_of_their_parent() {
    let client = client().await;
    client
        .register_fn("family", |(): (), ctx: stepwell::TaskContext| async move {
            let options = stepwell::SpawnOptions::new().idempotency_key("only child");
            let child = ctx.spawn::<double>("child", 4).options(options).await?;
            ctx.join::<u64>(&child).await
        })
        .await
        .unwrap();
    let worker = client.start_worker(WorkerOptions::new().queues(["default"]).unwrap()).await;
    let router = Server::new(client.clone()).access(Scoped).router();
    let mut children = BTreeSet::new();
    for value in ["a", "b", "c"] {
        let tenant = simply(Scope::default().label("tenant", value));
        let spawn = json!({ "task_type": "family", "params": null });
        let (_, spawned) = ask(&router, tenant.of(post("/api/v1/tasks", &spawn))).await;
        let parent: TaskId = spawned["task_id"].as_str().unwrap().parse().unwrap();
        assert_eq!(client.wait::<u64>(parent).await.unwrap(), 8);
        let (_, listed) =
            ask(&router, tenant.of(get(&format!("/api/v1/tasks?parent={parent}")))).await;
        let listed = listed["tasks"].as_array().unwrap().clone();
        assert_eq!(listed.len(), 1, "it sees its own child");
        assert_eq!(listed[0]["headers"]["tenant"], value);
        children.insert(listed[0]["task_id"].as_str().unwrap().to_owned());
    }
    assert_eq!(children.len(), 3, "each has a child of its own");
    worker.shutdown().await;
}
