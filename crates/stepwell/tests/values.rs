//! A value comes back as it was given, or is refused when it is given. What of it is a matter of the JSON alone is tested in
//! `stepwell-core`.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::unit_arg,
    missing_docs,
    reason = "a test ends by a panic"
)]

mod floats;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use stepwell::testing::{Harness, Process, worker_options};
use stepwell::*;

#[cfg(feature = "sqlite")]
#[tokio::test]
async fn floats_come_back_from_memory_and_sqlite() {
    let (there, here) = (floats::seen(), floats::seen());
    let memory = Arc::new(MemoryStore::new(Arc::new(TokioRuntime::current())));
    let memory = Durable::builder().store(memory).state(there.clone()).build().await.unwrap();
    let sqlite = Durable::builder().database_url("sqlite::memory:").state(here.clone());
    floats::floats_come_back(memory, &there, sqlite.build().await.unwrap(), &here).await;
}

async fn process() -> (Harness, Process) {
    let harness = Harness::new();
    let process = harness.start().await;
    (harness, process)
}

/// Lists within lists.
fn deep(levels: usize) -> Value {
    (0..levels).fold(Value::Null, |inner, _| Value::Array(vec![inner]))
}

/// What a payload cannot hold, given to everything that takes one outside of a task.
async fn refused_by_the_client<T: serde::Serialize + Clone>(value: T, said: &str) {
    let (_harness, process) = process().await;
    let task = process.spawn_named("task", &(), SpawnOptions::new()).await.unwrap().task_id;
    let spawn = |options| process.spawn_named("task", &(), options);
    let in_header = SpawnOptions::new().header("x", value.clone());
    let scheduled = Schedule::cron("hourly", "0 * * * *");
    let refused = [
        process.spawn_named("task", &value, SpawnOptions::new()).await.map(drop),
        process.emit_event("event", &value, None).await.map(drop),
        process.send(task, "topic", &value).await,
        process.put_schedule_named(scheduled.clone(), "task", &value).await.map(drop),
        spawn(in_header.clone()).await.map(drop),
        process.put_schedule_named(scheduled.options(in_header), "task", &()).await.map(drop),
    ];
    for refused in refused {
        let error = refused.unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
    assert_eq!(process.store().tasks(TaskFilter::default()).await.unwrap().len(), 1);
}

/// The failures of tasks that give the value to everything that takes one inside of a task.
async fn refused_by_the_context<T>(value: T, said: &str)
where
    T: serde::Serialize + serde::de::DeserializeOwned + Clone + Send + Sync + 'static,
{
    let (_harness, process) = process().await;
    let run = async |name: &str| {
        let task = process.spawn_named(name, &(), SpawnOptions::new()).await.unwrap().task_id;
        let error = process.wait::<Payload>(task).await.unwrap_err().to_string();
        assert!(error.contains(said), "{name}: {error}");
        task
    };
    let give = value.clone();
    let output = move |(): (), _ctx: TaskContext| std::future::ready(Ok(give.clone()));
    process.register_fn("output", output).await.unwrap();
    let give = value.clone();
    let step = move |(): (), ctx: TaskContext| {
        let give = give.clone();
        async move { ctx.step("step", || async { Ok(give.clone()) }).await }
    };
    process.register_fn("step", step).await.unwrap();
    let give = value.clone();
    let items = move |(): (), ctx: TaskContext| {
        let give = give.clone();
        async move { ctx.items("items", [1]).each(|_| async { Ok(give.clone()) }).await.map(drop) }
    };
    process.register_fn("items", items).await.unwrap();
    let give = value.clone();
    let event = move |(): (), ctx: TaskContext| ctx.emit_event("event", &give);
    process.register_fn("event", event).await.unwrap();
    let give = value.clone();
    let message = move |(): (), ctx: TaskContext| ctx.send(ctx.task_id, "topic", &give);
    process.register_fn("message", message).await.unwrap();
    let give = value.clone();
    let child = move |(): (), ctx: TaskContext| {
        let child = ctx.spawn_named::<_, ()>("child", "output", &give, SpawnOptions::new());
        async move { child.await.map(drop) }
    };
    process.register_fn("child", child).await.unwrap();
    let input = move |(): (), ctx: TaskContext| ctx.step("step", || async { Ok(()) }).input(&value);
    process.register_fn("input", input).await.unwrap();
    process.start_worker(worker_options()).await;
    for name in ["output", "step", "items", "event", "message", "child", "input"] {
        run(name).await;
    }
}

#[tokio::test(start_paused = true)]
async fn numbers_that_json_has_not_are_refused_when_they_are_given() {
    for number in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let said = format!("the number {number}, which JSON has no way to write");
        refused_by_the_client([Some(number)], &said).await;
        refused_by_the_context(vec![(1, number)], &said).await;
    }
    refused_by_the_client(f32::NAN, "the number NaN").await;
}

