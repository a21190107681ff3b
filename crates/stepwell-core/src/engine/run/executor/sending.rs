//! The commits of an execution: what is sent, and what comes of it.
//!
//! ```text
//!   Idle ──▶ Sent ──▶ Idle      it is durable, or the run is lost
//!            ▲  │
//!            │  ▼
//!           Paused              the store failed, and may take the same later
//! ```

use std::mem;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use tracing::Span;

use crate::base::failure::{Failure, FailureKind};
use crate::base::journal::{Entry, Key, Outcome};
use crate::base::payload::Payload;
use crate::base::retry::STORE_RETRY;
use crate::base::runtime::BoxFuture;
use crate::engine::commit::receipt::Receipt;
use crate::engine::run::child;
use crate::engine::run::executor::Execution;
use crate::engine::run::executor::ending::{Closing, Ending};
use crate::engine::run::state::{RunState, Unsent, Work};
use crate::engine::task_error::{ControlFlow, closure_failure};
use crate::store::*;

/// The commit of an execution that is on its way.
pub(super) enum Commit {
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
pub(super) struct Sent {
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
pub(super) enum Working {
    /// A step's work, with the span around it; the work itself is gone after it was sent.
    Transaction(Span),
    /// The spawn of a child that may exist already.
    Spawn(Box<KeyedSpawn>),
}

/// Returns the outcome of a step whose work the store did.
fn done(result: Option<anyhow::Result<Payload>>) -> Outcome {
    match result {
        Some(Ok(payload)) => Outcome::Done(payload),
        Some(Err(error)) => Outcome::failed(closure_failure(&error)),
        None => Outcome::failed(Failure::new(FailureKind::Error, "the store did not do the step")),
    }
}

impl Execution {
    /// Returns whether nothing may happen before the commit that is on its way is durable.
    pub(super) fn holds_still(&self) -> bool {
        match &self.commit {
            Commit::Idle => false,
            Commit::Sent { sent, .. } | Commit::Paused { sent, .. } => {
                sent.work.is_some() || !matches!(sent.next, Next::Continue { .. })
            }
        }
    }

    /// Sends what was delivered since the last commit, with the next state of the task.
    pub(super) fn send(&mut self, next: Next, work: Option<(Key, Work)>) {
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
                    let span = self.span.in_scope(|| self.run.observer.work_started(&key));
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
    pub(super) fn poll_commit(&mut self, cx: &mut Context<'_>) -> Poll<Option<bool>> {
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

    /// Waits before the same is sent again.
    fn pause_commit(&mut self, mut sent: Box<Sent>, error: &StoreError) {
        sent.tries += 1;
        if let Some((key, Working::Transaction(span))) =
            sent.work.take_if(|(_, work)| matches!(work, Working::Transaction(_)))
        {
            // The step's closure is used up, and the task's own strategy decides whether the step
            // is tried again.
            let outcome = Outcome::failed(Failure::new(FailureKind::Error, error.to_string()));
            self.run.observer.work_ended(&span, &outcome);
            let waker = self.run.state().deliver_work(&key, outcome, false);
            waker.into_iter().for_each(Waker::wake);
        }
        let runtime = &self.run.engine.runtime;
        let delay = STORE_RETRY.delay(sent.tries, runtime.random()).unwrap_or_default();
        // The run is not stuck; its store is away.
        self.run.wait_for_store(delay);
        self.commit = Commit::Paused { pause: runtime.sleep(delay), sent };
    }

    /// Notes that a commit is durable.
    ///
    /// The result is `Some` when the execution is over, with whether it is suspended.
    fn committed(&mut self, sent: Sent, applied: Applied) -> Option<bool> {
        let Applied { suspended, cancel_requested, facts, transaction, keyed } = applied;
        let run = &self.run;
        run.sign_of_life(None);
        if sent.unsent.entries.iter().any(|entry| entry.key.kind.is_progress()) {
            // The task has got further: a crash from now on is its first one.
            self.suspect = None;
        }
        let mut state = run.state();
        let durable = state.committed(sent.seq, &sent.unsent.received);
        let waker =
            sent.work.and_then(|work| self.work_ended(work, transaction, keyed, &mut state));
        state.arrive(facts);
        let has_compensations = state.has_compensations();
        drop(state);
        waker.into_iter().chain(durable).for_each(Waker::wake);
        if cancel_requested {
            run.stop(ControlFlow::Cancelled);
        }
        let suspends = matches!(sent.next, Next::Suspend { .. });
        if suspends && !suspended {
            run.set_suspending(false);
        }
        if matches!(sent.next, Next::Continue { .. }) || suspends && !suspended {
            return None;
        }
        run.observer.attempt_ended(&self.span, sent.next, has_compensations);
        Some(suspends)
    }

    /// Delivers the result of an operation whose work the store has done, or queues it.
    fn work_ended(
        &self,
        (key, working): (Key, Working),
        transaction: Option<anyhow::Result<Payload>>,
        spawned: Option<Spawned>,
        state: &mut RunState,
    ) -> Option<Waker> {
        let observer = &self.run.observer;
        let (outcome, child, journaled) = match &working {
            Working::Transaction(span) => {
                let outcome = done(transaction);
                observer.work_ended(span, &outcome);
                let journaled = matches!(outcome, Outcome::Done(_));
                (outcome, None, journaled)
            }
            Working::Spawn(keyed) => {
                let created = matches!(spawned, Some(Spawned::Created { .. }));
                (child::decided(&keyed.task, spawned), Some(&keyed.task.task_type), created)
            }
        };
        if journaled {
            // A queued outcome is reported when it is delivered.
            observer.delivered(&key, &outcome, child);
        }
        state.deliver_work(&key, outcome, journaled)
    }
}
