//! Connections: how many there may be, and how long each may keep the server waiting.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use stepwell::CancellationToken;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_io_timeout::TimeoutStream;
use tower::ServiceExt as _;

use crate::counts::Counts;

/// How much of a request is kept before it is handled, in bytes.
const BUFFER: usize = 64 << 10;
/// How long the server pauses when it cannot accept: mostly for want of open files, which others
/// give back.
const PAUSE: Duration = Duration::from_millis(100);

/// What connections are allowed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// How many there may be.
    pub(crate) all: usize,
    /// How many there may be from one address.
    pub(crate) per_address: usize,
    /// How long a client may keep the server waiting: for the head of a request, or to take what
    /// it is sent.
    pub(crate) patience: Duration,
}

/// Serves connections until that is ready; then lets those end that are being answered, but for
/// those whose clients do not take their answers in twice the patience.
pub(crate) async fn serve(
    listener: TcpListener,
    router: Router,
    limits: Limits,
    until: impl Future<Output = ()>,
) {
    let closing = CancellationToken::new();
    let places = Arc::new(Semaphore::new(limits.all));
    let addresses = Counts::default();
    let mut connections = JoinSet::new();
    let mut until = pin!(until);
    loop {
        let next = async {
            // With no place left, those who come wait in the system's queue.
            let place = places.clone().acquire_owned().await.ok()?;
            Some((place, listener.accept().await))
        };
        let accepted = tokio::select! {
            () = &mut until => break,
            _ = connections.join_next(), if !connections.is_empty() => continue,
            accepted = next => accepted,
        };
        match accepted {
            Some((place, Ok((stream, address)))) => {
                let Some(own) = addresses.enter(network_of(address.ip()), limits.per_address)
                else {
                    tracing::debug!(%address, "too many connections come from there");
                    continue;
                };
                let service = Service { router: router.clone(), places: places.clone(), limits };
                let connection = answer(stream, address, service, closing.clone());
                connections.spawn(async move {
                    connection.await;
                    drop((place, own));
                });
            }
            Some((_, Err(error))) => pause(&error).await,
            None => break,
        }
    }
    drop(listener);
    closing.cancel();
    let ended = tokio::time::timeout(limits.patience.saturating_mul(2), async {
        while connections.join_next().await.is_some() {}
    });
    if ended.await.is_err() {
        tracing::warn!(
            connections = connections.len(),
            "clients that do not take their answers are cut off"
        );
        connections.shutdown().await;
    }
}

/// What answers the requests of a connection.
struct Service {
    router: Router,
    places: Arc<Semaphore>,
    limits: Limits,
}

impl Service {
    async fn answer(&self, request: hyper::Request<Incoming>) -> Result<Response, Infallible> {
        let mut response = self.router.clone().oneshot(request).await?;
        // Where places are rare, nobody keeps one between two requests.
        if self.places.available_permits() <= self.limits.all / 4 {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        Ok(response)
    }
}

/// A client that went away before it was accepted is no reason to wait.
async fn pause(error: &io::Error) {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset};
    if !matches!(error.kind(), ConnectionAborted | ConnectionReset) {
        tracing::warn!(%error, "cannot accept connections; trying again");
        tokio::time::sleep(PAUSE).await;
    }
}

async fn answer(
    stream: TcpStream,
    address: SocketAddr,
    service: Service,
    closing: CancellationToken,
) {
    let patience = service.limits.patience;
    // An answer goes at once; without it, it would only go later.
    let _ = stream.set_nodelay(true);
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(patience));
    let stream: Pin<Box<_>> = Box::pin(stream);
    let service = service_fn(|mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(address));
        service.answer(request)
    });
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            // It begins with each wait for a head: it ends idle connections as well.
            .header_read_timeout(patience)
            .max_buf_size(BUFFER)
            .serve_connection(TokioIo::new(stream), service)
    );
    let ended = match closing.run_until_cancelled(connection.as_mut()).await {
        Some(ended) => ended,
        None => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, %address, "a connection broke");
    }
}

/// What counts as one address: of IPv6 the first 64 bits, which is the least that a network is
/// given.
pub(crate) fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::V6([a, b, c, d, 0, 0, 0, 0].into())
        }
        address => address,
    }
}
