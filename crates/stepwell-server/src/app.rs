//! What all requests share.

use std::sync::Arc;
use std::time::Duration;

use moka::future::Cache;
use serde_json::Value;
use stepwell::{CancellationToken, Durable, Headers, Name, Scope, TaskId, TaskInfo};

use crate::access::{Access, Token};
use crate::feed::{Feed, Streams};
use crate::problem::Problem;
use crate::sample::Samples;

/// Of how many tasks is remembered what never changes.
const REMEMBERED: u64 = 50_000;

pub(crate) struct App {
    pub(crate) client: Durable,
    pub(crate) access: Arc<dyn Access>,
    /// What browsers may log in with; `None` where the access is somebody else's, or open.
    pub(crate) token: Option<Arc<Token>>,
    /// Whether cookies are for TLS only, whatever a request says.
    pub(crate) secure_cookies: bool,
    /// Whether a proxy says where requests come from.
    pub(crate) behind_proxy: bool,
    /// Names that browsers may call the server by, beside addresses and `localhost`.
    pub(crate) hosts: Vec<String>,
    /// The API's description.
    pub(crate) document: Value,
    pub(crate) feed: Feed,
    pub(crate) samples: Samples,
    pub(crate) streams: Streams,
    /// Ends the streams.
    pub(crate) closing: CancellationToken,
    /// How long a client may not take what it is sent.
    pub(crate) patience: Duration,
    pub(crate) known: Remembered,
}

/// What never changes of a task.
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

/// Tasks that somebody asked for. One that is not there is not remembered: it may come.
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
    /// What never changes of a task, remembered for all who ask.
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
