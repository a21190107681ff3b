//! Failover: a primary with a synchronous replica dies, and the replica takes its place, under running tasks. Everybody
//! reaches the server through a proxy, as through a virtual address.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::unit_arg,
    missing_docs,
    unreachable_pub,
    reason = "a test ends by a panic"
)]

mod ledger;

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use stepwell::*;
use throwaway::{Postgres, Stop};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};

use crate::ledger::{WORK, answered, connect, prove, step};

const TASKS: u32 = 400;
/// How many tasks are spawned before the first of them has ended.
const AHEAD: usize = 50;

/// Leads every connection to one server, which can be exchanged.
struct Proxy {
    port: u16,
    target: watch::Sender<u16>,
}

impl Proxy {
    async fn start(target: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let target = watch::Sender::new(target);
        let targets = target.clone();
        tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                tokio::spawn(lead(client, targets.subscribe()));
            }
        });
        Self { port, target }
    }

    /// Cuts all connections; new ones lead to the other server.
    fn switch_to(&self, server: &Postgres) {
        self.target.send_replace(server.port());
    }
}

async fn lead(mut client: TcpStream, mut target: watch::Receiver<u16>) {
    let port = *target.borrow_and_update();
    // When there is no server, the client is told so at once, by the end of its connection.
    let Ok(mut server) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await else { return };
    client.set_nodelay(true).unwrap();
    server.set_nodelay(true).unwrap();
    tokio::select! {
        _ = copy_bidirectional(&mut client, &mut server) => {}
        _ = target.changed() => {}
    }
}

/// Steps, between which the task is told something by an event, and something by a message.
#[stepwell::task]
async fn told(task: u32, ctx: TaskContext) -> TaskResult<(Vec<String>, u32, u32)> {
    let first = step(&ctx, 0).await?;
    let event = ctx.await_event(("told", task), None).await?;
    let (second, third) = tokio::try_join!(step(&ctx, 1), step(&ctx, 2))?;
    let message = ctx.recv("told", None).await?;
    ctx.sleep_for("nap", WORK).await?;
    Ok((vec![first, second, third, step(&ctx, 3).await?], event, message))
}

/// What the servers have accepted, and what has ended.
#[derive(Default)]
struct Progress {
    accepted: AtomicUsize,
    ended: AtomicUsize,
}

/// Spawns tasks and tells each of them what it waits for. Each of the calls is repeated until it is answered with `Ok`.
async fn spawn_and_tell(client: Durable, accepted: mpsc::Sender<TaskId>, progress: Arc<Progress>) {
    for task in 0..TASKS {
        let options = SpawnOptions::new().idempotency_key(task.to_string());
        let task_id = answered(|| client.spawn_with::<told>(task, options.clone())).await.task_id;
        // A call that failed has done nothing: so this one is the first, and the task still waits for its message.
        let event = format!("told:{task}");
        assert!(answered(|| client.emit_event(&event, &task, None)).await, "an event was emitted twice");
        let message = task + 1;
        answered(|| client.send(task_id, "told", &message)).await;
        progress.accepted.fetch_add(1, Ordering::Relaxed);
        accepted.send(task_id).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_accepted_survives_the_death_of_the_primary_and_all_goes_on_with_the_replica() {
    let primary = Postgres::start().unwrap();
    let replica = primary.replica().unwrap();
    primary.use_synchronous("replica").unwrap();
    let proxy = Proxy::start(primary.port()).await;
    let url = primary.url().replace(&format!(":{}/", primary.port()), &format!(":{}/", proxy.port));
    let folder = tempfile::tempdir().unwrap();

    let mut workers = Vec::new();
    for _ in 0..2 {
        let process = connect(&url, folder.path()).await;
        process.register::<told>().await.unwrap();
        let options = WorkerOptions::new().concurrency(4).lease(Duration::from_secs(2));
        workers.push(process.start_worker(options).await);
    }
    let client = connect(&url, folder.path()).await;
    let (sender, mut accepted) = mpsc::channel(AHEAD);
    let progress = Arc::new(Progress::default());
    tokio::spawn(spawn_and_tell(client.clone(), sender, progress.clone()));
    let (waiter, counts) = (client.clone(), progress.clone());
    let waiting = tokio::spawn(async move {
        let mut all = Vec::new();
        while let Some(task_id) = accepted.recv().await {
            let seen: (Vec<String>, u32, u32) = answered(|| waiter.wait(task_id)).await;
            all.push((task_id, seen));
            counts.ended.store(all.len(), Ordering::Relaxed);
        }
        all
    });

    while progress.ended.load(Ordering::Relaxed) < TASKS as usize / 3 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    primary.stop(Stop::Immediate).unwrap();
    let (accepted, ended) =
        (progress.accepted.load(Ordering::Relaxed), progress.ended.load(Ordering::Relaxed));
    assert!(ended < accepted, "nothing was under way when the primary died");
    replica.promote().unwrap();
    proxy.switch_to(&replica);

    let all = waiting.await.unwrap();
    let proof = prove(&client, folder.path()).await;
    assert_eq!((all.len(), proof.results.len()), (TASKS as usize, TASKS as usize));
    for (task, (task_id, (steps, event, message))) in (0..).zip(&all) {
        assert_eq!((*event, *message), (task, task + 1));
        assert!(proof.results[task_id].values().eq(steps));
    }
    println!(
        "{TASKS} tasks, {accepted} accepted and {ended} ended by the old primary, {} steps ran again before they were \
         journaled, {} of them late",
        proof.again, proof.late
    );
    for worker in workers {
        worker.shutdown().await;
    }
}
