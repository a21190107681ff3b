//! The statements of the hot path look at few rows, however many tasks have ended: every plan that
//! the server makes while a store works is read from its log.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use stepwell::{
    ApprovalFilter, Durable, QueueLimits, RateLimit, Scope, SpawnOptions, TaskContext, TaskFilter,
    TaskResult, TaskState, WorkerOptions,
};
use stepwell_postgres::sqlx::{self, Connection as _, Executor as _};
use stepwell_postgres::{PostgresOptions, PostgresStore};

/// A fragment that tells a statement, and the index that it must use.
const STATEMENTS: [(&str, &str); 36] = [
    ("UPDATE stepwell.processes", "Index Scan using processes_pkey"),
    ("l.task_id = ANY (p_tasks) AND l.state = 'running'", "live_tasks_pkey"),
    ("w.worker_id = ANY (v_workers)", "workers_pkey"),
    ("l.task_id = ANY (t_task) AND l.state = 'running'", "live_tasks_pkey"),
    ("w.worker_id = v_workers[1]", "workers_pkey"),
    ("w.worker_id = ANY (s_claim_by)", "workers_pkey"),
    ("DELETE FROM stepwell.live_tasks l", "live_tasks_pkey"),
    ("DELETE FROM stepwell.waits w USING gone", "waits_pkey"),
    ("DELETE FROM stepwell.messages m USING gone", "messages_mailbox"),
    ("l.task_id = t_task AND l.run_id = t_run", "live_tasks_pkey"),
    ("w.worker_id = s_claim_by FOR KEY SHARE", "workers_pkey"),
    ("DELETE FROM stepwell.waits w WHERE w.task_id = t_task", "waits_pkey"),
    ("DELETE FROM stepwell.messages m WHERE m.task_id = t_task", "messages_mailbox"),
    ("AND (l.worker_id IS NULL OR NOT p_only_starts)", "live_tasks_ready"),
    ("WHERE l.cancel_at <= p_now", "live_tasks_deadline"),
    ("WHERE l.due_at <= p_now", "live_tasks_due"),
    ("WHERE l.worker_id = v_worker AND l.poked", "live_tasks_poked"),
    ("JOIN stepwell.journal j USING (task_id)", "journal_pkey"),
    ("WHERE w.target = e.name AND w.kind = 'event'", "waits_target"),
    ("WHERE w.target = e.emitted AND w.kind = 'event'", "waits_target"),
    ("FROM stepwell.events e WHERE e.name = w.target", "events_pkey"),
    ("ON w.target = x.task_id::text AND w.kind = 'child'", "waits_target"),
    ("INSERT INTO stepwell.idempotency_keys", "unnest"),
    ("WHERE l.concurrency_key = k.key AND l.key_space = k.space", "live_tasks_key"),
    ("WHERE l.running_in = p_queue", "live_tasks_running"),
    ("AND l.crashes < 2 AND l.worker_id IS NOT NULL", "live_tasks_go_on"),
    ("WHERE o.task_id < p_end", "outcomes_pkey"),
    ("FROM stepwell.tasks t WHERE t.task_id = p_task AND coalesce", "tasks_pkey"),
    ("JOIN stepwell.tasks t ON t.parent = o.task_id", "tasks_parent"),
    ("DELETE FROM stepwell.messages m WHERE m.task_id = ANY (p_tasks)", "messages_mailbox"),
    ("JOIN stepwell.outcomes o ON o.instead = x.task_id", "outcomes_instead"),
    ("JOIN stepwell.waits w USING (task_id) WHERE w.arrived", "waits_arrived"),
    ("w.kind = 'message' AND w.task_id = x.task_id LIMIT 1", "waits_target"),
    ("FROM stepwell.live_tasks t WHERE t.task_id = p_task", "live_tasks_pkey"),
    ("ORDER BY w.kind DESC LIMIT 1) = 'child'", "waits_pkey"),
    ("AND w.kind = 'child' ORDER BY w.name LIMIT p_most", "waits_pkey"),
];

/// Tables that grow, with the tasks that have ended or with those that have not.
const TABLES: [&str; 8] = [
    "tasks",
    "live_tasks",
    "outcomes",
    "journal",
    "waits",
    "events",
    "messages",
    "idempotency_keys",
];

#[stepwell::task]
async fn child(n: u64, ctx: TaskContext) -> TaskResult<u64> {
    ctx.step("double", || async move { Ok(n * 2) }).await
}

