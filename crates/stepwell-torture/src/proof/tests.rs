//! Tests with histories made by hand: a sound one, and faulty ones that each check must find.

use serde_json::{Value, json};
use uuid::Uuid;

use super::*;
use crate::place::Event;
use crate::work::{Kind, Seen, TALK};

fn id(number: u128) -> String {
    Uuid::from_u128(number).to_string()
}

fn task(number: u128) -> TaskId {
    Uuid::from_u128(number).into()
}

/// A history that is written down step by step.
#[derive(Default)]
struct Scribe {
    history: History,
    journal: Vec<Value>,
}

impl Scribe {
    fn row(&mut self, of: u128, run: u128, what: Event) -> &mut Self {
        let number = self.history.rows.len() as u64 + 1;
        self.history.rows.push(Row {
            number,
            what,
            task: task(of),
            run: Uuid::from_u128(run).into(),
        });
        self
    }

    fn state(&mut self, of: u128, run: u128, state: &str) -> &mut Self {
        self.row(of, run, Event::State(state.to_owned()))
    }

    fn start(&mut self, of: u128, run: u128, name: &str, value: &str) -> &mut Self {
        let what = if name.starts_with("undo") { What::Undo } else { What::Step };
        let (run, name, value) = (Uuid::from_u128(run).into(), name.to_owned(), value.to_owned());
        self.history.lines.push(Line {
            what,
            task: task(of),
            run,
            process: 1,
            millis: 0,
            name,
            value,
        });
        self
    }

    fn entry(&mut self, of: u128, run: u128, kind: &str, name: &str, value: Value) -> &mut Self {
        let seq = self.journal.len() as u64 + 1;
        self.journal
            .push(json!({"seq": seq, "kind": kind, "name": name, "ordinal": 1, "outcome": "done",
            "value": value, "at": "2026-01-01T00:00:00Z"}));
        self.row(of, run, Event::Entry(seq))
    }

    /// Records a complete step: its start and its result.
    fn step(&mut self, of: u128, run: u128, name: &str, value: &str) -> &mut Self {
        self.start(of, run, name, value).entry(of, run, "step", name, json!(value))
    }

    fn end(
        &mut self,
        of: u128,
        run: u128,
        work: Work,
        state: &str,
        output: Option<Seen>,
    ) -> &mut Self {
        let retry = serde_json::to_value(stepwell::RetryStrategy::default()).unwrap();
        let info = json!({
            "task_id": id(of), "run_id": id(run), "task_type": "tortured", "queue": "default",
            "state": state, "params": work, "output": output, "failure": null, "headers": {},
            "priority": 0, "attempt": 1, "max_attempts": 1, "retry": retry, "max_duration": null,
            "cancel_at": null, "parent": null, "idempotency_key": null, "concurrency_key": null,
            "code_version": null, "cancel_requested": false, "spawned_at": "2026-01-01T00:00:00Z",
            "started_at": null, "finished_at": null, "due_at": null,
        });
        let journal = std::mem::take(&mut self.journal);
        let journal =
            journal.into_iter().map(|entry| serde_json::from_value(entry).unwrap()).collect();
        let info = serde_json::from_value(info).unwrap();
        self.history.spawned.push((task(of), work.clone()));
        self.history.ended.insert(task(of), Ended { work, info, journal });
        self.state(of, run, state)
    }

    fn violations(&self) -> Vec<String> {
        let proof = Proof::of(&self.history);
        proof.violations.iter().map(|one| one.split(':').next().unwrap().to_owned()).collect()
    }
}

fn seen(steps: &[&str]) -> Option<Seen> {
    Some(Seen { steps: steps.iter().map(ToString::to_string).collect(), ..Seen::default() })
}

/// Returns the history of a task with two steps, whose second step ran again in another run.
fn turn() -> Scribe {
    let mut scribe = Scribe::default();
    scribe.state(1, 11, "running").step(1, 11, "step:0", "a").start(1, 11, "step:1", "b");
    scribe.state(1, 12, "running").step(1, 12, "step:1", "c");
    scribe.end(1, 12, Work::new(Kind::Turn, 3), "completed", seen(&["a", "c"]));
    scribe
}

#[test]
fn a_sound_history_has_nothing_against_it() {
    let scribe = turn();
    assert!(scribe.violations().is_empty(), "{:?}", scribe.violations());
    let proof = Proof::of(&scribe.history);
    assert_eq!((proof.tasks, proof.journaled, proof.again, proof.late), (1, 2, 1, 0));
}

#[test]
fn a_step_that_begins_before_the_one_that_it_follows_is_durable_is_found() {
    let mut scribe = turn();
    scribe.history.lines.swap(0, 1);
    assert_eq!(scribe.violations(), ["barrier"]);
    // The first step ran again in the second run, after the second step.
    let mut scribe = Scribe::default();
    scribe.state(1, 11, "running").start(1, 11, "step:0", "a").start(1, 11, "step:1", "b");
    scribe.state(1, 12, "running").step(1, 12, "step:0", "c").step(1, 12, "step:1", "d");
    scribe.end(1, 12, Work::new(Kind::Turn, 3), "completed", seen(&["c", "d"]));
    assert_eq!(scribe.violations(), ["barrier"]);
}

#[test]
fn a_step_that_runs_again_after_its_result_was_journaled_is_found() {
    let mut scribe = turn();
    scribe.start(1, 12, "step:0", "again");
    assert_eq!(scribe.violations(), ["once"]);
}

