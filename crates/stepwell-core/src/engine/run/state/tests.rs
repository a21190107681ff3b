//! Tests of the stages, one by one, and of random ways through them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Wake;

use proptest::prelude::*;
use uuid::Uuid;

use super::stage::Counts;
use super::*;
use crate::base::failure::{Failure, FailureKind};
use crate::base::ids::TaskId;
use crate::base::input_hash::InputHash;
use crate::base::journal::Entry;
use crate::base::payload::Payload;
use crate::base::time::from_micros;
use crate::engine::task_error::TaskError;
use crate::store::{ArrivedMessage, Facts, Finish, MessageId};

fn key(kind: Kind, name: &str) -> Key {
    Key { kind, name: Name::new(name).unwrap(), ordinal: 1 }
}

fn step(name: &str) -> Key {
    key(Kind::Step, name)
}

fn at(micros: i64) -> Timestamp {
    from_micros(micros)
}

fn done() -> Outcome {
    Outcome::Done(Payload::null())
}

fn number(number: u64) -> Outcome {
    Outcome::Done(Payload::encode(&number, 100).unwrap())
}

fn failed(message: &str) -> Outcome {
    Outcome::failed(Failure::new(FailureKind::Error, message))
}

fn entry(seq: u64, key: Key, outcome: Outcome) -> Entry {
    Entry { seq, key, outcome, at: at(0) }
}

fn replaying(journal: Vec<Entry>) -> RunState {
    RunState::new(Replay::new(journal), Vec::new())
}

/// A waker that counts its calls.
#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl RunState {
    fn begin(&mut self, key: &Key, request: Request) -> Progress {
        self.poll(key, Some(request), Waker::noop())
    }

    fn again(&mut self, key: &Key) -> Progress {
        self.poll(key, None, Waker::noop())
    }

    fn wait(&mut self, key: &Key, target: Option<&str>, due_at: Option<i64>) {
        let target = target.map(|target| Name::new(target).unwrap());
        self.begin(key, Request::Wait { target, due_at: due_at.map(at) });
    }

    fn counted(&self) -> [usize; 3] {
        assert!(self.is_sound());
        let Counts { gates, open, waiting } = self.operations.counts();
        [gates, open, waiting]
    }

    /// Delivers the next result and journals it, and returns its key and its effect.
    fn delivers(&mut self) -> Option<(Key, Option<MessageId>)> {
        match self.deliver_next().ok()?? {
            Delivery::Known(_) => None,
            Delivery::New(delivered) => {
                let message = match delivered.effect {
                    Effect::Received(message) => Some(message),
                    _ => None,
                };
                let key = delivered.key.clone();
                self.journal(delivered, at(1));
                Some((key, message))
            }
        }
    }

    /// Commits what was delivered, and returns the numbers of its entries.
    fn commits(&mut self) -> Vec<u64> {
        let (unsent, seq) = (self.take_unsent(false), self.delivered_seq());
        self.committed(seq, &unsent.received);
        unsent.entries.iter().map(|entry| entry.seq).collect()
    }

    /// Opens what may be opened, and returns the number of closures, and the key of a work.
    fn opens(&mut self) -> (usize, Option<Key>) {
        let before = self.operations.counts().open;
        match self.open_gates(true) {
            Opened::Closures(_) => (self.operations.counts().open - before, None),
            Opened::Work(key, _) => (0, Some(key)),
        }
    }

    fn is_delivered(&mut self, key: &Key) -> bool {
        matches!(self.again(key), Progress::Delivered(Ok(_)))
    }
}

