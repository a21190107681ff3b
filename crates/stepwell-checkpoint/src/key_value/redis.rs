//! Redis as a key-value store.

use std::time::Duration;

use redis::aio::ConnectionManager;
use redis::{AsyncCommands as _, RedisError, Script, SetExpiry, SetOptions, cmd};
use stepwell_core::async_trait;

use super::{KeyValueError, KeyValueStore, Pattern};

const STORE: &str = "Redis";
/// How many keys Redis looks at for each call of `SCAN`.
const SCAN_COUNT: usize = 1_000;

/// `ARGV`: whether a value is expected, and which; whether there is a new one, which, and its
/// milliseconds (0: for ever).
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

/// A store in Redis: plain keys, whose times to live go by the server's clock. What it has answered
/// survives the server as far as the server's persistence goes: for checkpoints, use `appendonly
/// yes`.
///
/// It is for one server, or one with replicas; on a cluster [`KeyValueStore::keys`] would see the
/// keys of one node.
#[derive(Clone)]
pub struct Redis {
    connection: ConnectionManager,
    compare_and_set: Script,
}

impl Redis {
    /// Connects to `redis://user:password@host:port/database`. With the feature `tokio-rustls-comp`
    /// of the crate `redis`, to `rediss://` as well.
    ///
    /// # Errors
    /// When the server cannot be reached.
    pub async fn connect(url: &str) -> Result<Self, KeyValueError> {
        let client = redis::Client::open(url).map_err(failed("connect"))?;
        Ok(Self::new(ConnectionManager::new(client).await.map_err(failed("connect"))?))
    }

    /// A store on the program's own connection.
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

/// Redis refuses a time to live of less than a millisecond.
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
            // `KEYS` would keep everybody else waiting.
            let mut scan = cmd("SCAN");
            scan.arg(cursor).arg("MATCH").arg(&glob).arg("COUNT").arg(SCAN_COUNT);
            let (next, found): (u64, Vec<String>) = scan
                .query_async(&mut self.connection.clone())
                .await
                .map_err(failed("list keys"))?;
            keys.extend(found);
            cursor = next;
            if cursor == 0 {
                // While Redis makes its table larger, a key may come twice.
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