#[stepwell::task]
async fn parent(n: u64, ctx: TaskContext) -> TaskResult<u64> {
    let double = ctx.spawn::<child>("child", n).await?;
    let heard: u64 = ctx.await_event(("event", n), Some(Duration::from_secs(60))).await?;
    let told: u64 = ctx.recv("topic", None).await?;
    ctx.sleep_for("nap", Duration::from_millis(1)).await?;
    let ended: u64 = ctx.join(&double).await?;
    ctx.step("sum", || async move { Ok(heard + told + ended) }).await
}

/// Joins a child that waits.
#[stepwell::task]
async fn grandparent(n: u64, ctx: TaskContext) -> TaskResult<u64> {
    let waits = ctx.spawn::<parent>("parent", n).await?;
    ctx.join(&waits).await
}

/// Uses whatever the hot path has statements for.
async fn work(client: &Durable) {
    client.register::<parent>().await.unwrap();
    client.register::<child>().await.unwrap();
    client.register::<grandparent>().await.unwrap();
    // Nothing special, started at once. Several, because the first batch on a line is special in
    // itself.
    let worker = client.start_worker(WorkerOptions::new()).await;
    for n in 0..20 {
        let task = client.spawn::<child>(n).await.unwrap();
        assert_eq!(client.wait::<u64>(task.task_id).await.unwrap(), n * 2);
    }
    // The same in sets.
    let all = client.spawn_many((0..20).map(|n| client.spawn::<child>(n))).await.unwrap();
    for (n, task) in (0..).zip(all) {
        assert_eq!(client.wait::<u64>(task.task_id).await.unwrap(), n * 2);
    }
    worker.shutdown().await;
    client
        .queues()
        .limit("default", QueueLimits { max_running: Some(50), ..QueueLimits::default() })
        .await
        .unwrap();
    let worker = client.start_worker(WorkerOptions::new().max_in_memory(0)).await;
    let joining = client.spawn::<grandparent>(100).await.unwrap().task_id;
    for n in 0..5_u64 {
        let options =
            SpawnOptions::new().idempotency_key(format!("key {n}")).concurrency_key("turn");
        let task = client.spawn_named("parent", &n).options(options).await.unwrap();
        // So that it is claimed again, with its journal.
        while client.task(task.task_id).await.unwrap().unwrap().state != TaskState::Suspended {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        client.emit_event(format!("event:{n}"), &n).await.unwrap();
        client.send(task.task_id, "topic", &n).await.unwrap();
        assert_eq!(client.wait::<u64>(task.task_id).await.unwrap(), n * 4);
    }
    let waits = TaskFilter { parent: Some(joining), ..TaskFilter::default() };
    let waits = client.tasks(waits).await.unwrap().items[0].task_id;
    client.emit_event("event:100", &100).await.unwrap();
    client.send(waits, "topic", &100).await.unwrap();
    assert_eq!(client.wait::<u64>(joining).await.unwrap(), 400);
    let rate = Some(RateLimit { starts: 100, per: Duration::from_secs(1) });
    client.queues().limit("default", QueueLimits { rate, ..QueueLimits::default() }).await.unwrap();
    let task = client.spawn::<child>(1).await.unwrap();
    assert_eq!(client.wait::<u64>(task.task_id).await.unwrap(), 2);
    worker.shutdown().await;
    assert!(client.purge(Duration::ZERO, None).await.unwrap() > 0);
    assert!(
        client
            .approvals()
            .list(ApprovalFilter { limit: 10, ..ApprovalFilter::default() })
            .await
            .unwrap()
            .items
            .is_empty()
    );
}

/// Whether a plan is of a statement with that in it, and not of one that a function runs within it.
fn is_of(plan: &str, fragment: &str) -> bool {
    plan.split(" (cost=").next().is_some_and(|statement| statement.contains(fragment))
}

#[tokio::test(flavor = "multi_thread")]
async fn hot_statements_use_their_indexes() {
    let postgres = throwaway::Postgres::with_settings(&[
        ("shared_preload_libraries", "auto_explain"),
        ("auto_explain.log_min_duration", "0"),
        ("auto_explain.log_nested_statements", "on"),
    ])
    .unwrap();
    let store =
        PostgresStore::connect(PostgresOptions::parse(&postgres.url()).unwrap()).await.unwrap();
    let client = Durable::builder().store(Arc::new(store)).build().await.unwrap();
    work(&client).await;
    drop(client);

    let log = std::fs::read_to_string(postgres.folder().join("log")).unwrap();
    // Each entry: the statement after "Query Text:", then its plan.
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let plans = log.split("Query Text: ").skip(1).filter(|plan| {
        // Not the migration, which holds every statement, nor a constant, shown with the statement
        // that it is in.
        plan.contains("stepwell.")
            && !plan.contains("CREATE TABLE")
            && !plan.contains("CONTEXT:  SQL function")
    });
    let plans: Vec<String> = plans.map(words).collect();
    assert!(plans.len() > 100, "the server logged {} plans", plans.len());
    for plan in &plans {
        for table in TABLES {
            let scan = format!("Seq Scan on {table} ");
            // What a person lists may read more.
            assert!(!plan.contains(&scan) || plan.contains("ORDER BY t.task_id"), "{plan}");
        }
    }
    // An index that is read from end to end is no better than its table.
    let mut whole = BTreeMap::new();
    for plan in &plans {
        for scan in plan.split("Index Scan using ").skip(1) {
            let table = scan.split(' ').nth(2).unwrap_or_default();
            let asks =
                scan.split_once(") ").is_some_and(|(_, rest)| rest.starts_with("Index Cond"));
            if TABLES.contains(&table) && !asks && !plan.contains("ORDER BY t.task_id") {
                let statement = plan.split(" (cost=").next().unwrap_or_default();
                whole.insert(
                    statement.to_owned(),
                    scan.split(')').next().unwrap_or_default().to_owned(),
                );
            }
        }
    }
    assert!(whole.is_empty(), "they read whole indexes: {whole:#?}");
    let mut missing = BTreeMap::new();
    for (statement, index) in STATEMENTS {
        let mut with: Vec<_> = plans.iter().filter(|plan| is_of(plan, statement)).collect();
        assert!(!with.is_empty(), "no plan of {statement:?} was logged");
        // A function's own statement is shown without a plan of what is in it.
        with.retain(|plan| !plan.contains(".commit(p_channel => $1"));
        if !with.iter().all(|plan| plan.contains(index)) {
            missing.insert(statement, with.first().map(ToString::to_string));
        }
    }
    assert!(missing.is_empty(), "they do not use their indexes: {missing:#?}");
    let ended = plans.iter().filter(|plan| is_of(plan, "WHERE o.task_id < p_end"));
    for plan in ended {
        assert!(
            plan.contains("Index Cond: (task_id < $"),
            "what ended later is not looked at: {plan}"
        );
    }
    let claims = plans
        .iter()
        .filter(|plan| plan.contains("WHERE l.queue = p_queue AND l.state = 'pending'"));
    for claim in claims {
        assert!(
            !claim.contains("Sort Key: l.priority"),
            "claims read in order, and sort nothing: {claim}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_by_label_reads_the_tasks_of_the_label_in_order() {
    let postgres = throwaway::Postgres::with_settings(&[
        ("shared_preload_libraries", "auto_explain"),
        ("auto_explain.log_min_duration", "0"),
    ])
    .unwrap();
    let store =
        PostgresStore::connect(PostgresOptions::parse(&postgres.url()).unwrap()).await.unwrap();
    let client = Durable::builder().store(Arc::new(store)).build().await.unwrap();
    // Of each hundred tasks, fifty of one tenant and one of another.
    let fill =
        "INSERT INTO stepwell.tasks (task_id, task_type, queue, priority, max_attempts, spawned_at,
            retry, headers, params)
        SELECT id(n), 'x', 'q', 0, 1, now(), '{\"kind\":\"none\"}', '{}', 'null'
        FROM generate_series(1, 20000) n;
        INSERT INTO stepwell.outcomes (task_id, run_id, state, attempt, cancel_requested,
            finished_at, output)
        SELECT id(n), id(n), 'completed', 1, false, now(), 'null' FROM generate_series(1, 20000) n;
        INSERT INTO stepwell.labels (task_id, name, value, own)
        SELECT id(n), 'tenant', CASE WHEN n % 2 = 0 THEN 'large' WHEN n % 100 = 1 THEN 'small'
            ELSE n::text END, true
        FROM generate_series(1, 20000) n;
        ANALYZE stepwell.tasks, stepwell.outcomes, stepwell.labels";
    let id = "CREATE FUNCTION id(n integer) RETURNS uuid LANGUAGE sql IMMUTABLE AS $$
        SELECT ('019acc00-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid $$;";
    let mut conn = sqlx::PgConnection::connect(&postgres.url()).await.unwrap();
    conn.execute(sqlx::raw_sql(sqlx::AssertSqlSafe(format!("{id} {fill}")))).await.unwrap();
    // Several times: a plan that is kept for all values would show from the sixth on.
    for round in 0..8 {
        for (tenant, count) in [("large", 100), ("small", 100), ("none", 0)] {
            let scope = Scope::default().label("tenant", tenant);
            let tasks = client.tasks(TaskFilter { scope, ..TaskFilter::default() }).await.unwrap();
            assert_eq!(tasks.items.len(), count, "{tenant}, {round}");
        }
    }
    let log = std::fs::read_to_string(postgres.folder().join("log")).unwrap();
    let lists: Vec<_> =
        log.split("Query Text: ").skip(1).filter(|plan| plan.contains("b0.task_id")).collect();
    assert!(lists.len() >= 24, "the server logged {} lists", lists.len());
    for plan in lists {
        assert!(plan.contains("labels_own on labels b0"), "{plan}");
        assert!(
            !plan.contains("Seq Scan on tasks") && !plan.contains("Seq Scan on labels"),
            "{plan}"
        );
    }
}

/// Waits for that many events, or messages of one topic, all at once.
#[stepwell::task]
async fn waiting(args: (String, u32), ctx: TaskContext) -> TaskResult<()> {
    let (what, waits) = args;
    let wait = |n| match what.as_str() {
        "events" => ctx.await_event::<()>(("of many", n), None),
        _ => ctx.recv::<()>("topic", None),
    };
    for waited in futures_util::future::join_all((0..waits).map(wait)).await {
        waited?;
    }
    Ok(())
}

/// Returns how many rows the scans of these tables have read, or left out by a filter, in the plans
/// of a log.
fn rows_read(log: &str, tables: &[&str]) -> f64 {
    let number = |text: &str, name: &str| -> Option<f64> {
        let digits = text.split(name).nth(1)?;
        digits.split(|c: char| !(c.is_ascii_digit() || c == '.')).next()?.parse().ok()
    };
    let (mut rows, mut loops) = (0.0, None);
    for line in log.lines() {
        if line.contains("(actual time=") {
            let is_read = tables
                .iter()
                .any(|table| line.contains("Scan") && line.contains(&format!(" on {table} ")));
            loops = number(line, " loops=").filter(|_| is_read);
            rows += loops
                .zip(
                    number(line, " rows=")
                        .and_then(|_| number(line.split("actual").nth(1)?, " rows=")),
                )
                .map_or(0.0, |(loops, rows)| loops * rows);
        } else if let Some((loops, removed)) = loops.zip(number(line, "Rows Removed by Filter: ")) {
            rows += loops * removed;
        }
    }
    rows
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wake_up_reads_what_has_arrived_and_no_other_wait() {
    let postgres = throwaway::Postgres::with_settings(&[
        ("shared_preload_libraries", "auto_explain"),
        ("auto_explain.log_min_duration", "0"),
        ("auto_explain.log_analyze", "on"),
        ("auto_explain.log_nested_statements", "on"),
    ])
    .unwrap();
    let store =
        PostgresStore::connect(PostgresOptions::parse(&postgres.url()).unwrap()).await.unwrap();
    let client = Durable::builder().store(Arc::new(store)).build().await.unwrap();
    client.register::<waiting>().await.unwrap();
    let worker = client.start_worker(WorkerOptions::new()).await;
    let log = || std::fs::read_to_string(postgres.folder().join("log")).unwrap();
    for what in ["events", "messages"] {
        let task = client.spawn::<waiting>((what.into(), 500)).await.unwrap().task_id;
        let is_suspended_behind = async |entries: usize| {
            while client.task(task).await.unwrap().unwrap().state != TaskState::Suspended
                || client.journal(task).await.unwrap().len() != entries
            {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        is_suspended_behind(0).await;
        let before = log().len();
        match what {
            "events" => _ = client.emit_event("of many:7", &()).await.unwrap(),
            _ => client.send(task, "topic", &()).await.unwrap(),
        }
        is_suspended_behind(1).await;
        let log = log();
        let read = rows_read(&log[before..], &["waits", "events", "messages"]);
        assert!(
            log[before..].contains("waits_arrived on waits"),
            "{what}: it looks for what has arrived"
        );
        assert!((1.0..100.0).contains(&read), "{what}: {read} rows were read for one of 500 waits");
        client.cancel(task).await.unwrap();
    }
    worker.shutdown().await;
}
