//! The executor, which owns the future of one claimed task, and polls it.
//!
//! ```text
//!            ┌────────────── poll the future, until it is pending and nobody woke it
//!            │                              │
//!            │         an entry left in the journal? ── yes ──▶ deliver it ──┐
//!            │                              │ no                             │
//!            │         a result that is ready?  ──────── yes ──▶ deliver it ─┤
//!            │                              │ no                             │
//!            │         gates whose barrier is durable? ─ yes ──▶ open them ──┤
//!            │                              │ no                             │
//!            └──────────────────────────────┼────────────────────────────────┘
//!                        commit what is not yet sent; when the task only waits, suspend it
//!                        then wait: for the commit, a closure's I/O, a timer, something that arrives
//! ```
//!
//! At every poll of the task's future, at most one thing is therefore newly ready. The code may
//! combine its futures in any way, and a replay takes the same way.

use std::future::{Future, poll_fn};
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use tracing::Span;

use crate::base::failure::{Failure, FailureKind};
use crate::base::guard::{Panic, discard, guard};
use crate::base::journal::{Entry, Key, Kind, Outcome};
use crate::base::payload::Payload;
use crate::base::retry::STORE_RETRY;
use crate::base::runtime::BoxFuture;
use crate::base::time::{Timestamp, after, until};
use crate::base::unreadable::Unreadable;
use crate::engine::Engine;
use crate::engine::commit::Receipt;
use crate::engine::run::Run;
use crate::engine::run::child;
use crate::engine::run::compensation::compensate;
use crate::engine::run::polled::{poll_closure, poll_task};
use crate::engine::run::state::{
    Delivery, Opened, RunState, Standing, Undelivered, Unsent, Work, unlock,
};
use crate::engine::task_error::{ControlFlow, TaskError, TaskResult, closure_failure};
use crate::engine::worker::slots::Slot;
use crate::engine::worker::suspects::SuspectPermit;
use crate::observe::lifecycle::Lifecycle;
use crate::observe::measures::Ended;
use crate::observe::trace;
use crate::store::rules::ending::{cancelled, end_of};
use crate::store::*;

/// The number of polls and deliveries after which others get their turn.
const TURN: usize = 256;

/// The longest time for which a run relies on its timer alone.
///
/// The run then reads the clock again, which may have jumped.
const CLOCK_CHECK: Duration = Duration::from_secs(1);

