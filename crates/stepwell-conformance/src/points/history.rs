//! The points of the history, and of the descriptions of task types.

use stepwell_core::store::{Command, Happening, HistoryFilter, Purge};
use stepwell_core::{TaskTypeInfo, from_micros};

use crate::backend::Backend;
use crate::handle::Handle;
use crate::make::*;
use crate::setup::{Setup, together};

fn happening(task: u128, text: &str) -> Happening {
    Happening {
        task_id: task_id(task),
        at: from_micros(1_700_000_000_000_001),
        name: name("task:odd \u{1f682}"),
        event: json(text),
    }
}

async fn read(
    store: &Handle,
    task: Option<u128>,
    after: u64,
    limit: usize,
) -> Vec<(u64, Happening)> {
    let which = HistoryFilter { task_id: task.map(task_id), after, limit };
    store.0.history(which).await.unwrap().items
}

/// Checks that the history is read in the order in which it was recorded, of all tasks or of one,
/// from any place on. The history of a task is removed with the task.
pub async fn histories(backend: &impl Backend) {
    let (setup, store) = Setup::with_handle(backend).await;
    let runs = store.run((1..=3).map(new_task)).await;
    let all = [
        happening(1, "1"),
        happening(2, "\"\\u0000 'x\""),
        happening(1, "{\"a\": 2}"),
        happening(3, "4"),
    ];
    store.0.record(all[..2].to_vec()).await.unwrap();
    store.0.record(all[2..].to_vec()).await.unwrap();
    store.0.record(Vec::new()).await.unwrap();
    let there = read(&store, None, 0, 9).await;
    assert_eq!(there.iter().map(|(_, happening)| happening.clone()).collect::<Vec<_>>(), all);
    assert!(there.windows(2).all(|pair| pair[0].0 < pair[1].0) && there[0].0 > 0, "{there:?}");
    assert_eq!(read(&store, None, there[0].0, 2).await, there[1..3]);
    assert_eq!(read(&store, Some(1), 0, 9).await, [there[0].clone(), there[2].clone()]);
    assert_eq!(read(&store, Some(1), there[0].0, 9).await, there[2..3]);
    assert_eq!(read(&store, None, there[3].0, 9).await, []);
    assert_eq!(read(&store, None, u64::MAX, 9).await, []);

    for run in runs {
        store.next(run, complete()).await;
    }
    store.command(Command::Delete(task_id(3))).await;
    assert_eq!(read(&store, None, 0, 9).await, there[..3]);
    setup.advance(SECOND);
    store.0.purge(Purge { before: setup.now(), state: None, limit: 1 }).await.unwrap();
    assert_eq!(read(&store, None, 0, 9).await, there[1..2]);
    store.0.record(vec![happening(2, "5")]).await.unwrap();
    let after = read(&store, None, there[3].0, 9).await;
    assert_eq!(after.len(), 1, "no number is given again");
}

/// Checks that a reader that goes on after its last number misses nothing while many handles write.
pub async fn histories_of_many(backend: &impl Backend) {
    let setup = Setup::new(backend).await;
    let handles = setup.handles(4).await;
    handles[0].spawn([new_task(1)]).await;
    let writing = handles.iter().cloned().map(|store| async move {
        for n in 0..20 {
            store.0.record(vec![happening(1, &n.to_string()), happening(1, "true")]).await.unwrap();
        }
    });
    let reader = handles[0].clone();
    let reading = tokio::spawn(async move {
        let mut seen = Vec::new();
        while seen.len() < 160 {
            let after = seen.last().map_or(0, |(id, _)| *id);
            seen.extend(read(&reader, None, after, 7).await);
            tokio::task::yield_now().await;
        }
        seen
    });
    together(writing).await;
    let seen = reading.await.unwrap();
    assert_eq!(seen, read(&handles[0], None, 0, 1_000).await);
}

/// Checks that the descriptions of task types are kept, the last of each, in the order of their
/// names.
pub async fn task_types(backend: &impl Backend) {
    let (_setup, store) = Setup::with_handle(backend).await;
    assert_eq!(store.0.task_types().await.unwrap(), []);
    let info = |text: &str, params: &str| TaskTypeInfo {
        task_type: name(text),
        params: json(params).decode().unwrap(),
        output: json("{\"title\": \"\\u0000 'x\"}").decode().unwrap(),
    };
    for described in
        [info("b", "true"), info("a b", "{}"), info("b", "{\"minimum\": 1}"), info("B", "true")]
    {
        store.0.describe(described).await.unwrap();
    }
    let types = [info("B", "true"), info("a b", "{}"), info("b", "{\"minimum\": 1}")];
    assert_eq!(store.0.task_types().await.unwrap(), types);
}
