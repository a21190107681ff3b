//! The points of the rules: in each state that a task can be in, the store does what the rules of
//! the engine say.

use std::sync::atomic::{AtomicU64, Ordering};

use stepwell_core::store::rules::{
    Activity, Arrival, Cancellation, Claims, CommandKind, Counts, Course, Death, Effect, End,
    Ending, Found, GivenBack, Leaving, Live, Position, Progress, Queueing, Registration, Start,
    Started, Suspension, Turn, Undo, Verdict, WakeAt, given_back, is_waiting, on_arrival,
    on_command, on_death, on_end, on_suspension, starts_with_spawn,
};
use stepwell_core::store::{
    Batch, Claim, ClaimedTask, Command, CommandOutcome, NewTask, Next, Spawned,
};
use stepwell_core::{
    Coalesce, Entry, Key, Kind, QueueAction, QueueChange, QueueLimits, RunId, TaskId, TaskState,
    crash_limit,
};

use crate::backend::Backend;
use crate::handle::{Handle, of};
use crate::make::*;
use crate::setup::Setup;

/// A task in a position, alone in its queue.
struct Case {
    n: u128,
    position: Position,
    undo: Undo,
    /// The run that owns the task, or that owned it last.
    run: (TaskId, RunId),
}

/// Returns the positions that a task can be in, each with what it can have left to undo.
fn reachable() -> Vec<(Position, Undo)> {
    let mut all = Vec::new();
    for position in Position::all().into_iter().filter(|position| position.is_reachable()) {
        all.push((position, Undo::Nothing));
        if !matches!(position, Position::Ended(End::Failed | End::Cancelled)) {
            all.push((position, Undo::Left));
        }
    }
    all
}

/// Returns the positions of a task that runs.
fn runs() -> Vec<(Live, Undo)> {
    let runs = |(position, undo)| match position {
        Position::Live(live) if live.activity == Activity::Running => Some((live, undo)),
        _ => None,
    };
    reachable().into_iter().filter_map(runs).collect()
}

fn queue_of(n: u128) -> String {
    format!("queue {n}")
}

fn task(n: u128) -> NewTask {
    NewTask { queue: name(&queue_of(n)), ..new_task(n) }
}

fn awaited(n: u128) -> String {
    format!("event {n}")
}

fn record(seq: u64) -> Entry {
    let key = Key { kind: Kind::Compensate, name: name("charge"), ordinal: 1 };
    Entry { key, ..step(seq, json("{\"step\":{\"ordinal\":1,\"begun\":false}}")) }
}

/// Makes tasks in positions, and looks at them.
struct Maker {
    store: Handle,
    workers: AtomicU64,
}

impl Maker {
    async fn new(store: Handle) -> Self {
        store.signal(register(1)).await;
        Self { store, workers: AtomicU64::new(100) }
    }

    /// Registers a worker that can die alone.
    async fn worker(&self) -> u128 {
        let worker = self.workers.fetch_add(1, Ordering::SeqCst).into();
        self.store.signal(register(worker)).await;
        worker
    }

    async fn claim(&self, worker: u128, n: u128) -> Vec<ClaimedTask> {
        let claim: Claim = claim_of(worker, &[&queue_of(n)], &["type"], 5);
        self.store.commit(claims([claim])).await.claims.remove(0).tasks
    }

    async fn claim_one(&self, worker: u128, n: u128) -> (TaskId, RunId) {
        let claimed = self.claim(worker, n).await;
        assert_eq!(claimed.len(), 1, "the task {n} can be claimed: {claimed:#?}");
        of(&claimed[0])
    }

    /// Adds an entry to the journal for a run, with which something is left to undo.
    async fn record(&self, run: (TaskId, RunId), n: u128) {
        let seq = self.store.journal(n).await.last().map_or(0, |entry| entry.seq) + 1;
        self.store.journals(run, vec![record(seq)]).await;
    }