#[test]
fn a_step_passes_its_gate_runs_and_is_delivered() {
    let mut state = RunState::default();
    let a = step("a");
    assert!(matches!(state.begin(&a, Request::Gate(None)), Progress::Waits));
    assert_eq!((state.counted(), state.standing()), ([1, 0, 0], Standing::Busy));
    assert_eq!(state.opens(), (1, None));
    assert_eq!((state.counted(), state.standing()), ([0, 1, 0], Standing::Busy));
    assert!(matches!(state.again(&a), Progress::MayStart));
    state.finish(&a, done(), Effect::None);
    assert_eq!((state.counted(), state.standing()), ([0; 3], Standing::Foreign));
    assert_eq!(state.delivers(), Some((a.clone(), None)));
    assert!(state.is_delivered(&a));
    assert_eq!(state.operations.len(), 0);
    assert_eq!(state.commits(), [1]);
}

#[test]
fn nothing_starts_before_all_that_was_delivered_is_durable() {
    let mut state = RunState::default();
    let (value, a) = (key(Kind::Value, "now"), step("a"));
    state.begin(&value, Request::Finished(done(), Effect::None));
    state.delivers().unwrap();
    state.begin(&a, Request::Gate(None));
    assert_eq!(state.opens(), (0, None));
    assert_eq!(state.commits(), [1]);
    assert_eq!(state.opens(), (1, None));
}

#[test]
fn the_store_does_one_work_at_a_time_and_after_closures() {
    let mut state = RunState::default();
    let works = ["a", "b"].map(step);
    for work in &works {
        state.begin(work, Request::Gate(Some(Work::Transaction(Box::new(())))));
    }
    let closure = step("c");
    state.begin(&closure, Request::Gate(None));
    assert_eq!(state.counted(), [3, 0, 0]);
    assert_eq!(state.opens(), (1, None));
    assert!(matches!(state.open_gates(false), Opened::Closures(wakers) if wakers.is_empty()));
    assert_eq!(state.opens(), (0, Some(works[0].clone())));
    assert_eq!(state.counted(), [1, 1, 0]);
    // The first work is undone, and the store journals the second one.
    state.deliver_work(&works[0], failed("no"), false);
    assert_eq!(state.delivers(), Some((works[0].clone(), None)));
    assert_eq!(state.opens(), (0, Some(works[1].clone())));
    assert_eq!(state.commits(), [1], "the failure goes along with the second work");
    state.deliver_work(&works[1], done(), true);
    assert!(state.is_delivered(&works[1]));
    assert_eq!((state.delivered_seq(), state.durable_seq()), (2, 2));
    assert_eq!(state.delivers(), None);
}

#[test]
fn work_whose_future_is_gone_is_dropped() {
    let mut state = RunState::default();
    let work = || Request::Gate(Some(Work::Transaction(Box::new(()))));
    let a = step("a");
    state.begin(&a, work());
    state.forget(&a);
    assert_eq!((state.counted(), state.dropped.len()), ([0; 3], 1));
    assert_eq!(state.opens(), (0, None));
    // The gate of the next try is not opened by what is left of the first one.
    state.begin(&key(Kind::Value, "now"), Request::Finished(done(), Effect::None));
    state.delivers().unwrap();
    state.begin(&a, work());
    assert_eq!(state.opens(), (0, None));
    state.commits();
    assert_eq!(state.opens(), (0, Some(a)));
}

#[test]
fn a_wait_ends_by_its_arrival_or_its_timer() {
    let mut state = RunState::default();
    let (event, sleep) = (key(Kind::Event, "paid"), key(Kind::Timer, "sleep"));
    let late = Key { ordinal: 2, ..event.clone() };
    state.wait(&event, Some("paid"), Some(20));
    state.wait(&sleep, None, Some(10));
    assert_eq!(state.standing(), Standing::Quiescent { wake_at: Some(at(10)) });
    assert_eq!(state.counted(), [0, 0, 2]);
    state.fire_timers(at(9));
    assert_eq!(state.counted(), [0, 0, 2]);
    state.fire_timers(at(10));
    assert_eq!(state.counted(), [0, 0, 1]);
    let events = vec![(event.name.clone(), Payload::null())];
    state.arrive(Facts { events, ..Facts::default() });
    assert_eq!(state.counted(), [0; 3]);
    assert_eq!(state.delivers(), Some((sleep.clone(), None)));
    assert_eq!(state.delivers(), Some((event.clone(), None)));
    assert_eq!(state.next_timer(), None, "its timer went with it");
    state.wait(&late, Some("paid"), Some(30));
    state.fire_timers(at(30));
    assert_eq!(state.delivers(), Some((late.clone(), None)));
    assert!(matches!(state.again(&late), Progress::Delivered(Ok(Outcome::Failed(_)))));
}

