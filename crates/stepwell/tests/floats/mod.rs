//! What values are on their way through a client, whatever its store is.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use serde::{Deserialize, Serialize};
use stepwell::*;

/// Floats with all that may be around them. They are compared by their bits.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Prices {
    list: Vec<f64>,
    small: Option<f32>,
    named: BTreeMap<String, f64>,
    total: Option<Box<f64>>,
}

impl Prices {
    fn of(floats: &[f64]) -> Self {
        Self {
            list: floats.to_vec(),
            small: floats.first().map(|float| *float as f32).filter(|float| float.is_finite()),
            named: floats.iter().enumerate().map(|(n, float)| (n.to_string(), *float)).collect(),
            total: floats.last().copied().map(Box::new),
        }
    }
}

impl PartialEq for Prices {
    fn eq(&self, other: &Self) -> bool {
        let bits = |prices: &Self| {
            let floats =
                prices.list.iter().chain(prices.named.values()).chain(prices.total.as_deref());
            let small = prices.small.map(f32::to_bits);
            (floats.map(|float| float.to_bits()).collect::<Vec<_>>(), small)
        };
        bits(self) == bits(other)
    }
}

fn floats() -> impl Strategy<Value = Vec<f64>> {
    let finite =
        any::<u64>().prop_map(f64::from_bits).prop_filter("JSON has it", |float| float.is_finite());
    let price = any::<u32>().prop_map(|cents| f64::from(cents) / 100.0 * 1.19);
    proptest::collection::vec(prop_oneof![finite, price], 200)
}

type Seen = Arc<Mutex<Vec<(&'static str, Prices)>>>;

#[stepwell::task]
async fn carry(params: Prices, ctx: TaskContext) -> TaskResult<Prices> {
    let seen = ctx.state::<Seen>()?.clone();
    let see = |place, prices: &Prices| seen.lock().unwrap().push((place, prices.clone()));
    see("params", &params);
    see("step", &ctx.step("step", || async { Ok(params.clone()) }).await?);
    let tried = ctx.try_step("tried", || async { Err::<(), _>(params.clone()) }).await?;
    see("answer", &tried.unwrap_err());
    let items = ctx.items("items", vec![params.clone()]).each(|item| async { Ok(item) }).await?;
    see("item", &items.results[&0]);
    let child = ctx.spawn::<echo>("child", params.clone()).await?;
    see("child", &ctx.join(&child).await?);
    see("event", &ctx.await_event::<Prices>("prices", None).await?);
    see("message", &ctx.recv::<Prices>("prices", None).await?);
    if let Decision::Approved { value, .. } =
        ctx.await_approval::<Prices>("decision", &params).await?
    {
        see("decision", &value);
    }
    Ok(params)
}

#[stepwell::task]
async fn echo(params: Prices, _ctx: TaskContext) -> TaskResult<Prices> {
    Ok(params)
}

/// What a builder needs for [`floats_come_back`].
pub(crate) fn seen() -> Seen {
    Seen::default()
}

/// Every float is the same, bit for bit, in every place, at once, after a replay, and after an
/// import into `to`.
pub(crate) async fn floats_come_back(from: Durable, seen: &Seen, to: Durable, seen_there: &Seen) {
    let floats = floats().new_tree(&mut TestRunner::deterministic()).unwrap().current();
    let prices = Prices::of(&[&[9787.333499999999, -0.0, 5e-324, f64::MAX], &floats[..]].concat());
    for client in [&from, &to] {
        client.register::<carry>().await.unwrap();
        client.register::<echo>().await.unwrap();
        client.emit_event("prices", &prices).await.unwrap();
    }
    from.start_worker(WorkerOptions::new().max_in_memory(0)).await;
    let task = from.spawn::<carry>(prices.clone()).await.unwrap().task_id;
    from.send(task, "prices", &prices).await.unwrap();
    let approval = loop {
        match from
            .approvals()
            .list(ApprovalFilter { limit: 1, ..ApprovalFilter::default() })
            .await
            .unwrap()
            .items
            .pop()
        {
            Some(approval) => break approval,
            None => tokio::time::sleep(Duration::from_millis(2)).await,
        }
    };
    assert!(approval.request.decode::<Prices>().unwrap() == prices);
    let document = from.export(task).await.unwrap().to_json().unwrap();
    to.import(Export::from_json(&document).unwrap()).await.unwrap();
    to.start_worker(WorkerOptions::new().max_in_memory(0)).await;
    for (client, seen) in [(from, seen), (to, seen_there)] {
        client
            .approvals()
            .decide(task, &approval.name, &Decision::approved("ada", prices.clone()))
            .await
            .unwrap();
        assert!(client.wait::<Prices>(task).await.unwrap() == prices, "the output");
        let seen = std::mem::take(&mut *seen.lock().unwrap());
        assert!(seen.iter().any(|(place, _)| *place == "decision"), "it came to its end");
        for (place, there) in seen {
            assert!(there == prices, "{place}");
        }
        client.shutdown(Duration::ZERO).await;
    }
}
