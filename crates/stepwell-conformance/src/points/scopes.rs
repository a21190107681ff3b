//! The points of scopes: separate keys, and lists that hold nothing of other scopes.

use stepwell_core::store::{Command, NewTask, Next, Purge, Spawned, TaskFilter, Transition};
use stepwell_core::{Coalesce, Headers, RunId, Scope, TaskId, TaskInfo, TaskRecord, TaskState};

use crate::backend::Backend;
use crate::handle::{Handle, of};
use crate::make::*;
use crate::setup::Setup;

const CREATED: Spawned = Spawned::Created { claimed: false };

/// Returns scopes that a store might mistake for each other, as concatenated texts or as patterns.
/// The last ones are too long for an index.
fn scopes() -> Vec<Scope> {
    let all = Scope::default();
    let long = |end: &str| all.clone().label("x".repeat(500), "y".repeat(500) + end);
    vec![
        all.clone(),
        all.clone().queue(name("acme")),
        all.clone().label("tenant", "acme"),
        all.clone().label("tenant", "acme/billing"),
        all.clone().label("tenant/acme", "billing"),
        all.clone().label("queue", "acme"),
        all.clone().label("tenant", "acme").label("a", "b"),
        all.clone().label("tenant", "a%me").label("\"a\":\"", "',{}\\ü"),
        all.clone().queue(name("acme")).label("tenant", "acme"),
        long("1"),
        long("2"),
    ]
}

/// Returns a task of a scope, with its labels, in a queue that the tests claim from.
fn in_scope(scope: &Scope, n: u128) -> NewTask {
    let labels = scope.labels().iter().map(|(name, value)| (name.clone(), value.clone().into()));
    NewTask { scope: scope.clone(), headers: labels.collect(), ..new_task(n) }
}

fn places() -> Vec<(u128, Scope)> {
    (1..).zip(scopes()).collect()
}

/// Checks that equal keys are different keys in each scope: idempotency keys, concurrency keys, and
/// the keys of spawns that coalesce.
pub async fn keys_of_scopes(backend: &impl Backend) {
    let (_setup, store) = Setup::with_handle(backend).await;
    store.signal(register(1)).await;
    for key in ["key", "acme/key", "billing/key"] {
        let keyed = |(n, scope): &(u128, Scope), round: u128| NewTask {
            idempotency_key: Some(name(key)),
            task_type: name(key),
            ..in_scope(scope, n + round * 100)
        };
        let first: Vec<_> = places().iter().map(|place| keyed(place, 1)).collect();
        let tasks: Vec<_> = first.iter().map(|task| (task.task_id, task.run_id)).collect();
        assert!(
            store.spawn(first.clone()).await.iter().all(|spawned| *spawned == CREATED),
            "{key}"
        );
        let again = store.spawn(places().iter().map(|place| keyed(place, 2))).await;
        let own = tasks.iter().map(|(task_id, run_id)| Spawned::Existing {
            task_id: *task_id,
            run_id: *run_id,
            attempt: 0,
        });
        assert_eq!(again, own.collect::<Vec<_>>(), "each gets the one of its own scope");
        // A deletion frees the key in its own scope, and in no other.
        store.command(Command::Cancel(tasks[2].0)).await;
        store.command(Command::Delete(tasks[2].0)).await;
        let third = store.spawn(places().iter().map(|place| keyed(place, 3))).await;
        let created: Vec<_> = (0..).zip(third).filter(|(_, spawned)| *spawned == CREATED).collect();
        assert_eq!(created, [(2, CREATED)]);
        for task in store.all().await {
            store.command(Command::Cancel(task.task_id)).await;
            store.command(Command::Delete(task.task_id)).await;
        }
    }
    children_have_keys_of_their_scope(&store).await;
}

async fn children_have_keys_of_their_scope(store: &Handle) {
    let parent = store.run_one(1).await;
    let keyed = |(n, scope): &(u128, Scope)| NewTask {
        idempotency_key: Some(name("key")),
        parent: Some(parent.0),
        ..in_scope(scope, n + 10)
    };
    let mut spawning = Transition::new(parent.0, parent.1, complete());
    spawning.spawns = places().iter().map(keyed).collect();
    store.apply(spawning).await.unwrap();
    assert_eq!(store.count(TaskState::Pending).await, places().len());
}

