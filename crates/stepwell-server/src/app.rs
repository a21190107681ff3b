//! The state that all requests share.

use std::sync::Arc;
use std::time::Duration;

use moka::future::Cache;
use serde_json::Value;
use stepwell::{CancellationToken, Durable, Headers, Name, Scope, TaskId, TaskInfo};

use crate::access::{Access, Token};
use crate::feed::{Feed, Streams};
use crate::problem::Problem;
use crate::sample::Samples;

/// The number of tasks whose constant properties are cached.
const REMEMBERED: u64 = 50_000;

pub(crate) struct App {
    pub(crate) client: Durable,
    pub(crate) access: Arc<dyn Access>,
    /// The token that browsers may log in with; `None` where the access is the application's own,
    /// or open.
    pub(crate) token: Option<Arc<Token>>,
    /// Restricts all cookies to TLS, whatever a request says.
    pub(crate) secure_cookies: bool,
    /// Takes the address of a client from a header that a proxy sets.
    pub(crate) behind_proxy: bool,
    /// The names by which browsers may call the server, beside addresses and `localhost`.
    pub(crate) hosts: Vec<String>,
    /// The OpenAPI document of the API.
    pub(crate) document: Value,
    pub(crate) feed: Feed,
    pub(crate) samples: Samples,
    pub(crate) streams: Streams,
    /// The token that ends all streams.
    pub(crate) closing: CancellationToken,
    /// The time that a client has to take what the server sends.
    pub(crate) patience: Duration,
    pub(crate) known: Remembered,
}

/// The properties of a task that never change.
pub(crate) struct Known {
    pub(crate) task_type: Name,
    pub(crate) queue: Name,
    pub(crate) headers: Headers,
    pub(crate) scope: Scope,
    pub(crate) parent: Option<TaskId>,
}

impl From<TaskInfo> for Known {
    fn from(TaskInfo { task_type, queue, headers, scope, parent, .. }: TaskInfo) -> Self {
        Self { task_type, queue, headers, scope, parent }
    }
}

/// The cache of tasks that clients asked for. A missing task is not cached, because a task with its
/// id may be spawned later.
pub(crate) struct Remembered(Cache<TaskId, Arc<Known>>);

impl Default for Remembered {
    fn default() -> Self {
        Self(
            Cache::builder().max_capacity(REMEMBERED).time_to_live(Duration::from_secs(60)).build(),
        )
    }
}

impl Remembered {
    pub(crate) async fn forget(&self, task_id: TaskId) {
        self.0.invalidate(&task_id).await;
    }
}

impl App {
    /// Returns the constant properties of a task from the cache, which all callers share.
    pub(crate) async fn known(&self, task_id: TaskId) -> Result<Option<Arc<Known>>, Problem> {
        let look = async {
            match self.client.task(task_id).await {
                Ok(task) => task.map(|task| Arc::new(task.into())).ok_or(None),
                Err(error) => Err(Some(error)),
            }
        };
        match self.known.0.try_get_with(task_id, look).await {
            Ok(known) => Ok(Some(known)),
            Err(why) => match &*why {
                None => Ok(None),
                Some(error) => Err(error.clone().into()),
            },
        }
    }
}