#[test]
fn a_result_of_a_run_that_does_not_own_the_task_is_found() {
    let mut scribe = turn();
    let last =
        scribe.history.rows.iter_mut().rfind(|row| matches!(row.what, Event::Entry(_))).unwrap();
    last.run = Uuid::from_u128(11).into();
    assert_eq!(scribe.violations(), ["owner"]);
    // A run that had lost the task starts a step, and its result is journaled.
    let mut scribe = Scribe::default();
    scribe.state(1, 11, "running").step(1, 11, "step:0", "a");
    scribe.state(1, 12, "running").start(1, 12, "step:1", "b").step(1, 11, "step:1", "c");
    scribe.end(1, 12, Work::new(Kind::Turn, 3), "completed", seen(&["a", "c"]));
    assert!(scribe.violations().contains(&"owner".to_owned()));
}

#[test]
fn a_task_that_is_lost_or_there_twice_or_ends_otherwise_is_found() {
    let mut scribe = turn();
    scribe.history.spawned.push((task(2), Work::new(Kind::Plain, 7)));
    assert_eq!(scribe.violations(), ["lost"]);
    let mut scribe = turn();
    scribe.state(2, 21, "running").step(2, 21, "step:0", "x").step(2, 21, "step:1", "y");
    scribe.end(2, 21, Work::new(Kind::Turn, 3), "completed", seen(&["x", "y"]));
    assert_eq!(scribe.violations(), ["twice"]);
    let mut scribe = turn();
    scribe.state(1, 13, "running").state(1, 13, "completed");
    assert_eq!(scribe.violations(), ["ends"]);
    let mut scribe = turn();
    scribe.row(1, 12, Event::PausedClaim).state(1, 12, "completed");
    assert_eq!(scribe.violations(), ["ends", "paused"]);
}

#[test]
fn tasks_of_one_key_that_overlap_are_found() {
    let mut scribe = Scribe::default();
    scribe.state(1, 11, "running").step(1, 11, "step:0", "a");
    scribe.state(2, 21, "running").start(2, 21, "step:0", "x").step(1, 11, "step:1", "b");
    scribe.end(1, 11, Work::new(Kind::Turn, 3), "completed", seen(&["a", "b"]));
    scribe.entry(2, 21, "step", "step:0", json!("x")).step(2, 21, "step:1", "y");
    scribe.end(2, 21, Work::new(Kind::Turn, 6), "completed", seen(&["x", "y"]));
    assert_eq!(scribe.violations(), ["turns"]);
}

#[test]
fn too_many_tasks_of_a_limited_queue_are_found() {
    let mut scribe = Scribe::default();
    let (names, value) = (["step:0", "step:1"], |task: u128, step: usize| format!("{task}-{step}"));
    for (step, name) in names.iter().enumerate() {
        for of in 1..=3 {
            scribe.start(of, of, name, &value(of, step));
        }
    }
    for of in 1..=3 {
        scribe.state(of, of, "running");
        for (step, name) in names.iter().enumerate() {
            scribe.entry(of, of, "step", name, json!(value(of, step)));
        }
        let steps = [value(of, 0), value(of, 1)];
        let output = seen(&[&steps[0], &steps[1]]);
        scribe.end(of, of, Work::new(Kind::Narrow, of as u64), "completed", output);
    }
    assert_eq!(scribe.violations(), ["limits"]);
}

#[test]
fn a_message_that_is_lost_comes_twice_or_out_of_order_is_found() {
    let sound: Vec<(String, u32)> = ["host", "teller"]
        .into_iter()
        .flat_map(|sender| (0..TALK).map(move |number| (sender.to_owned(), number)))
        .collect();
    let listener = |heard: &[(String, u32)]| {
        let mut scribe = Scribe::default();
        scribe.state(1, 11, "running").step(1, 11, "step:0", "a");
        for message in heard {
            scribe.entry(1, 11, "message", "talk", json!(message));
        }
        scribe.step(1, 11, "step:1", "b");
        let mut output = seen(&["a", "b"]).unwrap();
        output.heard = [("event".to_owned(), 5)].into_iter().chain(heard.iter().cloned()).collect();
        scribe.end(1, 11, Work::new(Kind::Listener, 5), "completed", Some(output));
        scribe.violations()
    };
    assert!(listener(&sound).is_empty());
    assert_eq!(listener(&sound[1..]), ["told"]);
    let (mut twice, mut mixed) = (sound.clone(), sound.clone());
    twice.push(sound[0].clone());
    mixed.swap(0, 1);
    assert_eq!(
        (listener(&twice), listener(&mixed)),
        (vec!["told".to_owned()], vec!["told".to_owned()])
    );
}

#[test]
fn what_is_undone_out_of_order_or_not_at_all_is_found() {
    let saga = |undos: &[u32]| {
        let mut scribe = Scribe::default();
        scribe.state(1, 11, "running");
        for step in 0..3 {
            scribe.step(1, 11, &format!("step:{step}"), &format!("of {step}"));
        }
        for undo in undos {
            scribe.start(1, 11, &format!("undo:{undo}"), &format!("of {undo}"));
            scribe.entry(1, 11, "compensated", &format!("step:{undo}"), Value::Null);
        }
        scribe.end(1, 11, Work::new(Kind::Saga, 1), "failed", None);
        scribe.violations()
    };
    assert!(saga(&[2, 1, 0]).is_empty());
    assert_eq!(
        (saga(&[1, 2, 0]), saga(&[2, 1])),
        (vec!["undone".to_owned()], vec!["undone".to_owned()])
    );
    assert!(saga(&[2, 1, 1, 0]).contains(&"once".to_owned()));
}
