//! Tests that a damaged row, or a row of a newer program, affects only its own task. Whatever value
//! is in any of its columns, every batch and every list continues with the other tasks.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use stepwell_core::store::{
    Claimed, Happening, HistoryFilter, NewEvent, NewMessage, Purge, ScheduleAction, ScheduleChange,
    ScheduleFilter, SchedulePlan, TaskFilter, Wait,
};
use stepwell_core::{
    QueueAction, QueueChange, QueueLimits, RateLimit, TaskInfo, TaskState, TaskTypeInfo, after,
};

use super::*;

/// The tasks, one for each stage of a task's life. The tasks whose numbers are higher by `OTHER`
/// are the undamaged ones, which must continue.
const OTHER: u128 = 100;
const PENDING: u128 = 1;
const DELAYED: u128 = 2;
const OVERDUE: u128 = 3;
const RUNNING: u128 = 4;
const ABANDONED: u128 = 5;
const LISTENER: u128 = 6;
const PARENT: u128 = 7;
const RECIPIENT: u128 = 8;
const UNDOING: u128 = 9;
const NEXT: u128 = 10;
const FINISHED: u128 = 11;
const PAUSED: u128 = 12;
const HURT: std::ops::RangeInclusive<u128> = PENDING..=PAUSED;
/// Tasks outside of these stages, for which one of the tasks waits.
const CHILD: u128 = 50;
const HOLDER: u128 = 51;

const DAY: Duration = Duration::from_secs(86_400);

fn tenant() -> Scope {
    Scope::default().label("tenant", "acme")
}

fn for_(kind: Kind, target: &str) -> Wait {
    let key = Key { kind, name: name(target), ordinal: 1 };
    Wait { key, target: Some(name(target)), due_at: None }
}

struct World {
    clock: Arc<Manual>,
    store: SqliteStore,
    /// The runs of the claimed tasks.
    runs: RefCell<BTreeMap<TaskId, RunId>>,
}

impl World {
    fn new() -> Self {
        let clock = Manual::new();
        let store = wait(SqliteStore::open(Location::Memory, clock.clone())).unwrap();
        let world = Self { clock, store, runs: RefCell::default() };
        for worker in [1, 2, 3, 9] {
            commit(&world.store, register(worker));
        }
        for queue in ["hurt", "other"] {
            let rate = Some(RateLimit { starts: 5, per: Duration::from_secs(1) });
            let limits =
                QueueLimits { max_running: Some(9), max_running_per_worker: Some(9), rate };
            let change = QueueChange { queue: name(queue), action: QueueAction::Limit(limits) };
            commit(&world.store, Batch { queues: vec![change], ..Batch::default() });
            let next_at = Some(from_micros(START));
            let plan =
                SchedulePlan { version: Uuid::from_u128(7).into(), definition: json("1"), next_at };
            let change = ScheduleChange { name: name(queue), action: ScheduleAction::Create(plan) };
            commit(&world.store, Batch { schedules: vec![change], ..Batch::default() });
            let described =
                TaskTypeInfo { task_type: name(queue), params: 1.into(), output: 1.into() };
            wait(world.store.describe(described)).unwrap();
        }
        for of in [0, OTHER] {
            world.live(of);
        }
        world
    }

    fn live(&self, of: u128) {
        let store = &self.store;
        let labels = Headers::from([("tenant".into(), "acme".into())]);
        let new = |n| NewTask { scope: tenant(), headers: labels.clone(), ..new_task(of + n) };
        let by = |worker, task: NewTask| NewTask { claim_by: Some(worker_id(worker)), ..task };
        let key = |n| NewTask { concurrency_key: Some(name(&format!("key {of}"))), ..new(n) };
        let now = from_micros(START);
        let policy = CancellationPolicy { max_delay: Some(DAY / 2), max_duration: Some(DAY / 2) };
        commit(store, spawns(vec![key(HOLDER)]));
        let claimed = claimed(commit(store, claim(1, 1)));
        assert_eq!(claimed.len(), 1);
        self.runs.borrow_mut().insert(claimed[0].task_id, claimed[0].run_id);
        let running = [RUNNING, LISTENER, PARENT, RECIPIENT, FINISHED].map(|n| by(1, new(n)));
        let mut tasks = running.to_vec();
        tasks.extend([
            by(2, new(ABANDONED)),
            by(1, NewTask { cancellation: policy.clone(), ..new(UNDOING) }),
            by(1, NewTask { parent: Some(task_id(of + PARENT)), ..new(CHILD) }),
            NewTask { idempotency_key: Some(name(&format!("only {of}"))), ..new(PENDING) },
            NewTask { start_at: Some(after(now, DAY / 2)), ..new(DELAYED) },
            NewTask { start_at: Some(after(now, DAY * 9)), cancellation: policy, ..new(OVERDUE) },
            key(NEXT),
            new(PAUSED),
        ]);
        commit(store, spawns(tasks));
        let suspend = |n, kind, target: &str| {
            let entry = Entry {
                key: Key { kind: Kind::Compensate, ..step(1, json("1")).key },
                ..step(2, json("1"))
            };
            let entries = if n == UNDOING {
                vec![step(1, json("1")), entry]
            } else {
                vec![step(1, json("1"))]
            };
            let waits_added = vec![for_(kind, target)];
            let next = Next::Suspend { wake_at: None };
            Transition { entries, waits_added, ..self.transition(of + n, next) }
        };
        commit(
            store,
            transitions(vec![
                suspend(LISTENER, Kind::Event, "go"),
                suspend(PARENT, Kind::Child, &task_id(of + CHILD).to_string()),
                suspend(RECIPIENT, Kind::Message, "topic"),
                suspend(UNDOING, Kind::Event, "approval/never"),
                self.transition(of + FINISHED, Next::Complete(json("1"))),
            ]),
        );
        let pause = stepwell_core::store::Command::Pause(task_id(of + PAUSED));
        let message =
            NewMessage { task_id: task_id(of + RUNNING), topic: name("other"), payload: json("1") };
        commit(store, Batch { commands: vec![pause], messages: vec![message], ..Batch::default() });
        let events = ["first", "second"].map(|event| Happening {
            task_id: task_id(of + RUNNING),
            at: now,
            name: name(event),
            event: json("1"),
        });
        wait(store.record(events.to_vec())).unwrap();
    }

