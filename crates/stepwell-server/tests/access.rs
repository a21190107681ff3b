//! Nobody gets at what is not theirs: every route, as another user, as nobody, and from elsewhere.

#![allow(clippy::unwrap_used, missing_docs, reason = "a test ends by a panic")]

mod common;

use std::time::Duration;

use axum::Router;
use axum::http::{HeaderMap, Method, Request, StatusCode, header};
use common::{ask, client, get, post, request, send, text, waiting_refund};
use futures_util::StreamExt as _;
use futures_util::future::join_all;
use serde_json::{Value, json};
use stepwell::{Durable, TaskId, TaskState};
use stepwell_server::{Access, Identity, Scope, Server, async_trait};

struct Tenants;

#[async_trait]
impl Access for Tenants {
    async fn authenticate(&self, headers: &HeaderMap) -> Option<Identity> {
        let tenant = headers.get("x-tenant")?.to_str().ok()?.to_owned();
        Some(Identity { scope: Scope::default().label("tenant", &tenant), name: Some(tenant) })
    }
}

fn of(tenant: &str, mut request: Request<axum::body::Body>) -> Request<axum::body::Body> {
    request.headers_mut().insert("x-tenant", tenant.parse().unwrap());
    request
}

/// Every route of the API, as its description has it.
async fn routes(client: &Durable) -> Vec<(Method, String)> {
    let router = Server::new(client.clone()).router();
    let (status, document) = ask(&router, get("/api/v1/openapi.json")).await;
    assert_eq!(status, StatusCode::OK);
    let mut routes = Vec::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for method in methods.as_object().unwrap().keys() {
            routes.push((method.to_uppercase().parse().unwrap(), path.clone()));
        }
    }
    assert!(routes.len() > 25, "{routes:?}");
    routes
}

fn pages(task_id: TaskId) -> Vec<(Method, String)> {
    let lists = ["/", "/tasks", "/approvals", "/queues", "/schedules", "/workers", "/metrics"];
    let actions = ["cancel", "pause", "resume", "retry", "retrigger", "delete", "send", "decide"];
    let lists = lists.iter().map(|path| (Method::GET, (*path).to_owned()));
    let actions = actions.iter().map(|action| (Method::POST, format!("/tasks/{task_id}/{action}")));
    let others = ["/queues/pause", "/queues/resume", "/schedules/change"];
    let others = others.iter().map(|path| (Method::POST, (*path).to_owned()));
    let task = [(Method::GET, format!("/tasks/{task_id}"))];
    let drain = [(Method::POST, format!("/workers/{task_id}/drain"))];
    lists.chain(actions).chain(others).chain(task).chain(drain).collect()
}

/// What each route takes, so that it is not refused for what it is sent.
fn body(path: &str) -> Value {
    match path.rsplit('/').next().unwrap() {
        "tasks" => {
            json!({ "task_type": "double", "params": 4, "options": { "concurrency_key": "k" } })
        }
        "messages" => json!({ "topic": "t", "payload": 1 }),
        "events" => json!({ "name": "e", "payload": 1 }),
        "manager" => json!({ "approved": true, "value": 1 }),
        _ => json!({}),
    }
}

fn filled(path: &str, task_id: TaskId) -> String {
    path.replace("{task_id}", &task_id.to_string())
        .replace("{worker_id}", &task_id.to_string())
        .replace("{queue}", "default")
        .replace("approvals/{name}", "approvals/manager")
        .replace("{name}", "nightly")
}

fn form(path: &str) -> &'static str {
    match path.rsplit('/').next().unwrap() {
        "pause" | "resume" => "queue=default",
        "change" => "name=nightly&action=pause",
        "send" => "topic=t&payload=1",
        "decide" => "name=manager&decision=approve",
        _ => "",
    }
}

fn asking(method: &Method, path: &str, is_page: bool) -> Request<axum::body::Body> {
    let mut asking = post(path, &body(path));
    *asking.method_mut() = method.clone();
    if is_page {
        asking
            .headers_mut()
            .insert(header::CONTENT_TYPE, "application/x-www-form-urlencoded".parse().unwrap());
        *asking.body_mut() = axum::body::Body::from(form(path));
    }
    asking
}

