//! The databases on which histories are played, and their users besides the engine.

use std::sync::Arc;

use anyhow::Result;
use stepwell::sqlite::{Location, SqliteStore};
use stepwell::testing::World;
use stepwell::{
    BoxFuture, Delivery, Runtime, SpawnOptions, Store, StoreError, TaskContext, TaskId,
};

use crate::files::{Folder, SqliteUser};
use crate::params::{Params, Row};
use crate::plan::{Plan, Transact};
use crate::postgres::{Postgres, PostgresUser, Schema};
use crate::script::Isolation;

/// The kind of store on which histories are played.
pub enum Backend {
    /// Memory, and for some seeds SQLite in memory.
    Memory,
    /// A SQLite file for each history, which each process opens for itself.
    Sqlite,
    /// A schema of a server for each history.
    Postgres(Arc<Postgres>),
}

impl Backend {
    /// Returns whether a seed is played in the same way each time.
    pub fn repeats(&self) -> bool {
        // The SQLite store looks for dead processes twice a second of real time. The PostgreSQL
        // server draws the ids of runs.
        matches!(self, Self::Memory)
    }
}

/// The database of one history.
pub(crate) enum Database {
    Memory,
    /// SQLite in memory, which all processes share.
    Shared,
    Folder(Folder),
    Schema(Schema),
}

type Opener = Box<dyn Fn(Arc<dyn Runtime>) -> Opening + Send + Sync>;
type Opening = BoxFuture<'static, Result<Arc<dyn Store>, StoreError>>;

impl Database {
    pub(crate) fn new(backend: &Backend, plan: &Plan) -> Result<Self> {
        Ok(match backend {
            Backend::Memory if plan.setup.sqlite => Self::Shared,
            Backend::Memory => Self::Memory,
            Backend::Sqlite => Self::Folder(Folder::new(plan.seed)?),
            Backend::Postgres(server) => Self::Schema(Schema::new(server)),
        })
    }

    /// Returns whether the store sees at once that a process has died.
    pub(crate) const fn notices_deaths(&self) -> bool {
        matches!(self, Self::Folder(_))
    }

    /// Returns the function that opens a process's store, or `None` where there is nothing to open.
    pub(crate) fn opener(&self) -> Option<Opener> {
        match self {
            Self::Memory => None,
            Self::Shared => {
                let shared = Arc::new(tokio::sync::OnceCell::<Arc<SqliteStore>>::new());
                Some(Box::new(move |runtime| {
                    let shared = shared.clone();
                    Box::pin(async move {
                        let open = async || {
                            let location = Location::parse("sqlite::memory:")?;
                            Ok::<_, StoreError>(Arc::new(
                                SqliteStore::open(location, runtime).await?,
                            ))
                        };
                        Ok(shared.get_or_try_init(open).await?.clone() as Arc<dyn Store>)
                    })
                }))
            }
            Self::Folder(folder) => {
                let url = folder.url();
                Some(Box::new(move |runtime| {
                    let location = Location::parse(&url);
                    Box::pin(async move {
                        Ok(Arc::new(SqliteStore::open(location?, runtime).await?) as Arc<dyn Store>)
                    })
                }))
            }
            Self::Schema(schema) => {
                let schema = schema.clone();
                Some(Box::new(move |runtime| schema.open(runtime)))
            }
        }
    }

    /// Returns a user of the database, who has a table in it.
    pub(crate) async fn user(&self, world: &World) -> Result<Option<Arc<User>>> {
        Ok(match self {
            Self::Memory | Self::Shared => None,
            Self::Folder(folder) => Some(Arc::new(User::Sqlite(folder.user(world).await?))),
            Self::Schema(schema) => {
                Some(Arc::new(User::Postgres(world.look(schema.user(world.runtime()))?)))
            }
        })
    }
}

/// A user of the database.
pub(crate) enum User {
    Sqlite(SqliteUser),
    Postgres(PostgresUser),
}

impl User {
    /// Runs a step that writes a row of the user. `write` returns the number in the row, and
    /// whether the step fails after the write.
    pub(crate) fn transaction(
        &self,
        ctx: &TaskContext,
        name: &str,
        isolation: Isolation,
        write: impl FnOnce() -> (u64, bool) + Send + 'static,
    ) -> Delivery<u64> {
        match self {
            Self::Sqlite(_) => SqliteUser::transaction(ctx, name, write),
            Self::Postgres(user) => user.transaction(ctx, name, isolation, write),
        }
    }

    /// Spawns a task in a transaction, which is committed or rolled back as the plan says.
    pub(crate) async fn spawn(
        &self,
        world: &World,
        transact: &Transact,
        (task_type, params): (&'static str, Params),
        options: SpawnOptions,
    ) -> Result<TaskId> {
        match self {
            Self::Sqlite(user) => user.spawn(transact, task_type, &params, options),
            Self::Postgres(user) => user.spawn(world, transact, task_type, params, options).await,
        }
    }

    /// Returns the user's rows.
    pub(crate) fn rows(&self, world: &World) -> Result<Vec<Row>> {
        match self {
            Self::Sqlite(user) => user.rows(),
            Self::Postgres(user) => Ok(world.look(user.rows())?),
        }
    }

    /// Damages a task's row in the way with this number. Returns whether the database has allowed
    /// the change.
    pub(crate) fn damage(&self, world: &World, task_id: TaskId, way: usize) -> Result<bool> {
        let (table, change) = DAMAGES.get(way).copied().unwrap_or(DAMAGES[0]);
        match self {
            Self::Sqlite(user) => {
                user.run(&format!(
                    "UPDATE stepwell_{table} SET {change} WHERE task_id = '{task_id}'"
                ))?;
                Ok(true)
            }
            Self::Postgres(user) => Ok(world.look(user.damage(table, change, task_id))?),
        }
    }
}

/// The damages: values that the engine never writes.
const DAMAGES: [(&str, &str); crate::plan::DAMAGES] = [
    ("tasks", "queue = ''"),
    ("tasks", "state = 'hibernating'"),
    ("tasks", "task_type = ''"),
    ("tasks", "attempt = -1"),
    ("tasks", "max_attempts = -9223372036854775808"),
    ("tasks", "crashes = 9223372036854775807"),
    ("tasks", "priority = 9223372036854775807"),
    ("tasks", "max_duration = -1"),
    ("tasks", "retry = 'nonsense'"),
    ("tasks", "headers = '[1]'"),
    ("tasks", "params = 'nonsense'"),
    ("journal", "outcome = 'failed', payload = 'nonsense'"),
    ("journal", "kind = 'fork'"),
    ("waits", "name = ''"),
];
