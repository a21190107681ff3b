//! Failover: a primary with a synchronous replica dies, and the replica takes its place, twice,
//! under running tasks. Everybody reaches the server through a proxy, as through a virtual address,
//! and connections are cut.

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
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use stepwell::*;
use throwaway::{Postgres, Stop};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};

use crate::ledger::{WORK, answered, connect, prove, random, step};

const FAILOVERS: u32 = 2;
/// How many tasks have to end with the replica, and as many without.
const TASKS: u32 = 100;
/// How many calls are on their way at a time.
const TELLERS: u32 = 8;
/// How many tasks are spawned before the first of them has ended.
const AHEAD: usize = 50;
/// How long tasks may take to end before something is stuck.
const PATIENCE: Duration = Duration::from_secs(60);

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

    /// Cuts all connections. The server does what was asked of it last, and nobody hears of it.
    fn cut(&self) {
        self.target.send_modify(|_| {});
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

/// What a task's steps gave, what an event told it, and what a message.
type Told = (Vec<String>, u32, u32);

/// Steps, between which the task is told something by an event, and something by a message.
#[stepwell::task]
async fn told(task: u32, ctx: TaskContext) -> TaskResult<Told> {
    let first = step(&ctx, 0).await?;
    let event = ctx.await_event(("told", task), None).await?;
    let (second, third) = tokio::try_join!(step(&ctx, 1), step(&ctx, 2))?;
    let message = ctx.recv("told", None).await?;
    ctx.sleep_for("nap", WORK).await?;
    Ok((vec![first, second, third, step(&ctx, 3).await?], event, message))
}

/// The tasks, of which there are as many as it takes.
#[derive(Default)]
struct Load {
    begun: AtomicU32,
    ended: AtomicU32,
    over: AtomicBool,
}

impl Load {
    /// Spawns tasks and tells each of them what it waits for. Each of the calls is repeated until
    /// it is answered.
    async fn tell(&self, client: &Durable, accepted: mpsc::Sender<(u32, TaskId)>) {
        while !self.over.load(Ordering::Relaxed) {
            let task = self.begun.fetch_add(1, Ordering::Relaxed);
            // A call that failed has done nothing. So this makes one task, the event is the first
            // of its name, and the task has not ended yet when it is sent the message.
            let spawned = answered(|| client.spawn::<told>(task)).await;
            let event = format!("told:{task}");
            assert!(
                answered(|| client.emit_event(&event, &task)).await,
                "{event} was emitted twice"
            );
            let message = task + 1;
            answered(|| client.send(spawned.task_id, "told", &message)).await;
            accepted.send((task, spawned.task_id)).await.unwrap();
        }
    }

    /// Cuts connections now and then until more tasks have ended.
    async fn until_more_have_ended(&self, proxy: &Proxy) {
        let (start, wanted) = (Instant::now(), self.ended.load(Ordering::Relaxed) + TASKS);
        while self.ended.load(Ordering::Relaxed) < wanted {
            assert!(start.elapsed() < PATIENCE, "no more tasks end");
            tokio::time::sleep(Duration::from_millis(random(600))).await;
            proxy.cut();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_accepted_survives_the_primary_and_all_goes_on_with_the_replica() {
    let mut primary = Postgres::start().unwrap();
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
    let load = Arc::new(Load::default());
    let (sender, mut accepted) = mpsc::channel(AHEAD);
    for _ in 0..TELLERS {
        let (load, client, sender) = (load.clone(), client.clone(), sender.clone());
        tokio::spawn(async move { load.tell(&client, sender).await });
    }
    drop(sender);
    let (waiter, counts) = (client.clone(), load.clone());
    let waiting = tokio::spawn(async move {
        let mut all: Vec<(u32, TaskId, Told)> = Vec::new();
        while let Some((task, task_id)) = accepted.recv().await {
            all.push((task, task_id, answered(|| waiter.wait(task_id)).await));
            counts.ended.fetch_add(1, Ordering::Relaxed);
        }
        all
    });

    for _ in 0..FAILOVERS {
        let replica = primary.replica().unwrap();
        primary.use_synchronous("replica").unwrap();
        load.until_more_have_ended(&proxy).await;
        primary.stop(Stop::Immediate).unwrap();
        replica.promote().unwrap();
        proxy.switch_to(&replica);
        load.until_more_have_ended(&proxy).await;
        primary = replica;
    }
    load.over.store(true, Ordering::Relaxed);

    let all = waiting.await.unwrap();
    let proof = prove(&client, folder.path()).await;
    assert_eq!(all.len(), load.begun.load(Ordering::Relaxed) as usize);
    for (task, task_id, (steps, event, message)) in &all {
        assert_eq!((*event, *message), (*task, *task + 1));
        assert!(proof.results[task_id].values().eq(steps));
    }
    assert_eq!(proof.results.len(), all.len(), "a task ran whose spawn had failed");
    println!(
        "{} tasks, {FAILOVERS} failovers, {} steps ran again before they were journaled, {} were \
         started by runs that had lost their tasks",
        all.len(),
        proof.again,
        proof.late
    );
    for worker in workers {
        worker.shutdown().await;
    }
}