#[tokio::test(start_paused = true)]
async fn some_of_nothing_is_refused_when_it_is_given() {
    refused_by_the_client(Some(()), "would come back as `None`").await;
    refused_by_the_context(Some(None::<u8>), "would come back as `None`").await;
}

#[tokio::test(start_paused = true)]
async fn what_is_nested_too_deep_is_refused_when_it_is_given() {
    for levels in [Payload::MAX_DEPTH + 1, 3_000] {
        refused_by_the_client(deep(levels), "nested over 100 levels deep").await;
        refused_by_the_context(deep(levels), "nested over 100 levels deep").await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_nested_as_deep_as_may_be_comes_back_and_goes_elsewhere() {
    let (_harness, process) = process().await;
    let echo = |value: Value, ctx: TaskContext| async move {
        let echoed = ctx.step("echo", || async { Ok(value.clone()) }).await?;
        ctx.items("items", [1]).each(|_| async { Ok(value.clone()) }).await?;
        Ok(echoed)
    };
    process.register_fn("echo", echo).await.unwrap();
    process.start_worker(worker_options()).await;
    let value = deep(Payload::MAX_DEPTH);
    let task = process.spawn_named("echo", &value, SpawnOptions::new()).await.unwrap().task_id;
    assert_eq!(process.wait::<Value>(task).await.unwrap(), value);
    let document = process.export(task).await.unwrap().to_json().unwrap();
    process.delete(task).await.unwrap();
    process.import(Export::from_json(&document).unwrap()).await.unwrap();
    assert_eq!(process.wait::<Value>(task).await.unwrap(), value);
}

#[tokio::test(start_paused = true)]
async fn documents_that_are_nested_too_deep_are_refused_and_take_no_time() {
    let (_harness, process) = process().await;
    let task = process.spawn_named("task", &"params", SpawnOptions::new()).await.unwrap().task_id;
    let export = process.export(task).await.unwrap();
    process.cancel(task).await.unwrap();
    process.delete(task).await.unwrap();
    for levels in [200, 16_000, 1_000_000] {
        let nested = "[".repeat(levels) + &"]".repeat(levels);
        let json =
            export.to_json().unwrap().replace("\"params\":\"params\"", &format!("\"params\":{nested}"));
        for json in [&json, &nested] {
            let error = Export::from_json(json).unwrap_err().to_string();
            assert!(error.contains("nested over 120 levels deep"), "{error}");
        }
        let mut made = export.clone();
        made.record.info.params = Payload::from_json(nested);
        made.to_json().unwrap();
        let error = process.import(made).await.unwrap_err().to_string();
        assert!(error.contains("the parameters of task") && error.contains("levels deep"), "{error}");
    }
    let mut made = export;
    made.record.info.params = Payload::from_json("{nothing");
    assert!(process.import(made).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn headers_have_a_limit() {
    let (_harness, process) = process().await;
    let large = SpawnOptions::new().header("large", "x".repeat(MAX_HEADERS_BYTES));
    let child = move |(): (), ctx: TaskContext| {
        let options = SpawnOptions::new().header("large", "x".repeat(MAX_HEADERS_BYTES));
        async move { ctx.spawn_named::<_, ()>("child", "child", &(), options).await.map(drop) }
    };
    process.register_fn("parent", child).await.unwrap();
    process.start_worker(worker_options()).await;
    let said = "bytes of JSON, the limit is 65536: put large values into the parameters";
    let error = process.spawn_named("task", &(), large.clone()).await.unwrap_err();
    assert!(matches!(error, Error::Options(_)) && error.to_string().contains(said), "{error}");
    let hourly = Schedule::cron("hourly", "0 * * * *").options(large);
    let error = process.put_schedule_named(hourly, "task", &()).await.unwrap_err();
    assert!(error.to_string().contains(said), "{error}");
    let parent = process.spawn_named("parent", &(), SpawnOptions::new()).await.unwrap().task_id;
    let error = process.wait::<()>(parent).await.unwrap_err();
    assert!(error.to_string().contains(said), "{error}");
    let mut export = process.export(parent).await.unwrap();
    export.record.info.headers.insert("large".into(), "x".repeat(MAX_HEADERS_BYTES).into());
    assert!(matches!(process.import(export).await, Err(Error::Options(_))));
}

#[tokio::test(start_paused = true)]
async fn what_failures_say_is_cut_off_and_the_failure_is_kept() {
    let (_harness, process) = process().await;
    let huge = || "ä".repeat(20 << 20);
    let fails = move |how: String, ctx: TaskContext| async move {
        match how.as_str() {
            "step" => ctx.step("step", || async move { Err::<(), _>(anyhow::anyhow!(huge())) }).await,
            "panic" => panic!("{}", huge()),
            "causes" => {
                let error = (0..10_000).fold(anyhow::anyhow!("first"), anyhow::Error::context);
                Err(error.context("last").into())
            }
            _ => Err(TaskError::permanent(anyhow::anyhow!(huge()).context("whole"))),
        }
    };
    process.register_fn("fails", fails).await.unwrap();
    process.start_worker(worker_options()).await;
    for how in ["step", "panic", "causes", "task"] {
        let options = SpawnOptions::new().max_attempts(1);
        let task = process.spawn_named("fails", &how, options).await.unwrap().task_id;
        let Err(Error::TaskFailed { failure, .. }) = process.wait::<()>(task).await else { panic!("{how}") };
        let said = failure.to_string();
        assert!(said.contains("cut off: it has") || said.contains("further causes are left out"), "{how}");
        let json = process.export(task).await.unwrap().to_json().unwrap();
        assert!(json.len() < 256 << 10, "{how}: {}", json.len());
        let mut export = process.export(task).await.unwrap();
        export.record.info.failure.as_mut().unwrap().message = huge();
        process.delete(task).await.unwrap();
        process.import(export).await.unwrap();
        let kept = process.task(task).await.unwrap().unwrap().failure.unwrap().message;
        assert!(kept.len() < 64 << 10 && kept.contains("cut off: it has 41943040 bytes"), "{how}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_log_cannot_hold_is_left_out_of_it() {
    let (_harness, process) = process().await;
    let logs = |(): (), ctx: TaskContext| async move {
        ctx.log(LogLevel::Info, "deep", [("field", deep(3_000))]);
        ctx.log(LogLevel::Info, "large", [("field", "x".repeat(5 << 20).into())]);
        ctx.progress(1, None, &*"x".repeat(1 << 20));
        Ok(())
    };
    process.register_fn("logs", logs).await.unwrap();
    process.start_worker(worker_options()).await;
    let task = process.spawn_named("logs", &(), SpawnOptions::new()).await.unwrap().task_id;
    process.wait::<()>(task).await.unwrap();
    let said: Vec<_> =
        process.logs(task).await.unwrap().into_iter().map(|line| (line.message, line.fields)).collect();
    assert_eq!(said[0].0, "deep");
    assert!(said[0].1["left out"].as_str().unwrap().contains("levels deep"));
    assert!(said[1].1["left out"].as_str().unwrap().contains("the limit is"));
    assert!(
        process.journal(task).await.unwrap().iter().all(|entry| json!(entry).to_string().len() < 100 << 10)
    );
}

#[tokio::test(start_paused = true)]
async fn options_that_cannot_be_kept_are_refused_when_they_are_given() {
    static RUNS: AtomicU32 = AtomicU32::new(0);
    let (harness, process) = process().await;
    let exponential = |factor, jitter, max| RetryStrategy::Exponential {
        base: Duration::from_secs(1),
        factor,
        max,
        jitter,
    };
    let minute = Duration::from_secs(60);
    let strategies = [
        exponential(f64::NAN, 0.0, minute),
        exponential(f64::INFINITY, 0.0, minute),
        exponential(-1.0, 0.0, minute),
        exponential(2.0, f64::NAN, minute),
        exponential(2.0, f64::INFINITY, minute),
        exponential(2.0, 0.0, Duration::MAX),
        RetryStrategy::fixed(Duration::MAX),
        RetryStrategy::Listed { delays: vec![minute, Duration::MAX] },
    ];
    let with = |strategy: &RetryStrategy| SpawnOptions::new().retry(strategy.clone());
    let in_task = strategies.clone();
    let steps = move |n: usize, ctx: TaskContext| {
        let strategy = in_task[n].clone();
        async move {
            let closure = || async { Ok(RUNS.fetch_add(1, Ordering::SeqCst)) };
            ctx.step("step", closure).retry(strategy).await.map(drop)
        }
    };
    process.register_fn("steps", steps).await.unwrap();
    let in_task = strategies.clone();
    let spawns = move |n: usize, ctx: TaskContext| {
        let options = SpawnOptions::new().retry(in_task[n].clone());
        async move { ctx.spawn_named::<_, ()>("child", "steps", &0, options).await.map(drop) }
    };
    process.register_fn("spawns", spawns).await.unwrap();
    process.start_worker(worker_options()).await;
    for (n, strategy) in strategies.iter().enumerate() {
        let refused = |error: Error| assert!(matches!(error, Error::Options(_)), "{strategy:?}: {error}");
        refused(process.spawn_named("task", &(), with(strategy)).await.unwrap_err());
        let hourly = Schedule::cron("hourly", "0 * * * *").options(with(strategy));
        let error = process.put_schedule_named(hourly, "task", &()).await.unwrap_err();
        assert!(matches!(error, Error::Schedule { source: InvalidSchedule::Options(_), .. }), "{error}");
        let built = harness.start_with(|builder| builder.retry(strategy.clone())).await;
        refused(built.map(drop).unwrap_err());
        for name in ["steps", "spawns"] {
            let task = process.spawn_named(name, &n, SpawnOptions::new()).await.unwrap().task_id;
            let error = process.wait::<()>(task).await.unwrap_err().to_string();
            assert!(error.contains("has to be") || error.contains("1,000 years at most"), "{error}");
        }
        let task = process.spawn_named("unknown", &(), SpawnOptions::new()).await.unwrap().task_id;
        let mut export = process.export(task).await.unwrap();
        process.cancel(task).await.unwrap();
        process.delete(task).await.unwrap();
        export.record.info.retry = strategy.clone();
        refused(process.import(export).await.unwrap_err());
    }
    assert_eq!(RUNS.load(Ordering::SeqCst), 0, "no step began");
    for policy in [
        CancellationPolicy { max_delay: Some(Duration::MAX), max_duration: None },
        CancellationPolicy { max_delay: None, max_duration: Some(Duration::MAX) },
    ] {
        let options = SpawnOptions::new().cancellation(policy.clone());
        let error = process.spawn_named("task", &(), options).await.unwrap_err();
        assert!(error.to_string().contains("1,000 years at most"), "{error}");
        let built = harness.start_with(|builder| builder.cancellation(policy)).await;
        assert!(matches!(built, Err(Error::Options(_))));
    }
}
