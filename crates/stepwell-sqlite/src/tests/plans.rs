//! Tests that frequent statements read few rows, however many tasks have ended.

use stepwell_core::store::{Facts, NewEvent, NewMessage, Purge, TaskFilter, TaskState, Wait};

use super::*;
use crate::apply::{
    circles, claim, intake, limits, purge, states, transition as fence, waits, workers,
};
use crate::read::query::From;
use crate::read::{history, labels, query, schedules};

/// The purge reads the tasks that were spawned before the limit, and for each at most one row of
/// three other tables.
#[test]
fn purging_looks_up_who_needs_a_task() {
    let store = wait(SqliteStore::open(Location::Memory, Manual::new())).unwrap();
    on_writer(&store, |conn| {
        let plan = plan(conn, purge::FINISHED);
        for look in [
            "SEARCH task USING INDEX sqlite_autoindex_stepwell_tasks_1 (task_id<?)",
            "SEARCH parent USING INDEX sqlite_autoindex_stepwell_tasks_1 (task_id=?)",
            "SEARCH wait USING COVERING INDEX stepwell_waits_target (target=?",
            "SEARCH need USING PRIMARY KEY (task_id=?)",
            "SEARCH other USING INDEX sqlite_autoindex_stepwell_tasks_1 (task_id=?)",
        ] {
            assert!(plan.contains(look), "{plan}");
        }
        assert!(!plan.contains("FOR ORDER BY"), "{plan}");
    });
}

/// Returns the number of instructions of SQLite's machine for some work.
fn steps<T: Send + 'static>(
    store: &SqliteStore,
    work: impl FnOnce(&Connection) -> T + Send + 'static,
) -> (u64, T) {
    on_writer(store, |conn| {
        let steps = Arc::new(AtomicU64::new(0));
        let counter = steps.clone();
        let count = move || {
            counter.fetch_add(1, Ordering::SeqCst);
            false
        };
        conn.progress_handler(1, Some(count)).unwrap();
        let done = work(conn);
        conn.progress_handler(0, None::<fn() -> bool>).unwrap();
        (steps.load(Ordering::SeqCst), done)
    })
}

#[test]
fn what_others_put_into_headers_is_not_in_the_way_of_a_scopes_lists() {
    let store = wait(SqliteStore::open(Location::Memory, Manual::new())).unwrap();
    let acme = Scope::default().label("tenant", "acme");
    let headers = Headers::from([("tenant".into(), "acme".into())]);
    let others = Scope::default().queue(name("queue"));
    let queued =
        NewTask { scope: Scope::default().queue(name("own")), queue: name("own"), ..new_task(2) };
    let mut tasks = vec![
        NewTask { scope: acme.clone(), headers: headers.clone(), ..new_task(1) },
        queued.clone(),
    ];
    tasks.push(NewTask {
        scope: Scope::default(),
        ..NewTask { task_id: task_id(3), ..queued.clone() }
    });
    tasks.extend((10..2_000).map(|n| {
        let queue = name(if n % 2 == 0 { "queue" } else { "own" });
        let scope = if n % 2 == 0 { others.clone() } else { others.clone().label("a", "b") };
        NewTask { scope, queue, headers: headers.clone(), ..new_task(n) }
    }));
    commit(&store, spawns(tasks));
    for (scope, theirs) in [(acme, [1].as_slice()), (queued.scope, &[3, 2])] {
        let filter = TaskFilter { scope, ..TaskFilter::default() };
        let (steps, found) = steps(&store, move |conn| query::tasks(conn, &filter).unwrap());
        assert_eq!(
            found.items.iter().map(|task| task.task_id).collect::<Vec<_>>(),
            theirs.iter().map(|n| task_id(*n)).collect::<Vec<_>>()
        );
        assert!(steps < 1_000, "{steps}");
    }
}

#[test]
fn a_list_by_two_labels_reads_the_tasks_of_the_rarer() {
    let store = wait(SqliteStore::open(Location::Memory, Manual::new())).unwrap();
    let has = |label: &str| (label.to_owned(), "yes".to_owned());
    let common = |n| NewTask { headers: [("common".into(), "yes".into())].into(), ..new_task(n) };
    let mut tasks: Vec<_> = (1..=5_000).map(common).collect();
    tasks[2_499].headers.insert("rare".into(), "yes".into());
    commit(&store, spawns(tasks));
    let filter =
        TaskFilter { labels: [has("common"), has("rare")].into(), ..TaskFilter::default() };
    let (steps, found) = steps(&store, move |conn| query::tasks(conn, &filter).unwrap());
    assert_eq!(found.items.iter().map(|task| task.task_id).collect::<Vec<_>>(), [task_id(2_500)]);
    // The list counts at most 1,000 tasks of each label, and does not read all tasks of the common
    // one.
    assert!(steps < 20_000, "{steps}");
}

