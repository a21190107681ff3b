//! The command `stepwell serve`.

use anyhow::Result;
use stepwell_server::{Bound, Server};

use crate::args::Serve;
use crate::connect;
use crate::screen::{BOLD, Screen};

pub(crate) async fn run(url: &str, options: Serve, screen: &Screen) -> Result<()> {
    let Serve {
        listen,
        token,
        hosts,
        secure_cookies,
        behind_proxy,
        max_connections,
        max_connections_per_address,
    } = options;
    // The tasks that the API spawns belong into the history as well.
    let client = connect::existing(url)?.keep_history().build().await?;
    let mut server = hosts.into_iter().fold(Server::new(client), Server::host);
    server = server
        .max_connections(max_connections)
        .max_connections_per_address(max_connections_per_address);
    if secure_cookies {
        server = server.secure_cookies();
    }
    if behind_proxy {
        server = server.behind_proxy();
    }
    if let Some(token) = token.filter(|token| !token.is_empty()) {
        server = server.token(&token)?;
    }
    let bound = server.bind(listen).await?;
    say(&bound, screen)?;
    bound.serve(interrupted()).await;
    Ok(())
}

pub(crate) fn say(bound: &Bound, screen: &Screen) -> Result<()> {
    let address = bound.address();
    screen.show(&serde_json::json!({ "listening": address }), || {
        format!("the dashboard is at {BOLD}http://{address}{BOLD:#}, its API at http://{address}/api/v1/openapi.json")
    })
}

/// Waits until the user or the system asks the program to end.
pub(crate) async fn interrupted() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        if let Ok(mut terminated) = signal(SignalKind::terminate()) {
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = terminated.recv() => {}
            }
            return;
        }
    }
    let _ = tokio::signal::ctrl_c().await;
}
