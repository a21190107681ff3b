//! A proxy in front of a server, with weather: connections are slow, hang, or are cut within a
//! message.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// The weather, which decides how data is delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Weather {
    Fair,
    /// Everything arrives this much later.
    Slow(Duration),
    /// Nothing arrives, and no side sees an error.
    Hole,
}

#[derive(Clone, Copy, Debug)]
struct State {
    target: u16,
    weather: Weather,
    /// The number of times that connections were cut.
    cuts: u64,
}

/// A proxy that forwards connections to one server, which can be replaced.
pub(crate) struct Proxy {
    state: watch::Sender<State>,
    port: u16,
}

impl Proxy {
    /// Listens on 127.0.0.1.
    pub(crate) async fn start(target: u16) -> Result<Self> {
        let state = watch::Sender::new(State { target, weather: Weather::Fair, cuts: 0 });
        let mut proxy = Self { state, port: 0 };
        proxy.port = proxy.listen([127, 0, 0, 1].into()).await?;
        Ok(proxy)
    }

    /// Listens on another address as well, and returns its port.
    pub(crate) async fn listen(&self, address: IpAddr) -> Result<u16> {
        let listener = TcpListener::bind((address, 0)).await?;
        let port = listener.local_addr()?.port();
        let state = self.state.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(lead(client, state.subscribe()));
            }
        });
        Ok(port)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn set(&self, weather: Weather) {
        self.state.send_modify(|state| state.weather = weather);
    }

    /// Cuts all connections: some at once, and some within the next message. The server executes
    /// the last request, and its client receives no answer.
    pub(crate) fn cut(&self) {
        self.state.send_modify(|state| state.cuts += 1);
    }

    /// Cuts all connections; new ones lead to the other server.
    pub(crate) fn switch_to(&self, target: u16) {
        self.state.send_modify(|state| (state.target, state.cuts) = (target, state.cuts + 1));
    }
}

async fn lead(client: TcpStream, mut state: watch::Receiver<State>) {
    let at = *state.borrow_and_update();
    // A connection that is opened in a hole hangs there, too.
    if state.wait_for(|now| now.weather != Weather::Hole).await.is_err() {
        return;
    }
    // Without a server, the client's connection ends at once.
    let Ok(server) = TcpStream::connect(("127.0.0.1", at.target)).await else { return };
    if client.set_nodelay(true).and(server.set_nodelay(true)).is_err() {
        return;
    }
    let ((from_client, to_client), (from_server, to_server)) =
        (client.into_split(), server.into_split());
    // When one direction ends, the other one ends as well.
    tokio::select! {
        () = pump(from_client, to_server, state.clone(), at.cuts) => {}
        () = pump(from_server, to_client, state, at.cuts) => {}
    }
}

async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut state: watch::Receiver<State>,
    cuts: u64,
) {
    let mut buffer = vec![0; 16 << 10];
    // This flag says that the connection is cut within the next message.
    let mut in_the_midst = false;
    loop {
        let read = tokio::select! {
            read = from.read(&mut buffer) => read.unwrap_or(0),
            _ = state.wait_for(|now| now.cuts != cuts), if !in_the_midst => {
                if rand::random() {
                    return;
                }
                in_the_midst = true;
                continue;
            }
            // An idle connection is cut after a short time.
            () = tokio::time::sleep(Duration::from_millis(200)), if in_the_midst => return,
        };
        if read == 0 {
            return;
        }
        let weather = state.borrow().weather;
        match weather {
            Weather::Fair => {}
            Weather::Slow(time) => tokio::time::sleep(time).await,
            Weather::Hole => {
                if state.wait_for(|now| now.weather != Weather::Hole).await.is_err() {
                    return;
                }
            }
        }
        let part = if in_the_midst { read / 2 } else { read };
        if to.write_all(&buffer[..part]).await.is_err() || in_the_midst {
            return;
        }
    }
}
