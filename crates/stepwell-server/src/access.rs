//! Who may do what: the hooks of whoever nests the router, and what stands in their place by default.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use axum::http::{HeaderMap, header};
use sha2::{Digest as _, Sha256};
use stepwell::{Headers, Name, SpawnOptions, TaskFilter, TaskInfo, async_trait};

use crate::sessions::{Failures, SESSION, Sessions};

/// The cookie in which a browser keeps what it logged in with.
pub(crate) const COOKIE: &str = "stepwell_session";
/// How short a token must not be.
const MIN_TOKEN: usize = 16;

/// Somebody who asks.
#[derive(Clone, Debug)]
pub struct Identity {
    /// What they are called, where it is written down who decided something; `None` when nobody knows.
    pub name: Option<String>,
    /// The tasks that are there for them.
    pub scope: Scope,
}

impl Identity {
    /// Somebody whose name is not known, and for whom all is there.
    pub fn anybody() -> Self {
        Self { name: None, scope: Scope::default() }
    }
}

/// The tasks that are there for somebody: those that pass all of it. All others are hidden from them, in lists, in streams and
/// one by one, as if there were no such tasks; and what they spawn is put into it.
///
/// ```
/// use stepwell_server::Scope;
///
/// let acme = Scope::default().label("tenant", "acme");
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    pub(crate) queue: Option<Name>,
    pub(crate) labels: BTreeMap<String, String>,
}

impl Scope {
    /// Only tasks of this queue.
    pub fn queue(mut self, queue: Name) -> Self {
        self.queue = Some(queue);
        self
    }

    /// Only tasks with this label.
    pub fn label(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.insert(name.into(), value.into());
        self
    }

    /// Whether every task is in it.
    pub fn is_all(&self) -> bool {
        *self == Self::default()
    }

    /// Whether a task in that queue, with these headers, is in it.
    pub(crate) fn has(&self, queue: &Name, headers: &Headers) -> bool {
        self.queue.as_ref().is_none_or(|only| only == queue) && are_in(&self.labels, headers)
    }

    /// Puts what is to be spawned into it. Keys become keys within the scope, so that nobody meets, or replaces, tasks of others by them.
    pub(crate) fn put_in(&self, options: SpawnOptions) -> Result<SpawnOptions, serde_json::Error> {
        if self.is_all() {
            return Ok(options);
        }
        let mut fields = serde_json::to_value(options)?;
        let own =
            self.labels.iter().fold(String::new(), |own, (name, value)| format!("{own}{name}={value}/"));
        for key in ["idempotency_key", "concurrency_key"] {
            if let Some(key) = fields.get_mut(key)
                && let Some(text) = key.as_str()
            {
                *key = format!("{own}{text}").into();
            }
        }
        if let Some(queue) = &self.queue {
            fields["queue"] = queue.as_str().into();
        }
        let options = serde_json::from_value(fields)?;
        Ok(self
            .labels
            .iter()
            .fold(options, |options: SpawnOptions, (name, value)| options.label(name, value)))
    }

    /// Lets a filter pass only what is in the scope as well; `None` when nothing is.
    pub(crate) fn narrow(&self, mut filter: TaskFilter) -> Option<TaskFilter> {
        if let Some(queue) = &self.queue
            && filter.queue.replace(queue.clone()).is_some_and(|asked| asked != *queue)
        {
            return None;
        }
        for (name, value) in &self.labels {
            if filter.labels.insert(name.clone(), value.clone()).is_some_and(|asked| asked != *value) {
                return None;
            }
        }
        Some(filter)
    }
}

/// Whether the headers hold these labels.
pub(crate) fn are_in(labels: &BTreeMap<String, String>, headers: &Headers) -> bool {
    let mut labels = labels.iter();
    labels.all(|(name, value)| headers.get(name).and_then(serde_json::Value::as_str) == Some(value))
}

/// What somebody wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[allow(missing_docs, reason = "their names say it")]
pub enum Operation {
    ListTasks,
    ReadTask,
    SpawnTask,
    CancelTask,
    PauseTask,
    ResumeTask,
    RetryTask,
    RetriggerTask,
    DeleteTask,
    SendMessage,
    ExportTask,
    ListApprovals,
    Decide,
    Watch,
    ImportTask,
    EmitEvent,
    ListQueues,
    ChangeQueue,
    ListSchedules,
    ChangeSchedule,
    ListWorkers,
    DrainWorker,
    ListTaskTypes,
    ReadOverview,
}