    /// Brings a new task into a position, under the worker.
    async fn bring(&self, new: NewTask, n: u128, worker: u128, to: (Position, Undo)) -> Case {
        let (position, undo) = to;
        let mut run = (new.task_id, new.run_id);
        self.store.spawn([new]).await;
        match position {
            Position::Live(Live { course: Course::Ordinary, activity, .. }) => {
                if activity != Activity::Pending || undo == Undo::Left {
                    run = self.claim_one(worker, n).await;
                }
            }
            Position::Live(_) => {
                run = self.claim_one(worker, n).await;
                self.record(run, n).await;
                self.store.next(run, Next::Fail(failure("no"))).await;
                let Position::Live(live) = position else { unreachable!() };
                if live.activity != Activity::Pending || undo == Undo::Left {
                    run = self.claim_one(worker, n).await;
                }
            }
            Position::Ended(_) => run = self.claim_one(worker, n).await,
        }
        if undo == Undo::Left {
            self.record(run, n).await;
        }
        self.finish_bringing(n, run, position, undo).await;
        let case = Case { n, position, undo, run };
        assert_eq!(self.look(n).await, Some(position), "task {n} is not where it was brought");
        case
    }

    /// Lets a task that was spawned, or that runs, get into its position.
    async fn finish_bringing(&self, n: u128, run: (TaskId, RunId), position: Position, undo: Undo) {
        let live = match position {
            Position::Ended(end) => {
                let next = match end {
                    End::Completed => complete(),
                    End::Failed => Next::Fail(failure("no")),
                    End::Cancelled => Next::Cancel,
                };
                self.store.next(run, next).await;
                return;
            }
            Position::Live(live) => live,
        };
        match live.activity {
            Activity::Pending if undo == Undo::Left => {
                self.store.next(run, Next::Release).await;
            }
            Activity::Pending => {}
            Activity::Running => {
                let waits = awaiting(run, [for_event(&awaited(n))], GO_ON);
                self.store.apply(waits).await.unwrap();
            }
            Activity::Suspended => {
                let waits = awaiting(run, [for_event(&awaited(n))], SUSPEND);
                assert!(self.store.apply(waits).await.unwrap().suspended);
            }
        }
        let mut flags = Vec::new();
        if live.cancellation == Cancellation::Requested {
            flags.push(Command::Cancel(run.0));
        }
        if live.claims == Claims::Paused {
            flags.push(Command::Pause(run.0));
        }
        for outcome in self.store.commit(commands(flags)).await.commands {
            assert_eq!(outcome, CommandOutcome::Done);
        }
    }

    /// Returns the position of a task, which is alone in its queue; `None` when there is no task.
    async fn look(&self, n: u128) -> Option<Position> {
        let info = self.store.find(n).await?;
        let course = Course::of(info.state == TaskState::Compensating);
        let (asked, claims) = (Cancellation::of(info.cancel_requested), Claims::of(info.paused));
        if info.state.is_finished() {
            return Some(Position::of(info.state, course, asked, claims));
        }
        let queues = self.store.queues().await;
        let queue = queues.iter().find(|queue| queue.queue.as_str() == queue_of(n)).unwrap();
        let state = match (queue.pending, queue.running, queue.suspended) {
            (1, 0, 0) => TaskState::Pending,
            (0, 1, 0) => TaskState::Running,
            (0, 0, 1) => TaskState::Suspended,
            counts => panic!("the queue of task {n} counts {counts:?}"),
        };
        let position = Position::of(state, course, asked, claims);
        assert_eq!(position.state(), info.state, "the state of task {n}");
        Some(position)
    }

    /// Checks that a task is in a position, and that a worker can claim it when the rules say so.
    async fn is_in(&self, n: u128, expected: Option<Position>, why: &str) -> Vec<ClaimedTask> {
        assert_eq!(self.look(n).await, expected, "{why}");
        let claimable = matches!(expected, Some(Position::Live(live))
            if live.is_claimable(Start::Now, Turn::Free));
        let claimed = self.claim(1, n).await;
        assert_eq!(claimed.len(), usize::from(claimable), "{why}: whether it can be claimed");
        claimed
    }
}

fn command_of(kind: CommandKind, task_id: TaskId) -> Command {
    match kind {
        CommandKind::Cancel => Command::Cancel(task_id),
        CommandKind::Retry => Command::Retry(task_id),
        CommandKind::Delete => Command::Delete(task_id),
        CommandKind::Wake => Command::Wake(task_id),
        CommandKind::Pause => Command::Pause(task_id),
        CommandKind::Resume => Command::Resume(task_id),
    }
}

