//! The heartbeats of a worker, and what it does about runs and workers that are dead.

use std::sync::Arc;
use std::time::Duration;

use crate::base::retry::STORE_RETRY;
use crate::base::runtime::turn;
use crate::engine::commit::hub::LocalWorker as _;
use crate::engine::commit::receipt::insist;
use crate::engine::worker::holdings::{Comparison, Difference};
use crate::engine::worker::slots::Slots;
use crate::engine::worker::slots::shutdown::shutdown;
use crate::engine::worker::witness::Witness;
use crate::store::{
    NewWorker, Next, OtherWorker, Transition, WorkerSignal, WorkerState, WorkerStatus,
};

/// The part of the heartbeat interval after which a refused signal is sent again, at most.
///
/// Because of it, the store hears of the worker in any short moment in which it answers.
const TRIES: u32 = 20;

fn registration(slots: &Slots) -> WorkerSignal {
    WorkerSignal::Register(NewWorker {
        worker_id: slots.worker_id(),
        name: slots.options.name.clone().unwrap_or_else(|| "worker".into()),
        queues: slots.queues.clone(),
        // Only for show. No machine runs more tasks at a time.
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

/// Shows that the worker is alive, and looks for runs and workers that are not.
///
/// With each heartbeat that the store answers, it compares the worker's runs with the store's. It
/// also looks for stuck runs and for workers that have died. It waits for nothing but the answers
/// to its signals.
pub(super) async fn watch(slots: Arc<Slots>) {
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