impl Operation {
    /// Whether it is done to one task, which is known when it is asked for.
    pub const fn is_about_one_task(self) -> bool {
        matches!(
            self,
            Self::ReadTask
                | Self::CancelTask
                | Self::PauseTask
                | Self::ResumeTask
                | Self::RetryTask
                | Self::RetriggerTask
                | Self::DeleteTask
                | Self::SendMessage
                | Self::ExportTask
                | Self::Decide
        )
    }

    /// Whether it concerns all tasks, in whatever scope they are.
    pub const fn is_about_all(self) -> bool {
        matches!(
            self,
            Self::ImportTask
                | Self::EmitEvent
                | Self::ListQueues
                | Self::ChangeQueue
                | Self::ListSchedules
                | Self::ChangeSchedule
                | Self::ListWorkers
                | Self::DrainWorker
                | Self::ReadOverview
        )
    }
}

/// Who may do what. Give one to [`Server::access`](crate::Server::access), and the router asks it at each request.
///
/// ```
/// use axum::http::HeaderMap;
/// use stepwell_server::{Access, Identity, Operation, Scope, async_trait};
///
/// struct Tenants;
///
/// #[async_trait]
/// impl Access for Tenants {
///     async fn authenticate(&self, headers: &HeaderMap) -> Option<Identity> {
///         // In truth: look at a session, or at a signed token.
///         let tenant = headers.get("x-tenant")?.to_str().ok()?.to_owned();
///         Some(Identity { scope: Scope::default().label("tenant", &tenant), name: Some(tenant) })
///     }
/// }
/// ```
#[async_trait]
pub trait Access: Send + Sync + 'static {
    /// Who asks; `None` when it is nobody who may.
    async fn authenticate(&self, headers: &HeaderMap) -> Option<Identity>;

    /// Whether they may do that, and to that task, where it [is about one](Operation::is_about_one_task); the task is in their
    /// scope. By default everything is allowed but, to somebody whose scope is not everything, what [is about
    /// all](Operation::is_about_all).
    async fn authorize(&self, who: &Identity, operation: Operation, task: Option<&TaskInfo>) -> bool {
        let _ = task;
        who.scope.is_all() || !operation.is_about_all()
    }
}

/// Everybody who reaches it may do everything.
pub(crate) struct Open;

#[async_trait]
impl Access for Open {
    async fn authenticate(&self, _: &HeaderMap) -> Option<Identity> {
        Some(Identity::anybody())
    }
}

/// Whoever has the token may do everything.
pub(crate) struct Token {
    digest: [u8; 32],
    failures: Failures,
    /// Of browsers that have logged in.
    pub(crate) sessions: Sessions,
}

/// A token is too short to be safe.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the token has {0} characters: give it at least {MIN_TOKEN}, by chance (`openssl rand -hex 32`)")]
pub struct WeakToken(usize);

fn digest(text: &str) -> [u8; 32] {
    Sha256::digest(text).into()
}

impl Token {
    pub(crate) fn new(token: &str) -> Result<Self, WeakToken> {
        if token.len() < MIN_TOKEN {
            return Err(WeakToken(token.len()));
        }
        let (failures, sessions) = (Failures::default(), Sessions::new(SESSION));
        Ok(Self { digest: digest(token), failures, sessions })
    }

    /// Whether somebody at that address has the token. Compares digests, whose bytes tell somebody who measures the time
    /// nothing about it.
    ///
    /// # Errors
    /// How long they have to wait, after too many wrong ones.
    pub(crate) fn admits(&self, address: IpAddr, token: &str) -> Result<bool, Duration> {
        if let Some(wait) = self.failures.wait(address) {
            return Err(wait);
        }
        let right = digest(token) == self.digest;
        if right {
            self.failures.forget(address);
        } else {
            tracing::warn!(%address, "somebody has tried a wrong token");
            self.failures.count(address, token);
        }
        Ok(right)
    }

    /// Whether somebody at that address may do anything: a program with the token, or a browser with a session.
    ///
    /// # Errors
    /// As [`admits`](Self::admits).
    pub(crate) fn lets_in(&self, address: IpAddr, headers: &HeaderMap) -> Result<bool, Duration> {
        if session(headers).is_some_and(|session| self.sessions.has(session)) {
            return Ok(true);
        }
        let bearer = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        match bearer.and_then(|value| value.split_once(' ')) {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => {
                self.admits(address, token.trim())
            }
            _ => Ok(false),
        }
    }
}

/// The session that a browser has.
pub(crate) fn session(headers: &HeaderMap) -> Option<&str> {
    let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs = cookies.flat_map(|cookies| cookies.split(';')).filter_map(|pair| pair.split_once('='));
    pairs.find(|(name, _)| name.trim() == COOKIE).map(|(_, value)| value.trim())
}
