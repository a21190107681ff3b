//! The worker, which claims tasks while it has slots, and shows that it is alive.

pub(crate) mod holdings;
pub(crate) mod retention;
pub(crate) mod scheduler;
pub(crate) mod slots;
pub(crate) mod suspects;
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
use crate::engine::commit::receipt::{insist, until_answered};
use crate::engine::task_error::ControlFlow;
use crate::engine::worker::holdings::{Comparison, Difference};
use crate::engine::worker::retention::purge;
use crate::engine::worker::scheduler::look_after_schedules;
use crate::engine::worker::slots::Slots;
use crate::engine::worker::suspects::Suspect;
use crate::engine::worker::witness::Witness;
use crate::store::rules::crash::SUSPECT_CRASHES;
use crate::store::{
    Claim, Command, NewWorker, Next, OtherWorker, Transition, WorkerSignal, WorkerState,
    WorkerStatus,
};

/// The interval at which the worker removes tasks that were kept long enough.
const PURGE_EVERY: Duration = Duration::from_secs(60);
/// The time for which a shutdown waits for code that it has told to stop.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// The time for which a start waits for a store that is away.
const PATIENCE: Duration = Duration::from_secs(1);
/// The part of the heartbeat interval after which a refused signal is sent again, at most.
///
/// Because of it, the store hears of the worker in any short moment in which it answers.
const TRIES: u32 = 20;

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

pub(crate) async fn shutdown(slots: &Arc<Slots>, deadline: Duration) {
    let engine = &slots.engine;
    slots.close();
    wait_until_empty(slots, deadline).await;
    slots.seal();
    slots.stop_all(ControlFlow::Shutdown);
    wait_until_empty(slots, LAST_WORDS).await;
    slots.end.cancel();
    slots.forget_suspended();
    // This releases all that still runs, and its late writes will be refused.
    let gone = WorkerSignal::Deregister { worker_id: slots.worker_id() };
    let commit = engine.commit.clone();
    let signed_off = until_answered(engine.runtime.clone(), move || commit.signal(gone.clone()));
    let stopped = slots.stopped.clone();
    engine.runtime.spawn(Box::pin(async move {
        if let Err(error) = signed_off.await {
            tracing::warn!(%error, "cannot sign off; the worker's lease will run out by itself");
        }
        stopped.cancel();
    }));
    let waited =
        select(Box::pin(slots.stopped.cancelled()), engine.runtime.sleep(LAST_WORDS)).await;
    if let Either::Right(_) = waited {
        tracing::warn!(
            "the store is away, and the worker has not signed off: it goes on trying while the \
             process lives"
        );
        slots.stopped.cancel();
    }
}

async fn wait_until_empty(slots: &Slots, limit: Duration) {
    let empty = async {
        loop {
            let told = slots.empty.notified();
            if slots.is_empty() {
                return;
            }
            told.await;
        }
    };
    select(Box::pin(empty), slots.engine.runtime.sleep(limit)).await;
}

fn registration(slots: &Slots) -> WorkerSignal {
    WorkerSignal::Register(NewWorker {
        worker_id: slots.worker_id(),
        name: slots.options.name.clone().unwrap_or_else(|| "worker".into()),
        queues: slots.queues.clone(),
        concurrency: u32::try_from(slots.options.concurrency).unwrap_or(u32::MAX),
        code_version: slots.options.code_version.clone(),
        lease: slots.options.lease,
    })
}