/// Checks each command in each state: the store refuses the command and changes nothing, or brings
/// the task into the state that the rules say.
pub async fn states_and_commands(backend: &impl Backend) {
    let (_setup, store) = Setup::with_handle(backend).await;
    let maker = Maker::new(store.clone()).await;
    let mut numbers = 1..;
    for to in reachable() {
        for kind in CommandKind::ALL {
            let n = numbers.next().unwrap();
            let case = maker.bring(task(n), n, 1, to).await;
            let before = (store.info(n).await, store.journal(n).await);
            let outcome = store.command(command_of(kind, task_id(n))).await;
            let why = format!("{kind:?} of a task that is {:?}, {:?}", case.position, case.undo);
            match on_command(case.position, kind) {
                Verdict::NotAllowed(state) => {
                    assert_eq!(outcome, CommandOutcome::NotAllowed(state), "{why}");
                    let after = (store.info(n).await, store.journal(n).await);
                    assert_eq!(format!("{before:?}"), format!("{after:?}"), "{why}");
                }
                Verdict::Allowed(effect) => {
                    assert_eq!(outcome, CommandOutcome::Done, "{why}");
                    let after = effect.apply(case.position, case.undo);
                    let claimed = maker.is_in(n, after, &why).await;
                    if effect == Effect::RunAgain {
                        assert_eq!(claimed[0].attempt, 1, "{why}");
                    }
                }
            }
        }
    }
}

/// Checks each end of a run in each state: the task ends, or is compensated first.
pub async fn states_and_ends(backend: &impl Backend) {
    let (_setup, store) = Setup::with_handle(backend).await;
    let maker = Maker::new(store.clone()).await;
    let mut numbers = 1..;
    for (live, undo) in runs() {
        let ends = [complete(), Next::Fail(failure("no")), Next::Cancel];
        for (end, next) in End::ALL.into_iter().zip(ends) {
            let n = numbers.next().unwrap();
            let case = maker.bring(task(n), n, 1, (Position::Live(live), undo)).await;
            store.next(case.run, next).await;
            let after = match on_end(end, live.course, undo) {
                Ending::Ends(end) => Position::Ended(end),
                Ending::CompensatesFirst => Position::Live(live.compensating()),
            };
            maker.is_in(n, Some(after), &format!("{end:?} of {live:?}, {undo:?}")).await;
        }
    }
}

/// Returns the position of a task that its run has given back, and the counts of its attempts.
fn given_back_to(live: Live, undo: Undo, left: Counts) -> (Position, Counts) {
    match given_back(live.cancellation) {
        GivenBack::Pending => (Position::Live(Live { activity: Activity::Pending, ..live }), left),
        GivenBack::EndsAsCancelled => match on_end(End::Cancelled, live.course, undo) {
            Ending::Ends(end) => (Position::Ended(end), left),
            Ending::CompensatesFirst => (Position::Live(live.compensating()), left.compensating()),
        },
    }
}

/// Checks each way in which a run can leave its task, in each state: the state of the task, and
/// what counts.
pub async fn states_and_runs(backend: &impl Backend) {
    let (setup, store) = Setup::with_handle(backend).await;
    let maker = Maker::new(store.clone()).await;
    let mut numbers = 1..;
    let died = Leaving::Died(Progress { now: 0, at_last_crash: 0 });
    for (live, undo) in runs() {
        for way in 0..5 {
            let (n, worker) = (numbers.next().unwrap(), maker.worker().await);
            let case = maker.bring(task(n), n, worker, (Position::Live(live), undo)).await;
            let before = Counts { attempt: store.info(n).await.attempt, ..Counts::default() };
            let retry = Next::Retry { failure: failure("no"), at: setup.now() };
            let leaving = match way {
                0 => {
                    store.next(case.run, retry).await;
                    Leaving::Failed
                }
                1 => {
                    store.next(case.run, Next::Release).await;
                    Leaving::Released
                }
                2 => {
                    store.next(case.run, Next::Leave { until: setup.now() }).await;
                    Leaving::Released
                }
                3 => {
                    store.signal(deregister(worker)).await;
                    Leaving::Released
                }
                _ => {
                    store.crash(worker).await;
                    died
                }
            };
            let (after, counts) = given_back_to(live, undo, before.left(leaving));
            let why = format!("{leaving:?} (way {way}) of {live:?}, {undo:?}");
            assert_eq!(store.info(n).await.attempt, counts.attempt, "{why}");
            for claimed in maker.is_in(n, Some(after), &why).await {
                let expected = (counts.claimed().attempt, 3 + counts.lost, counts.crashes);
                let got = (claimed.attempt, claimed.max_attempts, claimed.crashes);
                assert_eq!(got, expected, "{why}: attempt, attempts, crashes");
            }
        }
    }
}

