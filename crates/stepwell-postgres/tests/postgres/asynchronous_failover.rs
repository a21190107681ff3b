//! A failover to a replica that lacks what was committed last: tasks go on from what is there.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use stepwell::{Durable, Store as _, TaskContext, TaskState, WorkerOptions};
use stepwell_postgres::{PostgresOptions, PostgresStore};
use throwaway::{Postgres, Stop};
use tokio::sync::watch;

/// How many steps the replica has, and how many the primary.
const REPLICATED: usize = 3;
const COMMITTED: usize = 6;
const ALL: usize = 9;
const TASKS: usize = 8;

/// Where both servers are: what comes is sent on to one of them, which can be exchanged.
async fn door(to: watch::Receiver<u16>) -> u16 {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let mut to = to.clone();
            tokio::spawn(async move {
                let port = *to.borrow_and_update();
                let Ok(mut server) = tokio::net::TcpStream::connect(("127.0.0.1", port)).await
                else {
                    return;
                };
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
                    _ = to.changed() => {}
                }
            });
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_whose_last_entries_are_lost_go_on_from_what_is_there() {
    fail_over(REPLICATED).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_whose_claims_are_lost_are_claimed_again() {
    fail_over(0).await;
}

/// What the code of a worker's tasks has done.
#[derive(Default)]
struct Done {
    /// Each step that ran, in any task.
    ran: Vec<usize>,
    /// How many tasks were told that another worker has them.
    told: usize,
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_that_is_lost_shares_its_run_with_none_that_follows() {
    const STEPS: usize = 2;
    let primary = Postgres::start().unwrap();
    let replica = primary.replica().unwrap();
    let (to, port) = watch::channel(primary.port());
    let before = client(&through(port, &primary).await).await;
    // A task's steps run up to what is allowed to its worker.
    let code = |allowed: watch::Receiver<usize>, done: watch::Sender<Done>| {
        move |(), ctx: TaskContext| {
            let (mut allowed, done) = (allowed.clone(), done.clone());
            async move {
                for step in 0..STEPS {
                    let ran = ctx.step(("step", step), || async {
                        allowed.wait_for(|allowed| *allowed > step).await?;
                        done.send_modify(|done| done.ran.push(step));
                        Ok(())
                    });
                    ran.await.inspect_err(|_| done.send_modify(|done| done.told += 1))?;
                }
                Ok(())
            }
        }
    };

    let mut tasks = Vec::new();
    for _ in 0..TASKS {
        tasks.push(before.spawn_named("work", &()).await.unwrap().task_id);
    }
    let loser = before.start_worker(WorkerOptions::new()).await;
    let ready = format!(
        "SELECT (SELECT count(*) FROM stepwell.live_tasks) = {TASKS} AND EXISTS (SELECT FROM \
         stepwell.workers)"
    );
    // The replica may not even have the tables yet.
    while !replica.sql(&ready).is_ok_and(|answer| answer == "t") {}
    cut_off(&replica);
    let (allow_loser, allowed) = watch::channel(0);
    let (done, mut losers) = watch::channel(Done::default());
    before.register_fn("work", code(allowed, done)).await.unwrap();
    let running =
        format!("SELECT count(*) = {TASKS} FROM stepwell.live_tasks WHERE state = 'running'");
    while primary.sql(&running).unwrap() != "t" {}
    primary.stop(Stop::Immediate).unwrap();
    replica.promote().unwrap();

    // The tasks are another worker's, which has written no more of them than the one whose claims
    // were lost.
    let after = client(&replica.url()).await;
    let (allow_owner, allowed) = watch::channel(0);
    let (done, owners) = watch::channel(Done::default());
    after.register_fn("work", code(allowed, done)).await.unwrap();
    let owner = after.start_worker(WorkerOptions::new()).await;
    while replica.sql(&running).unwrap() != "t" {}
    allow_loser.send_replace(STEPS);
    to.send_replace(replica.port());
    let end = losers.wait_for(|done| done.told == TASKS || done.ran.contains(&1));
    let end = tokio::time::timeout(Duration::from_secs(90), end)
        .await
        .expect("it is told nothing")
        .unwrap();
    assert_eq!(end.ran, [0; TASKS], "the worker whose claims were lost goes on");
    drop(end);

    allow_owner.send_replace(STEPS);
    for task in tasks {
        let done = tokio::time::timeout(Duration::from_secs(90), after.wait::<()>(task));
        done.await.expect("it waits for ever").unwrap();
    }
    let mut ran = owners.borrow().ran.clone();
    ran.sort_unstable();
    assert_eq!(ran, [[0; TASKS], [1; TASKS]].concat());
    owner.shutdown().await;
    loser.shutdown().await;
}

async fn client(url: &str) -> Durable {
    let store = PostgresStore::connect(PostgresOptions::parse(url).unwrap()).await.unwrap();
    Durable::builder().store(Arc::new(store)).max_attempts(1).build().await.unwrap()
}

/// The address of the server as seen through a door.
async fn through(to: watch::Receiver<u16>, server: &Postgres) -> String {
    let mut url = url::Url::parse(&server.url()).unwrap();
    url.set_port(Some(door(to).await)).unwrap();
    url.into()
}

/// Lets the replica fall behind from now on.
fn cut_off(replica: &Postgres) {
    replica.sql("ALTER SYSTEM SET primary_conninfo = ''").unwrap();
    replica.sql("SELECT pg_reload_conf()").unwrap();
    while replica.sql("SELECT count(*) FROM pg_stat_wal_receiver").unwrap() != "0" {}
}

/// Fails over to a replica that has so many entries of each journal; without any, it lacks the
/// claims as well.
async fn fail_over(replicated: usize) {
    let primary = Postgres::start().unwrap();
    let replica = primary.replica().unwrap();
    let (to, port) = watch::channel(primary.port());
    let client = client(&through(port, &primary).await).await;

    // Steps run up to what is allowed.
    let (allow, allowed) = watch::channel(replicated);
    let ran: Arc<Mutex<BTreeMap<(usize, usize), usize>>> = Arc::default();
    let counts = ran.clone();
    let work = move |task: usize, ctx: TaskContext| {
        let (counts, mut allowed) = (counts.clone(), allowed.clone());
        async move {
            let mut all = Vec::new();
            for step in 0..ALL {
                let value = ctx.step(("step", step), || async {
                    allowed.wait_for(|allowed| *allowed > step).await?;
                    *counts.lock().unwrap().entry((task, step)).or_default() += 1;
                    Ok(step)
                });
                all.push(value.await?);
            }
            Ok(all)
        }
    };
    let worker = client.start_worker(WorkerOptions::new()).await;
    if replicated > 0 {
        client.register_fn("work", work.clone()).await.unwrap();
    }
    let mut tasks = Vec::new();
    for task in 0..TASKS {
        tasks.push(client.spawn_named("work", &task).await.unwrap().task_id);
    }
    let entries = format!(
        "SELECT (SELECT count(*) FROM stepwell.journal) = {}
            AND (SELECT count(*) FROM stepwell.live_tasks) = {TASKS}
            AND EXISTS (SELECT FROM stepwell.workers)",
        TASKS * replicated
    );
    while !replica.sql(&entries).is_ok_and(|answer| answer == "t") {}
    cut_off(&replica);
    if replicated == 0 {
        client.register_fn("work", work).await.unwrap();
    }
    allow.send_replace(COMMITTED);
    let entries = format!("SELECT count(*) = {} FROM stepwell.journal", TASKS * COMMITTED);
    while primary.sql(&entries).unwrap() != "t" {}

    primary.stop(Stop::Immediate).unwrap();
    replica.promote().unwrap();
    to.send_replace(replica.port());
    allow.send_replace(ALL);
    for task in &tasks {
        let done = tokio::time::timeout(Duration::from_secs(90), client.wait::<Vec<usize>>(*task));
        assert_eq!(done.await.expect("it waits for ever").unwrap(), (0..ALL).collect::<Vec<_>>());
    }
    worker.shutdown().await;

    let store =
        PostgresStore::connect(PostgresOptions::parse(&replica.url()).unwrap()).await.unwrap();
    for task in tasks {
        let seqs: Vec<u64> =
            store.journal(task).await.unwrap().iter().map(|entry| entry.seq).collect();
        assert_eq!(seqs, (1..=ALL as u64).collect::<Vec<_>>(), "no journal has a hole");
        let info = store.task(task).await.unwrap().unwrap();
        assert_eq!((info.state, info.attempt), (TaskState::Completed, 1));
    }
    let ran = ran.lock().unwrap();
    for ((_, step), times) in ran.iter() {
        let lost = (replicated..=COMMITTED).contains(step);
        assert!(*times == 1 || lost, "step {step} ran {times} times, and its entry was not lost");
    }
}
