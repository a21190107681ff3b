//! The HTTP API of Stepwell, its live event stream, and a dashboard: an axum
//! [`Router`](axum::Router) to nest into any application, or to [serve](Server::bind) by itself,
//! which `stepwell serve` does.
//!
//! ```no_run
//! use stepwell::Durable;
//! use stepwell_server::Server;
//!
//! # async fn example() -> anyhow::Result<()> {
//! let client = Durable::builder().keep_history().build().await?;
//! let app: axum::Router = axum::Router::new()
//!     // The application's own routes.
//!     .nest("/stepwell", Server::new(client).token("0123456789abcdef0123456789abcdef")?.router());
//! # Ok(())
//! # }
//! ```
//!
//! ```text
//!   request ─▶ guard: Host, Origin, sizes, time ─▶ access: who? ─┐
//!   ┌────────────────────────────────────────────────────────────┘
//!   └─▶ Call: may they? which tasks are theirs? ─▶ API | pages
//! ```
//!
//! # Safe by default
//! Without a token or an [`Access`] of your own, everyone who reaches the router may do everything.
//! [`Server::bind`] then refuses all addresses except loopback. With a token, a browser logs in and
//! receives a session. A session ends after 12 hours, when the server ends, or when its user logs
//! out.
//!
//! A client that tries wrong tokens has to wait longer each time. Clients are distinguished by
//! their addresses. Another program that serves the router must serve it with
//! [`into_make_service_with_connect_info::<SocketAddr>()`](axum::Router::into_make_service_with_connect_info).
//!
//! A browser is answered only under known names: `localhost`, addresses, and the names that
//! [`Server::host`] received. Requests from pages of other origins are refused, whatever they
//! carry.
//!
//! # Events
//! The stream of events is the [history](stepwell::Client::history). The stream holds
//! what clients and workers did that were built with `keep_history()`, and nothing from others.

#![forbid(unsafe_code)]

mod access;
mod api;
mod app;
mod call;
mod connections;
mod counts;
mod extract;
mod feed;
mod guard;
mod history;
mod metrics;
mod pages;
mod problem;
mod sample;
mod server;
mod sessions;

pub use access::{Access, Identity, Operation, WeakToken};
pub use problem::Problem;
pub use server::{Bound, ServeError, Server};
pub use stepwell::{Scope, async_trait};

/// The examples of the page that crates.io shows.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