/// Sends a signal of the worker until the store has answered, and returns the answer and whether it
/// came at the first try.
async fn tell_store(
    slots: &Slots,
    signal: WorkerSignal,
    interval: Duration,
) -> (WorkerStatus, bool) {
    let engine = &slots.engine;
    let mut failures = 0;
    loop {
        match engine.commit.signal(signal.clone()).await {
            Ok(status) => return (status, failures == 0),
            Err(error) if failures == 0 => {
                tracing::warn!(%error, "cannot show that the worker is alive; trying again");
            }
            Err(_) => {}
        }
        failures += 1;
        let pause = STORE_RETRY.delay(failures, engine.runtime.random()).unwrap_or_default();
        engine.runtime.sleep(pause.min(interval / TRIES)).await;
    }
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

/// Shows that the worker is alive, and looks for runs and workers that are not.
///
/// With each heartbeat that the store answers, it compares the worker's runs with the store's. It
/// also looks for stuck runs and for workers that have died. It waits for nothing but the answers
/// to its signals.
async fn watch(slots: Arc<Slots>) {
    let engine = slots.engine.clone();
    let interval = (slots.options.lease / 3)
        .min(slots.options.claim_timeout / 4)
        .max(Duration::from_millis(5));
    let (mut comparison, mut witness) = (Comparison::default(), Witness::default());
    let mut registered = false;
    loop {
        if !registered {
            let (status, _) = tell_store(&slots, registration(&slots), interval).await;
            slots.open();
            registered = true;
            witness.observe(&status.others, Duration::ZERO);
        }
        let begun = engine.commit.on_their_way();
        engine.runtime.sleep(interval).await;
        let hung = engine.commit.on_their_way().iter().any(|batch| begun.contains(batch));
        let (held, claims) = slots.held();
        let heartbeat = WorkerSignal::Heartbeat { worker_id: slots.worker_id() };
        let (status, at_once) = tell_store(&slots, heartbeat, interval).await;
        // Runs that were claimed by now are started first.
        turn().await;
        if status.state == WorkerState::Gone {
            tracing::warn!("the worker was declared dead; its tasks are others' now");
            engine.observer.lease_lost();
            slots.lose_lease();
            registered = false;
            continue;
        }
        if status.state == WorkerState::Draining && !slots.is_closed() {
            slots.close();
            tracing::info!("the worker was told to end what it runs and to stop");
            let slots = slots.clone();
            engine.runtime.spawn(Box::pin(async move {
                shutdown(&slots, slots.options.shutdown_timeout).await;
            }));
        }
        // A pause in which the store was away, or a batch has hung, proves nothing. Runs may have
        // waited for their store, and other workers may not have reached the store either.
        let passed = if at_once && !hung { interval } else { Duration::ZERO };
        slots.stop_stuck(passed);
        let mut difference = comparison.compare(&held, &slots.held().0, &status.runs);
        if !slots.has_taken_in(claims) {
            // A run that was claimed before may still be started.
            difference.orphaned.clear();
        }
        mend(&slots, difference);
        for dead in witness.observe(&status.others, passed) {
            declare_dead(&slots, dead);
        }
    }
}

/// Releases the runs that the store holds for the worker and nobody executes, and stops those that
/// the worker no longer owns.
fn mend(slots: &Slots, difference: Difference) {
    for run in difference.lost {
        tracing::warn!(task_id = %run.0, "a run is no longer the worker's, and is stopped");
        slots.lose(run);
    }
    for (task_id, run_id) in difference.orphaned {
        tracing::warn!(%task_id, "the store holds a run for the worker's that nobody runs; giving \
                                  it back");
        let commit = slots.engine.commit.clone();
        insist(&slots.engine.runtime, move || {
            commit.transition_beside(Transition::new(task_id, run_id, Next::Release))
        });
    }
}

fn declare_dead(slots: &Slots, OtherWorker { worker_id, heartbeats, .. }: OtherWorker) {
    tracing::warn!(%worker_id, "a worker has shown no sign of life for its lease, and is declared \
                                dead");
    let declared = slots.engine.commit.signal(WorkerSignal::DeclareDead { worker_id, heartbeats });
    slots.engine.runtime.spawn(Box::pin(async move {
        // The signal is not sent again: after an outage, the other worker may still send a
        // heartbeat.
        if let Err(error) = declared.await {
            tracing::warn!(%error, %worker_id, "cannot declare a worker dead; trying again");
        }
    }));
}

/// Removes tasks that ended longer ago than the retention.
async fn forget_the_old(slots: Arc<Slots>) {
    let engine = &slots.engine;
    let Some(retention) = engine.settings.retention else { return };
    loop {
        engine.runtime.sleep(PURGE_EVERY).await;
        match purge(engine, retention, None, |_| ()).await {
            Ok(0) => {}
            Ok(purged) => tracing::debug!(purged, "removed tasks that were kept long enough"),
            Err(error) => tracing::warn!(%error, "cannot remove old tasks; trying again later"),
        }
    }
}

/// Logs, once for each task type, that tasks of an unknown type wait in the worker's queues.
async fn tell_unknown(slots: Arc<Slots>) {
    let engine = &slots.engine;
    let mut told = BTreeSet::new();
    loop {
        let waiting = engine.store.waiting_types(slots.queues.clone()).await.unwrap_or_default();
        for task_type in waiting {
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
