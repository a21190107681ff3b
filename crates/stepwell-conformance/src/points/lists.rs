//! The points of lists of tasks.

use stepwell_core::store::{Command, Finish, NewTask, Next, TaskFilter, Wait};
use stepwell_core::{Page, Scope, TaskId, TaskInfo, TaskState};

use crate::backend::Backend;
use crate::make::*;
use crate::setup::Setup;

fn ids(tasks: &[TaskInfo]) -> Vec<TaskId> {
    tasks.iter().map(|task| task.task_id).collect()
}

/// Checks that lists hold the tasks that pass the filter, the newest first, one page at a time.
pub async fn lists(backend: &impl Backend) {
    let (_setup, store) = Setup::with_handle(backend).await;
    assert!(store.all().await.is_empty());
    assert!(store.find(1).await.is_none() && store.journal(1).await.is_empty());
    let tasks = (1..=24).rev().map(|n| NewTask {
        queue: name(if n % 2 == 0 { "even" } else { "queue" }),
        task_type: name(if n % 3 == 0 { "third" } else { "type" }),
        parent: (n > 12).then(|| task_id(n % 4)),
        ..new_task(n)
    });
    store.spawn(tasks).await;
    store.signal(register(1)).await;
    store.claim(1, 3).await;
    let all = store.all().await;
    assert_eq!(ids(&all), (1..=24).rev().map(task_id).collect::<Vec<_>>());
    for task in &all {
        let alone = store.0.task(task.task_id).await.unwrap();
        assert_eq!(format!("{alone:?}"), format!("{:?}", Some(task)), "listed and alone");
    }

    let states =
        [None, Some(TaskState::Pending), Some(TaskState::Running), Some(TaskState::Failed)];
    for state in states {
        for queue in [None, Some(name("even")), Some(name("none"))] {
            for task_type in [None, Some(name("third"))] {
                for parent in [None, Some(task_id(2)), Some(task_id(9))] {
                    let passes = |task: &&TaskInfo| {
                        state.is_none_or(|state| task.state == state)
                            && queue.as_ref().is_none_or(|queue| task.queue == *queue)
                            && task_type
                                .as_ref()
                                .is_none_or(|task_type| task.task_type == *task_type)
                            && parent.is_none_or(|parent| task.parent == Some(parent))
                    };
                    let expected: Vec<_> =
                        all.iter().filter(passes).map(|task| task.task_id).collect();
                    let (queue, task_type) = (queue.clone(), task_type.clone());
                    let mut filter = TaskFilter {
                        state,
                        queue,
                        task_type,
                        parent,
                        limit: 4,
                        ..TaskFilter::default()
                    };
                    let mut found = Vec::new();
                    loop {
                        let page = store.page(filter.clone()).await;
                        assert!(page.items.len() <= 4);
                        found.extend(ids(&page.items));
                        assert_eq!(page.next.is_some(), found.len() < expected.len(), "{filter:?}");
                        filter.before = page.next;
                        if filter.before.is_none() {
                            break;
                        }
                    }
                    assert_eq!(found, expected, "{filter:?}");
                }
            }
        }
    }
    let with_limit = |limit| TaskFilter { limit, ..TaskFilter::default() };
    let none = store.page(with_limit(0)).await;
    assert!(none.items.is_empty() && none.next.is_none());
    assert_eq!(store.list(with_limit(usize::MAX)).await.len(), 24);
    // A page begins after an id, whether a task has the id or not.
    let before = TaskFilter { before: Some(task_id(1_000)), ..with_limit(1) };
    assert_eq!(ids(&store.list(before).await), [task_id(24)]);
}

/// Checks that the ends of many tasks can be read at once.
pub async fn ends(backend: &impl Backend) {
    let (_setup, store) = Setup::with_handle(backend).await;
    let runs = store.run((1..=4).map(new_task)).await;
    store.next(runs[0], complete()).await;
    store.next(runs[1], Next::Fail(failure("no"))).await;
    store.command(Command::Cancel(task_id(3))).await;
    store.next(runs[2], Next::Cancel).await;
    let asked = [4, 9, 3, 2, 1].map(task_id);
    let ends = store.0.ends(asked.to_vec()).await.unwrap();
    let expected = [
        (task_id(1), complete().finish()),
        (task_id(2), Some(Finish::Failed(failure("no")))),
        (task_id(3), Some(Finish::Cancelled)),
        (task_id(4), None),
    ];
    assert_eq!(
        ends.items, expected,
        "one that is not there is left out, and the others come by their ids"
    );
    assert_eq!(ends.next, None);
    assert_eq!(store.0.ends(Vec::new()).await.unwrap(), Page::default());
}

