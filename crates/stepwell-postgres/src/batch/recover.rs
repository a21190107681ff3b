//! The results of a batch that was applied, and whose answer was lost with its connection. The
//! results are read from the tables.
//!
//! Invariant: no other process can have changed these rows, because the runs and the claims of the
//! batch are this process's own, and this process waits for the answer.

use std::collections::HashMap;
use std::sync::Arc;

use sqlx::Row as _;
use sqlx::postgres::PgRow;
use sqlx::types::Uuid;
use stepwell_core::store::{
    Applied, Batch, Command, CommandOutcome, Committed, Finish, Next, Refused, ScheduleChange,
    ScheduleOutcome, Spawned, TaskState, Transition,
};
use stepwell_core::{Name, NewTask, StoreError, TaskId, UnknownWord};

use crate::batch::answer;
use crate::batch::classify::Sorted;
use crate::connection::Shared;
use crate::connection::call::Query;
use crate::connection::link::Line;
use crate::values::columns::scope_text;
use crate::values::rows::{attempt, broken, finish};

/// The state of a task after the batch.
struct Trace {
    run_id: Uuid,
    state: TaskState,
    worker_id: Option<Uuid>,
    attempt: i64,
    cancel_requested: bool,
    compensating: bool,
}

impl Shared {
    /// Sends a batch whose items may be applied twice: each run reads its arrivals again, workers
    /// send heartbeats, and the claims of the lost answer are requested again. The other results
    /// are read.
    pub(crate) async fn recover(
        &self,
        line: &mut Line,
        lost: Sorted,
        number: i64,
    ) -> Result<Committed, StoreError> {
        tracing::info!("a batch was applied though its answer was lost; reading what became of it");
        let lost = lost.batch;
        let looks = lost.transitions.iter().map(|transition| {
            let collect =
                matches!(transition.next, Next::Continue { collect: true } | Next::Suspend { .. });
            Transition::new(transition.task_id, transition.run_id, Next::Continue { collect })
        });
        let again = Batch {
            transitions: looks.collect(),
            workers: lost.workers.clone(),
            claims: lost.claims.clone(),
            ..Batch::default()
        };
        let mut again = Sorted::new(Arc::new(again));
        let row = loop {
            let next = self.link.next_batch();
            let (sorted, row) = self.send(line, again, next, Some(number)).await?;
            again = sorted;
            if !row.try_get::<bool, _>("repeated").map_err(|error| self.error(error))? {
                break row;
            }
        };
        let (mut committed, _) = answer::read(&again, &row).map_err(|error| self.error(error))?;
        self.fill_apart(line, &row, &mut committed).await?;
        let traces = self.traces(line, tasks_of(&lost)).await?;
        self.complete(line, &lost, &mut committed, &traces).await?;
        // Clients may wait for the effects of the batch.
        self.changes.tell_anything();
        Ok(committed)
    }

