//! Task types that are described by schemas.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "a test ends by a panic")]

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use stepwell::testing::{Harness, Process, worker_options};
use stepwell::*;

#[derive(Clone, Serialize, Deserialize, JsonSchema)]
struct Order {
    /// What is ordered.
    item: String,
    #[schemars(range(min = 1, max = 10))]
    quantity: u32,
}

#[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
struct Shipped {
    #[schemars(length(min = 3))]
    parcel: String,
}

#[stepwell::task]
async fn ship(order: Order, _ctx: TaskContext) -> TaskResult<Shipped> {
    Ok(Shipped { parcel: order.item })
}

#[stepwell::task]
async fn delegate(order: serde_json::Value, ctx: TaskContext) -> TaskResult<()> {
    ctx.spawn_named::<_, ()>("ship", "ship", &order).await.map(drop)
}

fn order(item: &str, quantity: u32) -> Order {
    Order { item: item.into(), quantity }
}

async fn describing(harness: &Harness) -> Process {
    let process = harness.start().await;
    process.register_described::<ship>().await.unwrap();
    process.register::<delegate>().await.unwrap();
    process
}

#[tokio::test(start_paused = true)]
async fn parameters_that_do_not_fit_are_refused_where_the_type_is_registered() {
    let harness = Harness::new();
    let process = describing(&harness).await;
    let error = process.spawn::<ship>(order("anvil", 11)).await.unwrap_err().to_string();
    assert!(error.starts_with("the parameters of ship: does not fit its schema: "), "{error}");
    assert!(error.contains("11 is greater than the maximum of 10 at /quantity"), "{error}");
    let hourly = Schedule::every("hourly", Duration::from_secs(3_600));
    let error =
        process.schedules().put::<ship>(hourly, order("anvil", 0)).await.unwrap_err().to_string();
    assert!(error.contains("at /quantity"), "{error}");
    assert!(
        process.tasks(TaskFilter::default()).await.unwrap().items.is_empty(),
        "something was spawned"
    );

    process.start_worker(worker_options()).await;
    let task = process.spawn::<ship>(order("anvil", 10)).await.unwrap().task_id;
    assert_eq!(process.wait::<Shipped>(task).await.unwrap(), Shipped { parcel: "anvil".into() });
    let child = serde_json::json!({ "item": 7 });
    let task = process.spawn::<delegate>(child).await.unwrap().task_id;
    let error = process.wait::<()>(task).await.unwrap_err().to_string();
    assert!(error.contains("does not fit its schema"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_task_that_does_not_fit_fails_for_good() {
    let harness = Harness::new();
    let process = describing(&harness).await;
    process.start_worker(worker_options()).await;
    let task = process.spawn::<ship>(order("ox", 1)).await.unwrap().task_id;
    let error = process.wait::<Shipped>(task).await.unwrap_err().to_string();
    assert!(error.contains("the output of ship") && error.contains("at /parcel"), "{error}");
    let info = process.task(task).await.unwrap().unwrap();
    assert_eq!((info.attempt, info.failure.unwrap().kind), (1, FailureKind::Payload));
}

/// Every way in which a client that does not have the type registered can spawn a task of it.
#[tokio::test(start_paused = true)]
async fn every_spawn_is_checked_by_what_others_described() {
    let harness = Harness::new();
    let process = describing(&harness).await;
    let options = SpawnOptions::new;
    let old = process.spawn::<ship>(order("anvil", 1)).await.unwrap().task_id;
    let hourly = || Schedule::every("hourly", Duration::from_secs(3_600));
    process.schedules().put::<ship>(hourly(), order("anvil", 2)).await.unwrap();
    // From now on, there is less to ship.
    let mut narrower = process.task_types().await.unwrap().remove(0);
    narrower.params["properties"]["quantity"]["maximum"] = 0.into();
    process.store().describe(narrower).await.unwrap();

    let other = harness.start().await;
    let many = [0, 3].map(|n| other.spawn::<ship>(order("anvil", n)).options(options()));
    let errors = [
        other.spawn::<ship>(order("anvil", 3)).await.unwrap_err(),
        other.spawn_named("ship", &order("anvil", 3)).options(options()).await.unwrap_err(),
        other.spawn_many(many).await.unwrap_err(),
        other.schedules().put::<ship>(hourly(), order("anvil", 3)).await.unwrap_err(),
        other.schedules().put_named(hourly(), "ship", &order("anvil", 3)).await.unwrap_err(),
        other.schedules().trigger("hourly").await.unwrap_err(),
        other.retrigger(old).await.unwrap_err(),
    ];
    for error in errors {
        let error = error.to_string();
        assert!(
            error.contains("the parameters of ship") && error.contains("at /quantity"),
            "{error}"
        );
    }
    assert_eq!(
        other.tasks(TaskFilter::default()).await.unwrap().items.len(),
        1,
        "something was spawned"
    );

    let export = process.export(old).await.unwrap();
    process.cancel(old).await.unwrap();
    process.delete(old).await.unwrap();
    let error = other.import(export).await.unwrap_err().to_string();
    assert!(error.contains("at /quantity"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn other_clients_know_what_was_described() {
    let harness = Harness::new();
    let other = harness.start().await;
    let odd = serde_json::json!({ "item": "anvil", "quantity": "many" });
    // Nothing is known yet, and that is taken for true for a minute.
    other.spawn_named("ship", &odd).await.unwrap();
    let process = describing(&harness).await;
    other.spawn_named("ship", &odd).await.unwrap();
    tokio::time::sleep(Duration::from_secs(61)).await;
    let error = other.spawn_named("ship", &odd).await.unwrap_err().to_string();
    assert!(error.contains(r#""many" is not of type "integer" at /quantity"#), "{error}");

    let types = other.task_types().await.unwrap();
    assert_eq!(types.len(), 1);
    assert_eq!((types[0].task_type.as_str(), &types[0].params["title"]), ("ship", &"Order".into()));
    assert_eq!(types[0].params["properties"]["item"]["description"], "What is ordered.");
    assert_eq!(types[0].output["properties"]["parcel"]["minLength"], 3);

    // What was spawned all the same fails in the worker, at once.
    process.start_worker(worker_options()).await;
    for info in other.tasks(TaskFilter::default()).await.unwrap() {
        let error = other.wait::<Shipped>(info.task_id).await.unwrap_err().to_string();
        assert!(error.contains("the parameters of ship") && error.contains("/quantity"), "{error}");
        assert_eq!(other.task(info.task_id).await.unwrap().unwrap().attempt, 1);
    }
}
