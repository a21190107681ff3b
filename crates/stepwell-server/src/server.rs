//! The router, and serving it.

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

/// A payload's limit by default, as JSON within JSON.
const MAX_BODY: usize = 8 << 20;
const MAX_STREAMS: usize = 1_000;
/// Together with what the process has open besides, fewer than the 1,024 files that it mostly may.
const MAX_CONNECTIONS: usize = 900;
const MAX_PER_ADDRESS: usize = 256;
const PATIENCE: Duration = Duration::from_secs(20);

/// Makes the [`Router`]. Without a [token](Self::token) or an [`Access`](Self::access), whoever
/// reaches it may do everything.
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

/// Why nothing is served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// Others could reach it, and nothing would keep them from doing anything.
    #[error(
        "{0} can be reached from other machines, by anybody: give a token (`--token`, \
         STEPWELL_TOKEN, `Server::token`), or listen on 127.0.0.1"
    )]
    Unprotected(SocketAddr),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
}

impl Server {
    /// A server of what this client is a client of.
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

    /// Only those who have this token may do anything: programs by `Authorization: Bearer`, people
    /// by logging in.
    ///
    /// # Errors
    /// When it is shorter than 16 characters.
    pub fn token(mut self, token: &str) -> Result<Self, WeakToken> {
        self.token = Some(Arc::new(Token::new(token)?));
        self.access = None;
        Ok(self)
    }

    /// Asks this who may do what, in place of a token.
    pub fn access(mut self, access: impl Access) -> Self {
        self.access = Some(Arc::new(access));
        self.token = None;
        self
    }

    /// A name that browsers may call the server by, beside `localhost` and addresses:
    /// `jobs.example.com`, without a port.
    pub fn host(mut self, name: impl Into<String>) -> Self {
        self.hosts.push(name.into());
        self
    }

    /// Lets browsers send their sessions over TLS only. Without it, they are asked to when the
    /// request says `X-Forwarded-Proto: https`, as proxies that speak TLS do.
    pub fn secure_cookies(mut self) -> Self {
        self.secure_cookies = true;
        self
    }

    /// Takes the last address in `X-Forwarded-For` for the one that a request comes from, where
    /// failed logins are counted. For a server that is reached through a proxy only: anybody
    /// else could write what they like there.
    pub fn behind_proxy(mut self) -> Self {
        self.behind_proxy = true;
        self
    }

    /// How many bytes the body of a request may have. Default: 8 MiB.
    pub fn max_body_bytes(mut self, bytes: usize) -> Self {
        self.max_body_bytes = bytes;
        self
    }

    /// How many streams of events there may be at the same time, and four times as many as there
    /// may be of one [scope](crate::Scope). A server that [listens by itself](Self::bind) has
    /// at most half as many as connections, so that there is room for other requests. Default:
    /// 1,000.
    pub fn max_streams(mut self, streams: usize) -> Self {
        self.max_streams = streams;
        self
    }

    /// How long a client may keep the server waiting before it is dropped: for the next request on
    /// its connection, from the first byte to the end of the headers, or to take what it is
    /// sent. The first concerns a server that [listens by itself](Self::bind). A stream of
    /// events that has nothing to tell gives a sign of life a little more often. Default: 20 s.
    pub fn patience(mut self, patience: Duration) -> Self {
        self.limits.patience = patience;
        self
    }

    /// How many connections there may be at the same time to a server that [listens by
    /// itself](Self::bind), at least 1. Those that come then wait until others have ended; and
    /// from three quarters on, each connection ends with its next answer. Default: 900, since
    /// many systems allow a process 1,024 open files.
    pub fn max_connections(mut self, connections: usize) -> Self {
        self.limits.all = connections.clamp(1, Semaphore::MAX_PERMITS);
        self
    }

    /// How many of them may come from one address, at least 1; what is over that is closed at once.
    /// The networks of 64 bits of IPv6 count as one address each. Behind a proxy, all come from
    /// its address: allow it as many as there may be. Default: 256.
    pub fn max_connections_per_address(mut self, connections: usize) -> Self {
        self.limits.per_address = connections.max(1);
        self
    }

    /// The router. The API lies below `/api/v1`, its description at `/api/v1/openapi.json`, the
    /// dashboard at `/`, what Prometheus reads at `/metrics`; `/health/live` and
    /// `/health/ready` answer to anybody.
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

    /// Listens on an address; port 0 takes any that is free.
    ///
    /// # Errors
    /// [`ServeError::Unprotected`] when others could reach it and there is neither a token nor an
    /// [`Access`]; [`ServeError::Listen`].
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
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until that is ready; then ends the streams, and what is being answered. Clients that
    /// do not take their answers in twice the [patience](Server::patience) are cut off.
    pub async fn serve(self, until: impl Future<Output = ()>) {
        let Self { listener, router, app, limits, .. } = self;
        let until = async move {
            until.await;
            app.closing.cancel();
        };
        connections::serve(listener, router, limits, until).await;
    }
}
