//! Connections: how many there may be, and how long each may keep the server waiting.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
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

/// How much of a request is kept before it is handled, in bytes.
const BUFFER: usize = 64 << 10;
/// How long the server pauses when it cannot accept: mostly for want of open files, which others give back.
const PAUSE: Duration = Duration::from_millis(100);

/// What connections are allowed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// How many there may be.
    pub(crate) all: usize,
    /// How many there may be from one address.
    pub(crate) per_address: usize,
    /// How long a client may keep the server waiting: for the head of a request, or to take what it is sent.
    pub(crate) patience: Duration,
}

/// Serves connections until that is ready; then lets those end that are being answered.
pub(crate) async fn serve(
    listener: TcpListener,
    router: Router,
    limits: Limits,
    until: impl Future<Output = ()>,
) {
    let closing = CancellationToken::new();
    let places = Arc::new(Semaphore::new(limits.all));
    let addresses = Addresses::default();
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
                let Some(own) = addresses.enter(address.ip(), limits.per_address) else {
                    tracing::debug!(%address, "too many connections come from there");
                    continue;
                };
                let connection = answer(stream, address, router.clone(), limits.patience, closing.clone());
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
    while connections.join_next().await.is_some() {}
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
    router: Router,
    patience: Duration,
    closing: CancellationToken,
) {
    // An answer goes at once; without it, it would only go later.
    let _ = stream.set_nodelay(true);
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(patience));
    let stream: Pin<Box<_>> = Box::pin(stream);
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(address));
        router.clone().oneshot(request)
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

/// How many connections there are from each address.
#[derive(Clone, Default)]
struct Addresses(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// A connection that counts for its address.
struct Own {
    addresses: Addresses,
    address: IpAddr,
}

impl Addresses {
    /// Counts a connection, unless there are that many.
    fn enter(&self, address: IpAddr, limit: usize) -> Option<Own> {
        let address = network_of(address);
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(address).or_default();
        if *count >= limit {
            return None;
        }
        *count += 1;
        Some(Own { addresses: self.clone(), address })
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        let mut counts = self.addresses.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}

/// What counts as one address: of IPv6 the first 64 bits, which is the least that a network is given.
pub(crate) fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::V6([a, b, c, d, 0, 0, 0, 0].into())
        }
        address => address,
    }
}
