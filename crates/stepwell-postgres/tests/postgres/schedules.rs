//! Schedules, when answers of the server are lost: several clients come to every tick, over a
//! network that drops an answer now and then, with its connection; and each tick spawns one task.

use std::sync::Arc;
use std::time::{Duration, Instant};

use stepwell::store::until;
use stepwell::{
    CatchUp, Durable, Schedule, SpawnOptions, Store as _, TICK_HEADER, TaskFilter, Timestamp,
    WorkerOptions,
};

use crate::database::Database;
use crate::lossy_network::LossyNetwork;

const SECOND: Duration = Duration::from_secs(1);
const TICKS: usize = 5;

#[tokio::test(flavor = "multi_thread")]
async fn each_tick_and_each_trigger_spawns_one_task_though_answers_are_lost() {
    let database = Database::new();
    let store = database.open().await;
    let network = LossyNetwork::to(&database).await;
    let mut clients = Vec::new();
    for _ in 0..3 {
        let client = network.client(&database).await;
        client.register_fn("work", |(): (), _| async { Ok(()) }).await.unwrap();
        clients.push(client);
    }
    let steady = Durable::builder().store(Arc::new(store.clone())).build().await.unwrap();
    let options = SpawnOptions::new().priority(1);
    let often = Schedule::every("often", SECOND).catch_up(CatchUp::All).options(options);
    steady.schedules().put_named(often, "work", &()).await.unwrap();
    steady.schedules().put_named(Schedule::cron("seldom", "@yearly"), "work", &()).await.unwrap();
    for client in &clients {
        client.start_worker(WorkerOptions::new().poll_interval(SECOND / 10)).await;
    }

    let begin = Instant::now();
    let mut triggered = 0;
    while begin.elapsed() < SECOND * (TICKS as u32 + 1) || triggered < 3 {
        // One that fails has done nothing.
        if let Ok(task) = clients[triggered % 3].schedules().trigger("seldom").await {
            assert!(task.created());
            triggered += 1;
        }
    }

    let scheduled = async || {
        let all = TaskFilter { limit: 100_000, ..TaskFilter::default() };
        let tasks = store.tasks(all).await.unwrap().items;
        let (ticks, triggers): (Vec<_>, Vec<_>) =
            tasks.into_iter().partition(|task| task.priority == 1);
        let tick = |text: &str| text.parse::<Timestamp>().unwrap();
        let mut ticks: Vec<_> =
            ticks.iter().map(|task| tick(task.headers[TICK_HEADER].as_str().unwrap())).collect();
        ticks.sort_unstable();
        (ticks, triggers.len())
    };
    while scheduled().await.0.len() < TICKS {
        tokio::time::sleep(SECOND / 100).await;
    }
    let (ticks, triggers) = scheduled().await;
    assert!(ticks.windows(2).all(|pair| until(pair[0], pair[1]) == SECOND), "{ticks:?}");
    assert_eq!(triggers, triggered, "each trigger that was answered, and no other");
}