    fn transition(&self, n: u128, next: Next) -> Transition {
        let spawned = || Uuid::from_u128(0xaaaa_0000_0000 + n).into();
        let claimed = self.runs.borrow().get(&task_id(n)).copied();
        transition(task_id(n), claimed.unwrap_or_else(spawned), next)
    }

    /// Damages rows, where the table allows it. The result is `false` when the table does not allow
    /// the value.
    fn damage(&self, table: &str, sql: &str) -> bool {
        let ids = HURT
            .chain([HOLDER, CHILD])
            .map(|n| format!("'{}'", task_id(n)))
            .collect::<Vec<_>>()
            .join(",");
        let which = match table {
            "stepwell_tasks" if sql.starts_with("task_id") => {
                format!("task_id = '{}'", task_id(PENDING))
            }
            "stepwell_tasks" => {
                format!(
                    "task_id IN ({ids}) AND task_id NOT IN ('{}', '{}')",
                    task_id(HOLDER),
                    task_id(CHILD)
                )
            }
            "stepwell_workers" => format!("worker_id IN ('{}')", worker_id(9)),
            "stepwell_queues" => "queue = 'hurt'".into(),
            "stepwell_schedules" => "name = 'hurt'".into(),
            "stepwell_task_types" => "task_type = 'hurt'".into(),
            "stepwell_events" => "TRUE".into(),
            _ => format!("task_id IN ({ids})"),
        };
        let sql = format!("UPDATE OR IGNORE {table} SET {sql} WHERE {which}");
        on_writer(&self.store, move |conn| conn.execute(&sql, []).is_ok_and(|changed| changed > 0))
    }

    /// Runs all operations of a store. Only the operations on a damaged task may fail.
    fn go_on(&self) {
        let store = &self.store;
        let ok = |batch: Batch| wait(store.commit(batch.into()));
        self.clock.advance(DAY);
        let mut claims = BTreeSet::new();
        let mut claim_all = || loop {
            let mut batch = claim(3, 1);
            batch.claims[0].queues = vec![name("hurt"), name("queue")];
            let claimed: Claimed = ok(batch).unwrap().claims.remove(0);
            if claimed.tasks.is_empty() {
                return claims.clone();
            }
            self.runs
                .borrow_mut()
                .extend(claimed.tasks.iter().map(|task| (task.task_id, task.run_id)));
            claims.extend(claimed.tasks.into_iter().map(|task| task.task_id));
        };
        claim_all();
        for worker in [3, 1] {
            let worker_id = worker_id(worker);
            let signal = WorkerSignal::Heartbeat { worker_id };
            let status =
                ok(Batch { workers: vec![signal], ..Batch::default() }).unwrap().workers.remove(0);
            assert!(
                worker == 3
                    || status.runs.iter().any(|(task, _)| *task == task_id(OTHER + RUNNING))
            );
            assert!(status.others.iter().any(|other| other.worker_id == self::worker_id(2)));
        }
        ok(register(4)).unwrap();
        let dead = WorkerSignal::DeclareDead { worker_id: worker_id(2), heartbeats: 0 };
        ok(Batch { workers: vec![dead], ..Batch::default() }).unwrap();
        let event = NewEvent { name: name("go"), queue: None, payload: json("1") };
        assert_eq!(ok(Batch { events: vec![event], ..Batch::default() }).unwrap().events, [true]);
        for of in [0, OTHER] {
            let message = NewMessage {
                task_id: task_id(of + RECIPIENT),
                topic: name("topic"),
                payload: json("1"),
            };
            let sending = Transition {
                messages: vec![message],
                ..self.transition(OTHER + RUNNING, Next::Continue { collect: false })
            };
            let ends = [CHILD, HOLDER].map(|n| self.transition(of + n, Next::Complete(json("1"))));
            let mut all = vec![sending];
            all.extend(ends);
            assert!(ok(transitions(all)).unwrap().transitions.iter().all(Result::is_ok));
        }
        let spawned = NewTask { concurrency_key: Some(name("key 0")), ..new_task(60) };
        ok(spawns(vec![spawned, new_task(61)])).unwrap();
        let claimed = claim_all();
        for n in [PENDING, DELAYED, ABANDONED, LISTENER, PARENT, RECIPIENT, UNDOING, NEXT] {
            assert!(claimed.contains(&task_id(OTHER + n)), "task {n} is not claimed");
        }
        assert!(claimed.contains(&task_id(61)));
        self.lists();
        ok(deregister(1)).unwrap();
        ok(deregister(3)).unwrap();
        let purge = Purge { before: after(from_micros(START), DAY / 4), state: None, limit: 10 };
        assert!(wait(store.purge(purge)).unwrap() > 0);
        assert!(wait(store.task(task_id(OTHER + FINISHED))).unwrap().is_none(), "it is not purged");
    }

