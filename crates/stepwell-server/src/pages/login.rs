//! The login with the token, for browsers.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, FromRequestParts, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{AppendHeaders, IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use axum::{Extension, Router};
use maud::{Markup, html};
use serde::Deserialize;

use super::layout;
use crate::access::{COOKIE, Token, session};
use crate::app::App;
use crate::extract::Form;
use crate::guard::{Base, address_of};
use crate::problem::Problem;
use crate::sessions::SESSION;

/// The maximum number of bytes of a login form. The limit is small because anyone may send one.
const MAX_BODY: usize = 4 << 10;

pub(super) fn add_to(router: Router<Arc<App>>) -> Router<Arc<App>> {
    let login = get(ask).post(log_in).layer(DefaultBodyLimit::max(MAX_BODY));
    router.route("/login", login).route("/logout", post(log_out))
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
                    input id="token" name="token" type="password" autocomplete="current-password"
                        required autofocus;
                    @if wrong { p class="wrong" role="alert" { "That is not the token." } }
                    button class="primary" { "Log in" }
                }
                p class="dim" { "It is the one that the server was started with." }
            }
        },
    )
}

async fn ask(
    State(app): State<Arc<App>>,
    Extension(base): Extension<Base>,
) -> Result<Markup, Problem> {
    match app.token {
        Some(_) => Ok(form(&base, false)),
        None => Err(Problem::not_found("nobody logs in here")),
    }
}

#[derive(Deserialize)]
struct Login {
    token: String,
}

/// A client that may try a token, with its address. This extractor runs before a body is read.
struct Trier {
    ours: Arc<Token>,
    address: Option<IpAddr>,
}

impl FromRequestParts<Arc<App>> for Trier {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Problem> {
        let ours = app.token.clone().ok_or_else(|| Problem::not_found("nobody logs in here"))?;
        let address = address_of(app, &parts.headers, &parts.extensions);
        ours.may_try(address).map_err(Problem::too_many_logins)?;
        Ok(Self { ours, address })
    }
}

async fn log_in(
    State(app): State<Arc<App>>,
    Extension(base): Extension<Base>,
    headers: HeaderMap,
    Trier { ours, address }: Trier,
    Form(Login { token }): Form<Login>,
) -> Result<Response, Problem> {
    let right = ours.admits(address, token.trim()).await;
    if !right.map_err(Problem::too_many_logins)? {
        return Ok((StatusCode::UNAUTHORIZED, form(&base, true)).into_response());
    }
    ours.forgive(address);
    let cookie = cookie(&app, &base, &headers, &ours.sessions.begin(), SESSION);
    Ok((AppendHeaders([(header::SET_COOKIE, cookie)]), Redirect::to(&base.to("/"))).into_response())
}

async fn log_out(
    State(app): State<Arc<App>>,
    Extension(base): Extension<Base>,
    headers: HeaderMap,
) -> impl IntoResponse {
    if let (Some(token), Some(session)) = (&app.token, session(&headers)) {
        token.sessions.end(session);
    }
    let cookie = cookie(&app, &base, &headers, "", Duration::ZERO);
    (AppendHeaders([(header::SET_COOKIE, cookie)]), Redirect::to(&base.to("/login")))
}

fn cookie(app: &App, base: &Base, headers: &HeaderMap, value: &str, lifetime: Duration) -> String {
    // A proxy that speaks TLS sets the header, and the cookie is then for TLS only.
    let over_tls = headers.get("x-forwarded-proto").is_some_and(|proto| proto == "https");
    let secure = if app.secure_cookies || over_tls { "; Secure" } else { "" };
    let seconds = lifetime.as_secs();
    let path = base.to("/");
    format!("{COOKIE}={value}; Path={path}; Max-Age={seconds}; HttpOnly; SameSite=Strict{secure}")
}
