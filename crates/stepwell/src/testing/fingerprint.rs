//! A number that differs between two runs of a world that differ. The number is a hash of all calls
//! to the store and their answers.

use std::hash::{DefaultHasher, Hash, Hasher as _};
use std::mem::discriminant;
use std::time::Duration;

use stepwell_core::store::{Batch, Committed, Next};
use stepwell_core::{NewTask, Outcome};

/// A hash of the events of a world.
#[derive(Default)]
pub(super) struct Fingerprint(DefaultHasher);

impl Fingerprint {
    pub(super) fn add(&mut self, what: impl Hash) {
        what.hash(&mut self.0);
    }

    pub(super) fn number(&self) -> u64 {
        self.0.finish()
    }

    pub(super) fn commit(
        &mut self,
        at: Duration,
        process: Option<usize>,
        batch: &Batch,
        committed: &Committed,
    ) {
        self.add((at, process));
        for transition in &batch.transitions {
            self.add((
                transition.task_id,
                transition.run_id,
                transition.after,
                &transition.superseded,
            ));
            for entry in &transition.entries {
                self.add((entry.seq, &entry.key, entry.at));
                self.outcome(&entry.outcome);
            }
            transition.spawns.iter().for_each(|task| self.task(task));
            transition.keyed.iter().for_each(|keyed| self.task(&keyed.task));
            transition
                .events
                .iter()
                .for_each(|event| self.add((&event.name, event.payload.as_str())));
            for message in &transition.messages {
                self.add((message.task_id, &message.topic, message.payload.as_str()));
            }
            self.add(&transition.received);
            transition
                .waits_added
                .iter()
                .for_each(|wait| self.add((&wait.key, &wait.target, wait.due_at)));
            self.add(&transition.waits_removed);
            self.add(discriminant(&transition.next));
            match &transition.next {
                Next::Complete(output) => self.add(output.as_str()),
                Next::Fail(failure) => self.add(&failure.message),
                Next::Retry { failure, at } => self.add((&failure.message, at)),
                Next::Suspend { wake_at } => self.add(wake_at),
                Next::Continue { .. } | Next::Cancel | Next::Release | Next::Leave { .. } => {}
            }
        }
        batch
            .commands
            .iter()
            .for_each(|command| self.add((discriminant(command), command.task_id())));
        batch.events.iter().for_each(|event| self.add((&event.name, event.payload.as_str())));
        for message in &batch.messages {
            self.add((message.task_id, &message.topic, message.payload.as_str()));
        }
        batch.spawns.iter().for_each(|task| self.task(task));
        self.add((batch.schedules.len(), batch.queues.len()));
        batch.workers.iter().for_each(|signal| self.add(discriminant(signal)));
        batch
            .claims
            .iter()
            .for_each(|claim| self.add((claim.worker_id, claim.limit, claim.suspect)));
        self.answer(committed);
    }

    fn answer(&mut self, committed: &Committed) {
        for transition in &committed.transitions {
            let applied = transition.as_ref().ok();
            self.add(applied.map(|applied| {
                let facts = &applied.facts;
                let arrived = (facts.events.len(), facts.messages.len(), facts.children.len());
                (applied.suspended, applied.cancel_requested, arrived)
            }));
        }
        committed.commands.iter().for_each(|outcome| self.add(discriminant(outcome)));
        self.add((&committed.events, &committed.messages));
        committed.spawns.iter().for_each(|spawned| self.add(discriminant(spawned)));
        for claimed in &committed.claims {
            claimed
                .tasks
                .iter()
                .for_each(|task| self.add((task.task_id, task.run_id, task.attempt)));
            self.add((&claimed.poked, claimed.next_due));
        }
        self.add(&committed.news.ready);
    }

    fn outcome(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::Done(payload) => self.add(payload.as_str()),
            Outcome::Failed(failure) => self.add(&failure.message),
            Outcome::Retrying { failure, at } => self.add((&failure.message, at)),
        }
    }

    fn task(&mut self, task: &NewTask) {
        self.add((task.task_id, task.run_id, &task.task_type, task.params.as_str(), task.claim_by));
    }
}
