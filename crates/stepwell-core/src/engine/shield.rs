//! A store whose panics are errors.
//!
//! The store may be the application's own, and its panic must end no part of the engine.

use std::num::NonZeroUsize;
use std::sync::Arc;

use crate::base::guard::{Guarded, Panic, guard};
use crate::base::ids::TaskId;
use crate::base::journal::Entry;
use crate::base::name::Name;
use crate::base::runtime::{BoxFuture, MaybeSend};
use crate::base::time::Timestamp;
use crate::store::page::Page;
use crate::store::queue::QueueInfo;
use crate::store::record::TaskRecord;
use crate::store::scope::Scope;
use crate::store::*;

/// The application's store, behind which its panics become errors.
pub(crate) struct Shield(pub(crate) Arc<dyn Store>);

type Answer<T> = BoxFuture<'static, Result<T, StoreError>>;

/// Returns the answer of a store that may panic at the call, and while it answers.
fn shielded<T: MaybeSend + 'static>(ask: impl FnOnce() -> Answer<T>) -> Answer<T> {
    let asked = guard(ask);
    Box::pin(async move {
        match asked {
            Ok(answer) => Guarded::new(answer).await.unwrap_or_else(|panic| Err(panicked(&panic))),
            Err(panic) => Err(panicked(&panic)),
        }
    })
}

fn panicked(panic: &Panic) -> StoreError {
    StoreError::Backend(format!("the store panicked: {panic}"))
}

macro_rules! shielded {
    ($($method:ident($($name:ident: $given:ty),*) -> $answer:ty;)*) => {
        $(fn $method(&self, $($name: $given),*) -> Answer<$answer> {
            shielded(|| self.0.$method($($name),*))
        })*
    };
}

impl Store for Shield {
    shielded! {
        commit(batch: Arc<Batch>) -> Committed;
        task(task_id: TaskId) -> Option<TaskInfo>;
        tasks(filter: TaskFilter) -> Page<TaskInfo>;
        ends(tasks: Vec<TaskId>) -> Ends;
        journal(task_id: TaskId) -> Vec<Entry>;
        waits(
            scope: Scope, prefix: String, behind: Option<TaskId>, limit: usize
        ) -> Page<TaskWaits>;
        waits_of(task_id: TaskId) -> Vec<Wait>;
        messages(task_id: TaskId, behind: Option<MessageId>) -> Page<ArrivedMessage>;
        import(record: TaskRecord) -> bool;
        queues() -> Vec<QueueInfo>;
        workers() -> Vec<WorkerInfo>;
        schedules(which: ScheduleFilter) -> Page<Scheduled>;
        waiting_types(queues: Vec<Name>) -> Vec<Name>;
        describe(info: TaskTypeInfo) -> ();
        task_types() -> Vec<TaskTypeInfo>;
        record(happenings: Vec<Happening>) -> ();
        history(which: HistoryFilter) -> Page<(u64, Happening)>;
        purge(purge: Purge) -> usize;
    }

    fn now(&self) -> Timestamp {
        self.0.now()
    }

    fn lanes(&self) -> NonZeroUsize {
        self.0.lanes()
    }

    #[allow(clippy::result_large_err, reason = "it is the argument, handed back")]
    fn transact(&self, transition: Transition) -> Result<Transacting, Transition> {
        match guard(|| self.0.transact(transition)) {
            Ok(Ok(transacting)) => Ok(shielded(|| transacting)),
            Ok(Err(back)) => Err(back),
            Err(panic) => Ok(Box::pin(std::future::ready(Err(panicked(&panic))))),
        }
    }

    fn changed(&self) -> BoxFuture<'_, Changed> {
        self.0.changed()
    }
}
