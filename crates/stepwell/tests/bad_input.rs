//! Bad input is an error that says what to do, and nothing is lost by it. How the SQLite store
//! takes a bad file is tested with the store.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::unit_arg,
    missing_docs,
    reason = "a test ends by a panic"
)]

use std::time::Duration;

use stepwell::testing::{Harness, worker_options};
use stepwell::*;

async fn run<F, Fut, O>(
    options: SpawnOptions,
    params: serde_json::Value,
    function: F,
) -> (Harness, Result<serde_json::Value, Error>)
where
    F: Fn(u32, TaskContext) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = TaskResult<O>> + Send,
    O: serde::Serialize + Send,
{
    let harness = Harness::new();
    let process = harness.start_with(|builder| builder.max_payload_bytes(1000)).await.unwrap();
    process.register_fn("task", function).await.unwrap();
    process.register_fn("fine", |(): (), _ctx: TaskContext| async { Ok("fine") }).await.unwrap();
    process.start_worker(worker_options()).await;
    let task = process.spawn_named("task", &params).options(options).await.unwrap();
    let result = process.wait(task.task_id).await;
    // Whatever became of it: the worker goes on.
    let fine = process.spawn_named("fine", &()).await.unwrap();
    assert_eq!(process.wait::<String>(fine.task_id).await.unwrap(), "fine");
    (harness, result)
}

async fn failure<F, Fut, O>(params: serde_json::Value, function: F) -> String
where
    F: Fn(u32, TaskContext) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = TaskResult<O>> + Send,
    O: serde::Serialize + Send,
{
    // None of these is tried again: it would go wrong in the same way.
    let start = std::time::Instant::now();
    let (_, result) = run(SpawnOptions::new().max_attempts(5), params, function).await;
    let message = result.unwrap_err().to_string();
    assert!(start.elapsed() < Duration::from_secs(20));
    message
}

fn number() -> serde_json::Value {
    7.into()
}

#[tokio::test(start_paused = true)]
async fn parameters_that_do_not_deserialise() {
    let message = failure("seven".into(), |_n, _ctx| async { Ok(()) }).await;
    assert!(
        message.contains("\"the parameters of task\": the JSON does not fit the type `u32`"),
        "{message}"
    );
    assert!(message.contains("keep it readable"), "{message}");
}

#[tokio::test(start_paused = true)]
async fn a_result_that_does_not_serialise() {
    let bad = || std::collections::HashMap::from([(vec![1], 2)]);
    let message = failure(number(), move |_n, _ctx| async move { Ok(bad()) }).await;
    assert!(
        message.contains("\"the output of task\"") && message.contains("key must be a string"),
        "{message}"
    );
    let message = failure(number(), |_n, ctx| async move {
        ctx.step("odd", || async { Ok(std::collections::BTreeMap::from([(vec![1], 2)])) }).await
    });
    let message = message.await;
    assert!(message.contains("step \"odd\" failed: \"odd\": the value of type"), "{message}");
}

#[tokio::test(start_paused = true)]
async fn a_payload_over_the_limit() {
    let message = failure(number(), |_n, ctx| async move {
        ctx.step("big", || async { Ok("x".repeat(2000)) }).await
    });
    let message = message.await;
    assert!(
        message.contains(
            "has 2002 bytes, the limit is 1000: keep large data elsewhere and journal a reference"
        ),
        "{message}"
    );
    let message = failure(number(), |_n, _ctx| async { Ok("x".repeat(2000)) }).await;
    assert!(message.contains("raise the limit with `max_payload_bytes`"), "{message}");

    let harness = Harness::new();
    let process = harness.start().await;
    let five_mib = "x".repeat(5 << 20);
    let error = process.spawn_named("task", &five_mib).await.unwrap_err().to_string();
    assert!(
        error.starts_with("the parameters of task: ") && error.contains("the limit is 4194304"),
        "{error}"
    );
    let error = process.emit_event("event", &five_mib).await.unwrap_err().to_string();
    assert!(error.starts_with("the event event: "), "{error}");
}

