//! The worker, which claims tasks while it has slots.

pub(crate) mod holdings;
pub(crate) mod retention;
pub(crate) mod scheduler;
pub(crate) mod slots;
pub(crate) mod suspects;
mod watch;
pub(crate) mod witness;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{Either, FutureExt as _, select};
use tokio::sync::mpsc::UnboundedReceiver;
use tracing::Instrument as _;

use crate::base::guard::Guarded;
use crate::base::ids::{TaskId, WorkerId};
use crate::base::retry::STORE_RETRY;
use crate::base::runtime::{BoxFuture, turn};
use crate::base::time::until;
use crate::engine::commit::hub::LocalWorker as _;
use crate::engine::commit::receipt::insist;
use crate::engine::worker::retention::forget_the_old;
use crate::engine::worker::scheduler::look_after_schedules;
use crate::engine::worker::slots::Slots;
use crate::engine::worker::slots::shutdown::shutdown;
use crate::engine::worker::suspects::Suspect;
use crate::engine::worker::watch::watch;
use crate::store::rules::crash::SUSPECT_CRASHES;
use crate::store::{Claim, Command};

/// The time for which a start waits for a store that is away.
const PATIENCE: Duration = Duration::from_secs(1);

/// A running worker, made by [`Client::start_worker`](crate::Client::start_worker).
///
/// The worker works until it is shut down or the process ends. It goes on when this handle is
/// dropped.
pub struct Worker {
    slots: Arc<Slots>,
}

impl Worker {
    pub(crate) async fn start(slots: Arc<Slots>, woken: UnboundedReceiver<TaskId>) -> Self {
        let engine = slots.engine.clone();
        engine.listen();
        engine.hub.add_worker(Arc::downgrade(&slots) as _);
        run(&slots, Box::pin(watch(slots.clone())));
        // The store knows the worker before anything can be claimed for it. The start waits only
        // for a moment when the store is away, and the worker keeps trying by itself.
        select(Box::pin(slots.registered.cancelled()), engine.runtime.sleep(PATIENCE)).await;
        run(&slots, Box::pin(claim(slots.clone())));
        run(&slots, Box::pin(wake_suspended(slots.clone(), woken)));
        run(&slots, Box::pin(tell_unknown(slots.clone())));
        run(&slots, Box::pin(forget_the_old(slots.clone())));
        run(&slots, Box::pin(look_after_schedules(slots.clone())));
        Self { slots }
    }

    /// Stops claiming, and waits for running tasks, up to the worker's
    /// [`shutdown_timeout`](crate::WorkerOptions::shutdown_timeout).
    ///
    /// The tasks that still run are then told to stop, and released. They go on from their journals
    /// elsewhere or later.
    pub async fn shutdown(self) {
        shutdown(&self.slots, self.slots.options.shutdown_timeout).await;
    }

    /// Waits until the worker has stopped by itself, because another process has told it to
    /// ([`Workers::drain`](crate::Workers::drain)).
    ///
    /// The program has nothing left to wait for then.
    pub async fn stopped(&self) {
        self.slots.stopped.cancelled().await;
    }

    /// Returns the worker's id, which changes when the worker has lost its lease.
    pub fn worker_id(&self) -> WorkerId {
        self.slots.worker_id()
    }
}

/// Runs a part of the worker until the worker ends.
fn run(slots: &Arc<Slots>, part: BoxFuture<'static, ()>) {
    let part = Guarded::new(part);
    let runtime = &slots.engine.runtime;
    let slots = slots.clone();
    runtime.spawn(Box::pin(async move {
        if let Some(Err(panic)) = slots.end.run_until_cancelled(part).await {
            tracing::error!(%panic, "a part of the worker panicked: it gives its tasks back and \
                                     ends");
            shutdown(&slots, Duration::ZERO).await;
        }
    }));
}

/// Claims whenever there may be work and there is a free slot.
async fn claim(slots: Arc<Slots>) {
    let engine = slots.engine.clone();
    let mut failures = 0;
    let mut polling = true;
    // The loop is about to ask for everything that it may have been notified of.
    _ = slots.work.notified().now_or_never();
    loop {
        // Tasks that are about to end release their slots to the same claim.
        turn().await;
        let limit = slots.take_for_claim(polling);
        let mut suspect =
            if limit > 0 { Suspect::ask(&engine, &*slots, &slots.options) } else { None };
        let claim = Claim {
            worker_id: slots.worker_id(),
            queues: slots.queues.clone(),
            task_types: engine.registry.names(),
            code_version: slots.options.code_version.clone(),
            limit,
            suspect: suspect.as_ref().map_or(0, Suspect::most),
        };
        let span = engine.observer.claim_started(claim.worker_id, limit);
        let pause = match engine.commit.claim(claim).instrument(span.clone()).await {
            Ok(claimed) => {
                engine.observer.claimed(&span, claimed.tasks.len());
                failures = 0;
                if claimed.tasks.len() < limit {
                    slots.no_backlog();
                }
                slots.give_back(limit - claimed.tasks.len().min(limit));
                for task in claimed.tasks {
                    let suspect = suspect.take_if(|_| task.crashes >= SUSPECT_CRASHES);
                    let permit =
                        suspect.map(|suspect| suspect.admit(task.crashes, &*slots, &slots.options));
                    slots.start_claimed(task, slots.slot(), permit);
                }
                claimed.poked.into_iter().for_each(|task_id| engine.hub.poke(task_id));
                let due = claimed.next_due.map(|due| until(engine.store.now(), due));
                due.map_or(slots.options.poll_interval, |due| due.min(slots.options.poll_interval))
            }
            Err(error) => {
                slots.give_back(limit);
                failures += 1;
                tracing::warn!(%error, "cannot claim tasks; trying again");
                STORE_RETRY.delay(failures, engine.runtime.random()).unwrap_or_default()
            }
        };
        drop(suspect);
        slots.took_in();
        if failures > 0 {
            engine.runtime.sleep(pause).await;
            polling = true;
        } else {
            let nudged = select(Box::pin(slots.work.notified()), engine.runtime.sleep(pause)).await;
            polling = matches!(nudged, Either::Right(_));
        }
    }
}

/// Logs, once for each task type, that tasks of an unknown type wait in the worker's queues.
async fn tell_unknown(slots: Arc<Slots>) {
    let engine = &slots.engine;
    let mut told = BTreeSet::new();
    loop {
        let waiting = engine.store.waiting_types(slots.queues.clone()).await;
        let waiting = waiting.inspect_err(|error| {
            tracing::debug!(%error, "cannot tell which task types wait; looking again later");
        });
        for task_type in waiting.into_iter().flatten() {
            if !engine.registry.knows(&task_type) && told.insert(task_type.clone()) {
                tracing::warn!(
                    %task_type,
                    "tasks of a type that this worker does not know wait in its queues, and are \
                     left to workers that know it"
                );
            }
        }
        engine.runtime.sleep(slots.options.lease / 3).await;
    }
}

/// Wakes suspended tasks that wait for something outside their contexts, after it has come.
async fn wake_suspended(slots: Arc<Slots>, mut woken: UnboundedReceiver<TaskId>) {
    while let Some(task_id) = woken.recv().await {
        let commit = slots.engine.commit.clone();
        insist(&slots.engine.runtime, move || commit.command(Command::Wake(task_id)));
    }
}
