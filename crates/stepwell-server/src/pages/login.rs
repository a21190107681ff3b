//! Logging in with the token, for browsers.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{AppendHeaders, IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use axum::{Extension, Router};
use maud::{Markup, html};
use serde::Deserialize;

use super::layout;
use crate::access::COOKIE;
use crate::app::App;
use crate::extract::Form;
use crate::guard::Base;
use crate::problem::Problem;

/// Whoever guesses has to wait.
const WRONG: Duration = Duration::from_millis(500);
/// How long a browser stays logged in, in seconds.
const SESSION: u32 = 7 * 24 * 3_600;

pub(super) fn add_to(router: Router<Arc<App>>) -> Router<Arc<App>> {
    router.route("/login", get(ask).post(log_in)).route("/logout", post(log_out))
}

fn form(base: &Base, wrong: bool) -> Markup {
    layout::document(
        base,
        "Log in",
        html! {
            main id="main" class="alone" {
                span class="brand" { (layout::logo()) span { "Stepwell" } }
                h1 { "Log in" }
                form method="post" class="stack" {
                    label for="token" { "Token" }
                    input id="token" name="token" type="password" autocomplete="current-password" required autofocus;
                    @if wrong { p class="wrong" role="alert" { "That is not the token." } }
                    button class="primary" { "Log in" }
                }
                p class="dim" { "It is the one that the server was started with." }
            }
        },
    )
}

async fn ask(State(app): State<Arc<App>>, Extension(base): Extension<Base>) -> Result<Markup, Problem> {
    match app.token {
        Some(_) => Ok(form(&base, false)),
        None => Err(Problem::not_found("nobody logs in here")),
    }
}

#[derive(Deserialize)]
struct Login {
    token: String,
}

async fn log_in(
    State(app): State<Arc<App>>,
    Extension(base): Extension<Base>,
    headers: HeaderMap,
    Form(Login { token }): Form<Login>,
) -> Result<Response, Problem> {
    let Some(ours) = &app.token else { return Err(Problem::not_found("nobody logs in here")) };
    if !ours.is(token.trim()) {
        tokio::time::sleep(WRONG).await;
        return Ok((StatusCode::UNAUTHORIZED, form(&base, true)).into_response());
    }
    // Behind a proxy that speaks TLS, the cookie is for TLS only.
    let secure = headers.get("x-forwarded-proto").is_some_and(|proto| proto == "https");
    let cookie = cookie(&base, ours.session(), SESSION, secure);
    Ok((AppendHeaders([(header::SET_COOKIE, cookie)]), Redirect::to(&base.to("/"))).into_response())
}

async fn log_out(Extension(base): Extension<Base>) -> impl IntoResponse {
    (AppendHeaders([(header::SET_COOKIE, cookie(&base, "", 0, false))]), Redirect::to(&base.to("/login")))
}

fn cookie(base: &Base, value: &str, seconds: u32, secure: bool) -> String {
    let secure = if secure { "; Secure" } else { "" };
    let path = base.to("/");
    format!("{COOKIE}={value}; Path={path}; Max-Age={seconds}; HttpOnly; SameSite=Strict{secure}")
}
