//! What the API does, and says when it does not.

#![allow(clippy::unwrap_used, missing_docs, reason = "a test ends by a panic")]

mod common;

use std::sync::Arc;
use std::time::Duration;

use axum::http::{HeaderMap, Method, Request, StatusCode, header};
use common::{ask, client, get, post, request, send, text, waiting_refund};
use futures_util::FutureExt as _;
use serde_json::{Value, json};
use stepwell::store::Store;
use stepwell::testing::{Harness, Intercepted};
use stepwell::{ApprovalFilter, Durable, TaskState};
use stepwell_server::{Access, Identity, Scope, Server, async_trait};

#[tokio::test(flavor = "multi_thread")]
async fn a_task_is_spawned_read_and_waited_for() {
    let client = client().await;
    let router = Server::new(client.clone()).router();
    let spawn =
        json!({ "task_type": "double", "params": 21, "options": { "idempotency_key": "once" } });
    let (status, spawned) = ask(&router, post("/api/v1/tasks", &spawn)).await;
    assert_eq!(status, StatusCode::CREATED);
    let path = format!("/api/v1/tasks/{}", spawned["task_id"].as_str().unwrap());
    let (status, again) = ask(&router, post("/api/v1/tasks", &spawn)).await;
    assert_eq!(
        (status, &again["task_id"], &again["disposition"]),
        (StatusCode::OK, &spawned["task_id"], &json!("existing"))
    );
    let (status, result) = ask(&router, get(&format!("{path}/result?wait=20"))).await;
    assert_eq!(
        (status, result),
        (StatusCode::OK, json!({ "state": "completed", "output": 42, "failure": null }))
    );
    let (_, task) = ask(&router, get(&path)).await;
    assert_eq!((&task["state"], &task["params"]), (&json!("completed"), &json!(21)));
    let (_, journal) = ask(&router, get(&format!("{path}/journal"))).await;
    assert_eq!(journal["entries"][0]["value"], 42);
    let (_, export) = ask(&router, get(&format!("{path}/export"))).await;
    assert_eq!(ask(&router, request(Method::DELETE, &path)).await.0, StatusCode::NO_CONTENT);
    assert_eq!(ask(&router, get(&path)).await.0, StatusCode::NOT_FOUND);
    assert_eq!(ask(&router, post("/api/v1/tasks/import", &export)).await.0, StatusCode::CREATED);
    assert_eq!(ask(&router, get(&path)).await.0, StatusCode::OK);
    let (status, anew) = ask(&router, request(Method::POST, &format!("{path}/retrigger"))).await;
    assert!(status == StatusCode::CREATED && anew["task_id"] != spawned["task_id"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_come_in_pages_and_pass_filters() {
    let client = client().await;
    let router = Server::new(client.clone()).router();
    for n in 0..5_u64 {
        let options =
            stepwell::SpawnOptions::new().label("n", (n % 2).to_string()).label("kind", "x");
        let task = client.spawn::<common::double>(n).options(options).await.unwrap();
        client.wait::<u64>(task.task_id).await.unwrap();
    }
    waiting_refund(&client, "acme").await;
    let (mut seen, mut next) = (Vec::new(), String::new());
    loop {
        let (status, page) = ask(&router, get(&format!("/api/v1/tasks?limit=2{next}"))).await;
        assert_eq!(status, StatusCode::OK);
        seen.extend(
            page["tasks"].as_array().unwrap().iter().map(|task| task["task_id"].to_string()),
        );
        let Some(before) = page["next"].as_str() else { break };
        next = format!("&before={before}");
    }
    assert_eq!(seen.len(), 6);
    assert!(seen.is_sorted_by(|a, b| a > b), "{seen:?}");
    for (query, count) in [
        ("state=completed", 5),
        ("state=suspended&type=refund", 1),
        ("label=n=0&label=kind=x", 3),
        ("queue=other", 0),
    ] {
        let (_, page) = ask(&router, get(&format!("/api/v1/tasks?{query}"))).await;
        assert_eq!(page["tasks"].as_array().unwrap().len(), count, "{query}");
    }
}

/// All pages of a list, in their order.
async fn pages(router: &axum::Router, list: &str, cursor: &str) -> Vec<Value> {
    let (mut all, mut next) = (Vec::new(), String::new());
    loop {
        let (status, page) = ask(router, get(&format!("/api/v1/{list}{next}"))).await;
        assert_eq!(status, StatusCode::OK);
        let behind = page["next"].as_str().map(|behind| format!("?{cursor}={behind}"));
        all.push(page);
        match behind {
            Some(behind) => next = behind,
            None => return all,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn large_tasks_and_approvals_come_in_pages() {
    let client = client().await;
    let ask_for = |text: String, ctx: stepwell::TaskContext| async move {
        ctx.await_approval::<()>("sure", &text).await?;
        Ok(())
    };
    client.register_fn("ask", ask_for).await.unwrap();
    let large = "x".repeat((4 << 20) - 200);
    let parent = client
        .spawn_named("nobody's", &())
        .options(stepwell::SpawnOptions::new())
        .await
        .unwrap()
        .task_id;
    let mut tasks = Vec::new();
    for _ in 0..10 {
        tasks.push(
            client
                .spawn_named("ask", &large)
                .options(stepwell::SpawnOptions::new())
                .await
                .unwrap()
                .task_id,
        );
    }
    for task in &tasks {
        while client.task(*task).await.unwrap().unwrap().state != TaskState::Suspended {
            tokio::task::yield_now().await;
        }
    }
    tasks.sort_unstable();
    let router = Server::new(client.clone()).router();
    let ids = |pages: &[Value], of: &str| -> Vec<String> {
        let items = pages.iter().flat_map(|page| page[of].as_array().unwrap());
        items.map(|item| item["task_id"].as_str().unwrap().to_owned()).collect()
    };
    let approvals = pages(&router, "approvals", "behind").await;
    let expected: Vec<_> = tasks.iter().map(ToString::to_string).collect();
    assert_eq!((approvals.len(), ids(&approvals, "approvals")), (2, expected));

    let listed = pages(&router, "tasks", "before").await;
    let newest_first = tasks.iter().rev().chain([&parent]).map(ToString::to_string);
    assert_eq!((listed.len(), ids(&listed, "tasks")), (2, newest_first.collect()));

    // The dashboard goes on behind a short page as well.
    let first = text(send(&router, get("/tasks")).await).await;
    let older = first.split("href=\"").find(|link| link.starts_with("/tasks?before=")).unwrap();
    let second = text(send(&router, get(older.split('"').next().unwrap())).await).await;
    let shown =
        |page: &str| tasks.iter().filter(|task| page.contains(&format!("/tasks/{task}"))).count();
    assert_eq!(shown(&first) + shown(&second), tasks.len());
}

/// Takes every caller for one of tenant `acme`.
struct Acme;

#[async_trait]
impl Access for Acme {
    async fn authenticate(&self, _: &HeaderMap) -> Option<Identity> {
        Some(Identity { name: None, scope: Scope::default().label("tenant", "acme") })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_cannot_be_read_ends_no_list() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tasks.db");
    let database = format!("sqlite://{}", file.display());
    let client = Durable::builder().database_url(database).build().await.unwrap();
    let mut tasks = Vec::new();
    for n in 0..6_u64 {
        let options = stepwell::SpawnOptions::new().label("tenant", "acme");
        tasks.push(
            client.spawn_named("nobody's", &n).options(options).await.unwrap().task_id.to_string(),
        );
    }
    // Those of one millisecond are in no order.
    tasks.sort_unstable();
    let conn = stepwell::sqlite::rusqlite::Connection::open(&file).unwrap();
    // Some are of a newer program; of one it is not known whose it is.
    for (task, change) in
        [(2, "state = 'dreaming'"), (3, "state = 'dreaming'"), (4, "headers = '[1]'")]
    {
        let sql = format!("UPDATE stepwell_tasks SET {change} WHERE task_id = '{}'", tasks[task]);
        assert_eq!(conn.execute(&sql, []).unwrap(), 1);
    }
    let (all, tenant) = (Server::new(client.clone()), Server::new(client.clone()).access(Acme));
    for (server, expected) in [(all, [5, 4, 1, 0].as_slice()), (tenant, &[5, 1, 0])] {
        let router = server.router();
        let expected: Vec<_> = expected.iter().map(|task| tasks[*task].clone()).collect();
        for limit in [1, 2, 3, 100] {
            let (mut seen, mut next) = (Vec::new(), String::new());
            loop {
                let (_, page) =
                    ask(&router, get(&format!("/api/v1/tasks?limit={limit}{next}"))).await;
                let listed = page["tasks"].as_array().unwrap();
                assert!(listed.len() <= limit);
                seen.extend(listed.iter().map(|task| task["task_id"].as_str().unwrap().to_owned()));
                let Some(before) = page["next"].as_str() else { break };
                next = format!("&before={before}");
            }
            assert_eq!(seen, expected, "with pages of {limit}");
        }
    }
}

/// What is not answered in time may be done all the same: nobody is told to ask for it again.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_does_not_come_does_not_say_that_nothing_was_done() {
    let store: Arc<dyn Store> = Arc::new(Harness::new().store());
    let silent = Intercepted::new(store, |_, _| Box::pin(std::future::pending()));
    let builder =
        Durable::builder().store(Arc::new(silent)).answer_timeout(Duration::from_millis(50));
    let router = Server::new(builder.build().await.unwrap()).router();
    let spawn = json!({ "task_type": "double", "params": 1 });
    let (status, problem) = ask(&router, post("/api/v1/tasks", &spawn)).await;
    assert_eq!(status, StatusCode::GATEWAY_TIMEOUT, "{problem}");
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains("not known whether") && !detail.contains("try again"), "{detail}");
    // The same where the request itself takes too long.
    let mut endless = post("/api/v1/tasks", &spawn);
    let never = futures_util::stream::pending::<Result<Vec<u8>, std::io::Error>>();
    *endless.body_mut() = axum::body::Body::from_stream(never);
    let (status, problem) = ask(&router, endless).await;
    assert_eq!(status, StatusCode::GATEWAY_TIMEOUT, "{problem}");
}

/// A client that looks first and goes away takes no number from those that come later.
#[tokio::test]
async fn the_overview_is_made_though_the_first_who_looked_has_gone() {
    let client = client().await;
    waiting_refund(&client, "acme").await;
    let router = Server::new(client.clone()).router();
    // What it begins with is done beside it, and has had no turn yet.
    assert!(send(&router, get("/")).now_or_never().is_none());
    let page = text(send(&router, get("/")).await).await;
    assert!(page.contains("<span>Suspended</span><strong>1</strong>"), "{page}");
}

#[tokio::test(flavor = "multi_thread")]
async fn approvals_messages_queues_and_the_rest() {
    let client = client().await;
    let router = Server::new(client.clone()).router();
    let task_id = waiting_refund(&client, "acme").await;
    let path = format!("/api/v1/tasks/{task_id}");
    let (_, open) = ask(&router, get("/api/v1/approvals")).await;
    assert_eq!(
        (&open["approvals"][0]["name"], &open["approvals"][0]["request"]),
        (&json!("manager"), &json!(7))
    );
    let decision = json!({ "approved": true, "by": "ada", "value": 7 });
    let decide = format!("{path}/approvals/manager");
    assert_eq!(ask(&router, post(&decide, &decision)).await.0, StatusCode::NO_CONTENT);
    let (_, result) = ask(&router, get(&format!("{path}/result?wait=20"))).await;
    assert_eq!(result["output"], 7);
    let (status, late) = ask(&router, post(&decide, &decision)).await;
    assert_eq!(
        (status, &late["type"]),
        (StatusCode::NOT_FOUND, &json!("urn:stepwell:problem:not-found"))
    );
    let (_, logs) = ask(&router, get(&format!("{path}/logs"))).await;
    assert_eq!(logs["logs"][0]["message"], "a refund");

    let other = waiting_refund(&client, "acme").await;
    let message = json!({ "topic": "note", "payload": [1] });
    let path = format!("/api/v1/tasks/{other}");
    assert_eq!(
        ask(&router, post(&format!("{path}/messages"), &message)).await.0,
        StatusCode::NO_CONTENT
    );
    assert_eq!(
        ask(&router, request(Method::POST, &format!("{path}/cancel"))).await.0,
        StatusCode::NO_CONTENT
    );
    let (status, problem) = ask(&router, request(Method::POST, &format!("{path}/cancel"))).await;
    assert_eq!(
        (status, &problem["title"]),
        (StatusCode::CONFLICT, &json!("The state does not allow it"))
    );
    assert_eq!(
        ask(&router, request(Method::POST, &format!("{path}/retry"))).await.0,
        StatusCode::NO_CONTENT
    );

    let (_, first) =
        ask(&router, post("/api/v1/events", &json!({ "name": "e", "payload": 1 }))).await;
    let (_, second) =
        ask(&router, post("/api/v1/events", &json!({ "name": "e", "payload": 2 }))).await;
    assert_eq!((&first["first"], &second["first"]), (&json!(true), &json!(false)));

    let queue = "/api/v1/queues/odd%2Fname%20%C3%A4";
    assert_eq!(
        ask(&router, request(Method::POST, &format!("{queue}/pause"))).await.0,
        StatusCode::NO_CONTENT
    );
    let mut limits = post(&format!("{queue}/limits"), &json!({ "max_running": 3 }));
    *limits.method_mut() = Method::PUT;
    assert_eq!(ask(&router, limits).await.0, StatusCode::NO_CONTENT);
    let (_, queues) = ask(&router, get("/api/v1/queues")).await;
    let odd =
        queues.as_array().unwrap().iter().find(|queue| queue["queue"] == "odd/name ä").unwrap();
    assert_eq!((&odd["paused"], &odd["limits"]["max_running"]), (&json!(true), &json!(3)));
    let waiting =
        json!({ "task_type": "nobody", "params": null, "options": { "queue": "odd/name ä" } });
    let mut waiting = post("/api/v1/tasks", &waiting);
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    waiting.headers_mut().insert("traceparent", trace.parse().unwrap());
    let (_, waiting) = ask(&router, waiting).await;
    let (_, waiting) =
        ask(&router, get(&format!("/api/v1/tasks/{}", waiting["task_id"].as_str().unwrap()))).await;
    assert_eq!(waiting["headers"]["traceparent"], trace, "the caller's trace goes on");
    let metrics = text(send(&router, get("/metrics")).await).await;
    assert!(metrics.contains("stepwell_queue_oldest_seconds{queue=\"odd/name ä\"} "), "{metrics}");
    assert!(metrics.contains("stepwell_queue_paused{queue=\"odd/name ä\"} 1\n"), "{metrics}");
    assert!(metrics.contains("stepwell_worker_slots{worker="), "{metrics}");
    let (_, workers) = ask(&router, get("/api/v1/workers")).await;
    let drain = format!("/api/v1/workers/{}/drain", workers[0]["worker_id"].as_str().unwrap());
    assert_eq!(ask(&router, request(Method::POST, &drain)).await.0, StatusCode::NO_CONTENT);
    let (status, _) = ask(&router, request(Method::POST, "/api/v1/schedules/none/pause")).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_understood_is_a_problem_that_says_why() {
    let client = client().await;
    let router = Server::new(client.clone()).max_body_bytes(1_000).router();
    let task_id = waiting_refund(&client, "acme").await;
    let plain = |text: &str| {
        let mut request = post("/api/v1/tasks", &Value::Null);
        *request.body_mut() = axum::body::Body::from(text.to_owned());
        request
    };
    let untyped = |mut request: Request<axum::body::Body>| {
        request.headers_mut().remove(header::CONTENT_TYPE);
        request
    };
    let mut huge_header = get("/api/v1/tasks");
    huge_header.headers_mut().insert("x-long", "a".repeat(20_000).parse().unwrap());
    let mut no_host = get("/api/v1/tasks");
    no_host.headers_mut().remove(header::HOST);
    let mut bad_id = get("/api/v1/events");
    bad_id.headers_mut().insert("last-event-id", "seven".parse().unwrap());
    let missing = "01900000-0000-7000-8000-000000000000";
    for (request, expected) in [
        (plain("{"), 400),
        (plain("{}"), 422),
        (plain("{\"task_type\": \"\"}"), 422),
        (plain("{\"task_type\": \"double\", \"parms\": 1}"), 422),
        (plain("{\"task_type\": \"double\", \"options\": {\"idempotencyKey\": \"k\"}}"), 422),
        (untyped(plain("{\"task_type\": \"double\"}")), 415),
        (
            post("/api/v1/tasks", &json!({ "task_type": "double", "params": "x".repeat(2_000) })),
            413,
        ),
        (post("/api/v1/tasks/import", &json!({ "format": "other" })), 422),
        (get("/api/v1/tasks?limit=0"), 400),
        (get("/api/v1/tasks?state=done"), 400),
        (get("/api/v1/tasks?unknown=1"), 400),
        (get(&format!("/api/v1/tasks/{task_id}/result?wait=26")), 400),
        (get("/api/v1/tasks?label=x"), 400),
        (get("/api/v1/tasks/7"), 400),
        (get(&format!("/api/v1/tasks/{missing}")), 404),
        (get(&format!("/api/v1/tasks/{missing}/events")), 404),
        (get(&format!("/api/v1/tasks/{task_id}/nothing")), 404),
        (get("/api/v2/tasks"), 404),
        (request(Method::PUT, "/api/v1/tasks"), 405),
        (huge_header, 431),
        (no_host, 400),
        (bad_id, 400),
    ] {
        let what = format!("{} {}", request.method(), request.uri());
        let response = send(&router, request).await;
        assert_eq!(response.status(), expected, "{what}");
        assert_eq!(response.headers()[header::CONTENT_TYPE], "application/problem+json", "{what}");
        let problem: Value = serde_json::from_str(&text(response).await).unwrap();
        assert_eq!(problem["status"], expected, "{what}");
        assert!(
            !problem["detail"].as_str().unwrap().is_empty() && problem["type"].is_string(),
            "{problem}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_router_nests_under_any_path() {
    let client = client().await;
    let task_id = waiting_refund(&client, "acme").await;
    let app = axum::Router::new().nest("/ops/jobs", Server::new(client.clone()).router());
    let (_, document) = ask(&app, get("/ops/jobs/api/v1/openapi.json")).await;
    assert_eq!(
        (&document["openapi"], &document["servers"][0]["url"]),
        (&json!("3.1.0"), &json!("/ops/jobs/api/v1"))
    );
    let response = send(&app, get("/ops/jobs")).await;
    let policy = response.headers()[header::CONTENT_SECURITY_POLICY].to_str().unwrap().to_owned();
    assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
    let page = text(response).await;
    for link in page.split("href=\"").skip(1).map(|rest| rest.split('"').next().unwrap()) {
        assert!(link.starts_with("/ops/jobs") || link.starts_with('#'), "{link}");
        if link.starts_with('/') {
            assert_eq!(send(&app, get(link)).await.status(), StatusCode::OK, "{link}");
        }
    }
    let decide = format!("/ops/jobs/tasks/{task_id}/decide");
    let mut form = request(Method::POST, &decide);
    form.headers_mut()
        .insert(header::CONTENT_TYPE, "application/x-www-form-urlencoded".parse().unwrap());
    *form.body_mut() = "name=manager&decision=reject&by=ada&reason=no".into();
    let response = send(&app, form).await;
    assert_eq!(response.headers()[header::LOCATION], format!("/ops/jobs/tasks/{task_id}"));
    assert_eq!(client.wait::<u64>(task_id).await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_escape_what_is_not_theirs_and_say_when_nothing_is_new() {
    let client = client().await;
    let evil = "<script>alert(1)</script>\"'";
    let options = stepwell::SpawnOptions::new().queue(evil).label(evil, evil);
    let task_id =
        client.spawn_named(evil, &json!({ evil: evil })).options(options).await.unwrap().task_id;
    let router = Server::new(client.clone()).router();
    for path in [
        "/",
        "/tasks",
        &format!("/tasks/{task_id}"),
        "/queues",
        "/tasks?queue=%3Cscript%3E&type=%22%3E%3Cscript%3E",
    ] {
        let response = send(&router, get(path)).await;
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        let tag = response.headers()[header::ETAG].clone();
        let page = text(response).await;
        assert!(
            !page.contains("<script>alert") && !page.contains("\"><script>"),
            "{path}:\n{page}"
        );
        if !path.starts_with("/tasks/") && path != "/" {
            let mut again = get(path);
            again.headers_mut().insert(header::IF_NONE_MATCH, tag);
            assert_eq!(send(&router, again).await.status(), StatusCode::NOT_MODIFIED, "{path}");
        }
    }
    assert_eq!(client.task(task_id).await.unwrap().unwrap().state, TaskState::Pending);
}

/// A request with this text as its JSON.
fn post_text(path: &str, body: &str) -> Request<axum::body::Body> {
    let mut request = post(path, &Value::Null);
    *request.body_mut() = axum::body::Body::from(body.to_owned());
    request
}

#[tokio::test(flavor = "multi_thread")]
async fn no_number_is_rounded_on_its_way() {
    const NUMBERS: &str = concat!(
        "[340282366920938463463374607431768211456,",
        "0.1000000000000000055511151231257827,9787.333499999999,1e400]",
    );
    let client = client().await;
    let echo = |payload: stepwell::Payload, ctx: stepwell::TaskContext| async move {
        let event: stepwell::Payload = ctx.await_event("numbers", None).await?;
        let message: stepwell::Payload = ctx.recv("numbers", None).await?;
        let of_a_page: stepwell::Payload = ctx.recv("numbers", None).await?;
        let decision = ctx.await_approval::<stepwell::Payload>("numbers", &payload).await?;
        let stepwell::Decision::Approved { value, .. } = decision else { return Ok(vec![]) };
        Ok(vec![payload, event, message, of_a_page, value])
    };
    client.register_fn("echo", echo).await.unwrap();
    let router = Server::new(client.clone()).router();
    let spawn = format!("{{\"task_type\":\"echo\",\n\"params\":\n{NUMBERS}}}");
    let (_, spawned) = ask(&router, post_text("/api/v1/tasks", &spawn)).await;
    let task_id = spawned["task_id"].as_str().unwrap();
    let path = format!("/api/v1/tasks/{task_id}");
    let event = format!(r#"{{"name":"numbers","payload":{NUMBERS}}}"#);
    assert_eq!(send(&router, post_text("/api/v1/events", &event)).await.status(), StatusCode::OK);
    let message = format!(r#"{{"topic":"numbers","payload":{NUMBERS}}}"#);
    let sent = send(&router, post_text(&format!("{path}/messages"), &message)).await;
    assert_eq!(sent.status(), StatusCode::NO_CONTENT);
    let mut form =
        post_text(&format!("/tasks/{task_id}/send"), &format!("topic=numbers&payload={NUMBERS}"));
    form.headers_mut()
        .insert(header::CONTENT_TYPE, "application/x-www-form-urlencoded".parse().unwrap());
    assert_eq!(send(&router, form).await.status(), StatusCode::SEE_OTHER);
    while client
        .approvals()
        .list(ApprovalFilter { limit: 1, ..ApprovalFilter::default() })
        .await
        .unwrap()
        .items
        .is_empty()
    {
        tokio::task::yield_now().await;
    }
    let decision = format!(r#"{{"approved":true,"value":{NUMBERS}}}"#);
    let decided = send(&router, post_text(&format!("{path}/approvals/numbers"), &decision)).await;
    assert_eq!(decided.status(), StatusCode::NO_CONTENT);
    let all = format!("[{}]", [NUMBERS; 5].join(","));
    client.wait::<stepwell::Payload>(task_id.parse().unwrap()).await.unwrap();
    for read in ["/result?wait=20", "", "/export", "/journal"] {
        let read = text(send(&router, get(&format!("{path}{read}"))).await).await;
        assert!(read.contains(NUMBERS), "{read}");
    }
    let result = text(send(&router, get(&format!("{path}/result"))).await).await;
    assert!(result.contains(&all), "{result}");
    let page = text(send(&router, get(&format!("/tasks/{task_id}"))).await).await;
    assert!(page.contains("0.1000000000000000055511151231257827"), "{page}");

    let header = |number: &str| {
        let headers =
            format!(r#"{{"task_type":"echo","options":{{"headers":{{"x":[{number}]}}}}}}"#);
        post_text("/api/v1/tasks", &headers)
    };
    for number in ["18446744073709551617", "0.10000000000000000001", "1e400"] {
        let refused = send(&router, header(number)).await;
        assert!(refused.status().is_client_error(), "{number}");
    }
    assert_eq!(send(&router, header("18446744073709551615")).await.status(), StatusCode::CREATED);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_nested_too_deep_is_refused_everywhere() {
    let client = client().await;
    let router = Server::new(client.clone()).router();
    let task_id = waiting_refund(&client, "acme").await;
    for levels in [101, 16_000, 400_000] {
        let deep = "[".repeat(levels) + &"]".repeat(levels);
        for (path, body) in [
            ("/api/v1/tasks".to_owned(), format!(r#"{{"task_type":"x","params":{deep}}}"#)),
            (
                "/api/v1/tasks".to_owned(),
                format!(r#"{{"task_type":"x","options":{{"headers":{{"x":{deep}}}}}}}"#),
            ),
            ("/api/v1/tasks/import".to_owned(), deep.clone()),
            ("/api/v1/events".to_owned(), format!(r#"{{"name":"x","payload":{deep}}}"#)),
            (
                format!("/api/v1/tasks/{task_id}/messages"),
                format!(r#"{{"topic":"x","payload":{deep}}}"#),
            ),
            (
                format!("/api/v1/tasks/{task_id}/approvals/manager"),
                format!(r#"{{"approved":true,"value":{deep}}}"#),
            ),
        ] {
            let refused = send(&router, post_text(&path, &body)).await;
            assert!(refused.status().is_client_error(), "{path}: {}", refused.status());
        }
    }
    let large = "x".repeat(100 << 10);
    let headers = json!({ "task_type": "x", "options": { "headers": { "x": large } } });
    let (status, problem) = ask(&router, post("/api/v1/tasks", &headers)).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{problem}");
}
