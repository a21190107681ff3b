//! The points of idempotency keys: of the tasks of one type with the same key, only the first is
//! spawned.

use stepwell_core::TaskId;
use stepwell_core::store::{Command, NewTask, Spawned, Transition};

use crate::backend::Backend;
use crate::handle::of;
use crate::make::*;
use crate::setup::{Setup, rounds, together};

const CREATED: Spawned = Spawned::Created { claimed: false };

/// Checks that the first task with a key is spawned, and that other spawns return that task until
/// it is deleted.
pub async fn idempotency_keys(backend: &impl Backend) {
    let (setup, store) = Setup::with_handle(backend).await;
    store.signal(register(1)).await;
    assert_eq!(store.spawn([with_key("key", 1)]).await, [CREATED]);
    let existing = |run_id, attempt| Spawned::Existing { task_id: task_id(1), run_id, attempt };
    assert_eq!(store.spawn([with_key("key", 2)]).await, [existing(run_id(1), 0)]);
    let of_type =
        |n| NewTask { task_type: name("other"), queue: name("other"), ..with_key("key", n) };
    assert_eq!(
        store.spawn([of_type(3), with_key("Key", 4), new_task(5), new_task(6)]).await,
        [CREATED; 4]
    );
    let elsewhere = NewTask { queue: name("elsewhere"), params: json("2"), ..with_key("key", 7) };
    assert_eq!(
        store.spawn([elsewhere]).await,
        [existing(run_id(1), 0)],
        "the key is its type's, whatever else differs"
    );

    let first = store.claim(1, 1).await.remove(0);
    assert_eq!(store.spawn([with_key("key", 8)]).await, [existing(first.run_id, 1)]);
    store.next(of(&first), complete()).await;
    setup.advance(SECOND * 1_000_000);
    let ended = [existing(first.run_id, 1)];
    assert_eq!(store.spawn([with_key("key", 9)]).await, ended, "an end does not free the key");
    store.command(Command::Delete(task_id(1))).await;
    assert_eq!(store.spawn([with_key("key", 10), with_key("key", 11)]).await[0], CREATED);
    for n in [2, 7, 8, 9, 11] {
        assert!(store.find(n).await.is_none(), "task {n} was spawned");
    }
    assert_eq!(store.info(10).await.idempotency_key, Some(name("key")));

    // A child that exists already is not spawned again, and the rest of its transition stands.
    let parent = store.run_one(20).await;
    let mut spawning = Transition::new(parent.0, parent.1, complete());
    spawning.spawns =
        vec![NewTask { parent: Some(parent.0), ..with_key("key", 21) }, child_of(20, 22)];
    store.apply(spawning).await.unwrap();
    assert!(store.find(21).await.is_none() && store.find(22).await.is_some());
}

/// Checks many handles that spawn the same keys at the same time, some of them within transitions.
/// Each key has one task, which all spawns return.
pub async fn idempotency_races(backend: &impl Backend) {
    let setup = Setup::new(backend).await;
    let handles = setup.handles(4).await;
    for round in rounds() {
        let keys = [0, 1, 2].map(|n| format!("round {round}, key {n}"));
        let first = 1_000 * (round + 1);
        let parent = handles[0].run_one(first).await;
        let racing = (0..8).zip(handles.iter().cycle()).map(|(n, store)| {
            let (store, mut keys) = (store.clone(), keys.clone());
            // The orders are opposite, because stores that lock what they find could then block
            // each other.
            if n % 2 == 1 {
                keys.reverse();
            }
            async move {
                let mut new: Vec<_> = keys
                    .iter()
                    .zip(first + 10 * n + 10..)
                    .map(|(key, n)| with_key(key, n))
                    .collect();
                if n == 7 {
                    let mut spawning = Transition::new(parent.0, parent.1, GO_ON);
                    spawning.spawns = new;
                    store.apply(spawning).await.unwrap();
                    return Vec::new();
                }
                let ids: Vec<_> = new.iter().map(|task| task.task_id).collect();
                let spawned = store.spawn(std::mem::take(&mut new)).await;
                let mut got: Vec<(TaskId, bool)> = spawned
                    .into_iter()
                    .zip(ids)
                    .map(|(spawned, id)| match spawned {
                        Spawned::Created { .. } => (id, true),
                        Spawned::Existing { task_id, .. } | Spawned::Waiting { task_id, .. } => {
                            (task_id, false)
                        }
                    })
                    .collect();
                if n % 2 == 1 {
                    got.reverse();
                }
                got
            }
        });
        let results = together(racing).await;
        let all = handles[0].all().await;
        for (n, key) in keys.iter().enumerate() {
            let key = name(key);
            let tasks: Vec<_> =
                all.iter().filter(|task| task.idempotency_key.as_ref() == Some(&key)).collect();
            assert_eq!(tasks.len(), 1, "{key} has several tasks, or none: {tasks:#?}");
            let answers: Vec<_> = results.iter().filter_map(|got| got.get(n)).collect();
            for (id, _) in &answers {
                assert_eq!(
                    *id, tasks[0].task_id,
                    "{key}: someone got another task than the one that is there"
                );
            }
            assert!(
                answers.iter().filter(|(_, created)| *created).count() <= 1,
                "{key} was created twice"
            );
        }
    }
}
