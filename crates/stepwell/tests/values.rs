//! A value comes back as it was given, or is refused when it is given. What of it is a matter of
//! the JSON alone is tested in `stepwell-core`.

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

use serde::{Deserialize, Serialize};
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
    let task = process.spawn_named("task", &()).await.unwrap().task_id;
    let spawn = |options| process.spawn_named("task", &()).options(options);
    let in_header = SpawnOptions::new().header("x", value.clone());
    let scheduled = Schedule::cron("hourly", "0 * * * *");
    let refused = [
        process.spawn_named("task", &value).await.map(drop),
        process.emit_event("event", &value).await.map(drop),
        process.send(task, "topic", &value).await,
        process.schedules().put_named(scheduled.clone(), "task", &value).await.map(drop),
        spawn(in_header.clone()).await.map(drop),
        process.schedules().put_named(scheduled.options(in_header), "task", &()).await.map(drop),
    ];
    for refused in refused {
        let error = refused.unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
    assert_eq!(process.store().tasks(TaskFilter::default()).await.unwrap().items.len(), 1);
}

/// The failures of tasks that give the value to everything that takes one inside of a task.
async fn refused_by_the_context<T>(value: T, said: &str)
where
    T: serde::Serialize + serde::de::DeserializeOwned + Clone + Send + Sync + 'static,
{
    let (_harness, process) = process().await;
    let run = async |name: &str| {
        let task = process.spawn_named(name, &()).await.unwrap().task_id;
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
        let child = ctx.spawn_named::<_, ()>("child", "output", &give);
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
    let task = process.spawn_named("echo", &value).await.unwrap().task_id;
    assert_eq!(process.wait::<Value>(task).await.unwrap(), value);
    let document = process.export(task).await.unwrap().to_json().unwrap();
    process.delete(task).await.unwrap();
    process.import(Export::from_json(&document).unwrap()).await.unwrap();
    assert_eq!(process.wait::<Value>(task).await.unwrap(), value);
}

#[tokio::test(start_paused = true)]
async fn documents_that_are_nested_too_deep_are_refused_and_take_no_time() {
    let (_harness, process) = process().await;
    let task = process.spawn_named("task", &"params").await.unwrap().task_id;
    let export = process.export(task).await.unwrap();
    process.cancel(task).await.unwrap();
    process.delete(task).await.unwrap();
    for levels in [200, 16_000, 1_000_000] {
        let nested = "[".repeat(levels) + &"]".repeat(levels);
        let json = export
            .to_json()
            .unwrap()
            .replace("\"params\":\"params\"", &format!("\"params\":{nested}"));
        for json in [&json, &nested] {
            let error = Export::from_json(json).unwrap_err().to_string();
            assert!(error.contains("nested over 120 levels deep"), "{error}");
        }
        let mut made = export.clone();
        made.record.info.params = Payload::from_json(nested);
        made.to_json().unwrap();
        let error = process.import(made).await.unwrap_err().to_string();
        assert!(
            error.contains("the parameters of task") && error.contains("levels deep"),
            "{error}"
        );
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
        async move {
            ctx.spawn_named::<_, ()>("child", "child", &()).options(options).await?;
            Ok(())
        }
    };
    process.register_fn("parent", child).await.unwrap();
    process.start_worker(worker_options()).await;
    let said = "bytes of JSON, the limit is 65536: put large values into the parameters";
    // Nor is there any more room in what the engine adds by itself.
    let traced =
        SpawnOptions::new().header("traceparent", "x".repeat(MAX_HEADERS_BYTES + (1 << 10)));
    let error = process.spawn_named("task", &()).options(traced).await.unwrap_err();
    assert!(error.to_string().contains(said), "{error}");
    let error = process.spawn_named("task", &()).options(large.clone()).await.unwrap_err();
    assert!(matches!(error, Error::Options(_)) && error.to_string().contains(said), "{error}");
    let hourly = Schedule::cron("hourly", "0 * * * *").options(large);
    let error = process.schedules().put_named(hourly, "task", &()).await.unwrap_err();
    assert!(error.to_string().contains(said), "{error}");
    let parent = process.spawn_named("parent", &()).await.unwrap().task_id;
    let error = process.wait::<()>(parent).await.unwrap_err();
    assert!(error.to_string().contains(said), "{error}");
    let mut export = process.export(parent).await.unwrap();
    export.record.info.headers.insert("large".into(), "x".repeat(MAX_HEADERS_BYTES).into());
    assert!(matches!(process.import(export).await, Err(Error::Options(_))));
}

#[tokio::test(start_paused = true)]
async fn a_task_has_a_limited_number_of_labels() {
    let (_harness, process) = process().await;
    let labelled = |labels: usize| {
        (0..labels).fold(SpawnOptions::new(), |options, n| options.label(format!("label{n}"), "x"))
    };
    // Headers that are no labels do not count.
    let most = labelled(MAX_LABELS).header("number", 7).header("object", [1, 2]);
    process.spawn_named("task", &()).options(most.clone()).await.unwrap();
    for more in [labelled(MAX_LABELS + 1), most.scope(Scope::default().label("tenant", "acme"))] {
        let error = process.spawn_named("task", &()).options(more).await.unwrap_err();
        assert!(matches!(error, Error::Options(_)), "{error}");
        assert!(error.to_string().contains("65 of them are labels, the limit is 64"), "{error}");
    }
    // A label by which no task is found would hide the task from its own scope.
    let hidden = SpawnOptions::new().scope(Scope::default().label("traceparent", "acme"));
    let error = process.spawn_named("task", &()).options(hidden).await.unwrap_err();
    assert!(matches!(error, Error::Options(InvalidOptions::Scope { .. })), "{error}");
}

#[tokio::test(start_paused = true)]
async fn what_failures_say_is_cut_off_and_the_failure_is_kept() {
    let (_harness, process) = process().await;
    let huge = || "ä".repeat(20 << 20);
    let fails = move |how: String, ctx: TaskContext| async move {
        match how.as_str() {
            "step" => {
                ctx.step("step", || async move { Err::<(), _>(anyhow::anyhow!(huge())) }).await
            }
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
        let task = process.spawn_named("fails", &how).options(options).await.unwrap().task_id;
        let Err(Error::TaskFailed { failure, .. }) = process.wait::<()>(task).await else {
            panic!("{how}")
        };
        let said = failure.to_string();
        assert!(
            said.contains("cut off: it has") || said.contains("further causes are left out"),
            "{how}"
        );
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
    let task = process.spawn_named("logs", &()).await.unwrap().task_id;
    process.wait::<()>(task).await.unwrap();
    let said: Vec<_> = process
        .logs(task)
        .await
        .unwrap()
        .into_iter()
        .map(|line| (line.message, line.fields))
        .collect();
    assert_eq!(said[0].0, "deep");
    assert!(said[0].1["left out"].as_str().unwrap().contains("levels deep"));
    assert!(said[1].1["left out"].as_str().unwrap().contains("the limit is"));
    assert!(
        process
            .journal(task)
            .await
            .unwrap()
            .iter()
            .all(|entry| json!(entry).to_string().len() < 100 << 10)
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
        RetryStrategy::Listed { delays: vec![minute; 1_001] },
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
        async move {
            ctx.spawn_named::<_, ()>("child", "steps", &0).options(options).await?;
            Ok(())
        }
    };
    process.register_fn("spawns", spawns).await.unwrap();
    process.start_worker(worker_options()).await;
    for (n, strategy) in strategies.iter().enumerate() {
        let refused =
            |error: Error| assert!(matches!(error, Error::Options(_)), "{strategy:?}: {error}");
        refused(process.spawn_named("task", &()).options(with(strategy)).await.unwrap_err());
        let hourly = Schedule::cron("hourly", "0 * * * *").options(with(strategy));
        let error = process.schedules().put_named(hourly, "task", &()).await.unwrap_err();
        assert!(
            matches!(error, Error::Schedule { source: InvalidSchedule::Options(_), .. }),
            "{error}"
        );
        let built = harness.start_with(|builder| builder.retry(strategy.clone())).await;
        refused(built.map(drop).unwrap_err());
        for name in ["steps", "spawns"] {
            let task = process.spawn_named(name, &n).await.unwrap().task_id;
            let error = process.wait::<()>(task).await.unwrap_err().to_string();
            assert!(
                error.contains("has to be") || error.contains("1,000 years at most"),
                "{error}"
            );
        }
        let task = process.spawn_named("unknown", &()).await.unwrap().task_id;
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
        let error = process.spawn_named("task", &()).options(options).await.unwrap_err();
        assert!(error.to_string().contains("1,000 years at most"), "{error}");
        let built = harness.start_with(|builder| builder.cancellation(policy)).await;
        assert!(matches!(built, Err(Error::Options(_))));
    }
}

/// The failures of workflows that give the value to everything that takes one, and what ran.
async fn refused_by_a_workflow<T>(value: T, said: &str)
where
    T: Serialize + Clone + Send + Sync + 'static,
{
    static RUNS: AtomicU32 = AtomicU32::new(0);
    let (_harness, process) = process().await;
    process.register_fn("child", |_: Payload, _ctx: TaskContext| async { Ok(()) }).await.unwrap();
    let (in_step, in_loop, in_child) = (value.clone(), value.clone(), value);
    let step = Workflow::new("step").step("give", move |_| {
        RUNS.fetch_add(1, Ordering::SeqCst);
        let value = in_step.clone();
        async { Ok(value) }
    });
    let feedback = Workflow::new("feedback")
        .loop_("give", |_| async { Ok(RUNS.fetch_add(1, Ordering::SeqCst)) });
    let feedback = feedback.feedback(move |_: u32| in_loop.clone());
    let child = Workflow::new("parent")
        .step("count", |_| async { Ok(RUNS.fetch_add(1, Ordering::SeqCst)) })
        .child("give", "child", move |_| Ok(in_child.clone()));
    process.register_workflow(step).await.unwrap();
    process.register_workflow(feedback).await.unwrap();
    process.register_workflow(child).await.unwrap();
    process.start_worker(worker_options()).await;
    for workflow in ["step", "feedback", "parent"] {
        RUNS.store(0, Ordering::SeqCst);
        let task = process.spawn_workflow(workflow, &()).await.unwrap().task_id;
        let error = process.wait::<Payload>(task).await.unwrap_err().to_string();
        assert!(error.contains(said), "{workflow}: {error}");
        assert_eq!(RUNS.load(Ordering::SeqCst), 1, "{workflow}: its step ran once");
    }
}

#[tokio::test(start_paused = true)]
async fn a_workflow_refuses_what_a_task_refuses() {
    refused_by_a_workflow(f64::NAN, "the number NaN, which JSON has no way to write").await;
    refused_by_a_workflow(Some(()), "would come back as `None`").await;
    refused_by_a_workflow(deep(3_000), "nested over 100 levels deep").await;
}

#[tokio::test(start_paused = true)]
async fn a_workflow_rounds_no_number() {
    let (_harness, process) = process().await;
    let echo = |value: Payload, _ctx: TaskContext| async move { Ok(value) };
    process.register_fn("echo", echo).await.unwrap();
    let workflow = Workflow::new("numbers")
        .step("input", |ctx| async move { ctx.input::<u128>() })
        .loop_("more", |ctx| async move { Ok(ctx.last::<u128>()?.unwrap_or(u128::MAX - 1) + 1) })
        .until(|more: u128, iteration| more < 10 || iteration == 1)
        .wait_for_signal("s", None)
        .child("echo", "echo", |ctx| ctx.result::<Payload>("s"))
        .parallel("both", |both| {
            both.step("result", |ctx| async move { ctx.result::<Payload>("s") })
                .step("all", |ctx| async move { Ok(ctx.results().count()) })
        });
    process.register_workflow(workflow).await.unwrap();
    process.start_worker(worker_options()).await;
    let task = process.spawn_workflow("numbers", &u128::MAX).await.unwrap().task_id;
    let given = r#"[123456789012345678901,0.10000000000000000000000001,{"a":1e400}]"#;
    process.send(task, "s", &Payload::from_json(given)).await.unwrap();
    let output = process.wait::<Payload>(task).await.unwrap();
    let max = u128::MAX;
    let both = format!(r#"{{"all":4,"result":{given}}}"#);
    let expected =
        format!(r#"{{"both":{both},"echo":{given},"input":{max},"more":{max},"s":{given}}}"#);
    assert_eq!(output.as_str(), expected);
    let found = process.snapshot(task).await.unwrap();
    assert_eq!(found.results["s"].as_str(), given);
}

/// serde reads no integer of 128 bits, and no key that is a number, in what is tagged by a field.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "type")]
enum Booking {
    Credit { cents: u128 },
    ByCustomer { cents: std::collections::BTreeMap<u32, u64> },
    Fee { cents: u64 },
}

/// The first variant that fits is read, and `Whole` never does.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Amount {
    Whole(u128),
    Float(f64),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Row {
    name: String,
    #[serde(flatten)]
    rest: std::collections::BTreeMap<String, Value>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Forgetful {
    #[serde(skip_serializing_if = "String::is_empty")]
    name: String,
}

#[stepwell::task]
async fn books(booking: Booking, _ctx: TaskContext) -> TaskResult<Booking> {
    Ok(booking)
}

#[stepwell::task]
async fn amounts(whole: bool, _ctx: TaskContext) -> TaskResult<Amount> {
    Ok(if whole { Amount::Whole(5) } else { Amount::Float(5.5) })
}

/// What cannot be read back, in each place where the type that reads is known.
async fn not_read_back<T>(value: T)
where
    T: Serialize + serde::de::DeserializeOwned + Clone + Send + Sync + 'static,
{
    let (_harness, process) = process().await;
    let give = value.clone();
    let step = move |(): (), ctx: TaskContext| {
        let give = give.clone();
        async move { ctx.step("give", || async { Ok(give) }).await.map(drop) }
    };
    process.register_fn("step", step).await.unwrap();
    let items = move |(): (), ctx: TaskContext| {
        let give = value.clone();
        async move { ctx.items("give", [1]).each(|_| async { Ok(give.clone()) }).await.map(drop) }
    };
    process.register_fn("items", items).await.unwrap();
    process.start_worker(worker_options()).await;
    for name in ["step", "items"] {
        let task = process.spawn_named(name, &()).await.unwrap().task_id;
        let error = process.wait::<()>(task).await.unwrap_err().to_string();
        assert!(error.contains("could not be read back from its JSON"), "{name}: {error}");
        let journal = process.journal(task).await.unwrap();
        let done = |entry: &Entry| {
            entry.key.kind == Kind::Step && matches!(entry.outcome, Outcome::Done(_))
        };
        assert!(
            !journal.iter().any(done),
            "{name}: what cannot be read is not journaled: {journal:?}"
        );
        assert_eq!(process.task(task).await.unwrap().unwrap().attempt, 1, "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_its_type_does_not_read_is_refused_when_it_is_given() {
    let by_customer = Booking::ByCustomer { cents: [(7, 5)].into() };
    let twice = Row { name: "a".into(), rest: [("name".into(), json!("b"))].into() };
    not_read_back(Booking::Credit { cents: 5 }).await;
    not_read_back(by_customer.clone()).await;
    not_read_back(Amount::Whole(5)).await;
    not_read_back(Amount::Whole(1 << 70)).await;
    not_read_back(twice).await;
    not_read_back(Forgetful { name: String::new() }).await;

    let (_harness, process) = process().await;
    process.register::<books>().await.unwrap();
    process.register::<amounts>().await.unwrap();
    let parent = |(): (), ctx: TaskContext| async move {
        ctx.spawn::<books>("child", Booking::Credit { cents: 5 }).await.map(drop)
    };
    process.register_fn("parent", parent).await.unwrap();
    process.start_worker(worker_options()).await;
    let said = "could not be read back from its JSON";
    for booking in [Booking::Credit { cents: 5 }, by_customer] {
        let hourly = Schedule::cron("hourly", "0 * * * *");
        for error in [
            process.spawn::<books>(booking.clone()).await.unwrap_err(),
            process.spawn_many([process.spawn::<books>(booking.clone())]).await.unwrap_err(),
            process.schedules().put::<books>(hourly, booking).await.unwrap_err(),
        ] {
            assert!(
                matches!(error, Error::Payload { .. }) && error.to_string().contains(said),
                "{error}"
            );
        }
    }
    let parent = process.spawn_named("parent", &()).await.unwrap().task_id;
    let whole = process.spawn::<amounts>(true).await.unwrap().task_id;
    for task in [parent, whole] {
        let error = process.wait::<Payload>(task).await.unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
    let fine = process.spawn::<books>(Booking::Fee { cents: 5 }).await.unwrap().task_id;
    assert!(matches!(process.wait::<Booking>(fine).await.unwrap(), Booking::Fee { cents: 5 }));
    let fine = process.spawn::<amounts>(false).await.unwrap().task_id;
    assert!(matches!(process.wait::<Amount>(fine).await.unwrap(), Amount::Float(5.5)));
}

#[tokio::test(start_paused = true)]
async fn who_an_approval_is_assigned_to_has_a_limit() {
    let (_harness, process) = process().await;
    let asks = |how: String, ctx: TaskContext| async move {
        let huge = "x".repeat(1 << 20);
        let approval = ctx.await_approval::<()>("approval", &());
        match how.as_str() {
            "assign" => approval.assign(huge).await.map(drop),
            _ => approval
                .escalate_after(Duration::from_secs(1), huge, || async { Ok(()) })
                .await
                .map(drop),
        }
    };
    process.register_fn("asks", asks).await.unwrap();
    process.start_worker(worker_options().name("x".repeat(1 << 20))).await;
    for how in ["assign", "escalate"] {
        let task = process.spawn_named("asks", how).await.unwrap().task_id;
        let error = process.wait::<()>(task).await.unwrap_err().to_string();
        assert!(error.contains("512"), "{how}: {error}");
        assert!(process.journal(task).await.unwrap().is_empty(), "{how}: nobody was asked");
    }
    assert_eq!(process.workers().list().await.unwrap()[0].name.len(), 512);
}

#[tokio::test(start_paused = true)]
async fn a_document_brings_nothing_that_is_larger_than_what_is_given_here() {
    let (_harness, process) = process().await;
    let task = process.spawn_named("task", &"params").await.unwrap().task_id;
    let export = process.export(task).await.unwrap();
    process.cancel(task).await.unwrap();
    process.delete(task).await.unwrap();
    let large = Payload::from_json(format!("\"{}\"", "x".repeat(Payload::DEFAULT_LIMIT)));
    let nested = Payload::from_json("[".repeat(101) + &"]".repeat(101));
    for (params, said) in [(large, "the limit is 4194304"), (nested, "nested over 100 levels deep")]
    {
        let mut made = export.clone();
        made.record.info.params = params.clone();
        let error = process.import(made).await.unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
        let mut made = export.clone();
        made.record.messages.push((Name::new("topic").unwrap(), params));
        let error = process.import(made).await.unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
    let mut made = export;
    let mut failure = Failure::new(FailureKind::Error, "it failed");
    failure.causes = vec!["because".repeat(100); 1_000];
    made.record.info.failure = Some(failure);
    process.import(made).await.unwrap();
    let kept = process.task(task).await.unwrap().unwrap().failure.unwrap();
    assert!(
        kept.to_string().len() < 64 << 10
            && kept.to_string().contains("further causes are left out")
    );
}

#[tokio::test(start_paused = true)]
async fn half_a_character_is_refused_when_it_is_given() {
    let (_harness, process) = process().await;
    let said = "half of a character";
    for half in [r#""\ud800""#, r#"["\\","\udc00\ud800"]"#, r#"{"\ud83d\u0041":1}"#] {
        refused_by_the_client(Payload::from_json(half), said).await;
        let error = serde_json::from_str::<Payload>(half).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
        let task = process.spawn_named("task", &"params").await.unwrap().task_id;
        let mut made = process.export(task).await.unwrap();
        process.cancel(task).await.unwrap();
        process.delete(task).await.unwrap();
        made.record.info.params = Payload::from_json(half);
        let error = made.to_json().unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
        assert!(process.import(made).await.unwrap_err().to_string().contains(said));
    }
    let whole = r#"["\ud83d\ude00","\\ud800","\u00e4"]"#;
    let task = process.spawn_named("task", &Payload::from_json(whole)).await.unwrap();
    let document = process.export(task.task_id).await.unwrap().to_json().unwrap();
    assert_eq!(Export::from_json(&document).unwrap().record.info.params.as_str(), whole);
}