#[test]
fn the_store_is_told_of_waits_that_outlast_a_commit_only() {
    let mut state = RunState::default();
    let [short, long] = ["short", "long"].map(|name| key(Kind::Timer, name));
    state.wait(&short, None, Some(1));
    state.wait(&long, None, Some(2));
    state.forget(&short);
    let unsent = state.take_unsent(false);
    assert!(unsent.waits_added.keys().eq([&long]) && unsent.waits_removed.is_empty());
    state.fire_timers(at(2));
    state.delivers().unwrap();
    let unsent = state.take_unsent(false);
    assert!(unsent.waits_added.is_empty() && unsent.waits_removed == [long]);
}

#[test]
fn a_wait_of_an_earlier_run_keeps_its_time_and_goes_when_it_is_not_come_to() {
    let wait = |name: &str| Wait { key: key(Kind::Timer, name), target: None, due_at: Some(at(7)) };
    let mut state = RunState::new(Replay::default(), vec![wait("a"), wait("b")]);
    let [a, b] = ["a", "b"].map(|name| key(Kind::Timer, name));
    assert_eq!(state.stored_due(&a), Some(at(7)));
    state.wait(&a, None, Some(7));
    let unsent = state.take_unsent(true);
    assert!(unsent.waits_added.is_empty() && unsent.waits_removed == [b]);
}

#[test]
fn a_message_whose_waiter_is_gone_goes_to_the_next_one() {
    let mut state = RunState::default();
    let [first, second] = [1, 2].map(|ordinal| Key { ordinal, ..key(Kind::Message, "topic") });
    state.wait(&first, Some("topic"), None);
    state.wait(&second, Some("topic"), None);
    let message = |id| ArrivedMessage { id, topic: first.name.clone(), payload: Payload::null() };
    let arrives = |state: &mut RunState, ids: &[i64]| {
        let messages = ids.iter().map(|id| message(*id)).collect();
        state.arrive(Facts { messages, ..Facts::default() });
    };
    arrives(&mut state, &[5, 6]);
    // The store lists a message until its receipt is committed.
    arrives(&mut state, &[5, 6]);
    state.forget(&first);
    assert_eq!(state.delivers(), Some((second, Some(5))), "messages come in their order");
    let third = Key { ordinal: 3, ..first.clone() };
    state.wait(&third, Some("topic"), None);
    assert_eq!(state.delivers(), None, "the other one is in the mailbox again");
    arrives(&mut state, &[5, 6]);
    assert_eq!(state.delivers(), Some((third, Some(6))));
}

#[test]
fn a_replay_delivers_from_any_stage_in_the_order_of_the_journal() {
    let (a, sleep, value) = (step("a"), key(Kind::Timer, "sleep"), key(Kind::Value, "now"));
    let journal =
        [&value, &a, &sleep].into_iter().zip(1..).map(|(key, seq)| entry(seq, key.clone(), done()));
    let mut state = replaying(journal.collect());
    state.begin(&a, Request::Gate(None));
    state.wait(&sleep, None, Some(1));
    assert!(matches!(state.deliver_next(), Err(Undelivered::NoWaiter)));
    assert_eq!(state.standing(), Standing::Stalled);
    assert_eq!(state.opens(), (0, None), "nothing starts in a replay");
    state.begin(&value, Request::Finished(done(), Effect::None));
    for key in [&value, &a, &sleep] {
        assert!(state.is_replaying());
        assert!(matches!(state.deliver_next(), Ok(Some(Delivery::Known(_)))));
        assert!(state.is_delivered(key));
        state.counted();
    }
    assert_eq!(state.delivers(), None, "what was finished is not delivered twice");
    assert!(!state.is_replaying() && state.commits().is_empty());
}

