//! The callers that wait for the items of a batch, and how they are answered.

use crate::base::guard::answer;
use crate::base::ids::TaskId;
use crate::base::name::Name;
use crate::engine::commit::eager::Eager;
use crate::engine::commit::receipt::Answer;
use crate::store::*;

/// The caller of a spawn, and the task that starts when the spawn is durable.
pub(crate) struct Spawner {
    pub(super) answer: Answer<Spawned>,
    pub(super) eager: Option<Eager>,
}

impl Spawner {
    /// Answers the caller, and returns the task that starts now.
    pub(super) fn tell(self, spawned: Spawned) -> Option<Eager> {
        let starts = matches!(spawned, Spawned::Created { claimed: true });
        answer(self.answer, Ok(spawned));
        self.eager.filter(|_| starts)
    }
}

/// The callers that wait for the items of a batch; each list is in the order of the batch's list.
#[derive(Default)]
pub(crate) struct Answers {
    pub(crate) transitions: Vec<Answer<Result<Applied, Refused>>>,
    /// The tasks of `transitions` whose runs report their ends themselves.
    pub(crate) ending: Vec<TaskId>,
    pub(crate) commands: Vec<Answer<CommandOutcome>>,
    pub(crate) events: Vec<Answer<bool>>,
    pub(crate) messages: Vec<Answer<bool>>,
    pub(crate) spawns: Vec<Spawner>,
    /// The lengths of consecutive groups of `spawns`, each of which is spawned as a whole or not at
    /// all.
    pub(crate) groups: Vec<usize>,
    /// The tasks of `spawns`, to be reported.
    pub(crate) spawned: Vec<(TaskId, Name)>,
    pub(crate) schedules: Vec<Answer<ScheduleOutcome>>,
    /// The tasks that each of `schedules` spawns, to be reported.
    pub(crate) scheduled: Vec<Vec<(TaskId, Name)>>,
    pub(crate) queues: Vec<Answer<()>>,
    pub(crate) workers: Vec<Answer<WorkerStatus>>,
    pub(crate) claims: Vec<Answer<Claimed>>,
}

impl Answers {
    /// Returns the number of items that can be committed one without the other.
    pub(crate) fn items(&self) -> usize {
        self.transitions.len()
            + self.commands.len()
            + self.events.len()
            + self.messages.len()
            + self.groups.len()
            + self.schedules.len()
            + self.queues.len()
            + self.workers.len()
            + self.claims.len()
    }

    /// Answers all callers with the error.
    pub(super) fn refuse(self, error: &StoreError) {
        refuse(self.transitions, error);
        refuse(self.commands, error);
        refuse(self.events, error);
        refuse(self.messages, error);
        refuse(self.spawns.into_iter().map(|spawner| spawner.answer), error);
        refuse(self.schedules, error);
        refuse(self.queues, error);
        refuse(self.workers, error);
        refuse(self.claims, error);
    }
}

/// Answers the callers of one kind of items with their results.
pub(super) fn give<T>(answers: Vec<Answer<T>>, results: Vec<T>) {
    answers.into_iter().zip(results).for_each(|(caller, result)| answer(caller, Ok(result)));
}

fn refuse<T>(answers: impl IntoIterator<Item = Answer<T>>, error: &StoreError) {
    answers.into_iter().for_each(|caller| answer(caller, Err(error.clone())));
}
