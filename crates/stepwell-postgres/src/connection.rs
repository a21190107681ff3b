//! The connections: how they are made, what they carry, and what their errors mean.

pub(crate) mod call;
pub(crate) mod changes;
pub(crate) mod clock;
pub(crate) mod error;
pub(crate) mod link;
pub(crate) mod options;
pub(crate) mod session;
pub(crate) mod statements;
pub(crate) mod timeline;

use std::sync::Once;
use std::time::Duration;

use sqlx::Executor as _;
use sqlx::postgres::{PgConnection, PgPool, PgPoolOptions};
use stepwell_core::StoreError;
use tokio::sync::Semaphore;
use uuid::Uuid;

use crate::connection::changes::Changes;
use crate::connection::clock::Clock;
use crate::connection::link::Link;
use crate::connection::options::PostgresOptions;
use crate::connection::timeline::Timeline;

/// The maximum number of connections for queries, beside the two for batches.
pub(crate) const POOL: u32 = 8;
/// The maximum number of transactions of steps at a time. These transactions have their own
/// connections, because their closures may take long.
pub(crate) const WORKS: u32 = 8;
/// The time for which a query waits for a connection, while the server is down or all connections
/// are in use.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);

/// The part of a store that its clones share: the connections, and what is known of the server.
pub(crate) struct Shared {
    pub(crate) options: PostgresOptions,
    /// The id of this handle among the processes that share the database.
    pub(crate) process_id: Uuid,
    pub(crate) clock: Clock,
    pub(crate) pool: PgPool,
    pub(crate) works: PgPool,
    /// The permits for transactions of steps, which wait in the order of their requests and without
    /// a limit.
    pub(crate) may_work: Semaphore,
    pub(crate) link: Link,
    pub(crate) changes: Changes,
    pub(crate) timeline: Timeline,
    /// The guard by which a setting that makes batches slower is logged once.
    pub(crate) unfit: Once,
}

impl Shared {
    pub(crate) async fn over(
        conn: PgConnection,
        options: PostgresOptions,
    ) -> Result<Self, StoreError> {
        let pool = |connections| {
            PgPoolOptions::new()
                .max_connections(connections)
                .acquire_timeout(ACQUIRE_TIMEOUT)
                // A broken connection is noticed when it is used. A check before each use would
                // double the round trips.
                .test_before_acquire(false)
        };
        let works = pool(WORKS).after_release(|conn, _| {
            Box::pin(async move { conn.execute(session::FORGET).await.map(|_| true) })
        });
        let shared = Self {
            process_id: Uuid::new_v4(),
            clock: Clock::new(options.clock.clone()),
            pool: pool(POOL).connect_lazy_with(options.connect.clone()),
            works: works.connect_lazy_with(options.connect.clone()),
            may_work: Semaphore::new(WORKS as usize),
            link: Link::new(conn),
            changes: Changes::new(),
            timeline: Timeline::default(),
            unfit: Once::new(),
            options,
        };
        shared.begin().await?;
        Ok(shared)
    }
}
