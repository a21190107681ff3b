//! Rows that were damaged by hand, or that a newer program has written.

use std::time::Duration;

use stepwell::*;

/// Runs SQL in the store's database. `{tasks}` and the like are its tables.
pub(crate) trait Damage {
    /// Runs it.
    async fn run(&mut self, sql: String);
}

/// What becomes of a task whose row is changed so.
struct Case {
    /// The statement, but for the task's id at its end.
    sql: &'static str,
    /// A part of the failure; `None` when the task is left to others.
    fails: Option<&'static str>,
}

const fn fails(sql: &'static str, said: &'static str) -> Case {
    Case { sql, fails: Some(said) }
}

const fn left(sql: &'static str) -> Case {
    Case { sql, fails: None }
}

const SPAWNED: &[Case] = &[
    fails(
        concat!(
            r#"UPDATE {tasks} SET retry = '{"kind":"exponential","base":{"secs":1,"nanos":0},"#,
            r#""factor":null,"max":{"secs":1,"nanos":0},"jitter":0.0}'"#,
        ),
        "`retry` cannot be read (invalid type: null, expected f64",
    ),
    fails("UPDATE {tasks} SET retry = 'nonsense'", "`retry` cannot be read"),
    fails("UPDATE {tasks} SET headers = '[1]'", "`headers` cannot be read"),
    fails("UPDATE {tasks} SET headers = ''", "`headers` cannot be read"),
    fails("UPDATE {tasks} SET params = 'nonsense'", "the JSON does not fit the type"),
    left(r#"UPDATE {tasks} SET retry = '{"kind":"fibonacci"}'"#),
];

const SUSPENDED: &[Case] = &[
    fails("UPDATE {journal} SET outcome = 'failed', payload = 'nonsense'", "a row of `"),
    fails("UPDATE {journal} SET payload = 'nonsense'", "the JSON does not fit the type"),
    fails("UPDATE {journal} SET name = ''", "a row of `"),
    fails("UPDATE {waits} SET name = ''", "a row of `"),
    fails("UPDATE {tasks} SET retry = 'nonsense'", "`retry` cannot be read"),
    left("UPDATE {journal} SET kind = 'fork'"),
    left("UPDATE {journal} SET outcome = 'perhaps'"),
];

pub(crate) async fn register(client: &Durable) {
    let waits = |number: u32, ctx: TaskContext| async move {
        let number = ctx.step("number", || async move { Ok(number) }).await?;
        ctx.await_event::<()>("go", None).await?;
        Ok(number)
    };
    client.register_fn("waits", waits).await.unwrap();
    client
        .register_fn("plain", |number: u32, _ctx: TaskContext| async move { Ok(number) })
        .await
        .unwrap();
}

pub(crate) async fn spawn(client: &Durable, name: &str) -> TaskId {
    client.spawn_named(name, &7).await.unwrap().task_id
}

pub(crate) async fn until(client: &Durable, task: TaskId, is: impl Fn(&TaskInfo) -> bool) {
    while !is(&client.task(task).await.unwrap().unwrap()) {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// The other tasks run, those that are damaged fail by themselves, and those of a newer program
/// stay as they are.
pub(crate) async fn hurts_its_own_task_only(client: Durable, mut database: impl Damage) {
    register(&client).await;
    let options = || WorkerOptions::new().max_in_memory(0).poll_interval(Duration::from_millis(20));
    let worker = client.start_worker(options()).await;
    let mut cases = Vec::new();
    let mut others = Vec::new();
    for case in SUSPENDED {
        cases.push((case, spawn(&client, "waits").await));
        others.push(spawn(&client, "waits").await);
    }
    for (_, task) in &cases {
        until(&client, *task, |task| task.state == TaskState::Suspended).await;
    }
    worker.shutdown().await;
    for case in SPAWNED {
        cases.push((case, spawn(&client, "plain").await));
        others.push(spawn(&client, "plain").await);
    }
    for (case, task) in &cases {
        database.run(format!("{} WHERE task_id = '{task}'", case.sql)).await;
    }
    // A list shows all of them.
    let listed =
        client.tasks(TaskFilter { limit: 1_000, ..TaskFilter::default() }).await.unwrap().items;
    assert_eq!(listed.len(), cases.len() + others.len());
    serde_json::to_string(&listed).unwrap();
    let said = |task| {
        listed.iter().any(|info| info.task_id == task && info.headers.contains_key("$unreadable"))
    };
    assert!(cases.iter().all(|(case, task)| !case.sql.contains("retry") || said(*task)));

    for name in ["hurt", "other"] {
        let hourly = Schedule::cron(name, "0 * * * *");
        client.schedules().put_named(hourly, "plain", &7).await.unwrap();
    }
    database.run("UPDATE {schedules} SET definition = 'nonsense' WHERE name = 'hurt'".into()).await;
    let schedules = client.schedules().list().await.unwrap();
    assert_eq!(
        schedules.iter().map(|schedule| schedule.name.as_str()).collect::<Vec<_>>(),
        ["other"]
    );
    assert!(matches!(client.schedules().get("hurt").await, Err(Error::Payload { .. })));

    client.emit_event("go", &()).await.unwrap();
    let worker = client.start_worker(options()).await;
    // Spawned in batches that a claim shares.
    for _ in 0..20 {
        others.push(spawn(&client, "plain").await);
    }
    for task in others {
        assert_eq!(client.wait::<u32>(task).await.unwrap(), 7);
    }
    for (case, task) in &cases {
        match case.fails {
            Some(said) => {
                let error = client.wait::<u32>(*task).await.unwrap_err().to_string();
                assert!(error.contains(said) && !error.contains("backup"), "{}: {error}", case.sql);
            }
            None => {
                until(&client, *task, |task| task.due_at.is_some()).await;
                let info = client.task(*task).await.unwrap().unwrap();
                assert!(
                    !info.state.is_finished() && info.failure.is_none() && info.attempt == 0,
                    "{info:?}"
                );
            }
        }
    }
    // What is mended runs, and is run again.
    let retry = serde_json::to_string(&RetryStrategy::default()).unwrap();
    for (case, task) in cases.iter().filter(|(case, _)| case.sql.contains("SET retry")) {
        database
            .run(format!("UPDATE {{tasks}} SET retry = '{retry}' WHERE task_id = '{task}'"))
            .await;
        if case.fails.is_some() {
            client.retry(*task).await.unwrap();
        }
        assert_eq!(client.wait::<u32>(*task).await.unwrap(), 7, "{}", case.sql);
    }
    worker.shutdown().await;
}

/// A journal that is damaged while its task is suspended in a worker that lives.
pub(crate) async fn hurts_a_task_that_is_loaded(client: Durable, mut database: impl Damage) {
    register(&client).await;
    let _worker = client.start_worker(WorkerOptions::new().max_in_memory(0)).await;
    let (hurt, other) = (spawn(&client, "waits").await, spawn(&client, "waits").await);
    for task in [hurt, other] {
        until(&client, task, |task| task.state == TaskState::Suspended).await;
    }
    database
        .run(format!("UPDATE {{journal}} SET outcome = 'failed' WHERE task_id = '{hurt}'"))
        .await;
    client.emit_event("go", &()).await.unwrap();
    assert_eq!(client.wait::<u32>(other).await.unwrap(), 7);
    let error = client.wait::<u32>(hurt).await.unwrap_err().to_string();
    assert!(error.contains("cannot be read") && !error.contains("backup"), "{error}");
}
