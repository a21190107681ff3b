//! The extractors of requests, and their errors for requests that cannot be read.

use axum::extract::rejection::{FormRejection, JsonRejection, PathRejection};
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum_extra::extract::QueryRejection;
use serde::de::DeserializeOwned;
use stepwell::Payload;

use crate::problem::Problem;

/// A JSON body.
pub(crate) struct Body<T>(pub(crate) T);

/// A form, as browsers send it.
pub(crate) struct Form<T>(pub(crate) T);

/// The query, in which a name may occur several times.
pub(crate) struct Query<T>(pub(crate) T);

/// The parameters of the path.
pub(crate) struct Path<T>(pub(crate) T);

/// Parses JSON from the field of a form; an empty field is null.
pub(crate) fn json_of(what: &str, text: &str) -> Result<Payload, Problem> {
    match text.trim() {
        "" => Ok(Payload::null()),
        text => serde_json::from_str(text)
            .map_err(|error| Problem::bad_request(format!("{what} is no JSON: {error}"))),
    }
}

fn refused(status: StatusCode, detail: String) -> Problem {
    Problem::new(status, "bad-request", "The request is not understood", detail)
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let body = axum::Json::<T>::from_request(request, state).await;
        let body =
            body.map_err(|error: JsonRejection| refused(error.status(), error.body_text()))?;
        Ok(Self(body.0))
    }
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Form<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let form = axum::Form::<T>::from_request(request, state).await;
        let form =
            form.map_err(|error: FormRejection| refused(error.status(), error.body_text()))?;
        Ok(Self(form.0))
    }
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let query = axum_extra::extract::Query::<T>::from_request_parts(parts, state).await;
        let query =
            query.map_err(|error: QueryRejection| refused(error.status(), error.body_text()))?;
        Ok(Self(query.0))
    }
}

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Path<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let path = axum::extract::Path::<T>::from_request_parts(parts, state).await;
        let path =
            path.map_err(|error: PathRejection| refused(error.status(), error.body_text()))?;
        Ok(Self(path.0))
    }
}