/// Checks that a task waits for the tasks of its own scope with its concurrency key, and coalesces
/// with no other.
pub async fn turns_of_scopes(backend: &impl Backend) {
    let (_setup, store) = Setup::with_handle(backend).await;
    store.signal(register(1)).await;
    let keyed = |(n, scope): &(u128, Scope), round: u128, coalesce| NewTask {
        concurrency_key: Some(name("key")),
        coalesce,
        ..in_scope(scope, n + round * 100)
    };
    let ids =
        |round: u128| places().iter().map(|(n, _)| task_id(n + round * 100)).collect::<Vec<_>>();
    store.spawn(places().iter().map(|place| keyed(place, 1, None))).await;
    store.spawn(places().iter().map(|place| keyed(place, 2, None))).await;
    let waiting =
        store.spawn(places().iter().map(|place| keyed(place, 3, Some(Coalesce::Reuse)))).await;
    for (spawned, own) in waiting.iter().zip(ids(2)) {
        assert!(
            matches!(spawned, Spawned::Waiting { task_id, .. } if *task_id == own),
            "{spawned:?}"
        );
    }
    let running = store.claim(1, 100).await;
    assert_eq!(
        running.iter().map(|task| task.task_id).collect::<Vec<_>>(),
        ids(1),
        "the first of each"
    );
    let scopes: Vec<_> = running.iter().map(|task| task.scope.clone()).collect();
    assert_eq!(scopes, self::scopes(), "a claim tells the scope");

    // The tasks of one scope are replaced.
    let (place, others) = (&places()[2], TaskState::Pending);
    store.spawn([keyed(place, 4, Some(Coalesce::Replace))]).await;
    assert_eq!(store.state(place.0 + 200).await, TaskState::Cancelled);
    assert_eq!(store.count(others).await, places().len());
    // The end of a task lets the next one of its scope start.
    let failed = &running[3];
    store.next(of(failed), Next::Fail(failure("no"))).await;
    assert_eq!(store.claim_one(1).await.task_id, task_id(4 + 200));
    // A retried task waits for its own scope again.
    store.command(Command::Retry(failed.task_id)).await;
    assert!(store.claim(1, 100).await.is_empty());
    store.next(of(&running[2]), complete()).await;
    assert_eq!(store.claim_one(1).await.task_id, task_id(3 + 400));

    // The same holds in another store.
    let (_other_setup, other) = Setup::with_handle(backend).await;
    other.signal(register(1)).await;
    for n in ids(1).into_iter().chain(ids(2)) {
        let info = store.0.task(n).await.unwrap().unwrap();
        if !info.state.is_finished() {
            let (journal, waits, messages, needs) = Default::default();
            let record = TaskRecord { info, journal, waits, messages, needs };
            assert!(other.0.import(record).await.unwrap());
        }
    }
    let claimed = other.claim(1, 100).await;
    // The tasks of the third scope have ended.
    assert_eq!(claimed.len(), places().len() - 1);
    assert!(claimed.windows(2).all(|pair| pair[0].scope != pair[1].scope));
}

fn ids(tasks: &[TaskInfo]) -> Vec<TaskId> {
    tasks.iter().map(|task| task.task_id).collect()
}

/// Returns the headers in a JSON text.
fn headers(text: &str) -> Headers {
    json(text).decode().unwrap()
}