#[test]
fn code_that_asks_for_something_else_is_told_both_sides() {
    let mut state = replaying(vec![entry(1, step("a"), done())]);
    state.begin(&step("b"), Request::Gate(None));
    assert!(!state.input_changed(at(1)));
    let TaskError::Diverged { seq, expected, asked } = state.divergence(false) else {
        unreachable!("it is a divergence");
    };
    assert_eq!((seq, &*expected, &*asked), (1, "step \"a\"", "asked for step \"b\""));
}

#[test]
fn a_step_whose_input_changed_runs_again_and_the_others_keep_their_results() {
    let with = |input: u64| step("a").with_input(InputHash::of(&input).unwrap()).unwrap();
    let (old, new, b) = (with(1), with(2), step("b"));
    let mut state = replaying(vec![entry(1, old, done()), entry(2, b.clone(), done())]);
    state.begin(&new, Request::Gate(None));
    state.begin(&b, Request::Gate(None));
    assert_eq!(state.standing(), Standing::Stalled);
    assert!(state.input_changed(at(1)));
    assert_eq!(state.counted(), [1, 0, 0]);
    assert_eq!(state.delivers(), Some((b, None)));
    assert_eq!(state.commits(), [3, 4], "the change is journaled first");
    assert_eq!(state.opens(), (1, None));
}

#[test]
fn compensations_follow_on_the_replay_of_the_code() {
    let (record, a) = (key(Kind::Compensate, "a"), step("a"));
    let mut state = replaying(vec![
        entry(1, record.clone(), done()),
        entry(2, a.clone(), done()),
        entry(3, key(Kind::Compensating, "compensating"), failed("the task's failure")),
    ]);
    assert!(state.is_only_replayed() && state.has_compensations());
    state.begin(&record, Request::Finished(done(), Effect::None));
    state.begin(&a, Request::Gate(None));
    for _ in 0..2 {
        assert_eq!(state.standing(), Standing::Stalled);
        assert!(matches!(state.deliver_next(), Ok(Some(Delivery::Known(_)))));
    }
    assert_eq!(state.standing(), Standing::Replayed);
    let compensation = state.begin_compensation().unwrap();
    assert_eq!(compensation.recorded.len(), 1);
    assert!(!state.is_replaying() && state.begin_compensation().is_none());
    let undo = key(Kind::Compensated, "a");
    state.begin(&undo, Request::Gate(None));
    assert_eq!(state.opens(), (1, None));
    state.finish(&undo, done(), Effect::None);
    assert_eq!(state.delivers(), Some((undo, None)));
    assert_eq!(state.commits(), [4]);
}

#[test]
fn a_change_of_the_code_holds_for_tasks_that_come_to_it_afterwards() {
    let change = || Name::new("change").unwrap();
    let mut state = RunState::default();
    assert!(state.patched(change(), at(1)) && state.patched(change(), at(1)));
    assert_eq!(state.commits(), [1], "the first answer is journaled");
    let mut replays = replaying(vec![entry(1, step("a"), done())]);
    assert!(!replays.patched(change(), at(1)));
}

#[test]
fn a_failed_attempt_names_what_it_quotes_and_what_it_did_nothing_about() {
    let mut state = RunState::default();
    let fails = |state: &mut RunState, name: &str| {
        let key = step(name);
        state.begin(&key, Request::Gate(None));
        state.commits();
        state.opens();
        state.finish(&key, failed(name), Effect::None);
        state.delivers().unwrap();
    };
    ["handled", "quoted", "last"].into_iter().for_each(|name| fails(&mut state, name));
    let mut failure =
        Failure::new(FailureKind::Error, "so it ends: step \"quoted\" failed: quoted");
    let quotes = Failure::new(FailureKind::Error, "quoted");
    let error = TaskError::Step { name: "quoted".into(), failure: quotes.into() };
    failure.message = format!("so it ends: {error}");
    assert!(state.find_sources(&mut failure));
    assert_eq!(failure.sources.as_slice(), [2, 3]);
    state.mark_failed_attempt(1, failure, at(1));
    assert_eq!(state.commits(), [3, 4]);
}

