//! Suspects: tasks whose workers have died, of which a process runs few at the same time.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hashbrown::HashMap;

use crate::base::ids::WorkerId;
use crate::engine::Engine;
use crate::engine::commit::hub::LocalWorker;
use crate::engine::worker_options::WorkerOptions;
use crate::store::rules::crash::SUSPECT_CRASHES;

/// The number of a worker's slots for which one suspect may run at the same time as others.
///
/// The bound holds while none of them has met more crashes than [`SUSPECT_CRASHES`]; a suspect that
/// has met more runs alone.
const GROUP: usize = 8;

/// The suspects that the workers of a client run.
#[derive(Default)]
pub(crate) struct Suspects(Mutex<Inside>);

#[derive(Default)]
struct Inside {
    /// The number of crashes that each running suspect has met.
    running: HashMap<u64, u32>,
    /// The number of suspects that were admitted.
    admitted: u64,
    /// Set while a claim is on its way that may bring a suspect.
    asked: bool,
    /// Workers whose claims could not ask for a suspect because of that claim.
    passed_over: Vec<WorkerId>,
}

impl Suspects {
    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inside {
    /// Returns the most crashes that another suspect may have met; 0 when none may run.
    ///
    /// At most `group` suspects run at the same time.
    fn most(&self, group: usize) -> u32 {
        match self.running.values().max() {
            None => u32::MAX,
            Some(&SUSPECT_CRASHES) if self.running.len() < group => SUSPECT_CRASHES,
            Some(_) => 0,
        }
    }
}

/// The right of a claim to ask for a suspect, which one claim has at a time.
pub(crate) struct Suspect {
    engine: Arc<Engine>,
    most: u32,
}

impl Suspect {
    /// Returns the right to ask for a suspect, if one may run now.
    pub(crate) fn ask(
        engine: &Arc<Engine>,
        worker: &dyn LocalWorker,
        options: &WorkerOptions,
    ) -> Option<Self> {
        let mut inside = engine.suspects.inside();
        if inside.asked {
            inside.passed_over.push(worker.worker_id());
            return None;
        }
        let most = inside.most((options.concurrency / GROUP).max(1));
        inside.asked = most > 0;
        inside.asked.then(|| Self { engine: engine.clone(), most })
    }

    /// Returns the most crashes that the suspect may have met.
    pub(crate) fn most(&self) -> u32 {
        self.most
    }

    /// Admits a suspect that was claimed.
    ///
    /// It counts until it has got further, and for at most the worker's `claim_timeout`. A suspect
    /// that kills its process does so about as soon as before, and others must not wait for ever.
    pub(crate) fn admit(
        self,
        crashes: u32,
        worker: &dyn LocalWorker,
        options: &WorkerOptions,
    ) -> SuspectPermit {
        let mut inside = self.engine.suspects.inside();
        // This worker may claim another suspect at once.
        inside.passed_over.push(worker.worker_id());
        inside.admitted += 1;
        let number = inside.admitted;
        inside.running.insert(number, crashes);
        drop(inside);
        let (engine, pause) =
            (Arc::downgrade(&self.engine), self.engine.runtime.sleep(options.claim_timeout));
        self.engine.runtime.spawn(Box::pin(async move {
            pause.await;
            if let Some(engine) = engine.upgrade() {
                engine.acquit(number);
            }
        }));
        SuspectPermit { engine: self.engine.clone(), number }
    }
}

impl Drop for Suspect {
    fn drop(&mut self) {
        let mut inside = self.engine.suspects.inside();
        inside.asked = false;
        let passed_over = std::mem::take(&mut inside.passed_over);
        drop(inside);
        let workers = self.engine.hub.workers().into_iter();
        workers
            .filter(|worker| passed_over.contains(&worker.worker_id()))
            .for_each(|worker| worker.nudge());
    }
}

/// The permit of a suspect, which it keeps until it has got further.
pub(crate) struct SuspectPermit {
    engine: Arc<Engine>,
    number: u64,
}

impl Drop for SuspectPermit {
    fn drop(&mut self) {
        self.engine.acquit(self.number);
    }
}

impl Engine {
    /// Removes a suspect, which no longer keeps others from running.
    fn acquit(&self, suspect: u64) {
        if self.suspects.inside().running.remove(&suspect).is_some() {
            self.hub.workers().iter().for_each(|worker| worker.nudge());
        }
    }
}
