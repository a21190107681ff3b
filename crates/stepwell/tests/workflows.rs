//! Workflows: what the builder promises.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::unit_arg,
    missing_docs,
    reason = "a test ends by a panic"
)]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use stepwell::store::until;
use stepwell::testing::{Harness, Process, worker_options};
use stepwell::*;

const SECOND: Duration = Duration::from_secs(1);

type Ran = Arc<Mutex<Vec<String>>>;

fn note(ran: &Ran, what: impl Into<String>) {
    ran.lock().unwrap().push(what.into());
}

/// One part of each kind. `carrier` in the input is the route that is taken.
fn order(ran: &Ran) -> Workflow {
    let (reserved, charged, undone, uncharged) =
        (ran.clone(), ran.clone(), ran.clone(), ran.clone());
    Workflow::new("order")
        .step("reserve", move |ctx| {
            note(&reserved, "reserve");
            async move { Ok(json!({ "items": ctx.input::<Value>()?["items"] })) }
        })
        .compensate(move |ctx| {
            note(&undone, format!("release {}", ctx.result::<Value>("reserve").unwrap()["items"]));
            async { Ok(()) }
        })
        .step("charge", move |ctx| {
            note(&charged, format!("charge, attempt {}", ctx.attempt));
            async move {
                anyhow::ensure!(ctx.attempt > 1, "the bank is closed");
                Ok(ctx.result::<Value>("reserve")?["items"].as_u64().unwrap_or(0) * 100)
            }
        })
        .compensate(move |ctx| {
            let (amount, carrier) = (ctx.result::<u64>("charge"), ctx.result::<String>("carrier"));
            note(&uncharged, format!("refund {:?}, sent by {:?}", amount.unwrap(), carrier.ok()));
            async { Ok(()) }
        })
        .parallel("papers", |papers| {
            papers
                .step("invoice", |ctx| async move {
                    Ok(format!("invoice of {}", ctx.result::<u64>("charge")?))
                })
                .sleep("dry", SECOND)
        })
        .route(
            "carrier",
            |ctx| async move {
                Ok(ctx.input::<Value>()?["carrier"].as_str().unwrap_or("none").to_owned())
            },
            |carriers| {
                carriers.step("dhl", |_| async { Ok("dhl") }).step("ups", |_| async { Ok("ups") })
            },
        )
        .loop_("letter", |ctx| async move {
            let before: Option<String> = ctx.last()?;
            Ok(format!("{}{}", before.unwrap_or_default(), ctx.iteration))
        })
        .until(|letter: String, _| letter.len() > 4)
        .feedback(|letter: String| letter + "+")
        .wait_for_signal("received", 60 * SECOND)
        .child("thanks", "thank", |ctx| ctx.result::<String>("received"))
}

async fn start(harness: &Harness, ran: &Ran) -> Process {
    let process = harness.start().await;
    let thank = |name: String, _ctx: TaskContext| async move { Ok(format!("thank you, {name}")) };
    process.register_fn("thank", thank).await.unwrap();
    process.register_workflow(order(ran)).await.unwrap();
    process
}

#[tokio::test(start_paused = true)]
async fn every_kind_of_part_gives_its_result_to_those_that_follow() {
    let (harness, ran) = (Harness::new(), Ran::default());
    let process = start(&harness, &ran).await;
    process.start_worker(worker_options()).await;
    let input = json!({ "items": 3, "carrier": "ups" });
    let began = harness.now();
    let task = process.spawn_workflow("order", &input).await.unwrap().task_id;
    while process.snapshot(task).await.unwrap().current_step.as_deref() != Some("received") {
        tokio::time::sleep(SECOND / 10).await;
    }
    assert!(until(began, harness.now()) >= 3 * SECOND, "2 s of backoff, and 1 s to dry");
    let snapshot = process.snapshot(task).await.unwrap();
    assert_eq!(snapshot.state, TaskState::Suspended);
    let results: Vec<_> =
        snapshot.results.iter().map(|(name, result)| format!("{name}={result}")).collect();
    let expected = [
        "carrier:route=\"ups\"",
        "charge=300",
        "dry=null",
        "invoice=\"invoice of 300\"",
        "letter:1=\"1\"",
        "letter:2=\"1+2\"",
        "letter:3=\"1+2+3\"",
        "reserve={\"items\":3}",
        "ups=\"ups\"",
    ];
    assert_eq!(results, expected);
    process.send(task, "received", "Ada").await.unwrap();
    let output: Value = process.wait(task).await.unwrap();
    let expected = json!({
        "reserve": { "items": 3 }, "charge": 300,
        "papers": { "invoice": "invoice of 300", "dry": null },
        "carrier": "ups", "letter": "1+2+3", "received": "Ada", "thanks": "thank you, Ada",
    });
    assert_eq!(output, expected);
    assert_eq!(*ran.lock().unwrap(), ["reserve", "charge, attempt 1", "charge, attempt 2"]);
    let snapshot = process.snapshot(task).await.unwrap();
    assert_eq!((snapshot.state, snapshot.current_step), (TaskState::Completed, None));
    assert!(snapshot.updated_at > snapshot.spawned_at);
    assert!(matches!(
        process.snapshot(TaskId::from(uuid::Uuid::nil())).await,
        Err(Error::NotFound(_))
    ));
}