#[test]
fn a_run_that_has_to_stop_says_so_to_all_that_wait_and_keeps_what_is_done() {
    let mut state = RunState::default();
    let woken = Arc::new(Woken::default());
    let [good, bad, sleep] = [step("good"), step("bad"), key(Kind::Timer, "sleep")];
    for key in [&good, &bad] {
        state.poll(key, Some(Request::Gate(None)), &woken.clone().into());
    }
    state.opens();
    for key in [&good, &bad] {
        state.poll(key, None, &woken.clone().into());
    }
    state.wait(&sleep, None, Some(1));
    let wakers = state.stop(ControlFlow::Cancelled).unwrap();
    wakers.into_iter().for_each(Waker::wake);
    assert_eq!(woken.0.load(Ordering::Relaxed), 2);
    assert!(state.stop(ControlFlow::Cancelled).is_none());
    assert!(matches!(state.again(&sleep), Progress::Delivered(Err(TaskError::Control(_)))));
    assert!(matches!(state.again(&good), Progress::MayStart), "it may end");
    state.finish(&bad, failed("told to stop"), Effect::None);
    state.finish(&good, done(), Effect::None);
    assert!(matches!(state.deliver_next(), Ok(Some(Delivery::Known(_)))));
    assert!(matches!(state.again(&bad), Progress::Delivered(Err(TaskError::Control(_)))));
    assert_eq!(state.delivers(), Some((good, None)));
    assert!(state.stop(ControlFlow::LeaseLost).is_some(), "a greater reason");
}

#[test]
fn a_report_takes_the_place_of_the_one_before() {
    let mut state = RunState::default();
    let report = |state: &mut RunState, kind| {
        assert!(state.note(kind, Name::known("note"), 1, Payload::null(), at(1)));
    };
    report(&mut state, Kind::Progress);
    report(&mut state, Kind::Log);
    report(&mut state, Kind::Progress);
    let unsent = state.take_unsent(false);
    let seqs: Vec<_> = unsent.entries.iter().map(|entry| entry.seq).collect();
    assert_eq!((seqs.as_slice(), unsent.superseded.as_slice()), ([2, 3].as_slice(), [].as_slice()));
    report(&mut state, Kind::Progress);
    assert_eq!(state.take_unsent(false).superseded, [3]);
    let mut replays = replaying(vec![entry(1, step("a"), done())]);
    assert!(!replays.note(Kind::Log, Name::known("log"), 1, Payload::null(), at(1)));
}

#[test]
fn a_report_that_is_written_while_the_store_does_a_work_comes_after_it() {
    let mut state = RunState::default();
    let work = step("work");
    state.begin(&work, Request::Gate(Some(Work::Transaction(Box::new(())))));
    assert_eq!(state.opens(), (0, Some(work.clone())));
    assert!(state.commits().is_empty());
    for kind in [Kind::Log, Kind::Progress] {
        assert!(state.note(kind, Name::known("note"), 1, Payload::null(), at(1)));
    }
    state.deliver_work(&work, done(), true);
    assert_eq!((state.durable_seq(), state.delivered_seq()), (1, 3));
    assert_eq!(state.commits(), [2, 3]);
    assert!(state.note(Kind::Progress, Name::known("note"), 1, Payload::null(), at(1)));
    assert_eq!(state.take_unsent(false).superseded, [3]);
}