/// Returns tasks of all scopes, and tasks that only resemble tasks of scopes.
fn resembling() -> Vec<NewTask> {
    let queue = |queue: &str, task| NewTask { queue: name(queue), ..task };
    let acme = headers(r#"{ "tenant": "acme", "a": "b" }"#);
    let mut tasks: Vec<_> = places().iter().map(|(n, scope)| in_scope(scope, *n)).collect();
    // These tasks have the labels of other scopes, in their own scopes.
    tasks.extend((101..).zip(scopes()).map(|(n, scope)| NewTask {
        headers: acme.clone().into_iter().chain(in_scope(&scope, 1).headers).collect(),
        ..queue("acme", in_scope(&scope, n))
    }));
    // These are the application's own tasks, and tasks that only resemble them.
    tasks.extend([
        queue("acme", new_task(201)),
        NewTask { headers: acme.clone(), ..new_task(202) },
        NewTask { headers: acme.clone(), ..queue("acme", new_task(203)) },
        NewTask { headers: headers(r#"{ "x": { "tenant": "acme" } }"#), ..new_task(204) },
        NewTask { headers: headers(r#"{ "x": "\"tenant\":\"acme\"" }"#), ..new_task(205) },
        NewTask { headers: headers(r#"{ "tenant": ["acme"] }"#), ..new_task(206) },
        NewTask { headers: headers(r#"{ "tenant": "acme " }"#), ..new_task(207) },
    ]);
    tasks
}

/// Checks that a scope's lists hold the tasks of the scopes within it, and the application's own
/// tasks with its queue and labels. The newest come first, one page at a time, in each state.
pub async fn lists_of_scopes(backend: &impl Backend) {
    let (setup, store) = Setup::with_handle(backend).await;
    let tasks = resembling();
    let runs = store.run(tasks.clone()).await;
    for (n, (task, run)) in (0..).zip(tasks.iter().zip(&runs)) {
        match n % 3 {
            0 => _ = store.next(*run, complete()).await,
            1 => {
                _ = store
                    .apply(awaiting(*run, [for_event(&format!("e/{}", task.task_id))], SUSPEND))
                    .await;
            }
            _ => {}
        }
    }
    let all = store.all().await;
    assert_eq!(all.len(), tasks.len());
    for scope in
        scopes().into_iter().chain([Scope::default().label("nul\0", "x").label("tenant", "acme")])
    {
        let within: Vec<_> = all
            .iter()
            .filter(|task| scope.has(&task.queue, &task.headers, &task.scope))
            .cloned()
            .collect();
        lists_by_state(&store, &scope, &within).await;
        waits_of_a_scope(&store, &scope, &within).await;
    }
    lists_by_label(&store).await;
    labels_go_with_their_tasks(&setup, &store, &runs).await;
}

/// Checks that the lists of a scope hold the tasks within it, in each state.
async fn lists_by_state(store: &Handle, scope: &Scope, within: &[TaskInfo]) {
    for state in
        [None, Some(TaskState::Completed), Some(TaskState::Suspended), Some(TaskState::Running)]
    {
        let expected: Vec<_> = within
            .iter()
            .filter(|task| state.is_none_or(|state| task.state == state))
            .cloned()
            .collect();
        let filter =
            TaskFilter { scope: scope.clone(), state, limit: 1_000, ..TaskFilter::default() };
        assert_eq!(ids(&store.list(filter.clone()).await), ids(&expected), "{scope:?} {state:?}");
        let (mut paged, mut before) = (Vec::new(), None);
        loop {
            let page = store.page(TaskFilter { before, limit: 3, ..filter.clone() }).await;
            assert!(page.items.len() <= 3);
            before = page.next;
            paged.extend(ids(&page.items));
            if before.is_none() {
                break;
            }
        }
        assert_eq!(paged, ids(&expected), "page by page: {scope:?} {state:?}");
    }
}

/// Checks that the waits of a scope are those of the suspended tasks within it.
async fn waits_of_a_scope(store: &Handle, scope: &Scope, within: &[TaskInfo]) {
    let waiting = within.iter().rev().filter(|task| task.state == TaskState::Suspended);
    let waiting: Vec<_> = waiting.map(|task| task.task_id).collect();
    let waits = store.0.waits(scope.clone(), "e/".into(), None, 1_000).await.unwrap();
    assert_eq!(waits.items.iter().map(|(task, _)| *task).collect::<Vec<_>>(), waiting, "{scope:?}");
    let first =
        store.0.waits(scope.clone(), "e/".into(), waiting.first().copied(), 1).await.unwrap();
    assert_eq!(first.items.first().map(|(task, _)| *task), waiting.get(1).copied(), "{scope:?}");
}

/// Returns the filter for the tasks of a tenant.
fn of_tenant() -> TaskFilter {
    TaskFilter { scope: scopes()[2].clone(), ..TaskFilter::default() }
}

/// Checks that a filter by labels narrows a scope, and does not leave it.
async fn lists_by_label(store: &Handle) {
    let tenant = of_tenant();
    let found = ids(&store.list(tenant.clone()).await);
    for (n, within) in
        [(3, true), (7, true), (4, false), (102, false), (103, true), (202, true), (204, false)]
    {
        assert_eq!(found.contains(&task_id(n)), within, "task {n}");
    }
    let narrower =
        TaskFilter { labels: [("a".to_owned(), "b".to_owned())].into(), ..tenant.clone() };
    assert!(store.list(narrower).await.iter().all(|task| task.headers["a"] == "b"));
    let elsewhere =
        TaskFilter { labels: [("tenant".to_owned(), "b".to_owned())].into(), ..tenant.clone() };
    assert_eq!(ids(&store.list(elsewhere).await), []);
}

/// Checks that labels are removed with their tasks, and are imported with them.
async fn labels_go_with_their_tasks(
    setup: &Setup<'_, impl Backend>,
    store: &Handle,
    runs: &[(TaskId, RunId)],
) {
    let record = |info| TaskRecord {
        info,
        journal: Vec::new(),
        waits: Vec::new(),
        messages: Vec::new(),
        needs: Vec::new(),
    };
    let moved = store.info(202).await;
    setup.advance(SECOND);
    for run in runs {
        let _ = store.apply(Transition::new(run.0, run.1, complete())).await;
    }
    for task in store.list_of(TaskState::Suspended).await {
        store.command(Command::Cancel(task.task_id)).await;
    }
    setup.advance(SECOND);
    while store.0.purge(Purge { before: setup.now(), state: None, limit: 10 }).await.unwrap() > 0 {}
    assert_eq!(ids(&store.list(of_tenant()).await), []);
    assert!(store.0.import(record(moved)).await.unwrap());
    assert_eq!(ids(&store.list(of_tenant()).await), [task_id(202)]);
}
