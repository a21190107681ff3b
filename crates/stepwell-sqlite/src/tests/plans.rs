//! The statements of the hot path look at few rows, however many tasks have ended.

use stepwell_core::store::{TaskFilter, TaskState};

use super::*;
use crate::{
    claim, history, intake, limits, purge, query, schedules, states, transition as fence, waits, workers,
};

/// It reads all tasks in the order in which they were spawned, and of each no more than a row of two others.
#[test]
fn purging_looks_up_who_needs_a_task() {
    let store = wait(SqliteStore::open(Location::Memory, Manual::new())).unwrap();
    on_writer(&store, |conn| {
        let plan = plan(conn, purge::FINISHED);
        assert!(
            plan.contains("SEARCH parent USING INDEX sqlite_autoindex_stepwell_tasks_1 (task_id=?)"),
            "{plan}"
        );
        assert!(plan.contains("SEARCH wait USING COVERING INDEX stepwell_waits_target (target=?"), "{plan}");
        assert!(!plan.contains("FOR ORDER BY"), "{plan}");
    });
}

#[test]
fn hot_statements_use_their_indexes() {
    let store = wait(SqliteStore::open(Location::Memory, Manual::new())).unwrap();
    let statements = [
        (claim::READY, "SEARCH stepwell_tasks USING INDEX stepwell_tasks_ready (queue=?)"),
        (claim::SUSPECTS, "SEARCH stepwell_tasks USING INDEX stepwell_tasks_suspects (queue=?)"),
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
        (states::CHILDREN, "INDEX stepwell_tasks_parent (parent=?)"),
        (
            intake::EXISTING,
            "INDEX stepwell_tasks_idempotency (task_type=? AND idempotency_key=? AND scope=?)",
        ),
        (intake::AWAITING, "INDEX stepwell_waits_target (target=?)"),
        (schedules::NEXT, "INDEX stepwell_schedules_next"),
        (intake::WAITING, "INDEX stepwell_tasks_key (concurrency_key=? AND scope=? AND place>?)"),
        (limits::LINE_UP, "INDEX stepwell_tasks_key (concurrency_key=? AND scope=? AND place>?)"),
        (limits::NEXT_OF_KEY, "INDEX stepwell_tasks_key (concurrency_key=? AND scope=? AND place>?)"),
        (history::OF_TASK, "INDEX stepwell_history_task (task_id=? AND id>?)"),
        (purge::NEEDED_BY, "SEARCH parent USING INDEX sqlite_autoindex_stepwell_tasks_1 (task_id=?)"),
        (purge::NEEDED_BY, "SEARCH stepwell_waits USING COVERING INDEX stepwell_waits_target (target=?"),
        (waits::AWAITS, "INDEX stepwell_waits_target (target=?"),
    ];
    on_writer(&store, move |conn| {
        for (sql, index) in statements {
            let plan = plan(conn, sql);
            assert!(plan.contains(index), "{sql}\n{plan}");
            for table in ["tasks", "waits", "events", "messages", "journal"] {
                let scans = plan.lines().any(|line| line.trim() == format!("SCAN stepwell_{table}"));
                assert!(!scans, "{sql}\n{plan}");
            }
        }
        for sql in [
            claim::READY,
            claim::SUSPECTS,
            claim::DEADLINE,
            claim::DUE,
            claim::POKED,
            states::CHILDREN,
            schedules::NEXT,
            history::OF_TASK,
        ] {
            assert!(!plan(conn, sql).contains("FOR ORDER BY"), "{sql} is sorted, not read in order");
        }
    });
}

#[test]
fn a_list_by_label_reads_the_tasks_of_the_label_in_order() {
    let store = wait(SqliteStore::open(Location::Memory, Manual::new())).unwrap();
    on_writer(&store, move |conn| {
        let scope = Scope::default().label("tenant", "acme").queue(Name::new("q").unwrap());
        let labels = [("team".to_owned(), "sales".to_owned())].into();
        let filter = TaskFilter { scope, labels, before: Some(task_id(1)), ..TaskFilter::default() };
        let labels: Vec<_> = filter.all_labels().unwrap().into_iter().collect();
        for state in [None, Some(TaskState::Failed), Some(TaskState::Pending)] {
            let filter = TaskFilter { state, ..filter.clone() };
            let (sql, _) = query::list(&filter, &labels);
            let plan = plan(conn, &sql);
            assert!(
                plan.contains("INDEX stepwell_labels_value (name=? AND value=? AND task_id<?)"),
                "{plan}"
            );
            assert!(
                plan.contains("SEARCH stepwell_tasks USING INDEX sqlite_autoindex_stepwell_tasks_1"),
                "{plan}"
            );
            assert!(!plan.contains("SCAN stepwell_") && !plan.contains("FOR ORDER BY"), "{plan}");
        }
    });
}

fn plan(conn: &Connection, sql: &str) -> String {
    let mut statement = conn.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
    let nulls = vec![rusqlite::types::Null; statement.parameter_count()];
    let lines =
        statement.query_map(rusqlite::params_from_iter(nulls), |row| row.get::<_, String>(3)).unwrap();
    lines.map(|line| line.unwrap() + "\n").collect()
}