/// Checks that waits can be read by the beginnings of their targets, some tasks at a time.
pub async fn waits(backend: &impl Backend) {
    let (setup, store) = Setup::with_handle(backend).await;
    let runs = store.run((1..=4).map(new_task)).await;
    let due = |text: &str| Wait { due_at: Some(setup.at(SECOND)), ..for_event(text) };
    store
        .apply(awaiting(runs[0], [due("a/b"), for_event("a/a"), for_event("b/a")], GO_ON))
        .await
        .unwrap();
    store
        .apply(awaiting(runs[1], [for_event("a/\u{10fffe}"), for_message("a/m", 1)], SUSPEND))
        .await
        .unwrap();
    store
        .apply(awaiting(runs[2], [for_event("A/a"), for_event("a"), for_event("a%")], SUSPEND))
        .await
        .unwrap();
    store.apply(awaiting(runs[3], [for_event("a/z")], SUSPEND)).await.unwrap();
    let waits = async |prefix: &str, behind: Option<u128>, limit| {
        store.0.waits(Scope::default(), prefix.into(), behind.map(task_id), limit).await.unwrap()
    };
    let first = (task_id(1), vec![for_event("a/a"), due("a/b")]);
    let second = (task_id(2), vec![for_event("a/\u{10fffe}"), for_message("a/m", 1)]);
    let fourth = (task_id(4), vec![for_event("a/z")]);
    let page = |items, next: Option<u128>| Page { items, next: next.map(task_id) };
    assert_eq!(
        waits("a/", None, 9).await,
        page(vec![first.clone(), second.clone(), fourth.clone()], None)
    );
    assert_eq!(waits("a/", None, 1).await, page(vec![first], Some(1)), "all of a task, or nothing");
    assert_eq!(waits("a/", Some(1), 1).await, page(vec![second], Some(2)));
    assert_eq!(waits("a/", Some(2), 9).await, page(vec![fourth], None));
    assert_eq!(waits("a%", None, 9).await, page(vec![(task_id(3), vec![for_event("a%")])], None));
    assert_eq!(waits("c", None, 9).await, Page::default());
}

/// Checks that tasks are found by their labels, which are the headers whose values are texts.
pub async fn labels(backend: &impl Backend) {
    let (_setup, store) = Setup::with_handle(backend).await;
    let labelled = |n: u128, labels: &[(&str, &str)]| NewTask {
        headers: labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).into())).collect(),
        ..new_task(n)
    };
    let (odd, nul) = (("a \"b\" ü", "c \\ 'd' %_"), ("nul", "a\0b"));
    let (name, value) = ("n".repeat(512), "ü".repeat(256));
    let long = (name.as_str(), value.as_str());
    let too_long = value.clone() + "x";
    store
        .spawn([
            labelled(1, &[("tenant", "a"), ("kind", "x")]),
            labelled(2, &[("tenant", "b"), ("kind", "x")]),
            labelled(3, &[("tenant", "ab")]),
            labelled(4, &[odd, ("tenant", "a"), nul, ("", "empty")]),
            labelled(
                5,
                &[("a", "tenant"), long, ("long", &too_long), ("traceparent", "00-1-2-01")],
            ),
        ])
        .await;
    let found = async |labels: &[(&str, &str)], state| {
        let labels =
            labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        ids(&store.list(TaskFilter { labels, state, ..TaskFilter::default() }).await)
    };
    assert_eq!(found(&[("tenant", "a")], None).await, [4, 1].map(task_id));
    assert_eq!(
        found(&[("tenant", "a"), ("kind", "x")], Some(TaskState::Pending)).await,
        [task_id(1)]
    );
    assert_eq!(found(&[("kind", "x"), ("tenant", "ab")], None).await, []);
    assert_eq!(found(&[odd], None).await, [task_id(4)]);
    assert_eq!(found(&[long], None).await, [task_id(5)]);
    for none in [nul, ("", "empty"), ("long", &too_long), ("traceparent", "00-1-2-01")] {
        assert_eq!(found(&[none], None).await, [], "{none:?} is no label");
        assert_eq!(found(&[("tenant", "a"), none], None).await, [], "{none:?} is no label");
    }
}
