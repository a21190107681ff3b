//! Tests that the conditions within statements say the same as the rules of the engine.

use std::collections::BTreeSet;

use rusqlite::params;
use stepwell_core::TaskState;
use stepwell_core::store::rules::{
    Activity, Arrival, Cancellation, Claims, Course, End, Ending, Live, Position, Start, Started,
    Turn, Undo, is_waiting, on_arrival, on_end,
};

use super::*;
use crate::apply::{claim, intake, states, transition as fence, workers};
use crate::base::rows::{Sql, Statements as _};

/// A row in one of all positions, with all that the conditions of statements read.
#[derive(Clone, Copy, Debug)]
struct Case {
    position: Position,
    start: Start,
    turn: Turn,
    started: Started,
    crashes: u32,
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for position in Position::all() {
        for start in [Start::Now, Start::Later] {
            for turn in [Turn::Free, Turn::Taken] {
                for started in [Started::Never, Started::Once] {
                    for crashes in [0, 1, 2, 3] {
                        cases.push(Case { position, start, turn, started, crashes });
                    }
                }
            }
        }
    }
    cases
}

/// The state that a row of this position holds.
fn stored(position: Position) -> TaskState {
    match position {
        Position::Ended(end) => end.state(),
        Position::Live(live) => match live.activity {
            Activity::Pending => TaskState::Pending,
            Activity::Running => TaskState::Running,
            Activity::Suspended => TaskState::Suspended,
        },
    }
}

/// Writes a row for each case. The row's id is its place among the cases.
fn write(conn: &Connection, cases: &[Case]) {
    for (n, case) in (1_u128..).zip(cases) {
        let (compensating, asked, paused) = match case.position {
            Position::Live(live) => (
                live.course == Course::Compensating,
                live.cancellation == Cancellation::Requested,
                live.claims == Claims::Paused,
            ),
            Position::Ended(_) => (false, false, false),
        };
        let at = from_micros(START);
        let later = (case.start == Start::Later).then_some(Sql(&at));
        conn.run(
            "UPDATE stepwell_tasks SET state = ?2, compensating = ?3, cancel_requested = ?4,
                paused = ?5, due_at = ?6, blocked = ?7, started_at = ?8, crashes = ?9, place = ?10,
                worker_id = ?11, poked = 1, cancel_at = ?12
            WHERE task_id = ?1",
            params![
                Sql(&task_id(n)),
                Sql(&stored(case.position)),
                compensating,
                asked,
                paused,
                later,
                case.turn == Turn::Taken,
                (case.started == Started::Once).then_some(Sql(&at)),
                case.crashes,
                n as i64,
                Sql(&worker_id(1)),
                Sql(&at)
            ],
        )
        .unwrap();
    }
}

/// Checks that a statement finds the cases for which a rule holds, and no others.
fn finds(
    conn: &Connection,
    sql: &'static str,
    params: &[&dyn rusqlite::ToSql],
    column: usize,
    cases: &[Case],
    rule: impl Fn(&Case) -> bool,
) {
    let mut statement = conn.prepare(sql).unwrap();
    let found: BTreeSet<String> =
        statement.query_map(params, |row| row.get(column)).unwrap().map(Result::unwrap).collect();
    assert!(!found.is_empty(), "{sql}");
    for (n, case) in (1..).zip(cases) {
        assert_eq!(found.contains(&task_id(n).to_string()), rule(case), "{case:?}\n{sql}");
    }
}

fn live(case: &Case) -> Option<Live> {
    match case.position {
        Position::Live(live) => Some(live),
        Position::Ended(_) => None,
    }
}

#[test]
fn statements_find_the_tasks_that_the_rules_name() {
    let store = wait(SqliteStore::open(Location::Memory, Manual::new())).unwrap();
    let cases = cases();
    let keyed = |n| NewTask {
        concurrency_key: Some(name("key")),
        parent: Some(task_id(9_999)),
        ..new_task(n)
    };
    commit(&store, spawns((1..=cases.len() as u128).map(keyed).collect()));
    on_writer(&store, move |conn| {
        write(conn, &cases);
        let (queue, types, version) = ("queue", "[\"type\"]", None::<String>);
        let claimable =
            |case: &Case| live(case).is_some_and(|live| live.is_claimable(case.start, case.turn));
        for most in [1_u32, 2, 3] {
            let given: [&dyn rusqlite::ToSql; 5] = [&queue, &types, &version, &true, &most];
            for sql in [claim::READY, claim::GOING_ON] {
                finds(conn, sql, &given, 1, &cases, |case| claimable(case) && case.crashes < 2);
            }
            if most >= 2 {
                finds(conn, claim::SUSPECTS, &given, 1, &cases, |case| {
                    claimable(case) && (2..=most).contains(&case.crashes)
                });
            }
        }
        let worker = worker_id(1).to_string();
        let runs = |case: &Case| live(case).is_some_and(|live| live.activity == Activity::Running);
        for sql in [workers::RUNNING_UNDER, workers::RUNS_UNDER, claim::POKED] {
            finds(conn, sql, &[&worker], 0, &cases, runs);
        }
        let parent = task_id(9_999).to_string();
        finds(conn, states::CHILDREN, &[&parent], 0, &cases, |case| live(case).is_some());
        finds(conn, intake::WAITING, &[&"key", &"type", &""], 0, &cases, |case| {
            live(case).is_some_and(|live| is_waiting(live, case.started))
        });
    });
}