/// Checks the death of a worker after any number of crashes in a row, in each state: the task gets
/// another attempt, or comes to its end.
pub async fn states_and_deaths(backend: &impl Backend) {
    let (_setup, store) = Setup::with_handle(backend).await;
    let maker = Maker::new(store.clone()).await;
    let mut numbers = 1..;
    let died = Leaving::Died(Progress { now: 0, at_last_crash: 0 });
    let open = |(live, _): &(Live, Undo)| live.claims == Claims::Open;
    for (live, undo) in runs().into_iter().filter(open) {
        for max_attempts in [1, 6] {
            let compensating = live.course == Course::Compensating;
            for crashes in 0..crash_limit(max_attempts, compensating) {
                let (n, worker) = (numbers.next().unwrap(), maker.worker().await);
                // Asked to cancel only before the last death.
                let calm = Live { cancellation: Cancellation::NotRequested, ..live };
                let new = NewTask { max_attempts, ..task(n) };
                maker.bring(new, n, worker, (Position::Live(calm), undo)).await;
                let mut worker = worker;
                for _ in 0..crashes {
                    store.crash(worker).await;
                    worker = maker.worker().await;
                    maker.claim_one(worker, n).await;
                }
                if live.cancellation == Cancellation::Requested {
                    store.command(Command::Cancel(task_id(n))).await;
                }
                let attempt = store.info(n).await.attempt;
                store.crash(worker).await;
                let left = Counts { attempt, lost: crashes, crashes }.left(died);
                let death = on_death(left.crashes, max_attempts, live.course, live.cancellation);
                let after = match death {
                    Death::GivenBack(_) => given_back_to(live, undo, left).0,
                    Death::Quarantined => match on_end(End::Failed, live.course, undo) {
                        Ending::Ends(end) => Position::Ended(end),
                        Ending::CompensatesFirst => Position::Live(live.compensating()),
                    },
                    // The compensation is of a task that failed.
                    Death::EndsAsItWouldHave => Position::Ended(End::Failed),
                };
                let why = format!("{death:?} of {live:?}, {undo:?}, after {crashes} crashes");
                maker.is_in(n, Some(after), &why).await;
            }
        }
    }
}

/// Checks the suspension of each run, with and without something that has arrived, and with each
/// kind of time: the task stays running exactly when the rules say so.
pub async fn states_and_suspensions(backend: &impl Backend) {
    let (setup, store) = Setup::with_handle(backend).await;
    let maker = Maker::new(store.clone()).await;
    let mut numbers = 1..;
    let times = [Some(setup.now()), Some(setup.at(SECOND)), None];
    for (live, undo) in runs() {
        for found in [Found::Nothing, Found::Something] {
            for wake_at in times {
                let n = numbers.next().unwrap();
                let case = maker.bring(task(n), n, 1, (Position::Live(live), undo)).await;
                if found == Found::Something {
                    store.emit(event(&awaited(n), json("1"))).await;
                }
                let at = WakeAt::of(wake_at, setup.now());
                let applied = store.next(case.run, Next::Suspend { wake_at }).await;
                let suspends = match on_suspension(live.cancellation, found, at) {
                    Suspension::StaysRunning => false,
                    Suspension::Suspends | Suspension::SuspendsUnlessInCircle => true,
                };
                let why = format!("{found:?} for {live:?}, {at:?}");
                assert_eq!(applied.suspended, suspends, "{why}");
                assert_eq!(applied.facts.is_empty(), found == Found::Nothing, "{why}");
                let activity = if suspends { Activity::Suspended } else { Activity::Running };
                maker.is_in(n, Some(Position::Live(Live { activity, ..live })), &why).await;
            }
        }
    }
}

