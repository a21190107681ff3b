//! Who may do what: the hooks of whoever nests the router, and what stands in their place by
//! default.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use axum::http::{HeaderMap, header};
use sha2::{Digest as _, Sha256};
use stepwell::{CancellationToken, Scope, TaskInfo, async_trait};
use tokio::sync::Semaphore;

use crate::sessions::{Failures, SESSION, Sessions};

/// The cookie in which a browser keeps what it logged in with.
pub(crate) const COOKIE: &str = "stepwell_session";
/// How short a token must not be.
const MIN_TOKEN: usize = 16;
/// What wrong tokens are counted by where their address is not known.
const UNKNOWN: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
/// How many of those are answered at the same time, and how long each of them waits for it.
const TURNS: usize = 16;
const TURN: Duration = Duration::from_secs(1);

/// Somebody who asks.
#[derive(Clone, Debug)]
pub struct Identity {
    /// What they are called, where it is written down who decided something; `None` when nobody
    /// knows.
    pub name: Option<String>,
    /// The tasks that are there for them. All others are hidden from them, in lists, in streams
    /// and one by one, as if there were no such tasks; and what they spawn is put into the
    /// scope. They can name no other: who is to spawn into a part of it is given that as their
    /// scope.
    pub scope: Scope,
}

impl Identity {
    /// Somebody whose name is not known, and for whom all is there.
    pub fn anybody() -> Self {
        Self { name: None, scope: Scope::default() }
    }
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

    /// Whether it concerns all tasks, in whatever scope they are. It is refused to everybody whose
    /// scope is not everything.
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

/// Who may do what. Give one to [`Server::access`](crate::Server::access), and the router asks it
/// at each request. A stream of events is one request; it ends after ten minutes, so that its
/// client comes again, and is asked about again.
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

    /// Whether they may do that, and to that task, where it [is about
    /// one](Operation::is_about_one_task). It is asked about what their scope allows: the task
    /// is in it, and what [is about all](Operation::is_about_all) is refused before, to
    /// somebody whose scope is not everything. By default all of that is allowed.
    async fn authorize(
        &self,
        who: &Identity,
        operation: Operation,
        task: Option<&TaskInfo>,
    ) -> bool {
        let _ = (who, operation, task);
        true
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

/// Is cancelled when whoever asks is nobody any more: when their session has ended.
#[derive(Clone, Default)]
pub(crate) struct Until(pub(crate) CancellationToken);

/// Whoever has the token may do everything.
pub(crate) struct Token {
    digest: [u8; 32],
    failures: Failures,
    /// The turns of those who guess from addresses that are not known.
    turns: Semaphore,
    /// Of browsers that have logged in.
    pub(crate) sessions: Sessions,
}

/// A token is too short to be safe.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error(
    "the token has {0} characters: give it at least {MIN_TOKEN}, by chance (`openssl rand -hex 32`)"
)]
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
        Ok(Self { digest: digest(token), failures, turns: Semaphore::new(TURNS), sessions })
    }

    /// Whether somebody at that address may try a token now. Those whose addresses are not known
    /// may: one of them would keep all of them out.
    ///
    /// # Errors
    /// How long they have to wait, after too many wrong ones.
    pub(crate) fn may_try(&self, address: Option<IpAddr>) -> Result<(), Duration> {
        address.and_then(|address| self.failures.wait(address)).map_or(Ok(()), Err)
    }

    /// Whether somebody at that address has the token. Compares digests, whose bytes tell somebody
    /// who measures the time nothing about it. Where the address is not known, wrong tokens are
    /// answered slowly after too many of them.
    ///
    /// # Errors
    /// As [`may_try`](Self::may_try).
    pub(crate) async fn admits(
        &self,
        address: Option<IpAddr>,
        token: &str,
    ) -> Result<bool, Duration> {
        self.may_try(address)?;
        let right = digest(token) == self.digest;
        if !right {
            tracing::warn!(?address, "somebody has tried a wrong token");
            let counted = address.unwrap_or(UNKNOWN);
            self.failures.count(counted, token);
            if address.is_none() && self.failures.wait(counted).is_some() {
                let _turn = self.turns.acquire().await;
                tokio::time::sleep(TURN).await;
            }
        }
        Ok(right)
    }

    /// Forgets the wrong tokens that came from an address, since somebody there has logged in.
    pub(crate) fn forgive(&self, address: Option<IpAddr>) {
        self.failures.forget(address.unwrap_or(UNKNOWN));
    }

    /// Until when somebody at that address may do anything: a program with the token, or a browser
    /// with a session. `None` when they may not.
    ///
    /// # Errors
    /// As [`may_try`](Self::may_try).
    pub(crate) async fn lets_in(
        &self,
        address: Option<IpAddr>,
        headers: &HeaderMap,
    ) -> Result<Option<Until>, Duration> {
        if let Some(until) = session(headers).and_then(|session| self.sessions.until(session)) {
            return Ok(Some(Until(until)));
        }
        let bearer = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        match bearer.and_then(|value| value.split_once(' ')) {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => {
                Ok(self.admits(address, token.trim()).await?.then(Until::default))
            }
            _ => Ok(None),
        }
    }
}

/// The session that a browser has.
pub(crate) fn session(headers: &HeaderMap) -> Option<&str> {
    let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs =
        cookies.flat_map(|cookies| cookies.split(';')).filter_map(|pair| pair.split_once('='));
    pairs.find(|(name, _)| name.trim() == COOKIE).map(|(_, value)| value.trim())
}