/// A name that is accepted has room for all that the engine adds to it; one that is not is refused
/// before anything is done.
#[tokio::test(start_paused = true)]
async fn a_name_is_refused_before_anything_is_done_or_never() {
    for length in [384, 385] {
        let harness = Harness::new();
        let process = harness.start().await;
        let name = "n".repeat(length);
        let named = name.clone();
        let task = move |kind: String, ctx: TaskContext| {
            let name = named.clone();
            async move {
                match &*kind {
                    "step" => {
                        ctx.step(&name, || async { Ok(()) })
                            .input(&1)
                            .compensate(|()| async { Ok(()) })
                            .await
                    }
                    "items" => {
                        ctx.items(&name, [1]).input(&1).each(|_| async { Ok(()) }).await.map(drop)
                    }
                    "child" => {
                        let child = ctx.spawn_named(&name, "task", "nothing").await?;
                        ctx.join::<()>(&child).await
                    }
                    "event" => ctx.await_event(&name, None).await,
                    "message" => ctx.recv(&name, None).await,
                    "approval" => {
                        for _ in 0..2 {
                            let approval = ctx
                                .await_approval::<()>(&name, &())
                                .remind_every(Duration::from_secs(1), || async { Ok(()) })
                                .escalate_after(
                                    Duration::from_secs(2),
                                    "x".repeat(512),
                                    || async { Ok(()) },
                                );
                            approval.await?;
                        }
                        Ok(())
                    }
                    _ => Ok(()),
                }
            }
        };
        process.register_fn("task", task).await.unwrap();
        process.start_worker(worker_options()).await;
        for kind in ["step", "items", "child", "event", "message", "approval"] {
            let options = SpawnOptions::new().max_attempts(1);
            let task_id = process.spawn_named("task", kind).options(options).await.unwrap().task_id;
            if length == 384 {
                tokio::time::sleep(Duration::from_secs(5)).await;
                match kind {
                    "event" => assert!(process.emit_event(&name, &()).await.unwrap()),
                    "message" => process.send(task_id, &name, &()).await.unwrap(),
                    "approval" => {
                        for label in [name.clone(), format!("{name}#2")] {
                            process
                                .approvals()
                                .decide(task_id, &label, &Decision::approved("ada", ()))
                                .await
                                .unwrap();
                            tokio::time::sleep(Duration::from_secs(5)).await;
                        }
                    }
                    _ => {}
                }
                process.wait::<()>(task_id).await.unwrap_or_else(|error| panic!("{kind}: {error}"));
            } else {
                let error = process.wait::<()>(task_id).await.unwrap_err().to_string();
                assert!(error.contains("has 385 bytes, the limit is 384"), "{kind}: {error}");
                assert_eq!(process.journal(task_id).await.unwrap(), [], "{kind}");
                process.emit_event(&name, &()).await.unwrap_err();
                process.send(task_id, &name, &()).await.unwrap_err();
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn names_that_are_empty_or_too_long_or_odd() {
    let message =
        failure(number(), |_n, ctx| async move { ctx.step("", || async { Ok(()) }).await }).await;
    assert!(message.contains("a name must not be empty: give it 1 to 512 bytes"), "{message}");
    let message =
        failure(
            number(),
            |_n, ctx| async move { ctx.await_event::<()>("e".repeat(600), None).await },
        )
        .await;
    assert!(message.contains("has 600 bytes, the limit is 384"), "{message}");
    let harness = Harness::new();
    let process = harness.start().await;
    for (name, says) in [("", "must not be empty"), ("a\0b", "holds a NUL character")] {
        let spawn = process.spawn_named(name, &()).await.unwrap_err().to_string();
        let queue = process.spawn_named("t", &()).queue(name).await.unwrap_err().to_string();
        let key = SpawnOptions::new().idempotency_key(name);
        let key = process.spawn_named("t", &()).options(key).await.unwrap_err().to_string();
        let event = process.emit_event(name, &()).await.unwrap_err().to_string();
        for error in [spawn, queue, key, event] {
            assert!(error.contains(says), "{error}");
        }
    }
    let error =
        harness.start_with(|builder| builder.queue_name("")).await.err().unwrap().to_string();
    assert!(error.contains("must not be empty"), "{error}");

    let odd = "päck 'q' \"d\" ; DROP TABLE tasks; -- \n\t📦 #2 %s ../..";
    let (_, result) =
        run(SpawnOptions::new().queue("default"), number(), move |n, ctx| async move {
            ctx.step(odd, || async { Ok(()) }).await?;
            ctx.step((odd, odd), || async { Ok(n) }).await
        })
        .await;
    assert_eq!(result.unwrap(), 7);
}

#[tokio::test(start_paused = true)]
async fn a_step_name_that_is_used_with_two_result_types() {
    let (_, result) = run(
        SpawnOptions::new().retry(RetryStrategy::fixed(Duration::ZERO)),
        number(),
        |_n, ctx| async move {
            if ctx.attempt == 1 {
                ctx.step("count", || async { Ok("seven".to_owned()) }).await?;
                return Err(anyhow::anyhow!("now the code changes").into());
            }
            ctx.step("count", || async { Ok(7_u32) }).await
        },
    )
    .await;
    let message = result.unwrap_err().to_string();
    assert!(
        message.contains(
            "\"count\": the JSON does not fit the type `u32`: invalid type: string \"seven\""
        ),
        "{message}"
    );
}

#[tokio::test(start_paused = true)]
async fn an_event_that_carries_another_type() {
    let harness = Harness::new();
    let process = harness.start().await;
    process.emit_event("news", "text").await.unwrap();
    let task = |(): (), ctx: TaskContext| async move { ctx.await_event::<u32>("news", None).await };
    process.register_fn("task", task).await.unwrap();
    process.start_worker(worker_options()).await;
    let task = process.spawn_named("task", &()).await.unwrap();
    let message = process.wait::<u32>(task.task_id).await.unwrap_err().to_string();
    assert!(message.contains("\"news\": the JSON does not fit the type `u32`"), "{message}");
}

#[tokio::test]
async fn database_urls_of_no_known_kind() {
    for (url, says) in [
        ("mysql://localhost", "the scheme `mysql` is unknown"),
        ("ftp://localhost/app", "the scheme `ftp` is unknown"),
        ("no url", "it has no scheme"),
        ("", "it has no scheme"),
    ] {
        let error = Durable::builder().database_url(url).build().await.err().unwrap().to_string();
        assert!(
            error.contains(says) && error.contains("use `sqlite://path/to/file.db`"),
            "{error}"
        );
    }
    // The scheme may be mistyped, and an error goes into logs.
    for url in ["postgre://ann:hush@db/orders", "ann:hu@sh@db/orders"] {
        let error = Durable::builder().database_url(url).build().await.err().unwrap().to_string();
        assert!(error.contains("…@db/orders") && !error.contains("hu"), "{error}");
    }
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", folder.path().display());
    let error = Durable::builder().database_url(url).build().await.err().unwrap().to_string();
    assert!(error.contains("cannot open the database"), "{error}");
}