#[test]
fn a_purge_looks_at_no_task_that_was_spawned_later() {
    let store = wait(SqliteStore::open(Location::Memory, Manual::new())).unwrap();
    let at = |hour: i64| from_micros(START + hour * 3_600_000_000);
    let id = |hour, n: u64| -> TaskId {
        let millis = u64::try_from(at(hour).as_millisecond()).unwrap();
        let random = [n.to_be_bytes().as_slice(), &[0, 0]].concat().try_into().unwrap();
        uuid::Builder::from_unix_timestamp_millis(millis, &random).into_uuid().into()
    };
    commit(&store, register(1));
    let mut tasks = vec![NewTask { task_id: id(0, 1), ..new_task(1) }];
    tasks.extend((0..2_000).map(|n| NewTask { task_id: id(2, n), ..new_task(10 + u128::from(n)) }));
    commit(&store, spawns(tasks));
    let ended = at(1).as_microsecond();
    on_writer(&store, move |conn| {
        conn.execute("UPDATE stepwell_tasks SET state = 'completed', finished_at = ?1", [ended])
            .unwrap();
        conn.execute(
            "UPDATE stepwell_tasks SET finished_at = ?1 WHERE rowid > 1",
            [ended + 7_200_000_000],
        )
        .unwrap();
    });
    let (steps, found) = steps(&store, move |conn| {
        let found = |before| purge::find(conn, &Purge { before, state: None, limit: 100 }).unwrap();
        [found(at(1)), found(from_micros(at(1).as_microsecond() + 1))]
    });
    assert_eq!(found, [vec![], vec![id(0, 1)]]);
    assert!(steps < 1_000, "{steps}");
}

/// Returns the number of instructions of SQLite's machine for some batches.
fn steps_of(store: &SqliteStore, work: impl FnOnce()) -> u64 {
    let steps = Arc::new(AtomicU64::new(0));
    let counter = steps.clone();
    on_writer(store, move |conn| {
        let count = move || {
            counter.fetch_add(1, Ordering::SeqCst);
            false
        };
        conn.progress_handler(1, Some(count)).unwrap();
    });
    work();
    on_writer(store, |conn| conn.progress_handler(0, None::<fn() -> bool>).unwrap());
    steps.load(Ordering::SeqCst)
}

/// Returns the number of instructions from the first fulfilled wait of a task, of several, until
/// the task is suspended again.
fn steps_of_a_wake_up(kind: Kind, waits: u32, messages: u32) -> u64 {
    let store = wait(SqliteStore::open(Location::Memory, Manual::new())).unwrap();
    commit(&store, register(1));
    let task = NewTask { claim_by: Some(worker_id(1)), ..new_task(1) };
    let own = |next| transition(task.task_id, task.run_id, next);
    commit(&store, spawns(vec![task.clone()]));
    let target =
        |n: u32| name(&if kind == Kind::Message { "topic".into() } else { format!("event {n}") });
    let keys: Vec<_> = (1..=waits)
        .map(|n| Key { kind, name: target(n), ordinal: if kind == Kind::Message { n } else { 1 } })
        .collect();
    let wait = |key: &Key| Wait { key: key.clone(), target: Some(key.name.clone()), due_at: None };
    let suspend = Next::Suspend { wake_at: None };
    let begins =
        Transition { waits_added: keys.iter().map(wait).collect(), ..own(suspend.clone()) };
    let begun = commit(&store, transitions(vec![begins]));
    assert!(begun.transitions[0].as_ref().unwrap().suspended);
    let message = NewMessage { task_id: task.task_id, topic: target(1), payload: json("1") };
    let event = NewEvent { name: target(1), queue: None, payload: json("1") };
    let brings = match kind {
        Kind::Message => Batch { messages: vec![message; messages as usize], ..Batch::default() },
        _ => Batch { events: vec![event], ..Batch::default() },
    };
    let mut brings = Some(brings);
    if messages > 1 {
        commit(&store, brings.take().unwrap());
    }
    steps_of(&store, || {
        if let Some(brings) = brings {
            commit(&store, brings);
        }
        let claimed = claimed(commit(&store, claim(1, 1)));
        let Facts { events, messages: received, .. } = &claimed[0].facts;
        assert_eq!(events.len() + received.len(), 1);
        assert!(claimed[0].journal.is_none() && claimed[0].waits.is_empty());
        let received = received.iter().map(|message| message.id).collect();
        let waits_removed = vec![keys[0].clone()];
        let goes_on = Transition { received, waits_removed, ..own(suspend) };
        let applied = commit(&store, transitions(vec![goes_on])).transitions.remove(0).unwrap();
        assert!(applied.suspended, "{applied:?}");
    })
}