/// A claimed task in execution.
pub(crate) struct Execution {
    pub(crate) run: Arc<Run>,
    /// The task's code, until it has ended.
    future: Option<BoxFuture<'static, TaskResult<Payload>>>,
    /// The slot, which is released when the code has ended, or is suspended.
    slot: Option<Slot>,
    /// The permit of a suspect, which it keeps until it has got further.
    suspect: Option<SuspectPermit>,
    span: Span,
    headers: Arc<Headers>,
    /// The work that is left after the code has ended.
    closing: Option<Closing>,
    commit: Commit,
    /// The arrivals at the time of the claim, for use after the replay.
    facts: Option<Facts>,
    /// Set when the task could be read; otherwise the run has not seen where the journal ends.
    readable: bool,
    grace: Duration,
    /// Wakes the executor for the next due time.
    alarm: Option<(Timestamp, BoxFuture<'static, ()>)>,
    /// Ready when the code has waited outside its context for the whole grace.
    stalled: Option<BoxFuture<'static, ()>>,
    /// Ready when the code has had its time to stop.
    stopping: Option<BoxFuture<'static, ()>>,
    warned: bool,
    /// The number of times that the store has refused for good what was sent.
    refusals: u32,
}

/// The time for which a task that this program cannot read is left to others before it is claimed
/// again.
const LEFT_TO_OTHERS: Duration = Duration::from_secs(10);

enum Closing {
    Commit(Next),
    /// The run is lost: the store would refuse all its writes.
    Nothing,
}

enum Commit {
    Idle,
    Sent {
        receipt: Receipt<Result<Applied, Refused>>,
        sent: Box<Sent>,
    },
    /// The store failed, and the same is sent again after a pause.
    Paused {
        pause: BoxFuture<'static, ()>,
        sent: Box<Sent>,
    },
}

/// The content of a commit that is on its way, with everything that is needed to send it again.
struct Sent {
    unsent: Unsent,
    next: Next,
    /// The number of the last entry before the commit.
    after: u64,
    /// The number of the last entry in the commit.
    seq: u64,
    /// The operation whose work the store does within the commit.
    work: Option<(Key, Working)>,
    tries: u32,
}

/// The work of the store within a commit.
enum Working {
    /// A step's work, with the span around it; the work itself is gone after it was sent.
    Transaction(Span),
    /// The spawn of a child that may exist already.
    Spawn(Box<KeyedSpawn>),
}

/// The way in which an execution left its slot.
pub(crate) enum End {
    /// The task has ended, or this run no longer owns it.
    Gone,
    /// The task only waits, and could go on from here.
    Suspended(Box<Execution>),
}

/// Records that a run begins, or goes on after a suspension, and returns its span.
fn begin(run: &Run, headers: &Headers) -> Span {
    if let Some(measures) = &run.measures {
        measures.started.increment(1);
    }
    trace::run(&run.task_type, (run.task_id, run.run_id), run.attempt, headers)
}

/// Returns the outcome of a step whose work the store did.
fn done(result: Option<anyhow::Result<Payload>>) -> Outcome {
    match result {
        Some(Ok(payload)) => Outcome::Done(payload),
        Some(Err(error)) => Outcome::failed(closure_failure(&error)),
        None => Outcome::failed(Failure::new(FailureKind::Error, "the store did not do the step")),
    }
}

/// Returns whether the grace has passed since the first call.
///
/// It is measured by a timer, because a clock may jump.
fn has_passed(
    run: &Run,
    timer: &mut Option<BoxFuture<'static, ()>>,
    grace: Duration,
    cx: &mut Context<'_>,
) -> bool {
    if grace.is_zero() {
        return true;
    }
    let timer = timer.get_or_insert_with(|| run.engine.runtime.sleep(grace));
    timer.as_mut().poll(cx).is_ready()
}

/// The end of the task's code without an output.
enum Ending {
    Error(TaskError),
    Panic(Panic),
}

impl Execution {
    /// Prepares a claimed task with its journal.
    pub(crate) fn new(
        engine: &Arc<Engine>,
        mut claimed: ClaimedTask,
        journal: Vec<Entry>,
        slot: Slot,
        suspect: Option<SuspectPermit>,
        claim_timeout: Duration,
        grace: Duration,
    ) -> Box<Self> {
        let (headers, facts) =
            (Arc::new(mem::take(&mut claimed.headers)), mem::take(&mut claimed.facts));
        let (params, unreadable) = (claimed.params.clone(), claimed.unreadable.take());
        let readable = unreadable.is_none();
        let run = Arc::new(Run::new(engine.clone(), claimed, journal, claim_timeout));
        let future = match (unreadable, engine.registry.get(&run.task_type)) {
            (Some(unreadable), _) => Box::pin(std::future::ready(Err(unreadable.into()))),
            (None, Some(executable)) => executable.start(params, run.clone(), headers.clone()),
            // A worker claims only types that it knows, and none is ever unregistered.
            (None, None) => Box::pin(std::future::ready(Err(ControlFlow::Shutdown.into()))),
        };
        run.waker.wake_by_ref();
        Box::new(Self {
            span: begin(&run, &headers),
            headers,
            run,
            future: Some(future),
            slot: Some(slot),
            suspect,
            closing: None,
            commit: Commit::Idle,
            facts: Some(facts),
            readable,
            grace,
            alarm: None,
            stalled: None,
            stopping: None,
            warned: false,
            refusals: 0,
        })
    }

    /// Prepares an execution to go on in place after a suspension.
    pub(crate) fn resume(&mut self, facts: Facts, slot: Slot) {
        self.run.sign_of_life(None);
        self.run.set_suspending(false);
        self.span = begin(&self.run, &self.headers);
        self.slot = Some(slot);
        self.facts = Some(facts);
    }

    /// Executes until the task ends, suspends or is lost.
    pub(crate) async fn execute(mut self: Box<Self>) -> End {
        if poll_fn(|cx| self.poll(cx)).await {
            self.alarm = None;
            self.slot = None;
            self.suspect = None;
            // A task may be suspended for days, and a collector receives a span only at its end.
            self.span = Span::none();
            End::Suspended(self)
        } else {
            End::Gone
        }
    }