    async fn complete(
        &self,
        line: &mut Line,
        lost: &Batch,
        committed: &mut Committed,
        traces: &HashMap<Uuid, Trace>,
    ) -> Result<(), StoreError> {
        for (transition, result) in lost.transitions.iter().zip(&mut committed.transitions) {
            let trace = traces.get(transition.task_id.as_uuid());
            let own = trace.filter(|trace| trace.run_id == *transition.run_id.as_uuid());
            let again = committed.claims.iter_mut().flat_map(|claimed| &mut claimed.tasks);
            let mut again = again.filter(|task| {
                (task.task_id, task.run_id) == (transition.task_id, transition.run_id)
            });
            if matches!(transition.next, Next::Suspend { .. })
                && let Some(task) = again.next()
            {
                // The task was suspended, woken, and claimed by the same worker, all in the lost
                // batch. The execution in memory continues: without a journal, the worker starts no
                // second one.
                task.journal = None;
                *result = Ok(Applied { suspended: true, ..Applied::default() });
            } else if result.is_err()
                && let Some(trace) = own
            {
                *result = ended_so(&transition.next, trace);
            }
            if let (Some(keyed), Ok(applied)) = (&transition.keyed, &mut *result) {
                applied.keyed = Some(self.spawned(line, &keyed.task, traces).await?);
            }
            if result.is_ok()
                && own.is_some_and(|trace| trace.state.is_finished())
                && let Some(finish) = transition.next.finish()
            {
                committed.news.finished.push((transition.task_id, finish));
            }
        }
        committed.commands = lost
            .commands
            .iter()
            .map(|command| outcome(command, traces.get(command.task_id().as_uuid())))
            .collect();
        // A message to a task that has ended may have been accepted before. The difference has no
        // effect any more.
        let lives = |task_id: &TaskId| {
            traces.get(task_id.as_uuid()).is_some_and(|trace| !trace.state.is_finished())
        };
        committed.messages = lost.messages.iter().map(|message| lives(&message.task_id)).collect();
        for event in &lost.events {
            let sql = format!(
                "SELECT payload FROM {}.events WHERE name = $1 AND queue = $2",
                self.options.schema
            );
            let queue = event.queue.as_ref().map_or("", |queue| queue.as_str()).to_owned();
            let found = self.read_on(line, &sql, |query| {
                query.bind(event.name.as_str().to_owned()).bind(queue.clone())
            });
            let found = found.await?;
            let stands = found.first().and_then(|row| row.try_get::<String, _>(0).ok());
            committed.events.push(stands.as_deref() == Some(event.payload.as_str()));
        }
        for task in &lost.spawns {
            committed.spawns.push(self.spawned(line, task, traces).await?);
        }
        for change in &lost.schedules {
            committed.schedules.push(self.schedule_outcome(line, change, traces).await?);
        }
        Ok(())
    }

    /// Returns the result of a spawn.
    async fn spawned(
        &self,
        line: &mut Line,
        task: &NewTask,
        traces: &HashMap<Uuid, Trace>,
    ) -> Result<Spawned, StoreError> {
        if let Some(trace) = traces.get(task.task_id.as_uuid()) {
            let claim_by = task.claim_by.map(|worker| *worker.as_uuid());
            let claimed = trace.state == TaskState::Running
                && trace.worker_id.is_some()
                && trace.worker_id == claim_by;
            return Ok(Spawned::Created { claimed });
        }
        let waiting = match task.coalesce {
            Some(_) => self.waiting(line, task).await?,
            None => None,
        };
        match waiting {
            Some(waiting) => Ok(waiting),
            None => self.existing(line, task).await,
        }
    }

    /// Returns the result of a change of a schedule, from the schedule's present version and the
    /// tasks that the change spawned. A change that spawned nothing and was followed by another
    /// change counts as refused, and its caller reads the schedule again.
    async fn schedule_outcome(
        &self,
        line: &mut Line,
        change: &ScheduleChange,
        traces: &HashMap<Uuid, Trace>,
    ) -> Result<ScheduleOutcome, StoreError> {
        let sql = format!("SELECT version FROM {}.schedules WHERE name = $1", self.options.schema);
        let rows =
            self.read_on(line, &sql, |query| query.bind(change.name.as_str().to_owned())).await?;
        let version = rows.first().map(|row| row.try_get::<Uuid, _>(0)).transpose();
        let version = version.map_err(|error| self.error(error))?;
        let spawned =
            change.spawns().iter().any(|task| traces.contains_key(task.task_id.as_uuid()));
        let stands = version == change.plan().map(|plan| *plan.version.as_uuid());
        Ok(if spawned || stands {
            ScheduleOutcome::Changed { spawned }
        } else {
            ScheduleOutcome::Refused
        })
    }

    /// Returns the present states of the batch's tasks.
    async fn traces(
        &self,
        line: &mut Line,
        tasks: Vec<Uuid>,
    ) -> Result<HashMap<Uuid, Trace>, StoreError> {
        let sql = format!(
            "SELECT task_id, run_id, state, worker_id, attempt, cancel_requested, compensating
            FROM {0}.live_tasks WHERE task_id = ANY ($1)
            UNION ALL
            SELECT task_id, run_id, state, NULL, attempt, cancel_requested, false
            FROM {0}.outcomes WHERE task_id = ANY ($1)",
            self.options.schema
        );
        let rows = self.read_on(line, &sql, |query| query.bind(tasks.clone())).await?;
        let trace = |row: &PgRow| {
            let state: &str = row.try_get("state")?;
            let state =
                TaskState::parse(state).ok_or_else(|| broken(UnknownWord(state.to_owned())))?;
            let trace = Trace {
                run_id: row.try_get("run_id")?,
                state,
                worker_id: row.try_get("worker_id")?,
                attempt: row.try_get("attempt")?,
                cancel_requested: row.try_get("cancel_requested")?,
                compensating: row.try_get("compensating")?,
            };
            Ok((row.try_get("task_id")?, trace))
        };
        Ok(self.readable("a task", &rows, trace)?.into_iter().collect())
    }