#[test]
fn what_the_store_refused_is_as_if_it_had_not_been() {
    let mut state = RunState::default();
    let value = key(Kind::Value, "now");
    state.begin(&value, Request::Finished(failed("no"), Effect::None));
    state.delivers().unwrap();
    assert_eq!((state.delivered_seq(), state.durable_seq()), (1, 0));
    state.take_unsent(false);
    state.discard_unsent();
    assert_eq!(state.delivered_seq(), 0);
    let mut failure = Failure::new(FailureKind::Error, "refused");
    assert!(!state.find_sources(&mut failure), "there is no entry to go back to");
}

/// One thing that happens to a run.
#[derive(Clone, Copy, Debug)]
enum Op {
    Begin(usize),
    Poll(usize),
    Finish(usize),
    Forget(usize),
    Open,
    WorkEnds(bool),
    Event,
    Message(i64),
    Time(i64),
    Deliver,
    Commit,
    Suspend,
    Note,
    Stop,
}

/// The kinds of operations, each several times.
const KINDS: usize = 7;

fn operation(n: usize) -> Key {
    let ordinal = u32::try_from(n / KINDS).unwrap() + 1;
    let (kind, name) = match n % KINDS {
        0 => (Kind::Step, "closure"),
        1 => (Kind::Step, "work"),
        2 => (Kind::Event, "event"),
        3 => (Kind::Message, "topic"),
        4 => (Kind::Timer, "timer"),
        5 => (Kind::Value, "value"),
        _ => (Kind::Spawn, "keyed"),
    };
    Key { ordinal, ..key(kind, name) }
}

fn request(n: usize) -> Request {
    let wait = |target: Option<&str>, due_at| Request::Wait {
        target: target.map(|target| Name::new(target).unwrap()),
        due_at,
    };
    let due_at = Some(at(i64::try_from(n).unwrap()));
    match n % KINDS {
        0 => Request::Gate(None),
        2 => wait(Some("event"), due_at),
        3 => wait(Some("topic"), None),
        4 => wait(None, due_at),
        5 => Request::Finished(number(0), Effect::None),
        _ => Request::Gate(Some(Work::Transaction(Box::new(())))),
    }
}

fn op() -> impl Strategy<Value = Op> {
    let of = || 0..3 * KINDS;
    prop_oneof![
        6 => of().prop_map(Op::Begin),
        4 => of().prop_map(Op::Poll),
        4 => of().prop_map(Op::Finish),
        2 => of().prop_map(Op::Forget),
        4 => Just(Op::Open),
        2 => any::<bool>().prop_map(Op::WorkEnds),
        1 => Just(Op::Event),
        2 => (0..4_i64).prop_map(Op::Message),
        1 => (0..30_i64).prop_map(Op::Time),
        6 => Just(Op::Deliver),
        3 => Just(Op::Commit),
        1 => Just(Op::Suspend),
        1 => Just(Op::Note),
        1 => Just(Op::Stop),
    ]
}

/// A state, and what is known of it from outside.
#[derive(Default)]
struct World {
    state: RunState,
    /// Operations that were begun, whose futures exist.
    begun: Vec<Key>,
    /// The operation whose work the store does, which holds everything else still.
    working: Option<Key>,
    /// The numbers of all entries that were sent or journaled by the store.
    written: Vec<u64>,
}

