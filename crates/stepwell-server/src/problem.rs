//! The errors in the form that clients see: `application/problem+json` (RFC 9457).

use std::time::Duration;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::Serialize;
use stepwell::{Error, StoreError, TaskId};

/// The reason why a request was not done.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Problem {
    /// The sort of the problem: `urn:stepwell:problem:not-found`…
    #[serde(rename = "type")]
    kind: String,
    /// The sort of the problem, for people.
    title: &'static str,
    /// The HTTP status.
    status: u16,
    /// The reason in this case, and what to do.
    detail: String,
}

impl Problem {
    pub(crate) fn new(
        status: StatusCode,
        kind: &str,
        title: &'static str,
        detail: impl Into<String>,
    ) -> Self {
        let kind = format!("urn:stepwell:problem:{kind}");
        Self { kind, title, status: status.as_u16(), detail: detail.into() }
    }

    pub(crate) fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad-request", "The request is not understood", detail)
    }

    pub(crate) fn unauthenticated() -> Self {
        let detail = "send the token as `Authorization: Bearer …`, or log in";
        Self::new(StatusCode::UNAUTHORIZED, "unauthenticated", "Nobody knows who asks", detail)
    }

    pub(crate) fn forbidden(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "forbidden", "This is not allowed", detail)
    }

    pub(crate) fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not-found", "There is no such thing", detail)
    }

    pub(crate) fn no_task(task_id: TaskId) -> Self {
        Error::NotFound(task_id).into()
    }

    pub(crate) fn conflict(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "conflict", "The state does not allow it", detail)
    }

    /// Returns the problem of an answer that did not come in time; the operation may still be done.
    pub(crate) fn unanswered(limit: Duration) -> Self {
        let detail = StoreError::Unanswered(limit).to_string();
        Self::new(StatusCode::GATEWAY_TIMEOUT, "unanswered", "There was no answer in time", detail)
    }

    pub(crate) fn busy(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "busy", "Too much is going on", detail)
    }

    pub(crate) fn too_many_logins(wait: Duration) -> Self {
        let detail = format!("wait {} seconds before you try again", wait.as_secs() + 1);
        Self::new(
            StatusCode::TOO_MANY_REQUESTS,
            "logins",
            "Too many wrong tokens came from your address",
            detail,
        )
    }

    pub(crate) fn status(&self) -> StatusCode {
        StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    pub(crate) fn title(&self) -> &str {
        self.title
    }

    pub(crate) fn detail(&self) -> &str {
        &self.detail
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        use StatusCode as S;
        let detail = error.to_string();
        match error {
            Error::NotFound(_)
            | Error::UnknownWorker(_)
            | Error::UnknownApproval { .. }
            | Error::UnknownSchedule(_) => Self::not_found(detail),
            Error::NotAllowed { .. }
            | Error::AlreadyDecided { .. }
            | Error::Waiting(_)
            | Error::Needed { .. } => Self::conflict(detail),
            Error::Name(_)
            | Error::Options(_)
            | Error::Payload { .. }
            | Error::Schedule { .. }
            | Error::Workflow(_)
            | Error::Import(_) => {
                Self::new(S::UNPROCESSABLE_ENTITY, "invalid", "What was sent is not valid", detail)
            }
            Error::Store(StoreError::Unanswered(limit)) => Self::unanswered(limit),
            // The database's own message is for its operators.
            Error::Store(error) if !error.is_transient() => {
                tracing::error!(%error, "a request was refused by the store");
                let detail = "the database does not accept this request, nor will it when it comes \
                              again: the server's log says why";
                Self::new(S::INTERNAL_SERVER_ERROR, "refused", "The store refuses it", detail)
            }
            error => {
                tracing::error!(%error, "a request failed");
                let detail = "the database could not do its work: the server's log says why";
                Self::new(S::SERVICE_UNAVAILABLE, "store", "The store does not answer", detail)
            }
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = (self.status(), Json(&self)).into_response();
        // Pages show the problem in their own form.
        response.extensions_mut().insert(self.clone());
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if self.status() == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}
