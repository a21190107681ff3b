//! Steps, spawns and events in transactions of `rusqlite`: exactly once, with the user's own
//! tables.

use std::any::Any;
use std::path::Path;

use rusqlite::{Connection, Transaction};
use serde::Serialize;
use serde::de::DeserializeOwned;
use stepwell_core::store::News;
use stepwell_core::{
    Client, Delivery, Emit, Error, Guarded, Payload, Spawn, SpawnRequest, SpawnResult, StepName,
    StoreError, TaskContext, UserTransaction,
};

use crate::SqliteStore;
use crate::apply::Applying;
use crate::apply::work::Work;
use crate::base::error::Fault;
use crate::base::location::Location;
use crate::file::migrate::{MIGRATIONS, version};
use crate::read::task_types::task_types;
use crate::state::Writer;
use crate::state::ends::Ends;
use crate::state::liveness::Liveness;
use crate::state::prepared::Prepared;

/// The extension of [`TaskContext`] with [`transaction`](TransactionExt::transaction), for tasks
/// whose store is SQLite.
pub trait TransactionExt {
    /// Runs a step that writes to the application's own tables in the same database. The writes and
    /// the journal entry are one transaction, and so happen exactly once.
    ///
    /// The closure runs on the store's writer thread, within the commit of many tasks: keep it
    /// short, and do slow work before it. The closure must not end the transaction. When it fails,
    /// its writes are rolled back, and the step fails with its error.
    ///
    /// ```
    /// use stepwell_core::{TaskContext, TaskResult};
    /// use stepwell_sqlite::TransactionExt;
    ///
    /// async fn pay(ctx: TaskContext, account: u64, amount: i64) -> TaskResult<()> {
    ///     ctx.transaction("pay", move |tx| {
    ///         let sql = "UPDATE accounts SET balance = balance - ?2 WHERE id = ?1";
    ///         tx.execute(sql, (account as i64, amount))?;
    ///         Ok(())
    ///     })
    ///     .await
    /// }
    /// ```
    ///
    /// # Errors
    /// [`TaskError::Step`](stepwell_core::TaskError::Step) when the closure fails, when its result
    /// cannot be journaled, or when the store is not SQLite.
    fn transaction<T, F>(&self, name: impl Into<StepName>, work: F) -> Delivery<T>
    where
        F: FnOnce(&Connection) -> anyhow::Result<T> + Send + 'static,
        T: Serialize + DeserializeOwned;
}

impl TransactionExt for TaskContext {
    fn transaction<T, F>(&self, name: impl Into<StepName>, work: F) -> Delivery<T>
    where
        F: FnOnce(&Connection) -> anyhow::Result<T> + Send + 'static,
        T: Serialize + DeserializeOwned,
    {
        let limit = self.max_payload_bytes();
        let work = Guarded::new(work);
        let work: Work = Box::new(move |conn| {
            let Some(work) = work.into_inner() else {
                anyhow::bail!("the transaction has run already")
            };
            Ok(Payload::encode_proven(&work(conn)?, limit)?)
        });
        self.store_step(name, Box::new(work))
    }
}

/// Spawns and events in a transaction on the user's own connection to the client's file.
///
/// After the transaction has written, the engine's commits wait for its end: keep it short.
///
/// ```no_run
/// use stepwell_core::Client;
/// use stepwell_sqlite::rusqlite;
///
/// fn order(client: &Client, conn: &mut rusqlite::Connection, item: &str) -> anyhow::Result<()> {
///     let tx = conn.transaction()?;
///     tx.execute("INSERT INTO orders (item) VALUES (?1)", [item])?;
///     client.spawn_named("ship", item).in_tx(&tx)?;
///     tx.commit()?; // Either there are both, the order and the task, or neither.
///     Ok(())
/// }
/// ```
impl UserTransaction<SqliteStore, Spawn> for &Connection {
    type Answer = Result<SpawnResult, Error>;

    fn carry_out(self, spawn: Spawn) -> Self::Answer {
        let client = &spawn.client().clone();
        let described = || within(client, self, |applying| task_types(applying.conn));
        let task = spawn.into_task_now(described)?;
        SpawnRequest::of(&task).answer(within(client, self, |applying| applying.spawn(&task))?)
    }
}

impl UserTransaction<SqliteStore, Emit> for &Connection {
    type Answer = Result<bool, Error>;

    fn carry_out(self, emit: Emit) -> Self::Answer {
        let client = &emit.client().clone();
        let event = emit.into_event()?;
        within(client, self, |applying| applying.emit(&event))
    }
}

impl<'t, Request> UserTransaction<SqliteStore, Request> for &'t Transaction<'_>
where
    &'t Connection: UserTransaction<SqliteStore, Request>,
{
    type Answer = <&'t Connection as UserTransaction<SqliteStore, Request>>::Answer;

    fn carry_out(self, request: Request) -> Self::Answer {
        let conn: &'t Connection = self;
        conn.carry_out(request)
    }
}

/// Runs an operation of the store on a user's connection. Workers learn of it as they learn of the
/// commits of other processes.
fn within<T>(
    client: &Client,
    conn: &Connection,
    work: impl FnOnce(&mut Applying<'_, '_>) -> rusqlite::Result<T>,
) -> Result<T, Error> {
    let refused = |reason: &str| Error::Store(StoreError::Backend(reason.into()));
    let store = (client.store() as &dyn Any).downcast_ref::<SqliteStore>().ok_or_else(|| {
        refused("the client's store is not SQLite: use the methods that belong to its store")
    })?;
    let failed = |error: rusqlite::Error| Error::Store(Fault::from(error).at(&store.location));
    let same = match (&store.location, conn.path()) {
        (Location::File(ours), Some(theirs)) => {
            ours.canonicalize().ok() == Path::new(theirs).canonicalize().ok()
        }
        _ => false,
    };
    if !same {
        return Err(refused("the connection is to another database than the client's"));
    }
    if usize::try_from(version(conn).map_err(failed)?) != Ok(MIGRATIONS.len()) {
        return Err(refused(
            "the connection is to another database than the client's: it has not the client's \
             tables",
        ));
    }
    if conn.is_autocommit() {
        return Err(refused(
            "no transaction has begun on the connection: begin one, and commit it afterwards",
        ));
    }
    SqliteStore::check(store.identity.as_ref()).map_err(Error::Store)?;
    let writer = Writer {
        identity: None,
        location: store.location.clone(),
        runtime: store.runtime.clone(),
        user_works: Default::default(),
        changes: store.changes.clone(),
    };
    let now = store.runtime.now();
    let (mut liveness, mut ends) = (Liveness::new(None), Ends::default());
    let conn = Prepared::of_user(conn);
    let mut applying = Applying {
        conn: &conn,
        writer: &writer,
        liveness: &mut liveness,
        ends: &mut ends,
        now,
        news: News::default(),
        doomed: Vec::new(),
        any_queue: Default::default(),
        room: Default::default(),
    };
    work(&mut applying).map_err(failed)
}
