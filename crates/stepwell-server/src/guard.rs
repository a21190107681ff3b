//! The checks that every request passes first: its origin, its size, and its time.
//!
//! A page of another site can make a browser send requests to this server with the user's cookie
//! (CSRF). Such a page can also make its own name resolve to this server's address (DNS rebinding).
//! The headers `Origin` and `Host` reveal both, and no page can change them.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{ConnectInfo, OriginalUri, Request, State};
use axum::http::{Extensions, HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Redirect, Response};

use crate::access::{Identity, Until};
use crate::app::App;
use crate::problem::Problem;

/// The time that an answer to a request may take beyond the store's own time limit.
const MARGIN: Duration = Duration::from_secs(5);
/// The maximum number of bytes of headers.
const HEADERS: usize = 16 << 10;

/// The path at which the router is nested: empty, or `/stepwell`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Base(pub(crate) String);

impl Base {
    fn of(request: &Request) -> Self {
        let original = request.extensions().get::<OriginalUri>().map(|uri| uri.path());
        let Some(original) = original else { return Self::default() };
        let base = match request.uri().path() {
            "/" => original.strip_suffix('/').unwrap_or(original),
            path => original.strip_suffix(path).unwrap_or_default(),
        };
        Self(base.to_owned())
    }

    /// Returns the full path of a path below the router, which begins with `/`.
    pub(crate) fn to(&self, path: &str) -> String {
        match (self.0.is_empty(), path) {
            (true, _) => path.to_owned(),
            (false, "/") => self.0.clone(),
            (false, _) => format!("{}{path}", self.0),
        }
    }
}

pub(crate) async fn guard(
    State(app): State<Arc<App>>,
    mut request: Request,
    next: Next,
) -> Response {
    let size: usize =
        request.headers().iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    let checked = match size > HEADERS {
        true => Err(Problem::new(
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            "headers",
            "The headers are too large",
            format!("they have {size} bytes, the limit is {HEADERS}"),
        )),
        false => check_origin(&app, &request),
    };
    let base = Base::of(&request);
    request.extensions_mut().insert(base);
    let limit = app.client.answer_timeout().saturating_add(MARGIN);
    let only_reads = only_reads(request.method());
    let mut response = match checked {
        Ok(()) => match tokio::time::timeout(limit, next.run(request)).await {
            Ok(response) => response,
            Err(_) if only_reads => {
                Problem::busy("there was no answer in time: try again").into_response()
            }
            // The write may be on its way to the store.
            Err(_) => Problem::unanswered(limit).into_response(),
        },
        Err(problem) => problem.into_response(),
    };
    secure(response.headers_mut());
    response
}

fn only_reads(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD)
}

fn check_origin(app: &App, request: &Request) -> Result<(), Problem> {
    let headers = request.headers();
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let host = host.or_else(|| request.uri().authority().map(axum::http::uri::Authority::as_str));
    let Some(host) = host else { return Err(Problem::bad_request("the header Host is missing")) };
    let name = without_port(host);
    if !is_known(app, name) {
        return Err(Problem::new(
            StatusCode::MISDIRECTED_REQUEST,
            "host",
            "This server does not go by that name",
            format!("{name:?} is not known here: name it with `--host`, or `Server::host`"),
        ));
    }
    let elsewhere = || Problem::forbidden("the request comes from a page of another origin");
    if let Some(origin) = headers.get(header::ORIGIN) {
        let of =
            origin.to_str().ok().and_then(|origin| origin.split_once("://")).map(|(_, rest)| rest);
        if of.is_none_or(|of| !of.eq_ignore_ascii_case(host)) {
            return Err(elsewhere());
        }
    }
    let site = headers.get(HeaderName::from_static("sec-fetch-site"));
    if !only_reads(request.method())
        && site.is_some_and(|site| site != "same-origin" && site != "none")
    {
        return Err(elsewhere());
    }
    Ok(())
}

/// Returns the host without its port, from `localhost:80`, `[::1]:80`, or `10.0.0.1`.
fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

/// Returns whether the server answers under a name. An address always counts, because no page can
/// make an address resolve to another one.
fn is_known(app: &App, name: &str) -> bool {
    let address = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    address.parse::<IpAddr>().is_ok()
        || name.eq_ignore_ascii_case("localhost")
        || app.hosts.iter().any(|host| host.eq_ignore_ascii_case(name))
}

fn secure(headers: &mut HeaderMap) {
    const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; \
        connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        // With `no-referrer`, browsers send `Origin: null` with our own forms.
        (header::REFERRER_POLICY, "same-origin"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
}

/// Returns the address that a request comes from, or `None` where it is not known.
pub(crate) fn address_of(
    app: &App,
    headers: &HeaderMap,
    extensions: &Extensions,
) -> Option<IpAddr> {
    if let Some(list) =
        headers.get_all("x-forwarded-for").iter().next_back().filter(|_| app.behind_proxy)
    {
        // The proxy itself has seen the last address; the addresses before it are what the proxy
        // received.
        return address(list.to_str().ok()?.rsplit(',').next()?.trim());
    }
    extensions.get::<ConnectInfo<SocketAddr>>().map(|peer| peer.0.ip())
}

/// Parses an address as proxies write it: also with a port, or in brackets.
fn address(text: &str) -> Option<IpAddr> {
    let socket = || text.parse().ok().map(|socket: SocketAddr| socket.ip());
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    bare.parse().ok().or_else(socket)
}

/// Authenticates the caller. An unknown browser is redirected to the login page.
pub(crate) async fn authenticate(
    State(app): State<Arc<App>>,
    mut request: Request,
    next: Next,
) -> Response {
    let who = match &app.token {
        None => app.access.authenticate(request.headers()).await.map(|who| (who, Until::default())),
        Some(token) => {
            let address = address_of(&app, request.headers(), request.extensions());
            match token.lets_in(address, request.headers()).await {
                Ok(until) => until.map(|until| (Identity::anybody(), until)),
                Err(wait) => return Problem::too_many_logins(wait).into_response(),
            }
        }
    };
    if let Some((who, until)) = who {
        request.extensions_mut().insert(who);
        request.extensions_mut().insert(until);
        return next.run(request).await;
    }
    let accepts = request.headers().get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
    let is_browser = accepts.is_some_and(|accept| accept.contains("text/html"));
    match (&app.token, request.extensions().get::<Base>()) {
        (Some(_), Some(base)) if is_browser => Redirect::to(&base.to("/login")).into_response(),
        _ => Problem::unauthenticated().into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_proxies_write_them() {
        for (text, read) in [
            ("1.2.3.4", "1.2.3.4"),
            ("1.2.3.4:5678", "1.2.3.4"),
            ("2001:db8::1", "2001:db8::1"),
            ("[2001:db8::1]", "2001:db8::1"),
            ("[2001:db8::1]:5678", "2001:db8::1"),
        ] {
            assert_eq!(address(text), read.parse().ok(), "{text}");
        }
        assert_eq!(address("unknown"), None);
        assert_eq!(address(""), None);
    }
}