impl World {
    fn happens(&mut self, op: Op) {
        let Self { state, begun, working, written } = self;
        if let (Some(key), false) = (&*working, matches!(op, Op::Note | Op::Poll(_))) {
            let journaled = matches!(op, Op::WorkEnds(true));
            let outcome = if journaled { done() } else { failed("undone") };
            state.deliver_work(key, outcome, journaled);
            if journaled {
                written.push(state.durable_seq());
            }
            return *working = None;
        }
        match op {
            Op::Begin(n) if !begun.contains(&operation(n)) => {
                begun.push(operation(n));
                state.begin(&operation(n), request(n));
            }
            Op::Poll(n) if working.is_none() && begun.contains(&operation(n)) => {
                if let Progress::Delivered(_) = state.again(&operation(n)) {
                    begun.retain(|key| *key != operation(n));
                }
            }
            Op::Finish(n) => {
                let key = operation(n);
                let stage = state.operations.get(&key).map(Operation::stage);
                if matches!(stage, Some(Stage::Open)) {
                    state.finish(
                        &key,
                        if n % 2 == 0 { done() } else { failed("no") },
                        Effect::None,
                    );
                }
            }
            Op::Forget(n) => {
                state.forget(&operation(n));
                begun.retain(|key| *key != operation(n));
            }
            Op::Open => {
                if let Opened::Work(key, _) = state.open_gates(true) {
                    written.extend(state.commits());
                    *working = Some(key);
                }
            }
            Op::Event => {
                let events = vec![(Name::new("event").unwrap(), Payload::null())];
                state.arrive(Facts { events, ..Facts::default() });
            }
            Op::Message(id) => {
                let topic = Name::new("topic").unwrap();
                let messages = vec![ArrivedMessage { id, topic, payload: Payload::null() }];
                state.arrive(Facts { messages, ..Facts::default() });
            }
            Op::Time(micros) => state.fire_timers(at(micros)),
            Op::Deliver => _ = state.delivers(),
            Op::Commit => written.extend(state.commits()),
            Op::Suspend => {
                let unsent = state.take_unsent(true);
                state.committed(state.delivered_seq(), &unsent.received);
                written.extend(unsent.entries.iter().map(|entry| entry.seq));
            }
            Op::Note => _ = state.note(Kind::Log, Name::known("log"), 1, Payload::null(), at(1)),
            Op::Stop => _ = state.stop(ControlFlow::Cancelled),
            Op::Begin(_) | Op::Poll(_) | Op::WorkEnds(_) => {}
        }
    }

    /// Compares all that the state counts with a census of what it holds.
    fn check(&self) {
        let Self { state, begun, working, written } = self;
        let [gates, open, waiting] = state.counted();
        let stages: Vec<_> = state.operations.iter().map(|(_, live)| live.stage()).collect();
        let count = |is: fn(&Stage) -> bool| stages.iter().filter(|stage| is(stage)).count();
        assert_eq!(gates, count(|stage| matches!(stage, Stage::Gate { .. })));
        assert_eq!(open, count(|stage| matches!(stage, Stage::Open)));
        assert_eq!(waiting, count(|stage| matches!(stage, Stage::Waiting)));
        let committing = count(|stage| matches!(stage, Stage::Committing));
        assert_eq!(committing, usize::from(working.is_some()));
        assert!(state.operations.keys().all(|key| begun.contains(key)));
        let finished =
            state.operations.iter().filter(|(_, live)| matches!(live.stage(), Stage::Finished));
        for (key, _) in finished {
            let queued = state.ready.iter().filter(|ready| ready.key == *key).count();
            assert!(queued >= 1, "{key} is to be delivered");
        }
        assert!(written.iter().copied().eq(1..=written.len() as u64), "{written:?} has no gaps");
    }
}

proptest! {
    #[test]
    fn the_counts_are_those_of_a_census_whatever_happens(
        ops in prop::collection::vec(op(), 1..120)
    ) {
        let mut world = World::default();
        for op in ops {
            world.happens(op);
            world.check();
        }
        let (live, _) = world.state.take_live();
        assert!(live.len() <= world.begun.len());
        assert_eq!(world.state.operations.counts(), Counts::default());
    }
}

#[test]
fn a_child_is_awaited_by_its_id() {
    let mut state = RunState::default();
    let child: TaskId = Uuid::from_u128(7).into();
    let join = key(Kind::Child, &format!("order:{child}"));
    state.wait(&join, Some(&child.to_string()), None);
    let children = vec![(child, Finish::Cancelled)];
    state.arrive(Facts { children, ..Facts::default() });
    assert_eq!(state.delivers(), Some((join, None)));
}
