//! Commits of other processes, which the store learns of by `LISTEN`. Where notifications do not
//! work, the store assumes such a commit at an interval.

use std::sync::{Arc, Mutex, Once, PoisonError, Weak};
use std::time::Duration;

use sqlx::postgres::PgListener;
use stepwell_core::store::Changed;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use crate::connection::Shared;

/// The time within which a notification to the process itself must arrive. Otherwise `LISTEN` does
/// not work, as behind a pooler in transaction mode.
const ECHO_TIMEOUT: Duration = Duration::from_secs(3);
/// The interval at which commits of others are assumed, where notifications do not work.
const SUPPOSE_EVERY: Duration = Duration::from_millis(250);
/// The interval at which a listening process updates its row, so that others notify it. The others
/// stop after a minute without an update.
const SHOW_EVERY: Duration = Duration::from_secs(20);
/// The pause before the next try to listen, when the connection could not be made.
const LISTEN_AGAIN: Duration = Duration::from_secs(1);

/// Counters of the commits of others: commits with work, and commits that ended tasks.
pub(crate) struct Changes {
    counts: watch::Sender<(u64, u64)>,
    told: Mutex<(u64, u64)>,
    listening: Once,
}

impl Changes {
    pub(crate) fn new() -> Self {
        Self { counts: watch::Sender::new((0, 0)), told: Mutex::default(), listening: Once::new() }
    }

    fn tell(&self, changed: Changed) {
        self.counts.send_modify(|(work, finished)| {
            *work += u64::from(changed.work);
            *finished += u64::from(changed.finished);
        });
    }

    pub(crate) fn tell_anything(&self) {
        self.tell(Changed::ANYTHING);
    }

    async fn next(&self) -> Changed {
        let mut counts = self.counts.subscribe();
        loop {
            let found = *counts.borrow_and_update();
            {
                let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
                let changed = Changed { work: found.0 != told.0, finished: found.1 != told.1 };
                if changed.work || changed.finished {
                    *told = found;
                    return changed;
                }
            }
            // `self` owns the sender, so it exists.
            if counts.changed().await.is_err() {
                return Changed::ANYTHING;
            }
        }
    }
}

impl Shared {
    /// Waits for the next change. The first call starts the listener.
    pub(crate) async fn changed(self: &Arc<Self>) -> Changed {
        self.changes.listening.call_once(|| {
            tokio::spawn(listen(Arc::downgrade(self)));
        });
        self.changes.next().await
    }

    /// Returns a connection that listens, or `None` when its notifications do not arrive.
    async fn listener(&self) -> sqlx::Result<Option<PgListener>> {
        let mut listener = PgListener::connect_with(&self.pool).await?;
        listener.eager_reconnect(false);
        listener.listen(&self.options.schema).await?;
        let echo = format!("{} echo", self.process_id);
        let sql = "SELECT pg_catalog.pg_notify($1, $2)";
        let query = sqlx::query(sql).bind(self.options.schema.clone()).bind(echo.clone());
        let mut conn = self.pool.acquire().await?;
        self.fetch(&mut conn, query, false).await?;
        drop(conn);
        let heard = timeout(ECHO_TIMEOUT, async {
            while listener.recv().await?.payload() != echo {}
            Ok::<_, sqlx::Error>(())
        });
        Ok(match heard.await {
            Ok(heard) => heard.map(|()| Some(listener))?,
            Err(_) => None,
        })
    }

    /// Records that this process listens, and removes processes that were silent for a day.
    async fn show(&self) {
        let sql = format!(
            "WITH forgotten AS (DELETE FROM {0}.processes
                WHERE seen_at < pg_catalog.clock_timestamp() - '1 day'::pg_catalog.interval)
            INSERT INTO {0}.processes AS p (process_id, line, batch, seen_at)
            VALUES ($1, 0, 0, pg_catalog.clock_timestamp())
            ON CONFLICT (process_id, line) DO UPDATE SET seen_at = EXCLUDED.seen_at",
            self.options.schema
        );
        if let Err(error) = self.read(&sql, |query| query.bind(self.process_id)).await {
            tracing::warn!(%error, "cannot say that this process listens; trying again");
        }
    }
}

/// Listens until the store is dropped.
async fn listen(store: Weak<Shared>) {
    let mut has_heard = false;
    while let Some(shared) = store.upgrade() {
        match shared.listener().await {
            Ok(Some(listener)) => {
                has_heard = true;
                shared.show().await;
                // Notifications from before the connection listened were missed.
                shared.changes.tell_anything();
                let own = shared.process_id.to_string();
                drop(shared);
                hear(&store, listener, &own).await;
            }
            Ok(None) if !has_heard => {
                tracing::warn!(
                    "the server's notifications do not come through (a pooler in transaction \
                     mode?): looking for work {} times a second instead",
                    1_000 / SUPPOSE_EVERY.as_millis()
                );
                drop(shared);
                return suppose(&store).await;
            }
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(%error, "cannot listen for other processes; trying again");
                shared.changes.tell_anything();
                drop(shared);
                sleep(LISTEN_AGAIN).await;
            }
        }
    }
}

/// Assumes commits of others at an interval.
async fn suppose(store: &Weak<Shared>) {
    while let Some(shared) = store.upgrade() {
        shared.changes.tell_anything();
        drop(shared);
        sleep(SUPPOSE_EVERY).await;
    }
}

/// Receives notifications until the connection breaks or the store is dropped.
async fn hear(store: &Weak<Shared>, mut listener: PgListener, own: &str) {
    let mut shown = Instant::now();
    loop {
        // The timeout is for the check that the store still exists.
        let heard = timeout(LISTEN_AGAIN, listener.try_recv()).await;
        let Some(shared) = store.upgrade() else { return };
        match heard {
            Ok(Ok(Some(notification))) => {
                let Some((sender, what)) = notification.payload().split_once(' ') else { continue };
                if sender != own {
                    shared
                        .changes
                        .tell(Changed { work: what.contains('w'), finished: what.contains('f') });
                }
            }
            // The caller makes a new connection, and then assumes a missed commit. The listener
            // would reconnect itself without reporting it.
            Ok(Ok(None) | Err(_)) => return,
            Err(_) => {}
        }
        if shown.elapsed() > SHOW_EVERY {
            shown = Instant::now();
            shared.show().await;
        }
    }
}