    fn lists(&self) {
        let store = &self.store;
        let is_cancelled = |tasks: &[TaskInfo]| {
            let is = |task: &TaskInfo| {
                task.task_id == task_id(OTHER + OVERDUE) && task.state == TaskState::Cancelled
            };
            tasks.iter().any(is)
        };
        let mut filter = TaskFilter { limit: 2, ..TaskFilter::default() };
        for scope in [Scope::default(), tenant()] {
            filter = TaskFilter { scope, before: None, ..filter };
            let mut all = Vec::new();
            loop {
                let page = wait(store.tasks(filter.clone())).unwrap();
                all.extend(page.items);
                filter.before = page.next;
                if filter.before.is_none() {
                    break;
                }
            }
            let ids: BTreeSet<_> = all.iter().map(|task| task.task_id).collect();
            assert!(
                HURT.chain([CHILD, HOLDER]).all(|n| ids.contains(&task_id(OTHER + n))),
                "{ids:?}"
            );
            assert!(is_cancelled(&all));
        }
        assert!(wait(store.queues()).unwrap().iter().any(|queue| queue.queue == name("other")));
        assert!(wait(store.workers()).unwrap().len() >= 3);
        let next = ScheduleFilter::Next { behind: None, limit: 1 };
        for which in [ScheduleFilter::All { behind: None }, next] {
            let schedules = wait(store.schedules(which)).unwrap();
            assert!(!schedules.items.is_empty());
        }
        assert!(
            wait(store.task_types()).unwrap().iter().any(|known| known.task_type == name("other"))
        );
        wait(store.waiting_types(vec![name("queue")])).unwrap();
        let mut after = 0;
        let mut events = Vec::new();
        loop {
            let page =
                wait(store.history(HistoryFilter { task_id: None, after, limit: 1 })).unwrap();
            events.extend(page.items);
            let Some(next) = page.next else { break };
            after = next;
        }
        assert!(
            events.iter().filter(|(_, event)| event.task_id == task_id(OTHER + RUNNING)).count()
                == 2
        );
        for scope in [Scope::default(), tenant()] {
            wait(store.waits(scope, "approval/".into(), None, 10)).unwrap();
        }
        let others: Vec<_> = HURT.map(|n| task_id(OTHER + n)).collect();
        let asked = HURT.map(task_id).chain(others.clone()).collect();
        let ends = wait(store.ends(asked)).unwrap();
        assert!(others.iter().all(|task| ends.items.iter().any(|(id, _)| id == task)));
    }
}

#[test]
fn whatever_is_in_a_column_the_others_go_on() {
    World::new().go_on();
    let columns = on_writer(&World::new().store, |conn| {
        let sql = "SELECT t.name, c.name, c.type FROM sqlite_master t, pragma_table_info(t.name) c
            WHERE t.type = 'table' AND t.name LIKE 'stepwell_%' AND t.name <> 'stepwell_schema'";
        let mut statement = conn.prepare(sql).unwrap();
        let columns =
            statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).unwrap();
        columns.collect::<Result<Vec<(String, String, String)>, _>>().unwrap()
    });
    assert!(columns.len() > 80);
    let long = format!("'{}'", "x".repeat(600));
    let mut failed = Vec::new();
    for (table, column, kind) in columns {
        let values: &[&str] = match kind.as_str() {
            "TEXT" => &["NULL", "''", "'nonsense'", &long, "CAST(x'ff' AS TEXT)"],
            _ => &["NULL", "-1", "7", "-9223372036854775808", "9223372036854775807"],
        };
        for value in values {
            // SQLite itself assigns no number after the last one.
            if (table.as_str(), column.as_str()) == ("stepwell_messages", "id")
                && value.starts_with("922")
            {
                continue;
            }
            let world = World::new();
            if !world.damage(&table, &format!("{column} = {value}")) {
                continue;
            }
            let went_on = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| world.go_on()));
            if went_on.is_err() {
                failed.push(format!("{table}.{column} = {value:.30}"));
            }
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
}
