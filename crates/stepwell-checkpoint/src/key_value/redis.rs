//! A key-value store in Redis.

use std::time::Duration;

use redis::aio::ConnectionManager;
use redis::{AsyncCommands as _, RedisError, Script, SetExpiry, SetOptions, cmd};
use stepwell_core::async_trait;

use super::{KeyValueError, KeyValueStore, Pattern};

const STORE: &str = "Redis";
/// The number of keys that Redis visits in each call of `SCAN`.
const SCAN_COUNT: usize = 1_000;

/// The script of a compare-and-set. `ARGV`: whether a value is expected, the expected value,
/// whether there is a new value, the new value, and its time to live in milliseconds (0: no limit).
const COMPARE_AND_SET: &str = r"
local found = redis.call('GET', KEYS[1])
local expected = ARGV[1] == '1' and ARGV[2]
if found ~= expected then return 0 end
if ARGV[3] == '0' then
    redis.call('DEL', KEYS[1])
elseif ARGV[5] == '0' then
    redis.call('SET', KEYS[1], ARGV[4])
else
    redis.call('SET', KEYS[1], ARGV[4], 'PX', ARGV[5])
end
return 1";

/// A key-value store in Redis, with plain keys. Times to live use the server's clock. The
/// persistence of the server decides which writes survive its crash: for checkpoints, use
/// `appendonly yes`.
///
/// The store is for one server, with or without replicas. On a cluster, [`KeyValueStore::keys`]
/// would return the keys of one node only.
#[derive(Clone)]
pub struct Redis {
    connection: ConnectionManager,
    compare_and_set: Script,
}

impl Redis {
    /// Connects to `redis://user:password@host:port/database`. With the feature `tokio-rustls-comp`
    /// of the crate `redis`, URLs with `rediss://` work as well.
    ///
    /// # Errors
    /// [`KeyValueError::Failed`] when the server cannot be reached.
    pub async fn connect(url: &str) -> Result<Self, KeyValueError> {
        let client = redis::Client::open(url).map_err(failed("connect"))?;
        Ok(Self::new(ConnectionManager::new(client).await.map_err(failed("connect"))?))
    }

    /// Returns a store on the program's own connection.
    pub fn new(connection: ConnectionManager) -> Self {
        Self { connection, compare_and_set: Script::new(COMPARE_AND_SET) }
    }
}

impl std::fmt::Debug for Redis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Redis").finish_non_exhaustive()
    }
}

fn failed(action: &'static str) -> impl Fn(RedisError) -> KeyValueError {
    move |error| KeyValueError::failed(STORE, action, error)
}

/// Returns a time to live in milliseconds, at least 1 because Redis refuses 0.
fn millis(ttl: Duration) -> u64 {
    u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX).clamp(1, i64::MAX as u64 / 2)
}

#[async_trait]
impl KeyValueStore for Redis {
    async fn get(&self, key: &str) -> Result<Option<String>, KeyValueError> {
        self.connection.clone().get(key).await.map_err(failed("get"))
    }

    async fn set(
        &self,
        key: &str,
        value: &str,
        ttl: Option<Duration>,
    ) -> Result<(), KeyValueError> {
        let mut options = SetOptions::default();
        if let Some(ttl) = ttl {
            options = options.with_expiration(SetExpiry::PX(millis(ttl)));
        }
        self.connection.clone().set_options(key, value, options).await.map_err(failed("set"))
    }

    async fn delete(&self, key: &str) -> Result<bool, KeyValueError> {
        self.connection.clone().del(key).await.map_err(failed("delete"))
    }

    async fn exists(&self, key: &str) -> Result<bool, KeyValueError> {
        self.connection.clone().exists(key).await.map_err(failed("look for"))
    }

    async fn keys(&self, pattern: &str) -> Result<Vec<String>, KeyValueError> {
        let special = ['?', '[', ']', '^', '-', '\\'];
        let glob = Pattern::new(pattern).translate("*", &special, |special| format!("\\{special}"));
        let mut keys = Vec::new();
        let mut cursor = 0_u64;
        loop {
            // `KEYS` would block all other clients.
            let mut scan = cmd("SCAN");
            scan.arg(cursor).arg("MATCH").arg(&glob).arg("COUNT").arg(SCAN_COUNT);
            let (next, found): (u64, Vec<String>) = scan
                .query_async(&mut self.connection.clone())
                .await
                .map_err(failed("list keys"))?;
            keys.extend(found);
            cursor = next;
            if cursor == 0 {
                // `SCAN` may return a key twice while Redis resizes its table.
                keys.sort_unstable();
                keys.dedup();
                return Ok(keys);
            }
        }
    }

    async fn compare_and_set(
        &self,
        key: &str,
        expected: Option<&str>,
        new: Option<&str>,
        ttl: Option<Duration>,
    ) -> Result<bool, KeyValueError> {
        let mut call = self.compare_and_set.key(key);
        call.arg(u8::from(expected.is_some())).arg(expected.unwrap_or_default());
        call.arg(u8::from(new.is_some())).arg(new.unwrap_or_default()).arg(ttl.map_or(0, millis));
        call.invoke_async(&mut self.connection.clone()).await.map_err(failed("compare and set"))
    }
}
