//! The worker: claims tasks while it has slots, and shows that it is alive.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{Either, select};
use tokio::sync::mpsc::UnboundedReceiver;
use tracing::Instrument as _;

use crate::client::purge;
use crate::commit::insist;
use crate::crash::SUSPECT_CRASHES;
use crate::guard::Guarded;
use crate::holdings::{Comparison, Difference};
use crate::ids::{TaskId, WorkerId};
use crate::name::Name;
use crate::retry::STORE_RETRY;
use crate::runtime::{BoxFuture, turn};
use crate::scheduler::look_after_schedules;
use crate::slots::{Slots, SuspectPermit};
use crate::store::{
    Claim, Command, NewWorker, Next, OtherWorker, StoreError, Transition, WorkerSignal, WorkerState,
};
use crate::task_error::ControlFlow;
use crate::time::until;
use crate::trace;
use crate::witness::Witness;

/// How often tasks are looked for that have been kept long enough.
const PURGE_EVERY: Duration = Duration::from_secs(60);
/// How long a shutdown waits for code that it has told to stop.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// A running worker, made by [`Client::start_worker`](crate::Client::start_worker). It works until it is shut down or
/// the process ends; dropping this handle does not stop it.
pub struct Worker {
    slots: Arc<Slots>,
}

impl Worker {
    pub(crate) async fn start(slots: Arc<Slots>, woken: UnboundedReceiver<TaskId>) -> Self {
        let engine = slots.engine.clone();
        engine.listen();
        engine.hub.add_worker(&slots);
        // Known to the store before anything can be claimed for it; when that fails, the worker keeps trying by itself.
        if register(&slots).await.is_ok() {
            slots.open();
        }
        let loops: [BoxFuture<'static, ()>; 5] = [
            Box::pin(claim(slots.clone())),
            Box::pin(watch(slots.clone())),
            Box::pin(wake_suspended(slots.clone(), woken)),
            Box::pin(forget_the_old(slots.clone())),
            Box::pin(look_after_schedules(slots.clone())),
        ];
        for work in loops {
            let slots = slots.clone();
            engine.runtime.spawn(Box::pin(async move {
                if let Some(Err(panic)) = slots.end.run_until_cancelled(Guarded::new(work)).await {
                    tracing::error!(%panic, "a part of the worker panicked: it gives its tasks back and ends");
                    shutdown(&slots, Duration::ZERO).await;
                }
            }));
        }
        Self { slots }
    }

    /// Stops claiming, and waits for running tasks, up to the worker's
    /// [`shutdown_timeout`](crate::WorkerOptions::shutdown_timeout). Then the rest are released: told to stop, and given
    /// back to the store, to go on from their journals elsewhere or later.
    pub async fn shutdown(self) {
        shutdown(&self.slots, self.slots.options.shutdown_timeout).await;
    }

    /// Waits until the worker has stopped by itself, because it was told to from elsewhere
    /// ([`Client::drain_worker`](crate::Client::drain_worker)): the program has nothing left to wait for.
    pub async fn stopped(&self) {
        self.slots.stopped.cancelled().await;
    }

    /// The worker's id. It takes another one when it has lost its lease.
    pub fn worker_id(&self) -> WorkerId {
        self.slots.worker_id()
    }
}

