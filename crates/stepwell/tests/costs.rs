//! What a task costs grows with what it does, and not with its square.

#![allow(clippy::unwrap_used, missing_docs, reason = "a test ends by a panic")]

use std::time::{Duration, Instant};

use futures_util::future::{BoxFuture, FutureExt as _, try_join_all};
use stepwell::testing::{Harness, worker_options};
use stepwell::*;

const FEW: u64 = 500;
/// By how much more of everything there is at the second time. The square of it would be 256.
const MORE: u64 = 16;
/// Of which so much is other than in proportion: for a logarithm, and for whatever else the machine
/// does.
const ROOM: u32 = 5;

type Code = fn(u64, TaskContext) -> BoxFuture<'static, TaskResult<()>>;

/// Sleeps that end at the same time.
fn sleeps(n: u64, ctx: TaskContext) -> BoxFuture<'static, TaskResult<()>> {
    let second = Duration::from_secs(1);
    async move { try_join_all((0..n).map(|n| ctx.sleep_for(("sleep", n), second))).await.map(drop) }
        .boxed()
}

/// Steps side by side.
fn steps(n: u64, ctx: TaskContext) -> BoxFuture<'static, TaskResult<()>> {
    async move {
        try_join_all((0..n).map(|n| ctx.step(("step", n), || async { Ok(()) }))).await.map(drop)
    }
    .boxed()
}

/// Spawns side by side, which the store decides one after the other: all have the same key.
fn spawns(n: u64, ctx: TaskContext) -> BoxFuture<'static, TaskResult<()>> {
    let spawn = move |n| -> SpawnChild<()> {
        ctx.spawn_named(("child", n), "nobody's", &()).idempotency_key("one")
    };
    async move { try_join_all((0..n).map(spawn)).await.map(drop) }.boxed()
}

/// Steps one after the other.
fn sequence(n: u64, ctx: TaskContext) -> BoxFuture<'static, TaskResult<()>> {
    async move {
        for n in 0..n {
            ctx.step(("step", n), || async { Ok(()) }).await?;
        }
        Ok(())
    }
    .boxed()
}

/// The shortest time of some that a task with so many of them has taken.
fn shortest(code: Code, n: u64) -> Duration {
    let run = |_| {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
        runtime.unwrap().block_on(async {
            let process = Harness::new().start().await;
            process.register_fn("task", code).await.unwrap();
            process.start_worker(worker_options()).await;
            let begun = Instant::now();
            let task = process.spawn_named("task", &n).await.unwrap().task_id;
            process.wait::<()>(task).await.unwrap();
            begun.elapsed()
        })
    };
    (0..3).map(run).min().unwrap()
}

fn grows_in_proportion(code: Code) {
    let (few, many) = (shortest(code, FEW), shortest(code, FEW * MORE));
    eprintln!("{few:?}, {many:?}: {:.1} times as long", many.as_secs_f64() / few.as_secs_f64());
    assert!(
        many < few * MORE as u32 * ROOM,
        "{MORE} times as many take {few:?}, and then {many:?}"
    );
}

#[test]
fn of_sleeps_side_by_side() {
    grows_in_proportion(sleeps);
}

#[test]
fn of_steps_side_by_side() {
    grows_in_proportion(steps);
}

#[test]
fn of_spawns_side_by_side() {
    grows_in_proportion(spawns);
}

#[test]
fn of_steps_in_a_row() {
    grows_in_proportion(sequence);
}