    /// Returns the task that has the idempotency key of a task that was therefore not spawned.
    async fn existing(&self, line: &mut Line, task: &NewTask) -> Result<Spawned, StoreError> {
        let sql = format!(
            "SELECT k.task_id, coalesce(l.run_id, o.run_id) AS run_id,
                coalesce(l.attempt, o.attempt) AS attempt
            FROM (
                SELECT k.task_type, k.idempotency_key, k.key_space,
                    coalesce(i.task_id, k.task_id) AS task_id
                FROM {0}.idempotency_keys k LEFT JOIN {0}.outcomes n USING (task_id)
                LEFT JOIN {0}.tasks i ON i.task_id = n.instead
            ) k LEFT JOIN {0}.live_tasks l USING (task_id) LEFT JOIN {0}.outcomes o USING (task_id)
            WHERE k.task_type = $1 AND k.idempotency_key = $2 AND k.key_space = {0}.key_space($3)",
            self.options.schema
        );
        let key = task.idempotency_key.as_ref().map(|key| key.as_str().to_owned());
        let (task_type, scope) = (task.task_type.as_str().to_owned(), scope_text(&task.scope));
        let bind =
            |query: Query| query.bind(task_type.clone()).bind(key.clone()).bind(scope.clone());
        let rows = self.read_on(line, &sql, bind).await?;
        let read = |row: &PgRow| {
            let attempt = attempt(row.try_get("attempt")?);
            let task_id: Uuid = row.try_get("task_id")?;
            let run_id: Uuid = row.try_get("run_id")?;
            Ok::<_, sqlx::Error>(Spawned::Existing {
                task_id: task_id.into(),
                run_id: run_id.into(),
                attempt,
            })
        };
        match rows.first().map(read).transpose().map_err(|error| self.error(error))? {
            Some(existing) => Ok(existing),
            // The task was spawned, ended, and was deleted since.
            None => Ok(Spawned::Created { claimed: false }),
        }
    }

    /// Returns the task in whose favour a task was not spawned: the last one of its type, scope and
    /// concurrency key. The waiting task may have started or even ended since.
    async fn waiting(
        &self,
        line: &mut Line,
        task: &NewTask,
    ) -> Result<Option<Spawned>, StoreError> {
        let sql = format!(
            "SELECT t.task_id, coalesce(l.run_id, o.run_id) AS run_id FROM {0}.tasks t
            LEFT JOIN {0}.live_tasks l USING (task_id) LEFT JOIN {0}.outcomes o USING (task_id)
            WHERE t.task_type = $1 AND t.concurrency_key = $2
                AND t.scope IS NOT DISTINCT FROM $4 AND NOT EXISTS (
                SELECT FROM {0}.idempotency_keys k WHERE k.task_type = $1 AND k.idempotency_key = $3
                    AND k.key_space = {0}.key_space($4))
            ORDER BY t.task_id DESC LIMIT 1",
            self.options.schema
        );
        let text = |name: &Option<Name>| name.as_ref().map(|name| name.as_str().to_owned());
        let (task_type, key) = (task.task_type.as_str().to_owned(), text(&task.concurrency_key));
        let idempotency_key = text(&task.idempotency_key);
        let scope = scope_text(&task.scope);
        let bind = |query: Query| {
            let query = query.bind(task_type.clone()).bind(key.clone());
            query.bind(idempotency_key.clone()).bind(scope.clone())
        };
        let rows = self.read_on(line, &sql, bind).await?;
        let read = |row: &PgRow| -> sqlx::Result<Option<Spawned>> {
            let task_id: Uuid = row.try_get("task_id")?;
            let run_id: Option<Uuid> = row.try_get("run_id")?;
            let waiting =
                |run_id: Uuid| Spawned::Waiting { task_id: task_id.into(), run_id: run_id.into() };
            Ok(run_id.map(waiting))
        };
        let found = rows.first().map(read).transpose().map_err(|error| self.error(error))?;
        Ok(found.flatten())
    }