/// Checks an arrival for a task in each state: a suspended task becomes pending, a running one is
/// notified, and no other changes.
pub async fn states_and_arrivals(backend: &impl Backend) {
    let (_setup, store) = Setup::with_handle(backend).await;
    let maker = Maker::new(store.clone()).await;
    for (n, to) in (1..).zip(reachable()) {
        let case = maker.bring(task(n), n, 1, to).await;
        let batch = emitting([event(&awaited(n), json("1"))]);
        let news = store.commit(batch).await.news;
        let arrival = on_arrival(case.position);
        let why = format!("an arrival for {:?}", case.position);
        assert_eq!(news.poked.contains(&case.run.0), arrival == Arrival::Notifies, "{why}");
        let after = match (arrival, case.position) {
            (Arrival::Wakes, Position::Live(live)) => {
                Position::Live(Live { activity: Activity::Pending, ..live })
            }
            (_, position) => position,
        };
        let accepted = store.send(message(n, "topic", json("1"))).await;
        assert_eq!(accepted, matches!(after, Position::Live(_)), "{why}: messages");
        maker.is_in(case.n, Some(after), &why).await;
    }
}

/// Checks each obstacle to a start in the commit that spawns a task.
pub async fn states_and_spawns(backend: &impl Backend) {
    let (setup, store) = Setup::with_handle(backend).await;
    store.signal(register(1)).await;
    let mut numbers = 1..;
    let limited = QueueLimits { max_running: Some(9), ..QueueLimits::default() };
    for action in [None, Some(QueueAction::Pause), Some(QueueAction::Limit(limited))] {
        let queue = if action.is_none() { Queueing::Free } else { Queueing::Restricted };
        for start in [Start::Now, Start::Later] {
            for turn in [Turn::Free, Turn::Taken] {
                for worker in [Registration::Registered, Registration::Unknown] {
                    let n = numbers.next().unwrap();
                    let new = NewTask {
                        start_at: (start == Start::Later).then(|| setup.at(SECOND)),
                        concurrency_key: (turn == Turn::Taken).then(|| name(&awaited(n))),
                        claim_by: Some(match worker {
                            Registration::Registered => worker_id(1),
                            Registration::Unknown => worker_id(2),
                        }),
                        ..task(n)
                    };
                    // Queues come after spawns in a batch.
                    let change = |action| QueueChange { queue: name(&queue_of(n)), action };
                    let queues = action.into_iter().map(change).collect();
                    store.commit(Batch { queues, ..Batch::default() }).await;
                    let spawned = store.spawn([new]).await.remove(0);
                    let starts: Result<_, std::convert::Infallible> =
                        starts_with_spawn(start, turn, || Ok(worker), || Ok(queue));
                    let claimed = starts == Ok(true);
                    let why = format!("{start:?}, {turn:?}, {worker:?}, {action:?}");
                    assert_eq!(spawned, Spawned::Created { claimed }, "{why}");
                    let state = if claimed { TaskState::Running } else { TaskState::Pending };
                    let info = store.info(n).await;
                    assert_eq!((info.state, info.attempt), (state, u32::from(claimed)), "{why}");
                }
            }
        }
    }
}

/// Checks a spawn of the same concurrency key beside a task in each state: it coalesces with a task
/// that was never claimed, and with no other.
pub async fn states_and_coalescing(backend: &impl Backend) {
    let (_setup, store) = Setup::with_handle(backend).await;
    let maker = Maker::new(store.clone()).await;
    let keyed = |n| NewTask { concurrency_key: Some(name(&awaited(n))), ..task(n) };
    for (n, to) in (1..).zip(reachable()) {
        let case = maker.bring(keyed(n), n, 1, to).await;
        let started = match store.info(n).await.started_at {
            None => Started::Never,
            Some(_) => Started::Once,
        };
        let waiting = match case.position {
            Position::Live(live) => is_waiting(live, started),
            Position::Ended(_) => false,
        };
        let second = NewTask {
            task_id: task_id(1_000 + n),
            run_id: run_id(1_000 + n),
            coalesce: Some(Coalesce::Reuse),
            ..keyed(n)
        };
        let spawned = store.spawn([second]).await.remove(0);
        let expected = match waiting {
            true => Spawned::Waiting { task_id: task_id(n), run_id: run_id(n) },
            false => Spawned::Created { claimed: false },
        };
        assert_eq!(spawned, expected, "a spawn beside {:?}, {:?}", case.position, case.undo);
    }
}
