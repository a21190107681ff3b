use std::sync::Arc;
use std::time::Instant;
use stepwell::*;
use stepwell_postgres::*;

#[tokio::main]
async fn main() {
    let url = std::env::args().nth(1).unwrap();
    let store = PostgresStore::connect(PostgresOptions::parse(&url).unwrap()).await.unwrap();
    let client = Durable::builder().store(Arc::new(store)).build().await.unwrap();
    client.register_fn("double", |n: u64, ctx: TaskContext| async move {
        let a = ctx.step("one", || async move { Ok(n * 2) }).await?;
        if n % 10 == 0 { ctx.sleep_for("nap", std::time::Duration::from_millis(5)).await?; }
        Ok(a)
    }).await.unwrap();
    let worker = client.start_worker(WorkerOptions::new()).await;
    for round in 0..3 {
        let start = Instant::now();
        let mut callers = vec![];
        for c in 0..64u64 {
            let client = client.clone();
            callers.push(tokio::spawn(async move {
                for i in 0..150u64 {
                    let n = c * 1000 + i + 1;
                    let t = client.spawn_named("double", &n, SpawnOptions::new()).await.unwrap();
                    if i % 10 == 0 { assert_eq!(client.wait::<u64>(t.task_id).await.unwrap(), n * 2); }
                }
            }));
        }
        for c in callers { c.await.unwrap(); }
        loop {
            let mut left = 0;
            for s in [TaskState::Pending, TaskState::Running, TaskState::Suspended] {
                left += client.tasks(TaskFilter { state: Some(s), limit: 1, ..Default::default() }).await.unwrap().len();
            }
            if left == 0 { break; }
        }
        let took = start.elapsed();
        println!("round {round}: {:.0} tasks/s", 64.0 * 150.0 / took.as_secs_f64());
    }
    let start = Instant::now();
    for n in 0..200u64 {
        let t = client.spawn_named("double", &(n*10+1), SpawnOptions::new()).await.unwrap();
        client.wait::<u64>(t.task_id).await.unwrap();
    }
    println!("latency {:?}", start.elapsed() / 200);
    worker.shutdown().await;
}
