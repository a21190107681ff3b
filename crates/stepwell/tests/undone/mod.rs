//! Tasks of the simulation that fail, or are cancelled, and what has to hold of what they leave.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use stepwell::testing::Process;
use stepwell::*;

use super::{MS, World};

/// Notes that something is undone, and fails now and then. Not what the journal says was undone.
async fn undo(world: Arc<World>, ctx: TaskContext, task: u32, what: &str, nonce: u64) -> anyhow::Result<()> {
    let info = world.store.task(ctx.task_id).await?.unwrap();
    let journal = world.store.journal(ctx.task_id).await?;
    let (_, undone) = last_era(&journal);
    let undone = undone.iter().any(|(name, outcome)| *name == what && matches!(outcome, Outcome::Done(_)));
    // A run that has lost its task may not know it yet.
    if undone && info.run_id == ctx.run_id {
        world.undone.lock().unwrap().entry("again".into()).or_default().push(nonce);
    }
    world.undone.lock().unwrap().entry(format!("{task}/{what}")).or_default().push(nonce);
    tokio::time::sleep(world.dice.roll(30) as u32 * MS).await;
    anyhow::ensure!(!world.faults.load(Ordering::SeqCst) || world.dice.roll(10) > 0, "simulated");
    Ok(())
}

/// A step that is undone by its nonce.
async fn undoable(ctx: &TaskContext, task: u32, step: &'static str) -> TaskResult<u64> {
    let world = ctx.state::<Arc<World>>()?;
    let (undoing, again) = (world.clone(), ctx.clone());
    ctx.step(step, || async {
        let nonce = world.dice.roll(u64::MAX);
        world.ran.lock().unwrap().entry(format!("{task}/{step}")).or_default().push(nonce);
        tokio::time::sleep(world.dice.roll(30) as u32 * MS).await;
        anyhow::ensure!(!world.faults.load(Ordering::SeqCst) || world.dice.roll(10) > 0, "simulated");
        Ok(nonce)
    })
    .compensate(move |nonce| undo(undoing.clone(), again.clone(), task, step, nonce))
    .await
}

/// One in three completes, one fails, and one waits to be cancelled.
#[stepwell::task]
pub(crate) async fn saga(task: u32, ctx: TaskContext) -> TaskResult<()> {
    undoable(&ctx, task, "a").await?;
    tokio::try_join!(undoable(&ctx, task, "c"), undoable(&ctx, task, "b"))?;
    let clean = ctx.cleanup("clean", &task).await?;
    ctx.sleep_for("nap", 20 * MS).await?;
    undoable(&ctx, task, "d").await?;
    if task.is_multiple_of(2) {
        ctx.discard(&clean).await?;
    }
    match task % 3 {
        0 => Ok(()),
        1 => Err(TaskError::permanent(anyhow::anyhow!("it is lost"))),
        _ => ctx.await_event("never", None).await,
    }
}

pub(crate) async fn register(process: &Process, world: &Arc<World>) {
    process.register::<saga>().await.unwrap();
    let world = world.clone();
    let clean = move |task: u32| {
        let undone = &world.undone;
        undone.lock().unwrap().entry(format!("{task}/clean")).or_default().push(0);
        async { Ok(()) }
    };
    process.register_cleanup("clean", clean).await.unwrap();
}

/// What was begun since the task was last run anew, and how what was done is undone: names, with the outcomes.
fn last_era(journal: &[Entry]) -> (&[Entry], Vec<(&str, &Outcome)>) {
    let anew = |entry: &Entry| entry.key.kind == Kind::Attempt && matches!(entry.outcome, Outcome::Done(_));
    let era = journal.rsplit(anew).next().unwrap_or_default();
    split(era)
}

fn split(era: &[Entry]) -> (&[Entry], Vec<(&str, &Outcome)>) {
    let failed = era.iter().position(|entry| entry.key.kind == Kind::Compensating).unwrap_or(era.len());
    let ended = era[failed..].iter().filter(|entry| {
        entry.key.kind == Kind::Compensated && !matches!(entry.outcome, Outcome::Retrying { .. })
    });
    (&era[..failed], ended.map(|entry| (entry.key.name.as_str(), &entry.outcome)).collect())
}

/// All that a task did before it failed, or was cancelled, has been undone, in reverse order, each at least once and not
/// again when that was journaled.
pub(crate) async fn check(seed: u64, world: &World, task_id: TaskId) {
    let info = world.store.task(task_id).await.unwrap().unwrap();
    let task: u32 = info.params.decode().unwrap();
    let journal = world.store.journal(task_id).await.unwrap();
    let (ran, undone) = (world.ran.lock().unwrap(), world.undone.lock().unwrap());
    assert!(!undone.contains_key("again"), "seed {seed}: something was undone again: {journal:#?}");
    let anew = |entry: &Entry| entry.key.kind == Kind::Attempt && matches!(entry.outcome, Outcome::Done(_));
    for (number, era) in journal.split(anew).enumerate() {
        let (done, ended) = split(era);
        let mut recorded: Vec<&str> = Vec::new();
        let mut results: BTreeMap<&str, u64> = BTreeMap::new();
        for Entry { key, outcome, .. } in done {
            let name = key.name.as_str();
            match (key.kind, outcome) {
                (Kind::Compensate, _) => {
                    recorded.retain(|earlier| *earlier != name);
                    recorded.push(name);
                }
                (Kind::Compensated, _) => recorded.retain(|earlier| *earlier != name),
                (Kind::Step, Outcome::Done(nonce)) => _ = results.insert(name, nonce.decode().unwrap()),
                _ => {}
            }
        }
        recorded.retain(|name| *name == "clean" || results.contains_key(name));
        recorded.reverse();
        let completed = info.state == TaskState::Completed && number == journal.split(anew).count() - 1;
        let expected = if completed { Vec::new() } else { recorded };
        let names: Vec<_> = ended.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, expected, "seed {seed}: {info:#?} {journal:#?}");
        for (name, outcome) in ended {
            if let Outcome::Failed(failure) = outcome {
                assert_eq!(failure.message, "simulated", "seed {seed}: {journal:#?}");
            }
            let key = format!("{task}/{name}");
            let nonce = results.get(name).copied().unwrap_or_default();
            assert!(undone[&key].contains(&nonce), "seed {seed}: {key} was not undone: {journal:#?}");
            assert!(name == "clean" || ran[&key].contains(&nonce), "seed {seed}: {key}");
        }
    }
}
