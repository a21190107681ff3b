//! The engine: what a client, its workers and its runs share.

pub(crate) mod commit;
pub(crate) mod registry;
pub(crate) mod run;
pub(crate) mod settings;
pub(crate) mod shield;
pub(crate) mod task_error;
pub(crate) mod worker;
pub(crate) mod worker_options;

use std::any::{Any, TypeId};
use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::future::{Either, select};
use tokio_util::sync::CancellationToken;

use crate::base::guard::{Guarded, discard};
use crate::base::ids::{RunId, TaskId};
use crate::base::invalid_options::InvalidOptions;
use crate::base::name::{InvalidName, Name};
use crate::base::payload::Payload;
use crate::base::retry::STORE_RETRY;
use crate::base::runtime::Runtime;
use crate::base::time::after;
use crate::codec::encoded::Encoded;
use crate::codec::envelope::Codecs;
use crate::engine::commit::GroupCommit;
use crate::engine::commit::hub::Hub;
use crate::engine::registry::Registry;
use crate::engine::settings::Settings;
use crate::engine::shield::Shield;
use crate::engine::worker::suspects::Suspects;
use crate::observe::observer::Observer;
use crate::store::spawn_options::{SpawnOptions, Start};
use crate::store::{Changed, NewTask, Store, StoreError};

/// Application state by its type.
pub(crate) type States = BTreeMap<TypeId, Arc<dyn Any + Send + Sync>>;

pub(crate) struct Engine {
    /// The store that the client was built with, which returns payloads as they are kept.
    pub(crate) backend: Arc<dyn Store>,
    pub(crate) codecs: Option<Codecs>,
    /// The backend behind a layer that decodes its payloads and turns its panics into errors.
    pub(crate) store: Arc<dyn Store>,
    #[cfg(feature = "schemas")]
    pub(crate) stored: std::sync::Mutex<Option<crate::engine::registry::Stored>>,
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) commit: Arc<GroupCommit>,
    pub(crate) hub: Arc<Hub>,
    pub(crate) registry: Registry,
    pub(crate) settings: Settings,
    pub(crate) states: States,
    pub(crate) observer: Arc<Observer>,
    pub(crate) suspects: Suspects,
    /// Set when the engine begins to listen for the writes of other processes; cancelled with the
    /// engine.
    listening: OnceLock<CancellationToken>,
}

impl Engine {
    pub(crate) fn new(
        backend: Arc<dyn Store>,
        runtime: Arc<dyn Runtime>,
        settings: Settings,
        states: States,
    ) -> Arc<Self> {
        let store = Encoded::over(Arc::new(Shield(backend.clone())), &settings.codecs);
        let hub = Arc::new(Hub::default());
        let Settings { keep_history, measure, .. } = settings;
        let observer = Observer::new(store.clone(), runtime.clone(), keep_history, measure);
        Arc::new(Self {
            commit: GroupCommit::new(store.clone(), runtime.clone(), hub.clone(), observer.clone()),
            backend,
            #[cfg(feature = "schemas")]
            stored: std::sync::Mutex::default(),
            codecs: Codecs::new(&settings.codecs),
            store,
            runtime,
            hub,
            registry: Registry::default(),
            settings,
            states,
            observer,
            suspects: Suspects::default(),
            listening: OnceLock::new(),
        })
    }

    /// Listens for the writes of other processes, and looks at the tasks that callers wait for.
    ///
    /// The first call starts to listen; a later one does nothing.
    pub(crate) fn listen(&self) {
        self.listening.get_or_init(|| {
            let end = CancellationToken::new();
            let (ended, store, hub) = (end.clone(), self.store.clone(), self.hub.clone());
            self.runtime.spawn(Box::pin(async move {
                while ended.run_until_cancelled(hub.look.notified()).await.is_some() {
                    ended.run_until_cancelled(hub.look_at_unseen(&*store)).await;
                }
            }));
            let (ended, store, hub) = (end.clone(), self.store.clone(), self.hub.clone());
            let runtime = self.runtime.clone();
            self.runtime.spawn(Box::pin(async move {
                let mut panics = 0;
                loop {
                    let changed = Guarded::new(Box::pin(async { store.changed().await }));
                    let Some(changed) = ended.run_until_cancelled(changed).await else { return };
                    let changed = match changed {
                        Ok(changed) => changed,
                        Err(panic) => {
                            tracing::error!(%panic, "the store panicked while it was listened to");
                            panics += 1;
                            let pause =
                                STORE_RETRY.delay(panics, runtime.random()).unwrap_or_default();
                            runtime.sleep(pause).await;
                            Changed::ANYTHING
                        }
                    };
                    if changed.finished {
                        hub.look_at_all();
                    }
                    if changed.work {
                        hub.workers().iter().for_each(|worker| worker.nudge());
                    }
                }
            }));
            end
        });
    }

    /// Returns the store's answer, or an error when it does not come in time.
    pub(crate) async fn answered<T>(
        &self,
        answer: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let limit = self.settings.answer_timeout;
        if limit == Duration::MAX {
            return answer.await;
        }
        match select(pin!(answer), self.runtime.sleep(limit)).await {
            Either::Left((answer, _)) => answer,
            Either::Right(_) => Err(StoreError::Unanswered(limit)),
        }
    }

    /// Returns a task to be spawned, by the options and, for what they leave open, the settings.
    pub(crate) fn new_task<E: From<InvalidName> + From<InvalidOptions>>(
        &self,
        task_type: Name,
        params: Payload,
        options: SpawnOptions,
        parent: Option<TaskId>,
    ) -> Result<NewTask, E> {
        options.check()?;
        let runtime = &*self.runtime;
        options.scope.check::<E>()?;
        Ok(NewTask {
            task_id: TaskId::new(runtime),
            run_id: RunId::new(runtime),
            task_type,
            queue: options.queue.map_or_else(|| Ok(self.settings.queue.clone()), Name::new)?,
            params,
            headers: options.headers,
            scope: options.scope,
            priority: options.priority,
            max_attempts: options.max_attempts.unwrap_or(self.settings.max_attempts).max(1),
            retry: options.retry.unwrap_or_else(|| self.settings.retry.clone()),
            start_at: match options.start {
                Start::Now => None,
                Start::After(delay) => Some(after(self.store.now(), delay)),
                Start::At(at) => Some(at),
            },
            idempotency_key: options.idempotency_key.map(Name::new).transpose()?,
            concurrency_key: options.concurrency_key.map(Name::new).transpose()?,
            coalesce: options.coalesce,
            code_version: options.code_version.map(Name::new).transpose()?,
            cancellation: options
                .cancellation
                .unwrap_or_else(|| self.settings.cancellation.clone()),
            parent,
            claim_by: None,
        })
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if let Some(listening) = self.listening.get() {
            listening.cancel();
        }
        self.registry.discard();
        std::mem::take(&mut self.states).into_values().for_each(discard);
    }
}