#[tokio::test(start_paused = true)]
async fn a_workflow_goes_on_after_a_crash_and_is_undone_when_it_fails() {
    let (harness, ran) = (Harness::new(), Ran::default());
    let process = start(&harness, &ran).await;
    process.start_worker(worker_options()).await;
    let input = json!({ "items": 1, "carrier": "ups" });
    let task = process.spawn_workflow("order", &input).await.unwrap().task_id;
    while process.task(task).await.unwrap().unwrap().state != TaskState::Suspended
        || process.snapshot(task).await.unwrap().current_step.as_deref() != Some("received")
    {
        tokio::time::sleep(SECOND / 10).await;
    }
    process.kill().await;
    let process = start(&harness, &ran).await;
    process.start_worker(worker_options()).await;
    let error = process.wait::<Value>(task).await.unwrap_err().to_string();
    assert!(error.ends_with(r#""received" timed out"#), "{error}");
    let info = process.task(task).await.unwrap().unwrap();
    assert_eq!(
        (info.state, info.attempt),
        (TaskState::Failed, 1),
        "a workflow is not tried again as a whole"
    );
    let expected = [
        "reserve",
        "charge, attempt 1",
        "charge, attempt 2",
        "refund 100, sent by Some(\"ups\")",
        "release 1",
    ];
    assert_eq!(*ran.lock().unwrap(), expected);
}

#[tokio::test(start_paused = true)]
async fn an_unknown_route_fails_the_workflow_and_names_the_known_ones() {
    let (harness, ran) = (Harness::new(), Ran::default());
    let process = start(&harness, &ran).await;
    process.start_worker(worker_options()).await;
    let input = json!({ "items": 1, "carrier": "pigeon" });
    let task = process.spawn_workflow("order", &input).await.unwrap().task_id;
    let error = process.wait::<Value>(task).await.unwrap_err().to_string();
    assert!(
        error.contains(
            r#""carrier" chose the route "pigeon", which is none of its routes: dhl, ups"#
        ),
        "{error}"
    );
    assert_eq!(ran.lock().unwrap()[3..], ["refund 100, sent by None", "release 1"]);
}

#[tokio::test(start_paused = true)]
async fn a_step_has_three_attempts_unless_it_is_given_others() {
    let (harness, ran) = (Harness::new(), Ran::default());
    let process = harness.start().await;
    let fails = |ran: &Ran, what: &'static str| {
        let ran = ran.clone();
        move |_: WorkflowContext| {
            note(&ran, what);
            async { Err::<(), _>(anyhow::anyhow!("no")) }
        }
    };
    process
        .register_workflow(Workflow::new("three").step("a", fails(&ran, "three")))
        .await
        .unwrap();
    let five = Workflow::new("five")
        .step("a", fails(&ran, "five"))
        .max_attempts(5)
        .backoff(|n| n * 10 * SECOND);
    process.register_workflow(five).await.unwrap();
    process.start_worker(worker_options()).await;
    // 2 + 4, and 10 + 20 + 30 + 40 seconds.
    for (name, attempts, seconds) in [("three", 3, 6), ("five", 5, 100)] {
        let began = harness.now();
        let task = process.spawn_workflow(name, &()).await.unwrap().task_id;
        let error = process.wait::<Value>(task).await.unwrap_err().to_string();
        assert!(error.ends_with(r#"step "a" failed: no"#), "{error}");
        let took = until(began, harness.now());
        assert!(took >= seconds * SECOND && took < (seconds + 1) * SECOND, "{name} took {took:?}");
        assert_eq!(std::mem::take(&mut *ran.lock().unwrap()), vec![name; attempts]);
    }
}

/// Each iteration is undone with what it gave, under the loop's name.
#[tokio::test(start_paused = true)]
async fn the_iterations_of_a_loop_are_undone_one_by_one() {
    let (harness, ran) = (Harness::new(), Ran::default());
    let process = harness.start().await;
    let undo = ran.clone();
    let workflow = Workflow::new("rounds")
        .loop_("round", |ctx| async move { Ok(ctx.iteration * 10) })
        .max_iterations(2)
        .compensate(move |ctx| {
            note(
                &undo,
                format!("undo {} of round {}", ctx.result::<u32>("round").unwrap(), ctx.iteration),
            );
            async { Ok(()) }
        })
        .step("bad", |_| async { Err::<(), _>(anyhow::anyhow!("no")) })
        .max_attempts(1);
    process.register_workflow(workflow).await.unwrap();
    process.start_worker(worker_options()).await;
    let task = process.spawn_workflow("rounds", &()).await.unwrap().task_id;
    process.wait::<Value>(task).await.unwrap_err();
    assert_eq!(*ran.lock().unwrap(), ["undo 20 of round 2", "undo 10 of round 1"]);
}

/// The other branch of a parallel part that fails comes to its end, and is undone.
#[tokio::test(start_paused = true)]
async fn what_ran_beside_a_failure_is_known_and_undone() {
    let (harness, ran) = (Harness::new(), Ran::default());
    let process = harness.start().await;
    let (slow, undo) = (ran.clone(), ran.clone());
    let workflow = Workflow::new("both").parallel("both", |parts| {
        parts
            .step("bad", |_| async { Err::<(), _>(anyhow::anyhow!("no")) })
            .max_attempts(1)
            .step("slow", move |_| {
                let slow = slow.clone();
                async move {
                    tokio::time::sleep(10 * SECOND).await;
                    Ok(note(&slow, "slow"))
                }
            })
            .compensate(move |_| {
                note(&undo, "undo slow");
                async { Ok(()) }
            })
    });
    process.register_workflow(workflow).await.unwrap();
    process.start_worker(worker_options()).await;
    let task = process.spawn_workflow("both", &()).await.unwrap().task_id;
    process.wait::<Value>(task).await.unwrap_err();
    assert_eq!(*ran.lock().unwrap(), ["slow", "undo slow"]);
}

#[tokio::test(start_paused = true)]
async fn mistakes_are_said_before_anything_is_started() {
    let process = Harness::new().start().await;
    let quick = |_: WorkflowContext| async { Ok(1) };
    let said = async |workflow: Workflow<AfterStep>| {
        process.register_workflow(workflow).await.unwrap_err().to_string()
    };
    let error = said(Workflow::new("w").step("a", quick).step("a", quick)).await;
    assert!(
        error.contains(r#"the workflow "w" has two parts named "a": results are kept by name"#),
        "{error}"
    );
    let inner = Workflow::new("w").parallel("p", |parts| parts.step("a", quick)).step("a", quick);
    assert!(
        said(inner).await.contains(r#"two parts named "a""#),
        "names are unique also within parts"
    );
    let error = said(Workflow::new("w").step("", quick)).await;
    assert!(
        error
            .contains(r#"in the workflow "w", a part has no valid name: a name must not be empty"#),
        "{error}"
    );
    let error = said(Workflow::new("").step("a", quick)).await;
    assert!(error.contains("a name must not be empty"), "{error}");
    let error = said(Workflow::new("w").parallel("nothing", |parts| parts).step("a", quick)).await;
    assert!(error.contains(r#""nothing" in the workflow "w" has no parts"#), "{error}");
    let child = Workflow::new("w").child("c", "stranger", |_| Ok(()));
    let error = process.register_workflow(child).await.unwrap_err().to_string();
    assert!(error.contains(r#"no task type "stranger" is registered with this client"#), "{error}");
    let error = process.spawn_workflow("w", &()).await.unwrap_err().to_string();
    assert!(error.contains(r#"no task type "w" is registered with this client"#), "{error}");
    process.register_workflow(Workflow::new("w").step("a", quick)).await.unwrap();
    let again = process.register_workflow(Workflow::new("w").step("b", quick)).await.unwrap_err();
    assert!(matches!(again, Error::DuplicateTaskType(_)), "{again}");
    assert_eq!(process.tasks(TaskFilter::default()).await.unwrap().items.len(), 0);
}

#[test]
fn a_workflow_describes_itself_as_a_graph() {
    let graph = order(&Ran::default()).graph();
    let expected = "flowchart TD
    n0[\"reserve ↩\"]
    n1[\"charge ↩\"]
    n2[[\"papers\"]]
    n3[\"invoice\"]
    n4([\"dry\"])
    n5{\"carrier\"}
    n6[\"dhl\"]
    n7[\"ups\"]
    n8[/\"letter\"/]
    n9>\"received\"]
    n10[(\"thanks\")]
    n0 --> n1
    n2 --> n3
    n2 --> n4
    n1 --> n2
    n5 -->|\"dhl\"| n6
    n5 -->|\"ups\"| n7
    n3 --> n5
    n4 --> n5
    n8 -->|\"again\"| n8
    n6 --> n8
    n7 --> n8
    n8 --> n9
    n9 --> n10
";
    assert_eq!(graph.to_mermaid(), expected);
    let json = serde_json::to_value(&graph).unwrap();
    assert_eq!(
        json["nodes"][5],
        json!({ "name": "carrier", "kind": "route", "compensated": false })
    );
    assert_eq!(json["edges"][5], json!({ "from": 5, "to": 7, "label": "ups" }));
    let odd =
        Workflow::new("odd").step("a \"b\" <c> #d\ne", |_| async { Ok(()) }).graph().to_mermaid();
    assert!(odd.contains("n0[\"a #quot;b#quot; #lt;c#gt; #35;d e\"]"), "{odd}");
}