#[test]
fn a_wake_up_reads_what_has_arrived_and_no_other_wait() {
    for (kind, messages) in [(Kind::Event, 0), (Kind::Message, 1)] {
        let [few, many] = [10, 2_000].map(|waits| steps_of_a_wake_up(kind, waits, messages));
        assert!(many < few + 100, "{kind:?}: {few} and {many} instructions");
    }
    // The task has one wait, and a mailbox with many messages: the other messages wait for another
    // call.
    let [few, many] = [10, 2_000].map(|messages| steps_of_a_wake_up(Kind::Message, 1, messages));
    assert!(many < few + 100, "{few} and {many} instructions");
}

/// The statements of frequent operations, and what their plans contain.
const HOT: &[(&str, &str)] = &[
    (claim::READY, "SEARCH stepwell_tasks USING INDEX stepwell_tasks_ready (queue=? AND <expr>=?)"),
    (
        claim::GOING_ON,
        "SEARCH stepwell_tasks USING INDEX stepwell_tasks_ready (queue=? AND <expr>=?)",
    ),
    (
        claim::SUSPECTS,
        "SEARCH stepwell_tasks USING INDEX stepwell_tasks_ready (queue=? AND <expr>=?)",
    ),
    (claim::DEADLINE, "INDEX stepwell_tasks_deadline (cancel_at<?)"),
    (claim::DUE, "INDEX stepwell_tasks_due (due_at<?)"),
    (claim::NEXT_DUE, "INDEX stepwell_tasks_due"),
    (claim::NEXT_DEADLINE, "INDEX stepwell_tasks_deadline"),
    (claim::POKED, "INDEX stepwell_tasks_poked (worker_id=?)"),
    (workers::RUNNING_UNDER, "INDEX stepwell_tasks_running (worker_id=?)"),
    (workers::RUNS_UNDER, "INDEX stepwell_tasks_running (worker_id=?)"),
    (workers::UNKNOWN_WORKERS, "INDEX stepwell_tasks_running"),
    (workers::CRASHES, "SEARCH stepwell_journal USING PRIMARY KEY (task_id=?)"),
    (workers::HELD, "INDEX sqlite_autoindex_stepwell_tasks_1 (task_id=?)"),
    (fence::FENCE, "INDEX sqlite_autoindex_stepwell_tasks_1 (task_id=?)"),
    (states::TO_END, "INDEX sqlite_autoindex_stepwell_tasks_1 (task_id=?)"),
    (states::STANDING, "INDEX sqlite_autoindex_stepwell_tasks_1 (task_id=?)"),
    (states::TO_COMPENSATE, "INDEX sqlite_autoindex_stepwell_tasks_1 (task_id=?)"),
    (states::TO_COMPENSATE, "SEARCH stepwell_journal USING PRIMARY KEY (task_id=?)"),
    (states::CHILDREN, "INDEX stepwell_tasks_parent (parent=?)"),
    (
        intake::EXISTING,
        "INDEX stepwell_tasks_idempotency (task_type=? AND idempotency_key=? AND scope=?)",
    ),
    (intake::AWAITING, "INDEX stepwell_waits_target (target=? AND kind=?)"),
    (schedules::NEXT, "INDEX stepwell_schedules_next ((next_at,name)>(?,?))"),
    (intake::WAITING, "INDEX stepwell_tasks_key (concurrency_key=? AND scope=? AND place>?)"),
    (limits::LINE_UP, "INDEX stepwell_tasks_key (concurrency_key=? AND scope=? AND place>?)"),
    (limits::FIRST_OF_KEY, "INDEX stepwell_tasks_key (concurrency_key=? AND scope=? AND place>?)"),
    (history::OF_TASK, "INDEX stepwell_history_task (task_id=? AND id>?)"),
    (query::MESSAGES, "INDEX stepwell_messages_mailbox (task_id=?)"),
    (purge::NEEDED_BY, "SEARCH parent USING INDEX sqlite_autoindex_stepwell_tasks_1 (task_id=?)"),
    (
        purge::NEEDED_BY,
        "SEARCH stepwell_waits USING COVERING INDEX stepwell_waits_target (target=?",
    ),
    (purge::KEPT_FOR, "SEARCH child USING INDEX stepwell_tasks_parent (parent=?)"),
    (purge::KEPT_FOR, "SEARCH stepwell_needs USING COVERING INDEX stepwell_needs_by (needed_by=?)"),
    (waits::AWAITS, "INDEX stepwell_waits_target (target=?"),
    (waits::ADD, "stepwell_messages_mailbox (task_id=? AND topic=?)"),
    (waits::ADD, "stepwell_waits_arrived (task_id=?"),
    (waits::MARK, "stepwell_waits_target (target=? AND kind=? AND task_id=?)"),
    (waits::MARK_ONE, "stepwell_waits_target (target=? AND kind=? AND task_id=?)"),
    (waits::MARK_ONE, "USING PRIMARY KEY (task_id=? AND kind=? AND name=? AND ordinal=?)"),
    (waits::UNMARK, "stepwell_waits_arrived (task_id=?"),
    (waits::ARRIVED, "stepwell_waits_arrived (task_id=?)"),
    (waits::MESSAGES, "stepwell_messages_mailbox (task_id=? AND topic=?)"),
    (waits::RECEIVING, "stepwell_waits_target (target=? AND kind=? AND task_id=?)"),
    (circles::STANDING, "INDEX sqlite_autoindex_stepwell_tasks_1 (task_id=?)"),
    (circles::STANDING, "SEARCH stepwell_waits USING PRIMARY KEY (task_id=?)"),
    (circles::JOINED, "SEARCH stepwell_waits USING PRIMARY KEY (task_id=? AND kind=?)"),
];

