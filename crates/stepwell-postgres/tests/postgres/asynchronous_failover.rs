//! A failover to a replica that lacks what was committed last: tasks go on from what is there.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use stepwell::{Durable, SpawnOptions, Store as _, TaskContext, TaskState, WorkerOptions};
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
                let Ok(mut server) = tokio::net::TcpStream::connect(("127.0.0.1", port)).await else {
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
async fn a_claim_that_is_lost_shares_its_run_with_none_that_follows() {
    fail_over(0).await;
}

/// Fails over to a replica that has so many entries of each journal; without any, it lacks the claims as well.
async fn fail_over(replicated: usize) {
    let primary = Postgres::start().unwrap();
    let replica = primary.replica().unwrap();
    let (to, port) = watch::channel(primary.port());
    let mut url = url::Url::parse(&primary.url()).unwrap();
    url.set_port(Some(door(port).await)).unwrap();
    let store = PostgresStore::connect(PostgresOptions::parse(url.as_str()).unwrap()).await.unwrap();
    let client = Durable::builder().store(Arc::new(store)).max_attempts(1).build().await.unwrap();

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
        tasks.push(client.spawn_named("work", &task, SpawnOptions::new()).await.unwrap().task_id);
    }
    let entries = format!(
        "SELECT (SELECT count(*) FROM stepwell.journal) = {} AND (SELECT count(*) FROM stepwell.live_tasks) = {TASKS}
            AND EXISTS (SELECT FROM stepwell.workers)",
        TASKS * replicated
    );
    while replica.sql(&entries).unwrap() != "t" {}
    // From now on the replica falls behind.
    replica.sql("ALTER SYSTEM SET primary_conninfo = ''").unwrap();
    replica.sql("SELECT pg_reload_conf()").unwrap();
    while replica.sql("SELECT count(*) FROM pg_stat_wal_receiver").unwrap() != "0" {}
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

    let store = PostgresStore::connect(PostgresOptions::parse(&replica.url()).unwrap()).await.unwrap();
    for task in tasks {
        let seqs: Vec<u64> = store.journal(task).await.unwrap().iter().map(|entry| entry.seq).collect();
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