pub(crate) async fn shutdown(slots: &Arc<Slots>, deadline: Duration) {
    let engine = &slots.engine;
    slots.close();
    wait_until_empty(slots, deadline).await;
    slots.stop_all(ControlFlow::Shutdown);
    wait_until_empty(slots, LAST_WORDS).await;
    slots.end.cancel();
    slots.forget_suspended();
    // What still runs is released by this, and its late writes will be refused.
    let gone = WorkerSignal::Deregister { worker_id: slots.worker_id() };
    if let Err(error) = engine.commit.signal(gone).await {
        tracing::warn!(%error, "cannot sign off; the worker's lease will run out by itself");
    }
    slots.stopped.cancel();
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

async fn register(slots: &Slots) -> Result<(), StoreError> {
    let worker_id = slots.worker_id();
    let name = slots.options.name.clone().unwrap_or_else(|| "worker".into());
    let register = WorkerSignal::Register(NewWorker {
        worker_id,
        name,
        queues: slots.queues.clone(),
        concurrency: u32::try_from(slots.options.concurrency).unwrap_or(u32::MAX),
        code_version: slots.options.code_version.clone(),
        lease: slots.options.lease,
    });
    let result = slots.engine.commit.signal(register).await.map(drop);
    if let Err(error) = &result {
        tracing::warn!(%error, %worker_id, "cannot register the worker; trying again");
    }
    result
}

/// Claims whenever there may be work and there is a free slot.
async fn claim(slots: Arc<Slots>) {
    let engine = slots.engine.clone();
    let mut failures = 0;
    let mut polling = true;
    loop {
        // Others that are about to end give their slots to the same claim.
        turn().await;
        let limit = slots.take_for_claim(polling);
        let mut permit = engine.suspect.clone().try_acquire_owned().ok();
        let claim = Claim {
            worker_id: slots.worker_id(),
            queues: slots.queues.clone(),
            task_types: engine.registry.names(),
            code_version: slots.options.code_version.clone(),
            limit,
            suspect: permit.is_some(),
        };
        let span = trace::claim(claim.worker_id, limit);
        let pause = match engine.commit.claim(claim).instrument(span.clone()).await {
            Ok(claimed) => {
                span.record("claimed", claimed.tasks.len());
                failures = 0;
                if claimed.tasks.len() < limit {
                    slots.no_backlog();
                }
                slots.give_back(limit - claimed.tasks.len().min(limit));
                for task in claimed.tasks {
                    let permit = permit.take_if(|_| task.crashes >= SUSPECT_CRASHES);
                    slots.start(task, permit.map(|permit| SuspectPermit::new(&engine, permit)));
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
        drop(permit);
        if failures > 0 {
            engine.runtime.sleep(pause).await;
            polling = true;
        } else {
            let nudged = select(Box::pin(slots.work.notified()), engine.runtime.sleep(pause)).await;
            polling = matches!(nudged, Either::Right(_));
        }
    }
}

/// Shows that the worker is alive. With each heartbeat that the store answers, compares the runs that
/// the worker holds with the store's, and looks for stuck runs, for workers that have died, and for
/// tasks that nobody here knows.
async fn watch(slots: Arc<Slots>) {
    let engine = slots.engine.clone();
    let interval =
        (slots.options.lease / 3).min(slots.options.claim_timeout / 4).max(Duration::from_millis(5));
    let mut registered = slots.is_open();
    let mut unknown = BTreeSet::new();
    let (mut comparison, mut witness) = (Comparison::default(), Witness::default());
    loop {
        if !registered {
            registered = register(&slots).await.is_ok();
            if registered {
                slots.open();
                slots.nudge();
            }
        }
        tell_unknown(&slots, &mut unknown).await;
        engine.runtime.sleep(interval).await;
        if !registered {
            continue;
        }
        let held = slots.held();
        let heartbeat = WorkerSignal::Heartbeat { worker_id: slots.worker_id() };
        let status = match engine.commit.signal(heartbeat).await {
            Ok(status) => status,
            Err(error) => {
                tracing::warn!(%error, "cannot renew the worker's lease; trying again");
                continue;
            }
        };
        if status.state == WorkerState::Gone {
            tracing::warn!("the worker was declared dead; its tasks are others' now");
            engine.measures.with_store(|measures| measures.leases_lost.increment(1));
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
        // Only while the store answers: a run that waits for its store is not stuck.
        slots.stop_stuck(interval);
        mend(&slots, comparison.compare(&held, &slots.held(), &status.runs)).await;
        for dead in witness.observe(&status.others, interval) {
            declare_dead(&slots, dead).await;
        }
    }
}

/// Gives back the runs that the store holds for the worker's and nobody runs, and stops those that
/// the worker no longer owns.
async fn mend(slots: &Slots, difference: Difference) {
    for run in difference.lost {
        tracing::warn!(task_id = %run.0, "a run is no longer the worker's, and is stopped");
        slots.lose(run);
    }
    let released = difference.orphaned.into_iter().map(|(task_id, run_id)| {
        tracing::warn!(%task_id, "the store holds a run for the worker's that nobody runs; giving it back");
        slots.engine.commit.transition_beside(Transition::new(task_id, run_id, Next::Release))
    });
    for receipt in released.collect::<Vec<_>>() {
        if let Err(error) = receipt.await {
            tracing::warn!(%error, "cannot give a run back; trying again with the next heartbeat");
        }
    }
}

async fn declare_dead(slots: &Slots, dead: OtherWorker) {
    let OtherWorker { worker_id, heartbeats, .. } = dead;
    tracing::warn!(%worker_id, "a worker has shown no sign of life for its lease, and is declared dead");
    if let Err(error) = slots.engine.commit.signal(WorkerSignal::DeclareDead { worker_id, heartbeats }).await
    {
        tracing::warn!(%error, %worker_id, "cannot declare a worker dead; trying again");
    }
}

/// Removes tasks that have ended longer ago than they are to be kept.
async fn forget_the_old(slots: Arc<Slots>) {
    let engine = &slots.engine;
    let Some(retention) = engine.settings.retention else { return };
    loop {
        engine.runtime.sleep(PURGE_EVERY).await;
        match purge(&*engine.store, retention, None, |_| ()).await {
            Ok(0) => {}
            Ok(purged) => tracing::debug!(purged, "removed tasks that were kept long enough"),
            Err(error) => tracing::warn!(%error, "cannot remove old tasks; trying again later"),
        }
    }
}

/// Says once of each task type that it waits in the worker's queues, and that the worker does not know it.
async fn tell_unknown(slots: &Slots, told: &mut BTreeSet<Name>) {
    let Ok(waiting) = slots.engine.store.waiting_types(slots.queues.clone()).await else { return };
    for task_type in waiting {
        if !slots.engine.registry.knows(&task_type) && told.insert(task_type.clone()) {
            tracing::warn!(
                %task_type,
                "tasks of a type that this worker does not know wait in its queues, and are left to workers that know it"
            );
        }
    }
}

/// Makes suspended tasks go on that wait for something beside their contexts, which has come.
async fn wake_suspended(slots: Arc<Slots>, mut woken: UnboundedReceiver<TaskId>) {
    while let Some(task_id) = woken.recv().await {
        let commit = slots.engine.commit.clone();
        insist(&slots.engine.runtime, move || commit.command(Command::Wake(task_id)));
    }
}
