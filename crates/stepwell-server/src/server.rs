//! The server's settings, its router, and its listener.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware::from_fn_with_state;
use stepwell::{CancellationToken, Durable};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::access::{Access, Open, Token, WeakToken};
use crate::app::{App, Remembered};
use crate::connections::{self, Limits};
use crate::feed::{Feed, Streams};
use crate::guard::{authenticate, guard};
use crate::problem::Problem;
use crate::sample::Samples;
use crate::{api, metrics, pages};

/// The limit of a payload by default, as JSON within JSON.
const MAX_BODY: usize = 8 << 20;
const MAX_STREAMS: usize = 1_000;
/// Together with the other files of the process, the connections stay below 1,024 open files, which
/// is the usual limit.
const MAX_CONNECTIONS: usize = 900;
const MAX_PER_ADDRESS: usize = 256;
const PATIENCE: Duration = Duration::from_secs(20);

/// Builds the [`Router`]. Without a [token](Self::token) or an [`Access`](Self::access), everyone
/// who reaches the router may do everything.
pub struct Server {
    client: Durable,
    access: Option<Arc<dyn Access>>,
    token: Option<Arc<Token>>,
    hosts: Vec<String>,
    secure_cookies: bool,
    behind_proxy: bool,
    max_body_bytes: usize,
    max_streams: usize,
    limits: Limits,
}

/// The error of a server that cannot listen.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// Other machines could reach the address, and nothing would restrict what they do.
    #[error(
        "{0} can be reached from other machines, by anybody: give a token (`--token`, \
         STEPWELL_TOKEN, `Server::token`), or listen on 127.0.0.1"
    )]
    Unprotected(SocketAddr),
    /// The system refuses to listen on the address.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The error of the system.
        source: io::Error,
    },
}

impl Server {
    /// Returns a server for the store of a client.
    pub fn new(client: Durable) -> Self {
        Self {
            client,
            access: None,
            token: None,
            hosts: Vec::new(),
            secure_cookies: false,
            behind_proxy: false,
            max_body_bytes: MAX_BODY,
            max_streams: MAX_STREAMS,
            limits: Limits {
                all: MAX_CONNECTIONS,
                per_address: MAX_PER_ADDRESS,
                patience: PATIENCE,
            },
        }
    }

    /// Requires a token of every caller: programs send it as `Authorization: Bearer`, and people
    /// log in with it. The token replaces an [`Access`](Self::access).
    ///
    /// # Errors
    /// Fails when the token is shorter than 16 bytes.
    pub fn token(mut self, token: &str) -> Result<Self, WeakToken> {
        self.token = Some(Arc::new(Token::new(token)?));
        self.access = None;
        Ok(self)
    }

    /// Sets the access that decides who may do what. The access replaces a [token](Self::token).
    pub fn access(mut self, access: impl Access) -> Self {
        self.access = Some(Arc::new(access));
        self.token = None;
        self
    }

    /// Adds a name that browsers may call the server by, beside `localhost` and addresses:
    /// `jobs.example.com`, without a port.
    pub fn host(mut self, name: impl Into<String>) -> Self {
        self.hosts.push(name.into());
        self
    }

    /// Restricts session cookies to TLS. Without this setting, a cookie is restricted to TLS when
    /// its request says `X-Forwarded-Proto: https`, as proxies that speak TLS do.
    pub fn secure_cookies(mut self) -> Self {
        self.secure_cookies = true;
        self
    }

    /// Takes the last address in `X-Forwarded-For` for the client's address, by which failed logins
    /// are counted. This setting is safe only for a server that clients reach through a proxy.
    /// Other clients could write any address into the header.
    pub fn behind_proxy(mut self) -> Self {
        self.behind_proxy = true;
        self
    }

    /// Sets the maximum number of bytes of a request's body. Default: 8 MiB.
    pub fn max_body_bytes(mut self, bytes: usize) -> Self {
        self.max_body_bytes = bytes;
        self
    }

    /// Sets the maximum number of streams of events at the same time. One [scope](crate::Scope) may
    /// have a quarter of them. A server that [listens by itself](Self::bind) has at most half as
    /// many streams as connections, so that other requests find room. Default: 1,000.
    pub fn max_streams(mut self, streams: usize) -> Self {
        self.max_streams = streams;
        self
    }