#[test]
fn hot_statements_use_their_indexes() {
    let store = wait(SqliteStore::open(Location::Memory, Manual::new())).unwrap();
    on_writer(&store, move |conn| {
        for (sql, index) in HOT {
            let plan = plan(conn, sql);
            assert!(plan.contains(index), "{sql}\n{plan}");
            for table in ["tasks", "waits", "events", "messages", "journal"] {
                let scans =
                    plan.lines().any(|line| line.trim() == format!("SCAN stepwell_{table}"));
                assert!(!scans, "{sql}\n{plan}");
            }
        }
        for sql in [
            claim::READY,
            claim::GOING_ON,
            claim::SUSPECTS,
            claim::DEADLINE,
            claim::DUE,
            claim::POKED,
            states::CHILDREN,
            schedules::NEXT,
            history::OF_TASK,
        ] {
            assert!(
                !plan(conn, sql).contains("FOR ORDER BY"),
                "{sql} is sorted, not read in order"
            );
        }
    });
}

#[test]
fn lists_read_what_they_begin_with_in_order() {
    let store = wait(SqliteStore::open(Location::Memory, Manual::new())).unwrap();
    on_writer(&store, move |conn| {
        let tenant = Scope::default().label("tenant", "acme").queue(name("q"));
        let own = Scope::default().queue(name("q"));
        let team = [("team".to_owned(), "sales".to_owned())];
        for (scope, labels, from, index) in [
            (
                tenant.clone(),
                vec![],
                From::Label,
                "stepwell_labels_own (name=? AND value=? AND task_id<?)",
            ),
            (
                tenant,
                team.to_vec(),
                From::Label,
                "stepwell_labels_own (name=? AND value=? AND task_id<?)",
            ),
            (
                Scope::default(),
                team.to_vec(),
                From::Label,
                "stepwell_labels_value (name=? AND value=? AND task_id<?)",
            ),
            (
                own.clone(),
                vec![],
                From::OwnQueue,
                "stepwell_labels_own (name=? AND value=? AND task_id<?)",
            ),
            (own, vec![], From::Queue, "stepwell_tasks_queue (queue=? AND task_id<?)"),
        ] {
            for state in [None, Some(TaskState::Failed), Some(TaskState::Pending)] {
                let filter = TaskFilter {
                    scope: scope.clone(),
                    labels: labels.clone().into_iter().collect(),
                    before: Some(task_id(1)),
                    state,
                    ..TaskFilter::default()
                };
                let labels = labels::asked(&filter).unwrap();
                let plan = plan(conn, &query::list(&filter, from, &labels).0);
                assert!(plan.contains(index), "{plan}");
                assert!(
                    !plan.contains("SCAN stepwell_") && !plan.contains("FOR ORDER BY"),
                    "{plan}"
                );
            }
        }
        let lists = [(None, "sqlite_autoindex_stepwell_tasks_1 (task_id<?)")];
        for (state, index) in lists {
            let filter = TaskFilter { state, before: Some(task_id(1)), ..TaskFilter::default() };
            let plan = plan(conn, &query::list(&filter, From::Tasks, &[]).0);
            assert!(plan.contains(index) && !plan.contains("FOR ORDER BY"), "{plan}");
        }
    });
}

fn plan(conn: &Connection, sql: &str) -> String {
    let mut statement = conn.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
    let nulls = vec![rusqlite::types::Null; statement.parameter_count()];
    let lines = statement
        .query_map(rusqlite::params_from_iter(nulls), |row| row.get::<_, String>(3))
        .unwrap();
    lines.map(|line| line.unwrap() + "\n").collect()
}
