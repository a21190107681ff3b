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
//!                        then wait: for the commit, a closure's I/O, a timer, an arrival
//! ```
//!
//! At every poll of the task's future, at most one thing is therefore newly ready. The code may
//! combine its futures in any way, and a replay takes the same way. `executor/sending.rs` has the
//! commits, and `executor/ending.rs` the end of the code.

mod ending;
mod sending;

use std::future::poll_fn;
use std::mem;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use tracing::Span;

use crate::base::guard::guard;
use crate::base::journal::Entry;
use crate::base::payload::Payload;
use crate::base::runtime::BoxFuture;
use crate::base::time::{Timestamp, until};
use crate::engine::Engine;
use crate::engine::run::Run;
use crate::engine::run::executor::ending::{Closing, Ending};
use crate::engine::run::executor::sending::Commit;
use crate::engine::run::polled::poll_task;
use crate::engine::run::state::{Delivery, Opened, RunState, Standing, Undelivered, unlock};
use crate::engine::task_error::{ControlFlow, TaskResult};
use crate::engine::worker::slots::Slot;
use crate::engine::worker::suspects::SuspectPermit;
use crate::observe::observer::Attempt;
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

/// The way in which an execution left its slot.
pub(crate) enum End {
    /// The task has ended, or this run no longer owns it.
    Gone,
    /// The task only waits, and could go on from here.
    Suspended(Box<Execution>),
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
            span: Span::none(),
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

    /// Notes that the attempt begins now, from the start or from its journal.
    pub(crate) fn start(&mut self) {
        self.span = self.run.observer.attempt_started(self.attempt());
    }

    fn attempt(&self) -> Attempt<'_> {
        let Run { run_id, attempt, ref task_type, .. } = *self.run;
        Attempt { run_id, attempt, task_type, headers: &self.headers }
    }

    /// Prepares an execution to go on in place after a suspension.
    pub(crate) fn resume(&mut self, facts: Facts, slot: Slot) {
        self.run.sign_of_life(None);
        self.run.set_suspending(false);
        self.span = self.run.observer.attempt_resumed(self.attempt());
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
            let task_id = self.run.task_id;
            tracing::error!(%task_id, %panic, "a task panicked beside its own code");
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
        let mut state = run.state();
        let control = state.control();
        if let Some(control) = control {
            drop(state);
            if self.has_to_end(control, cx) {
                return true;
            }
            state = run.state();
        }
        let idle = matches!(self.commit, Commit::Idle);
        self.take_in_arrivals(&mut state);
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
        if control.is_none()
            && let Some(goes_on) = self.decide_by(standing, idle, cx)
        {
            return goes_on;
        }
        if idle && self.send_what_there_is(unsent) {
            return true;
        }
        if let (Some(at), None) = (next_timer, control) {
            self.wake_at(cx, at);
        }
        false
    }

    /// Ends code that has to stop, after it has had its time to do so by itself.
    fn has_to_end(&mut self, control: ControlFlow, cx: &mut Context<'_>) -> bool {
        // A shutdown has waited until its deadline, and the writes of a lost run would be refused.
        let grace = if control == ControlFlow::Cancelled { self.grace } else { Duration::ZERO };
        let is_over = has_passed(&self.run, &mut self.stopping, grace, cx);
        if is_over {
            self.end(Err(Ending::Error(control.into())));
        }
        is_over
    }

    /// Finishes the waits whose time or whose arrival has come.
    fn take_in_arrivals(&mut self, state: &mut RunState) {
        if state.is_replaying() {
            return;
        }
        if let Some(facts) = self.facts.take() {
            state.arrive(facts);
        }
        // The clock is read only when it is needed: a step without timers comes past here several
        // times.
        if state.next_timer().is_some() {
            state.fire_timers(self.run.engine.store.now());
        }
    }

    /// Journals a delivery that is new, and returns the waker of the operation's future.
    fn take_note_of(&self, delivery: Delivery, state: &mut RunState) -> Option<Waker> {
        let delivered = match delivery {
            Delivery::Known(waker) => return waker,
            Delivery::New(delivered) => delivered,
        };
        let at = self.run.engine.store.now();
        let child = delivered.effect.child().map(|child| &child.task_type);
        self.run.observer.delivered(&delivered.key, &delivered.outcome, child);
        state.journal(delivered, at)
    }

    /// Does what follows from the situation of a task whose future is pending; the result says
    /// whether the execution goes on, and is `None` when there may be something to send.
    fn decide_by(&mut self, standing: Standing, idle: bool, cx: &mut Context<'_>) -> Option<bool> {
        let run = &self.run;
        match standing {
            Standing::Stalled => {
                let changed = run.state().input_changed(run.engine.store.now());
                return Some(changed || self.stalled(cx));
            }
            Standing::Replayed => {
                self.begin_compensation();
                return Some(true);
            }
            Standing::Quiescent { wake_at } if idle => {
                run.take_poke();
                self.send(Next::Suspend { wake_at }, None);
                return Some(true);
            }
            Standing::Foreign if !self.warned => {
                self.warned = true;
                tracing::warn!(
                    task_id = %run.task_id, task_type = %run.task_type,
                    "the task waits for something that is not in its context: that is waited for \
                     anew after a crash, and the task keeps its slot meanwhile"
                );
            }
            Standing::Foreign | Standing::Quiescent { .. } | Standing::Busy => {}
        }
        None
    }

    /// Sends what is unsent, or asks for what has arrived; `false` when there is neither.
    fn send_what_there_is(&mut self, unsent: bool) -> bool {
        let poked = self.run.take_poke();
        if unsent || poked {
            let collect = self.run.state().take_look() || poked;
            self.send(Next::Continue { collect }, None);
        }
        unsent || poked
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