    /// Sets how long a client may keep the server waiting before the server drops it. The time
    /// holds for the next request on the client's connection, for its headers, and for each write
    /// that the client has to take. The first two concern a server that [listens by
    /// itself](Self::bind). A stream of events that has nothing to send sends a sign of life after
    /// three quarters of this time. Default: 20 s.
    pub fn patience(mut self, patience: Duration) -> Self {
        self.limits.patience = patience;
        self
    }

    /// Sets the maximum number of connections at the same time to a server that [listens by
    /// itself](Self::bind), at least 1. Further connections wait until others have ended. When
    /// three quarters of the places are taken, each connection ends with its next answer. Default:
    /// 900, because many systems allow a process 1,024 open files.
    pub fn max_connections(mut self, connections: usize) -> Self {
        self.limits.all = connections.clamp(1, Semaphore::MAX_PERMITS);
        self
    }

    /// Sets the maximum number of connections from one address, at least 1. A further connection is
    /// closed at once. A 64-bit network of IPv6 counts as one address. Behind a proxy, all
    /// connections come from the proxy's address, so allow it as many as there may be in total.
    /// Default: 256.
    pub fn max_connections_per_address(mut self, connections: usize) -> Self {
        self.limits.per_address = connections.max(1);
        self
    }

    /// Returns the router. The API lies below `/api/v1`, its description at `/api/v1/openapi.json`,
    /// the dashboard at `/`, and the metrics for Prometheus at `/metrics`. `/health/live` and
    /// `/health/ready` need no token.
    pub fn router(self) -> Router {
        self.routed().0
    }

    fn routed(self) -> (Router, Arc<App>) {
        let (api, document) = api::router();
        let access = self.access.unwrap_or_else(|| Arc::new(Open));
        let app = Arc::new(App {
            client: self.client,
            access,
            token: self.token,
            hosts: self.hosts,
            secure_cookies: self.secure_cookies,
            behind_proxy: self.behind_proxy,
            document,
            streams: Streams::new(self.max_streams),
            patience: self.limits.patience,
            feed: Feed::default(),
            samples: Samples::default(),
            known: Remembered::default(),
            closing: CancellationToken::new(),
        });
        let router = Router::new()
            .nest("/api/v1", api)
            .merge(pages::router())
            .merge(metrics::router())
            .route_layer(from_fn_with_state(app.clone(), authenticate))
            .merge(pages::open())
            .merge(api::health::router())
            .fallback(async || Problem::not_found("there is nothing at this path"))
            .method_not_allowed_fallback(async || {
                let status = axum::http::StatusCode::METHOD_NOT_ALLOWED;
                Problem::new(
                    status,
                    "method",
                    "This cannot be done to it",
                    "see the API's description",
                )
            })
            .layer(DefaultBodyLimit::max(self.max_body_bytes))
            .layer(from_fn_with_state(app.clone(), guard))
            .with_state(app.clone());
        (router, app)
    }

    /// Listens on an address; port 0 takes any free port.
    ///
    /// # Errors
    /// Returns [`ServeError::Unprotected`] when other machines could reach the address and there is
    /// neither a token nor an [`Access`]. Returns [`ServeError::Listen`] when the system refuses
    /// the address.
    pub async fn bind(mut self, address: SocketAddr) -> Result<Bound, ServeError> {
        if self.access.is_none() && self.token.is_none() && !address.ip().is_loopback() {
            return Err(ServeError::Unprotected(address));
        }
        let failed = |source| ServeError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let limits = self.limits;
        self.max_streams = self.max_streams.min(limits.all.div_ceil(2));
        let (router, app) = self.routed();
        Ok(Bound { listener, address, router, app, limits })
    }
}

/// A server that listens.
pub struct Bound {
    listener: TcpListener,
    address: SocketAddr,
    router: Router,
    app: Arc<App>,
    limits: Limits,
}

impl Bound {
    /// Returns the address on which the server listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `until` is ready. The server then ends the streams, and waits for the answers
    /// in progress. The server cuts off clients that do not take their answers within twice the
    /// [patience](Server::patience).
    pub async fn serve(self, until: impl Future<Output = ()>) {
        let Self { listener, router, app, limits, .. } = self;
        let until = async move {
            until.await;
            app.closing.cancel();
        };
        connections::serve(listener, router, limits, until).await;
    }
}