    /// Returns how tasks ended. Clients read the outcomes that this call cannot read.
    pub(crate) async fn other_ends(
        &self,
        line: &mut Line,
        tasks: Vec<Uuid>,
    ) -> Vec<(TaskId, Finish)> {
        let sql = format!(
            "SELECT task_id, state, output, failure FROM {}.outcomes WHERE task_id = ANY ($1)",
            self.options.schema
        );
        let Ok(rows) = self.read_on(line, &sql, |query| query.bind(tasks.clone())).await else {
            return Vec::new();
        };
        let end = |row: &PgRow| {
            let finish =
                finish(row.try_get("state")?, row.try_get("output")?, row.try_get("failure")?)?;
            Ok::<_, sqlx::Error>(finish)
        };
        let mut found = HashMap::new();
        for row in &rows {
            // An end that cannot be read is no other end: it is left to those who read the task.
            let Ok(task) = row.try_get::<Uuid, _>("task_id") else { continue };
            let read = end(row).inspect_err(|error| {
                tracing::error!(%task, %error, "the end of a task cannot be read");
            });
            found.insert(task, read.ok());
        }
        // A task without an outcome was cancelled, and deleted or retried in the same batch.
        let ends = tasks.into_iter().filter_map(|task| {
            let finish = found.remove(&task).unwrap_or(Some(Finish::Cancelled));
            finish.map(|finish| (task.into(), finish))
        });
        ends.collect()
    }
}

/// Returns the tasks of the batch.
fn tasks_of(lost: &Batch) -> Vec<Uuid> {
    let tasks = lost.transitions.iter().map(|transition| transition.task_id);
    let tasks = tasks.chain(lost.commands.iter().map(Command::task_id));
    let tasks = tasks.chain(lost.messages.iter().map(|message| message.task_id));
    let tasks = tasks.chain(lost.spawns.iter().map(|task| task.task_id));
    let keyed = lost.transitions.iter().filter_map(|transition| transition.keyed.as_ref());
    let tasks = tasks.chain(keyed.map(|keyed| keyed.task.task_id));
    let scheduled = lost.schedules.iter().flat_map(ScheduleChange::spawns);
    let tasks = tasks.chain(scheduled.map(|task| task.task_id));
    tasks.map(|task_id| *task_id.as_uuid()).collect()
}

/// Returns the result for a run that no longer owns its task because of its own transition.
fn ended_so(next: &Next, trace: &Trace) -> Result<Applied, Refused> {
    let applied = Applied { cancel_requested: trace.cancel_requested, ..Applied::default() };
    match next {
        Next::Continue { .. } => Err(Refused),
        Next::Suspend { .. } => Ok(Applied { suspended: true, ..applied }),
        Next::Complete(_) | Next::Fail(_) | Next::Cancel => {
            if trace.state.is_finished() || trace.compensating { Ok(applied) } else { Err(Refused) }
        }
        Next::Retry { .. } | Next::Release | Next::Leave { .. } => Ok(applied),
    }
}

/// Returns the result of a command, from the present state of its task.
fn outcome(command: &Command, trace: Option<&Trace>) -> CommandOutcome {
    let Some(trace) = trace else {
        return match command {
            Command::Delete(_) => CommandOutcome::Done,
            _ => CommandOutcome::NotFound,
        };
    };
    let done = match command {
        Command::Cancel(_) => {
            trace.cancel_requested || trace.compensating || trace.state == TaskState::Cancelled
        }
        Command::Retry(_) => trace.state != TaskState::Completed || trace.attempt > 0,
        Command::Delete(_) => false,
        Command::Wake(_) | Command::Pause(_) | Command::Resume(_) => !trace.state.is_finished(),
    };
    if done { CommandOutcome::Done } else { CommandOutcome::NotAllowed(trace.state) }
}
