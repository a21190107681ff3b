//! The Quick Start of the engine that Stepwell grew from, as it is printed there: only the URL is
//! another.

#![allow(unused, missing_docs, clippy::all, clippy::uninlined_format_args)]

// As `durable = { package = "stepwell", … }` does in a user's manifest.
extern crate stepwell as durable;

#[rustfmt::skip]
mod as_printed {
use durable::{Durable, Task, TaskContext, TaskResult, WorkerOptions, async_trait};
use serde::{Deserialize, Serialize};

// Define your task parameters and output
#[derive(Serialize, Deserialize)]
struct SendEmailParams {
    to: String,
    subject: String,
    body: String,
}

#[derive(Serialize, Deserialize)]
struct SendEmailResult {
    message_id: String,
}

// Implement the Task trait
struct SendEmailTask;

#[async_trait]
impl Task for SendEmailTask {
    const NAME: &'static str = "send-email";
    type Params = SendEmailParams;
    type Output = SendEmailResult;

    async fn run(params: Self::Params, mut ctx: TaskContext) -> TaskResult<Self::Output> {
        // This step is checkpointed - if the task crashes after sending,
        // it won't send again on retry
        let message_id = ctx.step("send", || async {
            // Your email sending logic here
            Ok("msg-123".to_string())
        }).await?;

        Ok(SendEmailResult { message_id })
    }
}

#[tokio::main]
pub(crate) async fn main() -> anyhow::Result<()> {
    // Create the client
    let client = Durable::builder()
        .database_url("sqlite::memory:")
        .queue_name("emails")
        .build()
        .await?;

    // Register your task
    client.register::<SendEmailTask>().await;

    // Spawn a task
    let result = client.spawn::<SendEmailTask>(SendEmailParams {
        to: "user@example.com".into(),
        subject: "Hello".into(),
        body: "World".into(),
    }).await?;

    println!("Spawned task: {}", result.task_id);

    // Start a worker to process tasks
    let worker = client.start_worker(WorkerOptions::default()).await;

    // Wait for shutdown signal
    super::signal::ctrl_c(&client, result.task_id).await?;
    worker.shutdown().await;

    Ok(())
}
}

/// In place of `tokio::signal`, which would wait for a person: the task's end is the signal.
mod signal {
    pub(crate) async fn ctrl_c(
        client: &durable::Durable,
        task_id: durable::TaskId,
    ) -> anyhow::Result<()> {
        let result: serde_json::Value = client.wait(task_id).await?;
        assert_eq!(result, serde_json::json!({ "message_id": "msg-123" }));
        Ok(())
    }
}

#[test]
fn the_quick_start_runs_as_printed() {
    as_printed::main().unwrap();
}

#[rustfmt::skip]
mod the_rest {
    use std::time::Duration;

    use durable::{Durable, TaskContext, TaskResult};
    use serde::{Deserialize, Serialize};

    #[derive(Serialize, Deserialize)]
    struct ShipmentEvent {
        tracking: String,
    }

    /// The other examples of that document, which have to compile.
    #[allow(dead_code)]
    async fn snippets(
        client: Durable,
        ctx: TaskContext,
        order_id: u64,
        amount: u64,
    ) -> TaskResult<()> {
        ctx.step("charge-payment", || async {
            let idempotency_key = format!("{}:charge", ctx.task_id);
            charge(amount, &idempotency_key).await
        }).await?;

        // In one task: wait for an event
        let shipment: ShipmentEvent = ctx.await_event(
            &format!("packed:{}", order_id),
            Some(Duration::from_secs(7 * 24 * 3600)), // 7 day timeout
        ).await?;

        // From another task or service: emit the event
        let shipped = ShipmentEvent { tracking: shipment.tracking };
        let emitted = client.emit_event(&format!("packed:{}", order_id), &shipped).await;
        emitted.map_err(anyhow::Error::from)?;
        ctx.heartbeat(Duration::from_secs(60)).await
    }

    async fn charge(_amount: u64, _idempotency_key: &str) -> anyhow::Result<()> {
        Ok(())
    }
}
