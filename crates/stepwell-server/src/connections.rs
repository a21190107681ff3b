//! The server's connections: their number, and the time that each may keep the server waiting.

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

/// The maximum number of bytes of a request that are buffered before it is handled.
const BUFFER: usize = 64 << 10;
/// The server's pause when it cannot accept a connection. The usual cause is a lack of open files,
/// which other connections free.
const PAUSE: Duration = Duration::from_millis(100);

/// The limits of connections.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// The maximum number of connections at the same time.
    pub(crate) all: usize,
    /// The maximum number of connections from one address at the same time.
    pub(crate) per_address: usize,
    /// The time that a client may keep the server waiting: for the head of a request, or to take
    /// what the server sends.
    pub(crate) patience: Duration,
}

/// Serves connections until `until` is ready. The function then waits for the answers in progress,
/// and cuts off the clients that do not take their answers within twice the patience.
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
            // When no place is left, new connections wait in the system's queue.
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

/// The service that answers the requests of a connection.
struct Service {
    router: Router,
    places: Arc<Semaphore>,
    limits: Limits,
}

impl Service {
    async fn answer(&self, request: hyper::Request<Incoming>) -> Result<Response, Infallible> {
        let mut response = self.router.clone().oneshot(request).await?;
        // When few places are left, no client keeps one between two requests.
        if self.places.available_permits() <= self.limits.all / 4 {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        Ok(response)
    }
}

/// Pauses after a failed accept. A client that went away before it was accepted is no reason to
/// pause.
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
    // With Nagle's algorithm, a small answer would be delayed. A failure only means such a delay.
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
            // The timeout starts with each wait for a head, so it ends idle connections as well.
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

/// Returns the part of an address that counts as one address. For IPv6 it is the first 64 bits,
/// which is the smallest network that a customer receives.
pub(crate) fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::V6([a, b, c, d, 0, 0, 0, 0].into())
        }
        address => address,
    }
}
