//! Tests that a cancellation reaches all generations.

use stepwell_core::store::{Command, Finish};

use super::*;

fn family(generations: u128) -> Batch {
    spawns(
        (1..=generations)
            .map(|n| NewTask { parent: (n > 1).then(|| task_id(n - 1)), ..new_task(n) })
            .collect(),
    )
}

fn cancel() -> Batch {
    Batch { commands: vec![Command::Cancel(task_id(1))], ..Batch::default() }
}

#[test]
fn of_more_generations_than_a_thread_has_stack() {
    let store = wait(SqliteStore::open(Location::Memory, Manual::new())).unwrap();
    commit(&store, family(20_000));
    let finished = commit(&store, cancel()).news.finished;
    assert!(finished.iter().map(|(id, _)| *id).eq((1..=20_000).map(task_id)));
    assert!(finished.iter().all(|(_, finish)| *finish == Finish::Cancelled));
}
