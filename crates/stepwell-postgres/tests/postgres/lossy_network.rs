//! A network that drops an answer of the server now and then, with its connection.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use stepwell::Durable;
use stepwell_postgres::{PostgresOptions, PostgresStore};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::database::Database;

/// Of so many answers one is lost: what the server has done by then, it has done.
const LOST: u64 = 25;

/// A way to the server, as long as the runtime lives.
pub(crate) struct LossyNetwork {
    port: u16,
    answers: Arc<AtomicU64>,
}

impl LossyNetwork {
    pub(crate) async fn to(database: &Database) -> Self {
        let url = url::Url::parse(&database.url).unwrap();
        let server = (url.host_str().unwrap().to_owned(), url.port().unwrap_or(5432));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let network = Self { port, answers: Arc::default() };
        let answers = network.answers.clone();
        tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let server = TcpStream::connect(&server).await.unwrap();
                tokio::spawn(lead(client, server, answers.clone()));
            }
        });
        network
    }

    /// A client that reaches the database over it.
    pub(crate) async fn client(&self, database: &Database) -> Durable {
        let mut url = url::Url::parse(&database.url).unwrap();
        url.set_host(Some("127.0.0.1")).unwrap();
        url.set_port(Some(self.port)).unwrap();
        loop {
            let options =
                PostgresOptions::parse(url.as_str()).unwrap().schema(&database.schema).unwrap();
            if let Ok(store) = PostgresStore::connect(options).await {
                return Durable::builder().store(Arc::new(store)).build().await.unwrap();
            }
        }
    }

    /// How many answers were lost.
    pub(crate) fn lost(&self) -> u64 {
        self.answers.load(Ordering::Relaxed) / LOST
    }
}

async fn lead(client: TcpStream, server: TcpStream, answers: Arc<AtomicU64>) {
    client.set_nodelay(true).unwrap();
    server.set_nodelay(true).unwrap();
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let asks = tokio::io::copy(&mut from_client, &mut to_server);
    let answered = async {
        let mut answer = vec![0; 1 << 16];
        loop {
            let length = from_server.read(&mut answer).await.unwrap_or(0);
            if length == 0 || answers.fetch_add(1, Ordering::Relaxed) % LOST == LOST - 1 {
                return;
            }
            if to_client.write_all(&answer[..length]).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        _ = asks => {}
        () = answered => {}
    }
}
