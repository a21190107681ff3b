//! The normal form of answers, in which those of two stores can be compared.

use std::collections::{HashMap, HashSet};

use stepwell_core::store::{
    ArrivedMessage, Committed, Facts, Finish, MessageId, News, Spawned, TaskInfo, TaskState,
};
use stepwell_core::{Name, RunId, TaskId};
use uuid::Uuid;

/// The ids that one store chose, each with its place in the order in which the ids appeared.
#[derive(Default)]
pub(super) struct Ids {
    runs: HashMap<RunId, u128>,
    messages: HashMap<MessageId, MessageId>,
    /// The messages that have appeared since the list was last taken.
    pub(super) new_messages: Vec<MessageId>,
}

/// The news of a batch that all stores must agree on. The number and the order of mentions of a
/// queue may differ. So may news for a task that no longer runs, and of a queue that is empty.
#[derive(Debug)]
pub(super) struct Told {
    ready: Vec<Name>,
    _poked: Vec<TaskId>,
    _finished: Vec<(TaskId, Finish)>,
}

impl Told {
    /// Accepts that a store mentions more queues than the model. Workers then look at these queues,
    /// and find nothing.
    pub(super) fn allow_more(&mut self, model: &Self) {
        self.ready.retain(|queue| model.ready.contains(queue));
    }
}

impl Ids {
    fn run(&mut self, run_id: &mut RunId) {
        let next = self.runs.len() as u128;
        *run_id = Uuid::from_u128(*self.runs.entry(*run_id).or_insert(next)).into();
    }

    fn message(&mut self, message: &mut ArrivedMessage) {
        let next = self.messages.len() as MessageId;
        let new_messages = &mut self.new_messages;
        message.id = *self.messages.entry(message.id).or_insert_with(|| {
            new_messages.push(message.id);
            next
        });
    }

    fn facts(&mut self, facts: &mut Facts) -> Result<(), String> {
        facts.events.sort_by(|a, b| a.0.cmp(&b.0));
        facts.events.dedup();
        facts.children.sort_by_key(|(task_id, _)| *task_id);
        facts.children.dedup();
        // The sort is stable, so messages of one topic keep their order.
        facts.messages.sort_by(|a, b| a.topic.cmp(&b.topic));
        let in_order =
            |pair: &[ArrivedMessage]| pair[0].topic != pair[1].topic || pair[0].id < pair[1].id;
        if !facts.messages.windows(2).all(in_order) {
            return Err(format!(
                "the ids of messages do not grow within a topic: {:#?}",
                facts.messages
            ));
        }
        facts.messages.iter_mut().for_each(|message| self.message(message));
        Ok(())
    }

    /// Brings the answer to a batch into the normal form, with the tasks that exist after the
    /// batch.
    pub(super) fn committed(
        &mut self,
        committed: &mut Committed,
        tasks: &[TaskInfo],
    ) -> Result<Told, String> {
        for applied in committed.transitions.iter_mut().flatten() {
            self.facts(&mut applied.facts)?;
        }
        let keyed =
            committed.transitions.iter_mut().flatten().filter_map(|applied| applied.keyed.as_mut());
        for spawned in keyed.chain(&mut committed.spawns) {
            if let Spawned::Existing { run_id, .. } | Spawned::Waiting { run_id, .. } = spawned {
                self.run(run_id);
            }
        }
        for claimed in &mut committed.claims {
            claimed.poked.sort_unstable();
            for task in &mut claimed.tasks {
                self.run(&mut task.run_id);
                task.waits.sort_by(|a, b| a.key.cmp(&b.key));
                self.facts(&mut task.facts)?;
            }
        }
        for status in &mut committed.workers {
            status.runs.iter_mut().for_each(|(_, run_id)| self.run(run_id));
            status.runs.sort_unstable();
        }
        let News { ready, mut poked, mut finished } = std::mem::take(&mut committed.news);
        let mut ready: Vec<_> = ready.into_iter().map(|(queue, _)| queue).collect();
        let left = |task: &TaskInfo| task.state == TaskState::Pending || task.due_at.is_some();
        ready.retain(|queue| tasks.iter().any(|task| task.queue == *queue && left(task)));
        ready.sort_unstable();
        ready.dedup();
        let running: HashSet<_> = tasks
            .iter()
            .filter(|task| task.state == TaskState::Running)
            .map(|task| task.task_id)
            .collect();
        poked.retain(|task_id| running.contains(task_id));
        poked.sort_unstable();
        poked.dedup();
        finished.sort_by_key(|(task_id, _)| *task_id);
        Ok(Told { ready, _poked: poked, _finished: finished })
    }

    pub(super) fn infos(&mut self, infos: &mut [TaskInfo]) {
        infos.iter_mut().for_each(|info| self.run(&mut info.run_id));
    }
}
