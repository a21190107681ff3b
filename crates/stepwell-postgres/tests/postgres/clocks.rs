//! Workers whose clocks differ: only the server's counts.

use std::sync::Arc;
use std::time::Duration;

use stepwell::store::from_micros;
use stepwell::{
    BoxFuture, Durable, Runtime, SpawnOptions, TaskContext, Timestamp, TokioRuntime, WorkerOptions,
};
use stepwell_postgres::PostgresStore;

use crate::database::Database;

const MINUTE: i64 = 60 * 1_000_000;
const LEASE: Duration = Duration::from_millis(1_500);

/// A machine whose clock is wrong, by so many microseconds.
struct Wrong(TokioRuntime, i64);

impl Runtime for Wrong {
    fn now(&self) -> Timestamp {
        from_micros(self.0.now().as_microsecond() + self.1)
    }
    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        self.0.sleep(duration)
    }
    fn spawn(&self, future: BoxFuture<'static, ()>) {
        self.0.spawn(future);
    }
    fn random(&self) -> u64 {
        self.0.random()
    }
}

async fn machine(database: &Database, wrong_by: i64) -> Durable {
    let store = PostgresStore::connect(database.options()).await.unwrap();
    let runtime = Arc::new(Wrong(TokioRuntime::current(), wrong_by));
    let client = Durable::builder().store(Arc::new(store)).runtime(runtime).build().await.unwrap();
    let code = move |naps: Vec<u64>, ctx: TaskContext| async move {
        let mut times = vec![ctx.now().await?];
        for nap in naps {
            ctx.sleep_for(("nap", nap), Duration::from_millis(nap)).await?;
            times.push(ctx.now().await?);
        }
        // Longer than the lease, which a wrong clock would have taken for over, or for endless.
        ctx.step("long", || async { Ok(tokio::time::sleep(LEASE * 2).await) }).await?;
        Ok((ctx.attempt, times))
    };
    client.register_fn("naps", code).await.unwrap();
    client
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_and_timers_go_by_the_servers_clock() {
    let database = Database::new();
    let machines = [
        machine(&database, 0).await,
        machine(&database, 10 * MINUTE).await,
        machine(&database, -10 * MINUTE).await,
    ];
    for machine in &machines {
        let options = WorkerOptions::new()
            .lease(LEASE)
            .concurrency(3)
            .poll_interval(Duration::from_millis(100));
        machine.start_worker(options.max_in_memory(0)).await;
    }
    let naps: Vec<u64> = vec![50, 200, 350];
    let mut tasks = Vec::new();
    for machine in machines.iter().cycle().take(9) {
        let options = SpawnOptions::new().delay(Duration::from_millis(100));
        tasks.push(machine.spawn_named("naps", &naps).options(options).await.unwrap().task_id);
    }
    for task_id in tasks {
        let ended = tokio::time::timeout(
            Duration::from_secs(60),
            machines[0].wait::<(u32, Vec<Timestamp>)>(task_id),
        );
        let (attempt, times) = ended.await.expect("no timer waits for a wrong clock").unwrap();
        assert_eq!(attempt, 1, "nobody took a living worker's task");
        for (nap, pair) in naps.iter().zip(times.windows(2)) {
            let passed = pair[1].as_microsecond() - pair[0].as_microsecond();
            assert!(passed >= i64::try_from(*nap).unwrap() * 1_000, "{nap} ms were {passed} µs");
        }
    }
}