#[test]
fn statements_about_one_task_follow_the_rules() {
    let store = wait(SqliteStore::open(Location::Memory, Manual::new())).unwrap();
    let cases = cases();
    commit(&store, spawns((1..=cases.len() as u128).map(new_task).collect()));
    on_writer(&store, move |conn| {
        write(conn, &cases);
        for (n, case) in (1..).zip(&cases) {
            let run_id = new_task(n).run_id;
            let there = |sql: &'static str, params: &[&dyn rusqlite::ToSql]| {
                conn.prepare_cached(sql).unwrap().exists(params).unwrap()
            };
            // The run owns the task while the task runs: an arrival then notifies the run.
            let owned = on_arrival(case.position) == Arrival::Notifies;
            for sql in [fence::FENCE, fence::LIGHT_FENCE, states::TO_END] {
                let params: [&dyn rusqlite::ToSql; 2] = [&Sql(&task_id(n)), &Sql(&run_id)];
                assert_eq!(there(sql, &params), owned, "{case:?}\n{sql}");
            }
            assert_eq!(there(workers::HELD, &[&Sql(&task_id(n))]), owned, "{case:?}");
            let read = |row: &rusqlite::Row<'_>| states::Standing::read(row);
            let standing = conn.one(states::STANDING, params![Sql(&task_id(n))], read);
            assert_eq!(standing.unwrap().unwrap().position, case.position);
        }
    });
}

#[test]
fn a_deadline_or_a_due_time_is_of_a_task_that_has_not_ended() {
    let store = wait(SqliteStore::open(Location::Memory, Manual::new())).unwrap();
    let cases = cases();
    commit(&store, spawns((1..=cases.len() as u128).map(new_task).collect()));
    on_writer(&store, move |conn| {
        write(conn, &cases);
        let now = from_micros(START);
        let mut cancelled = BTreeSet::new();
        while let Some((rowid, task_id)) = conn
            .one(claim::DEADLINE, params![Sql(&now)], |row| {
                Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?))
            })
            .unwrap()
        {
            cancelled.insert(task_id);
            let sql = "UPDATE stepwell_tasks SET cancel_at = NULL WHERE rowid = ?1";
            conn.run(sql, [rowid]).unwrap();
        }
        let due: BTreeSet<i64> = conn
            .all(claim::DUE, params![Sql(&now), 100_000], |row| row.get(0))
            .unwrap()
            .into_iter()
            .collect();
        for (n, case) in (1_u32..).zip(&cases) {
            let id = task_id(n.into()).to_string();
            assert_eq!(cancelled.contains(&id), live(case).is_some(), "{case:?}");
            let sql = "SELECT rowid FROM stepwell_tasks WHERE task_id = ?1";
            let rowid: i64 = conn.one(sql, [id], |row| row.get(0)).unwrap().unwrap();
            let waits = live(case).is_some_and(|live| live.activity != Activity::Running);
            assert_eq!(due.contains(&rowid), waits && case.start == Start::Later, "{case:?}");
        }
    });
}

#[test]
fn a_journal_says_what_is_left_to_undo() {
    let store = wait(SqliteStore::open(Location::Memory, Manual::new())).unwrap();
    commit(&store, spawns(vec![new_task(1)]));
    on_writer(&store, |conn| {
        let kinds = [Kind::Step, Kind::Compensate, Kind::Compensating];
        // Each journal with up to four entries of these kinds, as a number to the base of three.
        for length in 0..5_u32 {
            for number in 0..3_usize.pow(length) {
                conn.run("DELETE FROM stepwell_journal", []).unwrap();
                let journal: Vec<_> =
                    (0..length).map(|place| kinds[number / 3_usize.pow(place) % 3]).collect();
                for (seq, kind) in (1..).zip(&journal) {
                    let entry = step(seq, json("1"));
                    let key = Key { kind: *kind, ..entry.key };
                    let entries = [Entry { key, ..entry }];
                    fence::add_entries(conn, task_id(1), &entries).unwrap();
                }
                let last = |kind: Kind| {
                    (1..).zip(&journal).filter(|(_, other)| **other == kind).last().map(|(n, _)| n)
                };
                let undo = Undo::of(last(Kind::Compensate), last(Kind::Compensating));
                let read = conn.one(states::TO_COMPENSATE, params![Sql(&task_id(1))], |row| {
                    let seq = |column| row.get::<_, Option<i64>>(column);
                    Ok((seq(8)?, [seq(9)?, seq(10)?]))
                });
                let (end, [recorded, begun]) = read.unwrap().unwrap();
                assert_eq!(end.unwrap_or(0), i64::from(length));
                let seq = |seq: Option<i64>| seq.map(i64::unsigned_abs);
                assert_eq!(Undo::of(seq(recorded), seq(begun)), undo, "{journal:?}");
                let first = on_end(End::Failed, Course::Ordinary, undo);
                let after = journal.iter().rev().find(|kind| **kind != Kind::Step);
                assert_eq!(
                    first == Ending::CompensatesFirst,
                    after == Some(&Kind::Compensate),
                    "{journal:?}"
                );
            }
        }
    });
}
