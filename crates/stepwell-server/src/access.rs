//! The hooks that decide who may do what, and the defaults where an application sets none.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use axum::http::{HeaderMap, header};
use sha2::{Digest as _, Sha256};
use stepwell::{CancellationToken, Scope, TaskInfo, async_trait};
use tokio::sync::Semaphore;

use crate::sessions::{Failures, SESSION, Sessions};

/// The name of the cookie in which a browser keeps its session.
pub(crate) const COOKIE: &str = "stepwell_session";
/// The minimum length of a token, in bytes.
const MIN_TOKEN: usize = 16;
/// The address under which wrong tokens are counted where a client's address is not known.
const UNKNOWN: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
/// The number of wrong tokens from unknown addresses that are answered at the same time; each one
/// waits for a `TURN`.
const TURNS: usize = 16;
const TURN: Duration = Duration::from_secs(1);

/// The caller of a request.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The caller's name, which is stored with the decisions that the caller makes. The value is
    /// `None` when the name is not known.
    pub name: Option<String>,
    /// The tasks that exist for the caller. All other tasks are hidden from the caller, in lists,
    /// in streams and one by one, as if they did not exist. The tasks that the caller spawns belong
    /// to the scope. The caller cannot name another scope, not even a part of this one: a caller
    /// that is to spawn into a part has that part as its scope.
    pub scope: Scope,
}

impl Identity {
    /// Returns a caller whose name is not known, and whose scope is everything.
    pub fn anybody() -> Self {
        Self { name: None, scope: Scope::default() }
    }
}

/// An operation that a caller asks for.
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
    /// Returns whether the operation is done to one task, which is known when the operation is
    /// authorized.
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

    /// Returns whether the operation concerns all tasks, in every scope. The router refuses such an
    /// operation to each caller whose scope is not everything.
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

/// Decides who may do what. The router asks the value that
/// [`Server::access`](crate::Server::access) receives, once for each request. A stream of events is
/// one request. A stream ends after ten minutes, so that its client connects again and is
/// authenticated again.
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
    /// Returns the caller of a request, or `None` when the request is not allowed.
    async fn authenticate(&self, headers: &HeaderMap) -> Option<Identity>;

    /// Returns whether a caller may do an operation. The argument `task` is `Some` when the
    /// operation [is about one task](Operation::is_about_one_task). The router checks the caller's
    /// scope before this call: the task is in the scope, and an operation that [is about
    /// all](Operation::is_about_all) is refused to a caller whose scope is not everything. By
    /// default, everything that the scope allows is allowed.
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

/// The access without protection: every caller may do everything.
pub(crate) struct Open;

#[async_trait]
impl Access for Open {
    async fn authenticate(&self, _: &HeaderMap) -> Option<Identity> {
        Some(Identity::anybody())
    }
}

/// A token that is cancelled when the caller's session ends.
#[derive(Clone, Default)]
pub(crate) struct Until(pub(crate) CancellationToken);

/// The access by a token: a caller that has the token may do everything.
pub(crate) struct Token {
    digest: [u8; 32],
    failures: Failures,
    /// The turns of wrong tokens that come from unknown addresses.
    turns: Semaphore,
    /// The sessions of browsers that have logged in.
    pub(crate) sessions: Sessions,
}

/// The error of a token that is too short to be safe.
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

    /// Checks that a caller at an address may try a token now. A caller whose address is not known
    /// always may, because one such caller would otherwise lock all of them out.
    ///
    /// # Errors
    /// Returns how long the caller has to wait, after too many wrong tokens.
    pub(crate) fn may_try(&self, address: Option<IpAddr>) -> Result<(), Duration> {
        address.and_then(|address| self.failures.wait(address)).map_or(Ok(()), Err)
    }

    /// Returns whether a caller at an address has the token. The function compares digests, so the
    /// time of the comparison reveals nothing about the token. Where the address is not known,
    /// wrong tokens are answered slowly after too many of them.
    ///
    /// # Errors
    /// Returns the same error as [`may_try`](Self::may_try).
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

    /// Forgets the wrong tokens that came from an address, because a client there has logged in.
    pub(crate) fn forgive(&self, address: Option<IpAddr>) {
        self.failures.forget(address.unwrap_or(UNKNOWN));
    }

    /// Returns until when a caller at an address may do anything: a program with the token, or a
    /// browser with a session. The result is `None` when the caller may do nothing.
    ///
    /// # Errors
    /// Returns the same error as [`may_try`](Self::may_try).
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

/// Returns the session that a browser sends in its cookie.
pub(crate) fn session(headers: &HeaderMap) -> Option<&str> {
    let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs =
        cookies.flat_map(|cookies| cookies.split(';')).filter_map(|pair| pair.split_once('='));
    pairs.find(|(name, _)| name.trim() == COOKIE).map(|(_, value)| value.trim())
}
