//! Child tasks: how a task spawns and joins them.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::base::ids::TaskId;
use crate::base::journal::{Key, Kind};
use crate::base::name::{Name, StepName};
use crate::base::payload::Payload;
use crate::context::TaskContext;
use crate::context::task::Task;
use crate::engine::run::Run;
use crate::engine::run::child::{self, Child, Disposition};
use crate::engine::run::delivery::Delivery;
use crate::engine::run::outcome::read_child;
use crate::engine::run::state::{Effect, Request, Work};
use crate::engine::task_error::{TaskError, TaskResult};
use crate::observe::trace;
use crate::store::spawn_options::{SpawnOptions, spawn_setters};

/// A child task that is about to be spawned, with its options; await it to spawn the child.
///
/// Like a [`Delivery`], it works with any combinator.
#[must_use = "no child is spawned before this is awaited"]
pub struct SpawnChild<T> {
    run: Arc<Run>,
    parent: TaskId,
    options: SpawnOptions,
    state: State<T>,
}

enum State<T> {
    /// No poll has taken the call yet.
    New(Option<TaskResult<New>>),
    Spawning(Delivery<Child<T>>),
}

/// The call, the type and the parameters of a child.
struct New {
    key: Key,
    task_type: Name,
    params: Payload,
}

impl<T> SpawnChild<T> {
    spawn_setters!(.options);

    /// Sets all options, in place of those that were set before.
    pub fn options(mut self, options: SpawnOptions) -> Self {
        self.options = options;
        self
    }
}

impl New {
    /// Returns the call, and what it asks the executor for.
    fn request(
        self,
        run: &Run,
        parent: TaskId,
        mut options: SpawnOptions,
    ) -> TaskResult<(Key, Request)> {
        let Self { key, task_type, params } = self;
        let misfit = |source| TaskError::Payload { name: key.label(), source };
        run.engine.registry.check(&task_type, &params).map_err(misfit)?;
        // A child without a queue of its own goes to the queue of its parent.
        if options.queue.is_none() {
            options.queue = Some(run.queue.to_string());
        }
        if options.scope.is_all() {
            options.put_within(run.scope.clone());
        }
        let new = || -> TaskResult<_> {
            run.engine.new_task(task_type.clone(), params, options, Some(parent))
        };
        // A replay spawns nothing.
        let replays = run.state().is_replaying();
        let task = match replays {
            true => new()?,
            false => trace::carried(&trace::spawn(task_type.as_str()), new)?,
        };
        if task.concurrency_key.is_some()
            && (&task.concurrency_key, &task.scope) == (&run.concurrency_key, &run.scope)
        {
            run.state().lines_up(&key);
        }
        // The store decides about a spawn that it may answer with an existing task.
        let request = match task.idempotency_key.is_some() || task.coalesce.is_some() {
            true => Request::Gate(Some(Work::Spawn(Box::new(task)))),
            false => Request::Finished(child::created(task.task_id), Effect::Spawn(Box::new(task))),
        };
        Ok((key, request))
    }
}

impl<T> Future for SpawnChild<T> {
    type Output = TaskResult<Child<T>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        if let State::New(new) = &mut this.state
            && let Some(new) = new.take()
        {
            let options = std::mem::take(&mut this.options);
            let asked = new.and_then(|new| new.request(&this.run, this.parent, options));
            this.state = State::Spawning(Delivery::asked(&this.run, asked, Child::read));
        }
        match &mut this.state {
            State::New(_) => Poll::Pending,
            State::Spawning(delivery) => Pin::new(delivery).poll(cx),
        }
    }
}

impl TaskContext {
    /// Spawns a child task, exactly once, with the next commit of this task, when the builder is
    /// awaited.
    ///
    /// The child is cancelled when this task is.
    ///
    /// A spawn with an [idempotency key](SpawnChild::idempotency_key) may be answered with an
    /// existing task of any origin, and so may a [coalesced](SpawnChild::coalesced) one.
    /// [`Child::disposition`] returns which task it is. Such a spawn is answered when it is
    /// durable, which takes a commit of its own. The existing task can be joined like a child. It
    /// is not cancelled with this task unless this task spawned it.
    ///
    /// # Errors
    /// The future fails with [`TaskError::Payload`] when the parameters cannot be written, with
    /// [`TaskError::Name`] when an option is an invalid name, and with [`TaskError::Step`] when the
    /// spawn asks to be [rejected](crate::Coalesce::Reject) while another task waits to start.
    pub fn spawn<T: Task>(
        &self,
        name: impl Into<StepName>,
        params: T::Params,
    ) -> SpawnChild<T::Output> {
        let encode = |key: &Key| {
            Payload::encode_proven(&params, self.max_payload_bytes())
                .map_err(|source| TaskError::Payload { name: key.name.to_string(), source })
        };
        self.spawn_encoded(name, T::NAME, encode)
    }

    /// Spawns a child task of a type that is known by its name only, as [`TaskContext::spawn`]
    /// does.
    ///
    /// # Errors
    /// The errors of [`TaskContext::spawn`].
    pub fn spawn_named<P: Serialize + ?Sized, O>(
        &self,
        name: impl Into<StepName>,
        task_type: &str,
        params: &P,
    ) -> SpawnChild<O> {
        self.spawn_encoded(name, task_type, |key| self.encode(&key.name, params))
    }

    fn spawn_encoded<O>(
        &self,
        name: impl Into<StepName>,
        task_type: &str,
        params: impl FnOnce(&Key) -> TaskResult<Payload>,
    ) -> SpawnChild<O> {
        let new = |key: Key| {
            let params = params(&key)?;
            Ok(New { key, task_type: Name::new(task_type)?, params })
        };
        let new = self.run.begin(Kind::Spawn, &name.into()).and_then(new);
        SpawnChild {
            run: self.run.clone(),
            parent: self.task_id,
            options: SpawnOptions::default(),
            state: State::New(Some(new)),
        }
    }

    /// Waits for a child's output.
    ///
    /// # Errors
    /// [`TaskError::Child`] when the child failed, was cancelled or was deleted.
    /// [`TaskError::JoinsItself`] when the spawn was answered with this very task.
    /// [`TaskError::JoinsBlocked`] when the join could never end, in one of two cases:
    ///
    /// - The child has this task's concurrency key, and therefore does not begin before this task
    ///   has ended.
    /// - This task waits only for the ends of other tasks, which wait in turn for this task to end.
    pub fn join<T: DeserializeOwned>(&self, child: &Child<T>) -> Delivery<T> {
        let task_id = child.task_id();
        let target = |key: &Key| {
            if task_id == self.task_id {
                return Err(TaskError::JoinsItself { name: key.label() });
            }
            // An existing task may have another key, or have ended.
            let is_new = child.disposition() != Disposition::Existing;
            if is_new && self.run.state().is_behind(child.spawn()) {
                let concurrency_key = self.run.concurrency_key.as_ref().map(ToString::to_string);
                return Err(TaskError::JoinsBlocked {
                    name: child.spawn().label(),
                    task_id,
                    concurrency_key,
                });
            }
            let target = Some(Name::new(task_id.to_string())?);
            Ok(Request::Wait { target, due_at: None })
        };
        let name = StepName::derived(format!("{}:{task_id}", child.spawn().name));
        let key = self.run.begin(Kind::Child, &name);
        Delivery::new(&self.run, key, target, read_child)
    }
}