async fn all(client: &Durable, task_id: TaskId) -> Vec<(Method, String, bool)> {
    let api = routes(client).await.into_iter();
    let api =
        api.map(|(method, path)| (method, format!("/api/v1{}", filled(&path, task_id)), false));
    api.chain(pages(task_id).into_iter().map(|(method, path)| (method, path, true))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_sees_and_changes_its_own_tasks_only() {
    let client = client().await;
    let (task_id, own) =
        (waiting_refund(&client, "acme").await, waiting_refund(&client, "other").await);
    let router = Server::new(client.clone()).access(Tenants).router();
    let id = task_id.to_string();
    for (method, path, is_page) in all(&client, task_id).await {
        let what = format!("{method} {path}");
        let response = send(&router, of("other", asking(&method, &path, is_page))).await;
        let status = response.status();
        let expected: &[u16] = match path.as_str() {
            path if path.contains(&id) && !path.contains("workers") => &[404],
            "/api/v1/tasks" | "/api/v1/approvals" | "/api/v1/task-types" | "/tasks"
            | "/approvals" => &[200, 201],
            // A stream never ends; what comes in it is looked at elsewhere.
            "/api/v1/events" if method == Method::GET => {
                assert_eq!(status, StatusCode::OK);
                continue;
            }
            "/" => &[303],
            _ => &[403],
        };
        assert!(expected.contains(&status.as_u16()), "{what}: {status}");
        let text = text(response).await;
        if !path.contains(&id) {
            assert!(!text.contains(&id), "{what} shows it:\n{text}");
        }
        if status == StatusCode::OK && path.ends_with("approvals") {
            assert!(
                text.contains(&own.to_string()),
                "{what} does not show what is theirs:\n{text}"
            );
        }
    }
    let task = client.task(task_id).await.unwrap().unwrap();
    assert_eq!(task.state, TaskState::Suspended, "nothing was done to it");
    for (path, status) in
        [("", StatusCode::OK), ("/journal", StatusCode::OK), ("/result", StatusCode::ACCEPTED)]
    {
        let path = format!("/api/v1/tasks/{task_id}{path}");
        assert_eq!(send(&router, of("acme", get(&path))).await.status(), status, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_tenant_spawns_is_its_own_and_meets_no_other() {
    let client = client().await;
    let router = Server::new(client.clone()).access(Tenants).router();
    let body = json!({
        "task_type": "double", "params": 4,
        "options": { "idempotency_key": "same", "headers": { "tenant": "acme" } }
    });
    let mut tasks = Vec::new();
    for tenant in ["acme", "other", "other"] {
        let (status, spawned) = ask(&router, of(tenant, post("/api/v1/tasks", &body))).await;
        assert!(status.is_success(), "{spawned}");
        let task_id: TaskId = spawned["task_id"].as_str().unwrap().parse().unwrap();
        let task = client.task(task_id).await.unwrap().unwrap();
        assert_eq!(task.headers["tenant"], tenant, "whatever the headers said");
        tasks.push(task_id);
    }
    assert!(tasks[0] != tasks[1] && tasks[1] == tasks[2], "{tasks:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_gets_anything_without_the_token() {
    let client = client().await;
    let task_id = waiting_refund(&client, "acme").await;
    let token = "0123456789abcdef0123";
    let router = Server::new(client.clone()).token(token).unwrap().router();
    for (method, path, is_page) in all(&client, task_id).await {
        for wrong in [
            None,
            Some("Bearer 0123456789abcdef012"),
            Some("Basic 0123456789abcdef0123"),
            Some("Bearer"),
        ] {
            let mut asking = asking(&method, &path, is_page);
            if let Some(wrong) = wrong {
                asking.headers_mut().insert(header::AUTHORIZATION, wrong.parse().unwrap());
            }
            asking
                .headers_mut()
                .insert(header::COOKIE, format!("stepwell_session={token}").parse().unwrap());
            let response = send(&router, asking).await;
            assert_eq!(response.status(), StatusCode::UNAUTHORIZED, "{method} {path} {wrong:?}");
            assert_eq!(response.headers()[header::WWW_AUTHENTICATE], "Bearer");
        }
    }
    let task = client.task(task_id).await.unwrap().unwrap();
    assert_eq!(task.state, TaskState::Suspended);
    let mut asking = get("/api/v1/tasks");
    asking.headers_mut().insert(header::AUTHORIZATION, format!("bearer {token}").parse().unwrap());
    assert_eq!(send(&router, asking).await.status(), StatusCode::OK);
    for path in ["/health/live", "/health/ready", "/login", "/assets/style.css"] {
        assert_eq!(
            send(&router, get(path)).await.status(),
            StatusCode::OK,
            "{path} is for anybody"
        );
    }
    assert!(Server::new(client).token("short").is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_logs_in_with_the_token_and_out_again() {
    let client = client().await;
    let router = Server::new(client).token("0123456789abcdef0123").unwrap().router();
    let router = Router::new().nest("/jobs", router);
    let browser = |mut request: Request<axum::body::Body>| {
        request.headers_mut().insert(header::ACCEPT, "text/html".parse().unwrap());
        request
    };
    let log_in = |token: &str| {
        let mut request = request(Method::POST, "/jobs/login");
        let kind = "application/x-www-form-urlencoded".parse().unwrap();
        request.headers_mut().insert(header::CONTENT_TYPE, kind);
        *request.body_mut() = axum::body::Body::from(format!("token={token}"));
        request
    };
    let led = send(&router, browser(get("/jobs/tasks"))).await;
    assert_eq!(
        (led.status(), &led.headers()[header::LOCATION]),
        (StatusCode::SEE_OTHER, &"/jobs/login".parse().unwrap())
    );
    assert_eq!(send(&router, log_in("wrong")).await.status(), StatusCode::UNAUTHORIZED);
    let entered = send(&router, log_in("0123456789abcdef0123")).await;
    assert_eq!(entered.headers()[header::LOCATION], "/jobs");
    let cookie = entered.headers()[header::SET_COOKIE].to_str().unwrap().to_owned();
    assert!(
        cookie.contains("HttpOnly")
            && cookie.contains("SameSite=Strict")
            && cookie.contains("Path=/jobs")
    );
    assert!(!cookie.contains("0123456789abcdef0123"), "the token itself is not in the browser");
    let mut page = browser(get("/jobs/tasks"));
    page.headers_mut().insert(header::COOKIE, cookie.split(';').next().unwrap().parse().unwrap());
    let page = send(&router, page).await;
    assert_eq!(page.status(), StatusCode::OK);
    assert!(
        text(page).await.contains("href=\"/jobs/queues\""),
        "links lead to where the router is"
    );
    let with = |mut request: Request<axum::body::Body>| {
        request
            .headers_mut()
            .insert(header::COOKIE, cookie.split(';').next().unwrap().parse().unwrap());
        request
    };
    // Another browser has a session of its own.
    let other = send(&router, log_in("0123456789abcdef0123")).await;
    let other = other.headers()[header::SET_COOKIE].to_str().unwrap().to_owned();
    assert_ne!(cookie.split(';').next(), other.split(';').next());
    let mut followed =
        send(&router, with(get("/jobs/api/v1/events"))).await.into_body().into_data_stream();
    assert!(followed.next().await.is_some(), "it follows the events");
    let left = send(&router, with(request(Method::POST, "/jobs/logout"))).await;
    let ended = async { while followed.next().await.is_some() {} };
    tokio::time::timeout(Duration::from_secs(20), ended).await.expect("the stream goes on");
    assert!(left.headers()[header::SET_COOKIE].to_str().unwrap().contains("Max-Age=0"));
    assert_eq!(
        send(&router, with(get("/jobs/tasks"))).await.status(),
        StatusCode::UNAUTHORIZED,
        "it has ended"
    );
    let mut still = get("/jobs/tasks");
    still.headers_mut().insert(header::COOKIE, other.split(';').next().unwrap().parse().unwrap());
    assert_eq!(send(&router, still).await.status(), StatusCode::OK, "the other has not");
}

fn login(token: &str, from: &str) -> Request<axum::body::Body> {
    let mut request = request(Method::POST, "/login");
    let kind = "application/x-www-form-urlencoded".parse().unwrap();
    request.headers_mut().insert(header::CONTENT_TYPE, kind);
    request.headers_mut().insert("x-forwarded-for", format!("10.9.9.9, {from}").parse().unwrap());
    *request.body_mut() = axum::body::Body::from(format!("token={token}"));
    request
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_guesses_the_token_has_to_wait_and_nobody_else_has() {
    let token = "0123456789abcdef0123";
    let server = Server::new(client().await).token(token).unwrap();
    let router = server.behind_proxy().router();
    for n in 0..5 {
        let status = send(&router, login(&format!("guess{n}"), "10.0.0.1")).await.status();
        assert_eq!(status, StatusCode::UNAUTHORIZED);
    }
    for given in ["guess", token] {
        let refused = send(&router, login(given, "10.0.0.1")).await;
        assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
        assert!(text(refused).await.contains("seconds before you try again"));
    }
    // Not by another way either.
    let mut bearer = get("/api/v1/tasks");
    bearer.headers_mut().insert(header::AUTHORIZATION, format!("Bearer {token}").parse().unwrap());
    bearer.headers_mut().insert("x-forwarded-for", "10.0.0.1".parse().unwrap());
    assert_eq!(send(&router, bearer).await.status(), StatusCode::TOO_MANY_REQUESTS);
    // Nor is a body read that they send.
    let mut endless = login("", "10.0.0.1");
    let never = futures_util::stream::pending::<Result<Vec<u8>, std::io::Error>>();
    *endless.body_mut() = axum::body::Body::from_stream(never);
    let refused = tokio::time::timeout(Duration::from_secs(10), send(&router, endless)).await;
    assert_eq!(refused.unwrap().status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(send(&router, login(token, "10.0.0.2")).await.status(), StatusCode::SEE_OTHER);
    let long = send(&router, login(&"x".repeat(10_000), "10.0.0.2")).await;
    assert_eq!(long.status(), StatusCode::PAYLOAD_TOO_LARGE);
}

#[tokio::test(flavor = "multi_thread")]
async fn guesses_from_nowhere_keep_nobody_out() {
    let token = "0123456789abcdef0123";
    let router = Server::new(client().await).token(token).unwrap().router();
    let bearer = |token: &str| {
        let mut asking = get("/api/v1/tasks");
        asking
            .headers_mut()
            .insert(header::AUTHORIZATION, format!("Bearer {token}").parse().unwrap());
        asking
    };
    // It is not known where any of them comes from.
    let guesses: Vec<_> = (0..20).map(|n| bearer(&format!("guess{n}"))).collect();
    for guessed in join_all(guesses.into_iter().map(|guess| send(&router, guess))).await {
        assert_eq!(guessed.status(), StatusCode::UNAUTHORIZED);
    }
    assert_eq!(send(&router, bearer(token)).await.status(), StatusCode::OK);
    assert_eq!(send(&router, login(token, "10.0.0.1")).await.status(), StatusCode::SEE_OTHER);
}

#[tokio::test(flavor = "multi_thread")]
async fn cookies_are_for_tls_only_where_that_is_asked_for() {
    let client = client().await;
    let server = || Server::new(client.clone()).token("0123456789abcdef0123").unwrap();
    let cookie = async |router: Router, proto: Option<&str>| {
        let mut asking = login("0123456789abcdef0123", "10.0.0.1");
        if let Some(proto) = proto {
            asking.headers_mut().insert("x-forwarded-proto", proto.parse().unwrap());
        }
        send(&router, asking).await.headers()[header::SET_COOKIE]
            .to_str()
            .unwrap()
            .contains("Secure")
    };
    assert!(
        !cookie(server().router(), None).await && !cookie(server().router(), Some("http")).await
    );
    assert!(cookie(server().router(), Some("https")).await);
    assert!(cookie(server().secure_cookies().router(), None).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_others_and_other_names_get_nothing() {
    let client = client().await;
    let task_id = waiting_refund(&client, "acme").await;
    let router = Server::new(client.clone()).host("jobs.example.com").router();
    for (method, path, is_page) in all(&client, task_id).await {
        let with = |name: header::HeaderName, value: &str| {
            let mut asking = asking(&method, &path, is_page);
            asking.headers_mut().insert(name, value.parse().unwrap());
            asking
        };
        for host in ["evil.example.com", "localhost.evil.com", "127.0.0.1.evil.com:7180", "evil"] {
            let status = send(&router, with(header::HOST, host)).await.status();
            assert_eq!(status, StatusCode::MISDIRECTED_REQUEST, "{method} {path} as {host}");
        }
        for origin in [
            "http://evil.example.com",
            "null",
            "http://localhost:8080",
            "https://localhost.evil.com",
        ] {
            let status = send(&router, with(header::ORIGIN, origin)).await.status();
            assert_eq!(status, StatusCode::FORBIDDEN, "{method} {path} from {origin}");
        }
        if method != Method::GET {
            let site = header::HeaderName::from_static("sec-fetch-site");
            assert_eq!(
                send(&router, with(site, "cross-site")).await.status(),
                StatusCode::FORBIDDEN,
                "{path}"
            );
        }
    }
    assert_eq!(client.task(task_id).await.unwrap().unwrap().state, TaskState::Suspended);
    for host in [
        "localhost:7180",
        "127.0.0.1",
        "[::1]:7180",
        "10.0.0.7:80",
        "jobs.example.com",
        "JOBS.example.com:1",
    ] {
        let mut asking = get("/api/v1/tasks");
        asking.headers_mut().insert(header::HOST, host.parse().unwrap());
        asking.headers_mut().insert(header::ORIGIN, format!("http://{host}").parse().unwrap());
        assert_eq!(send(&router, asking).await.status(), StatusCode::OK, "{host}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_can_reach_is_not_served_without_protection() {
    let client = client().await;
    let everywhere = ([0, 0, 0, 0], 0).into();
    let refused = Server::new(client.clone()).bind(everywhere).await.err().unwrap();
    assert!(refused.to_string().contains("give a token"), "{refused}");
    assert!(
        Server::new(client.clone())
            .token("0123456789abcdef")
            .unwrap()
            .bind(everywhere)
            .await
            .is_ok()
    );
    assert!(Server::new(client.clone()).access(Tenants).bind(everywhere).await.is_ok());
    assert!(Server::new(client).bind(([127, 0, 0, 1], 0).into()).await.is_ok());
}