    /// Polls the execution; the result is whether the task is suspended.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        guard(|| self.go_on(cx)).unwrap_or_else(|panic| {
            // A waker of the task's futures may panic, for instance, or the drop of a value.
            tracing::error!(task_id = %self.run.task_id, %panic, "a task panicked beside its own \
                                                                  code");
            if self.future.is_none() {
                return Poll::Ready(false);
            }
            self.end(Err(Ending::Panic(panic)));
            cx.waker().wake_by_ref();
            Poll::Pending
        })
    }

    fn go_on(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        self.run.waker.take();
        for _ in 0..TURN {
            self.run.waker.look();
            match self.poll_commit(cx) {
                Poll::Ready(Some(suspended)) => return Poll::Ready(suspended),
                // Nothing may happen between the decision to suspend, or to end, and its commit.
                // Nothing may be delivered while the store does an operation's work.
                Poll::Pending if self.holds_still() => return Poll::Pending,
                Poll::Ready(None) | Poll::Pending => {}
            }
            if self.future.is_none() {
                match self.closing.take_if(|_| matches!(self.commit, Commit::Idle)) {
                    Some(Closing::Commit(next)) => self.send(next, None),
                    Some(Closing::Nothing) => return Poll::Ready(false),
                    None => return Poll::Pending,
                }
            } else if self.run.waker.take_woken() {
                self.poll_future();
            } else if !self.advance(cx) && self.run.waker.can_sleep(cx.waker()) {
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn holds_still(&self) -> bool {
        match &self.commit {
            Commit::Idle => false,
            Commit::Sent { sent, .. } | Commit::Paused { sent, .. } => {
                sent.work.is_some() || !matches!(sent.next, Next::Continue { .. })
            }
        }
    }

    fn poll_future(&mut self) {
        let Some(future) = &mut self.future else { return };
        let waker = Waker::from(self.run.waker.clone());
        let mut cx = Context::from_waker(&waker);
        let poll = || self.span.in_scope(|| poll_task(&self.run, || future.as_mut().poll(&mut cx)));
        match guard(poll) {
            Ok(Poll::Pending) => {}
            Ok(Poll::Ready(result)) => self.end(result.map_err(Ending::Error)),
            Err(panic) => self.end(Err(Ending::Panic(panic))),
        }
    }

    /// Delivers, opens gates or commits; `false` when the execution can only wait.
    fn advance(&mut self, cx: &mut Context<'_>) -> bool {
        let run = self.run.clone();
        // The clock is read only when it is needed: a step without timers comes past here several
        // times.
        let now = || run.engine.store.now();
        let mut state = run.state();
        let control = state.control();
        if let Some(control) = control {
            drop(state);
            // A shutdown has waited until its deadline, and the writes of a lost run would be
            // refused.
            let grace = if control == ControlFlow::Cancelled { self.grace } else { Duration::ZERO };
            if has_passed(&run, &mut self.stopping, grace, cx) {
                self.end(Err(Ending::Error(control.into())));
                return true;
            }
            state = run.state();
        }
        let idle = matches!(self.commit, Commit::Idle);
        if !state.is_replaying() {
            if let Some(facts) = self.facts.take() {
                state.arrive(facts);
            }
            if state.next_timer().is_some() {
                state.fire_timers(now());
            }
        }
        match state.deliver_next() {
            Ok(Some(delivery)) => {
                let waker = self.take_note_of(delivery, &mut state);
                unlock(state);
                self.stalled = None;
                run.sign_of_life(None);
                if let Some(waker) = waker {
                    waker.wake();
                }
                return true;
            }
            Err(Undelivered::Unreadable(error)) => {
                drop(state);
                self.end(Err(Ending::Error(error)));
                return true;
            }
            Ok(None) | Err(Undelivered::NoWaiter) => {}
        }
        match state.open_gates(idle) {
            Opened::Closures(wakers) if wakers.is_empty() => {}
            Opened::Closures(wakers) => {
                drop(state);
                wakers.into_iter().for_each(Waker::wake);
                return true;
            }
            Opened::Work(key, work) => {
                drop(state);
                self.send(Next::Continue { collect: false }, Some((key, work)));
                return true;
            }
        }
        let standing = state.standing();
        let (unsent, next_timer) = (state.has_unsent(), state.next_timer());
        drop(state);
        match standing {
            Standing::Stalled if control.is_none() => {
                return run.state().input_changed(now()) || self.stalled(cx);
            }
            Standing::Replayed if control.is_none() => {
                self.begin_compensation();
                return true;
            }
            Standing::Quiescent { wake_at } if idle && control.is_none() => {
                run.take_poke();
                self.send(Next::Suspend { wake_at }, None);
                return true;
            }
            Standing::Foreign if control.is_none() && !self.warned => {
                self.warned = true;
                tracing::warn!(
                    task_id = %run.task_id, task_type = %run.task_type,
                    "the task waits for something that is not in its context: that is waited for \
                     anew after a crash, and the task keeps its slot meanwhile"
                );
            }
            _ => {}
        }
        if idle {
            let poked = run.take_poke();
            if unsent || poked {
                let collect = run.state().take_look() || poked;
                self.send(Next::Continue { collect }, None);
                return true;
            }
        }
        if let (Some(at), None) = (next_timer, control) {
            self.wake_at(cx, at);
        }
        false
    }

    /// Journals a delivery that is new, and returns the waker of the operation's future.
    fn take_note_of(&self, delivery: Delivery, state: &mut RunState) -> Option<Waker> {
        let delivered = match delivery {
            Delivery::Known(waker) => return waker,
            Delivery::New(delivered) => delivered,
        };
        let (run, engine) = (&self.run, &self.run.engine);
        let at = engine.store.now();
        if delivered.key.kind != Kind::Compensated || run.compensating.is_some() {
            let (key, outcome) = (&delivered.key, &delivered.outcome);
            engine.lifecycle.tell(|| Lifecycle::of_delivery(run.task_id, key, outcome));
        }
        if let Some(child) = delivered.effect.child() {
            engine.measures.count_spawn(&child.task_type);
        }
        state.journal(delivered, at)
    }

    /// Ends a task whose code has diverged: nothing waits for the next entry of the journal.
    ///
    /// The code has the grace to come to that entry, while it waits for something else.
    fn stalled(&mut self, cx: &mut Context<'_>) -> bool {
        if !has_passed(&self.run, &mut self.stalled, self.grace, cx) {
            return false;
        }
        let divergence = self.run.state().divergence(false);
        self.end(Err(Ending::Error(divergence)));
        true
    }

    fn wake_at(&mut self, cx: &mut Context<'_>, at: Timestamp) {
        if self.alarm.as_ref().is_none_or(|(set, _)| *set != at) {
            let engine = &self.run.engine;
            let pause = until(engine.store.now(), at).min(CLOCK_CHECK);
            self.alarm = Some((at, engine.runtime.sleep(pause)));
        }
        if let Some((_, alarm)) = &mut self.alarm
            && alarm.as_mut().poll(cx).is_ready()
        {
            self.alarm = None;
            cx.waker().wake_by_ref();
        }
    }

    fn drop_future(&mut self) {
        let future = self.future.take();
        // The values of the future are dropped as the user's code.
        poll_closure(|| discard(future));
    }

    /// Begins the compensations, after the code has been replayed.
    fn begin_compensation(&mut self) {
        self.drop_future();
        self.stalled = None;
        let compensation = self.run.state().begin_compensation();
        self.future = compensation.map(|compensation| -> BoxFuture<'static, TaskResult<Payload>> {
            Box::pin(compensate(self.run.clone(), compensation))
        });
        self.run.waker.wake_by_ref();
    }

    /// Ends the task's code, which has ended or has to: drops its future, and decides the run's
    /// last commit.
    fn end(&mut self, result: Result<Payload, Ending>) {
        let replayed = self.run.control().is_none() && self.run.state().is_only_replayed();
        // Compensations do not begin when the code could not be replayed as far as it had come:
        // another worker may be able to read the journal.
        let unreadable = matches!(&result, Err(Ending::Error(error)) if error.is_unreadable());
        if replayed && !unreadable {
            return self.begin_compensation();
        }
        self.drop_future();
        self.slot = None;
        self.closing = Some(self.decide(&result));
        discard(result);
    }

    fn decide(&self, result: &Result<Payload, Ending>) -> Closing {
        let control = self.run.control();
        if control == Some(ControlFlow::LeaseLost) {
            return Closing::Nothing;
        }
        let mut state = self.run.state();
        let mut unreadable = false;
        let mut failure = match (result, control) {
            (Ok(_), None) if state.is_replaying() => state.divergence(true).to_failure(),
            (Ok(output), _) => return Closing::Commit(self.completed(output.clone())),
            (Err(_), Some(ControlFlow::Cancelled))
            | (Err(Ending::Error(TaskError::Control(ControlFlow::Cancelled))), None) => {
                return Closing::Commit(Next::Cancel);
            }
            (Err(_), Some(_)) | (Err(Ending::Error(TaskError::Control(_))), None) => {
                return Closing::Commit(Next::Release);
            }
            (
                Err(Ending::Error(TaskError::Unreadable(unreadable @ Unreadable::Newer { .. }))),
                None,
            ) => {
                tracing::warn!(task_id = %self.run.task_id, %unreadable, "a task is left to a newer program");
                let until = after(self.run.engine.store.now(), LEFT_TO_OTHERS);
                return Closing::Commit(Next::Leave { until });
            }
            // Nothing is journaled, because the end of the journal is not known.
            (Err(Ending::Error(error @ TaskError::Unreadable(_))), None) => {
                return Closing::Commit(Next::Fail(error.to_failure()));
            }
            (Err(Ending::Error(error)), None) => {
                unreadable = error.is_unreadable();
                error.to_failure()
            }
            (Err(Ending::Panic(panic)), None) => {
                Failure::new(FailureKind::Panic, format!("the task panicked: {panic}"))
            }
        };
        if let Some(original) = self.run.compensating.as_ref().filter(|_| !unreadable) {
            return Closing::Commit(end_of(original.clone().without_the_rest(failure)).into());
        }
        // Rewinding would hide a divergence from the next attempt. An attempt that can read the
        // journal goes on from where this one stopped.
        if failure.kind != FailureKind::Diverged && !unreadable {
            if state.find_sources(&mut failure) {
                let at = self.run.engine.store.now();
                state.mark_failed_attempt(self.run.attempt, failure.clone(), at);
            }
        }
        drop(state);
        Closing::Commit(self.run.after_failure(failure))
    }

    /// Returns the next state of a task whose code, or whose compensation, has come to its end.
    fn completed(&self, output: Payload) -> Next {
        match &self.run.compensating {
            None => Next::Complete(output),
            Some(original) => {
                let compensation_errors = output.decode().unwrap_or_default();
                end_of(Failure { compensation_errors, ..original.clone() }).into()
            }
        }
    }

    fn send(&mut self, next: Next, work: Option<(Key, Work)>) {
        let suspending = matches!(next, Next::Suspend { .. });
        self.run.set_suspending(suspending);
        let (unsent, after, seq) = {
            let mut state = self.run.state();
            (state.take_unsent(suspending), state.durable_seq(), state.delivered_seq())
        };
        let mut transaction = None;
        let work = work.map(|(key, work)| {
            let working = match work {
                Work::Transaction(work) => {
                    let key = key.clone();
                    let span = self.span.in_scope(|| trace::step(&key, 1));
                    transaction = Some(UserTransaction::new(key, seq + 1, work));
                    Working::Transaction(span)
                }
                Work::Spawn(task) => {
                    let at = self.run.engine.store.now();
                    let outcome = child::created(task.task_id);
                    let entry = Entry { seq: seq + 1, key: key.clone(), outcome, at };
                    Working::Spawn(Box::new(KeyedSpawn { task: *task, entry }))
                }
            };
            (key, working)
        });
        let sent = Sent { unsent, next, after, seq, work, tries: 0 };
        self.transmit(Box::new(sent), transaction);
    }

    fn transmit(&mut self, sent: Box<Sent>, transaction: Option<UserTransaction>) {
        let Unsent {
            entries,
            spawns,
            events,
            messages,
            received,
            waits_added,
            waits_removed,
            superseded,
        } = sent.unsent.clone();
        let keyed = match &sent.work {
            Some((_, Working::Spawn(keyed))) => Some(keyed.clone()),
            _ => None,
        };
        // A completed task does not go on, and needs no check of its last entry.
        let goes_on = !matches!(sent.next, Next::Complete(_));
        let receipt = self.run.engine.commit.transition(Transition {
            after: (self.readable && goes_on).then_some(sent.after),
            entries,
            spawns,
            events,
            messages,
            received,
            waits_added: waits_added.into_values().collect(),
            waits_removed,
            superseded,
            transaction,
            keyed,
            ..Transition::new(self.run.task_id, self.run.run_id, sent.next.clone())
        });
        self.commit = Commit::Sent { receipt, sent };
    }

    /// Follows the commit that is on its way.
    ///
    /// The result is `Some` when the execution is over, with whether it is suspended.
    fn poll_commit(&mut self, cx: &mut Context<'_>) -> Poll<Option<bool>> {
        let result = match &mut self.commit {
            Commit::Idle => return Poll::Ready(None),
            Commit::Sent { receipt, .. } => match Pin::new(receipt).poll(cx) {
                Poll::Ready(result) => Some(result),
                Poll::Pending => return Poll::Pending,
            },
            Commit::Paused { pause, .. } => match pause.as_mut().poll(cx) {
                Poll::Ready(()) => None,
                Poll::Pending => return Poll::Pending,
            },
        };
        let (Commit::Sent { sent, .. } | Commit::Paused { sent, .. }) =
            mem::replace(&mut self.commit, Commit::Idle)
        else {
            return Poll::Ready(None);
        };
        match result {
            None => {
                self.transmit(sent, None);
                self.poll_commit(cx)
            }
            Some(Ok(Ok(applied))) => Poll::Ready(self.committed(*sent, applied)),
            Some(Ok(Err(Refused))) => {
                self.run.stop(ControlFlow::LeaseLost);
                // There is no code left to be stopped after it has ended.
                Poll::Ready(self.future.is_none().then_some(false))
            }
            Some(Err(error)) if !matches!(error, StoreError::Closed) => {
                if !error.is_transient() && !matches!(sent.work, Some((_, Working::Transaction(_))))
                {
                    return Poll::Ready(self.refused(error));
                }
                self.pause_commit(sent, &error);
                self.poll_commit(cx)
            }
            // The store is closed: the process is going down.
            Some(_) => Poll::Ready(Some(false)),
        }
    }

    /// Fails the attempt without what was sent, because the store will never accept it.
    fn refused(&mut self, error: StoreError) -> Option<bool> {
        let (task_id, task_type) = (self.run.task_id, &self.run.task_type);
        tracing::error!(%error, %task_id, %task_type, "the store refuses what a task did");
        self.run.state().discard_unsent();
        self.refusals += 1;
        match self.refusals {
            1 => {
                let error =
                    anyhow::Error::from(error).context("the store refuses what this attempt did");
                self.end(Err(Ending::Error(error.into())));
            }
            // The store refuses the error as well, which may therefore contain the cause.
            2 => {
                let message = "the store refuses what this attempt did, and the error as well: see \
                               the worker's log";
                let failure = Failure::new(FailureKind::Error, message);
                self.closing = Some(Closing::Commit(self.run.after_failure(failure)));
            }
            // The store refuses everything that the run does, and its worker gives it up.
            _ => return Some(false),
        }
        None
    }

    fn pause_commit(&mut self, mut sent: Box<Sent>, error: &StoreError) {
        sent.tries += 1;
        if let Some((key, Working::Transaction(span))) =
            sent.work.take_if(|(_, work)| matches!(work, Working::Transaction(_)))
        {
            // The step's closure is used up, and the task's own strategy decides whether the step
            // is tried again.
            let failure = Failure::new(FailureKind::Error, error.to_string());
            trace::failed(&span, &failure);
            let outcome = Outcome::failed(failure);
            let waker = self.run.state().deliver_work(&key, outcome, false);
            waker.into_iter().for_each(Waker::wake);
        }
        let runtime = &self.run.engine.runtime;
        let delay = STORE_RETRY.delay(sent.tries, runtime.random()).unwrap_or_default();
        // The run is not stuck; its store is away.
        self.run.wait_for_store(delay);
        self.commit = Commit::Paused { pause: runtime.sleep(delay), sent };
    }

    fn committed(&mut self, sent: Sent, applied: Applied) -> Option<bool> {
        let run = &self.run;
        run.sign_of_life(None);
        if sent.unsent.entries.iter().any(|entry| entry.key.kind.is_progress()) {
            // The task has got further: a crash from now on is its first one.
            self.suspect = None;
        }
        let mut state = run.state();
        let durable = state.committed(sent.seq, &sent.unsent.received);
        let waker = sent.work.and_then(|(key, working)| {
            let (outcome, journaled) = match working {
                Working::Transaction(span) => {
                    let outcome = done(applied.transaction);
                    if let Outcome::Failed(failure) = &outcome {
                        trace::failed(&span, failure);
                    }
                    let journaled = matches!(outcome, Outcome::Done(_));
                    (outcome, journaled)
                }
                Working::Spawn(keyed) => {
                    let created = matches!(applied.keyed, Some(Spawned::Created { .. }));
                    if created {
                        run.engine.measures.count_spawn(&keyed.task.task_type);
                    }
                    (child::decided(&keyed.task, applied.keyed), created)
                }
            };
            if journaled {
                // A queued outcome is reported when it is delivered.
                run.engine.lifecycle.tell(|| Lifecycle::of_delivery(run.task_id, &key, &outcome));
            }
            state.deliver_work(&key, outcome, journaled)
        });
        state.arrive(applied.facts);
        let compensates = state.has_compensations() && run.compensating.is_none();
        drop(state);
        waker.into_iter().chain(durable).for_each(Waker::wake);
        if applied.cancel_requested {
            run.stop(ControlFlow::Cancelled);
        }
        let task_id = run.task_id;
        let (over, event) = match sent.next {
            Next::Continue { .. } => return None,
            Next::Suspend { .. } if !applied.suspended => {
                run.set_suspending(false);
                return None;
            }
            Next::Suspend { wake_at } => {
                (true, Some(Lifecycle::TaskSuspended { task_id, until: wake_at }))
            }
            Next::Complete(output) => (false, Some(Lifecycle::TaskCompleted { task_id, output })),
            Next::Retry { failure, at } => {
                (false, Some(Lifecycle::TaskFailed { task_id, failure, retry_at: Some(at) }))
            }
            Next::Fail(failure) if compensates => {
                (false, Some(Lifecycle::TaskCompensating { task_id, failure }))
            }
            Next::Fail(failure) => {
                (false, Some(Lifecycle::TaskFailed { task_id, failure, retry_at: None }))
            }
            Next::Cancel if compensates => {
                (false, Some(Lifecycle::TaskCompensating { task_id, failure: cancelled() }))
            }
            Next::Cancel => (false, Some(Lifecycle::TaskCancelled { task_id })),
            Next::Release | Next::Leave { .. } => (false, None),
        };
        let ended = match &event {
            Some(Lifecycle::TaskSuspended { .. }) => Ended::Suspended,
            Some(Lifecycle::TaskCompleted { .. }) => Ended::Completed,
            Some(Lifecycle::TaskFailed { retry_at: Some(_), .. }) => Ended::Retried,
            Some(Lifecycle::TaskFailed { .. }) => Ended::Failed,
            Some(Lifecycle::TaskCompensating { .. }) => Ended::Compensating,
            Some(_) => Ended::Cancelled,
            None => Ended::Released,
        };
        let failure = match &event {
            Some(
                Lifecycle::TaskFailed { failure, .. } | Lifecycle::TaskCompensating { failure, .. },
            ) => Some(failure),
            _ => None,
        };
        trace::ended(&self.span, ended, failure);
        if let Some(measures) = &run.measures {
            measures.ended(ended);
            if let (Ended::Completed, Some(spawned)) = (ended, task_id.made_at()) {
                measures.task_seconds.record(until(spawned, run.engine.store.now()));
            }
        }
        run.engine.lifecycle.tell(|| event);
        Some(over)
    }
}

impl Drop for Execution {
    /// Drops the future in any context, also within the engine's own work.
    ///
    /// The drop must stop none of that work.
    fn drop(&mut self) {
        self.drop_future();
        self.run.let_go();
    }
}
