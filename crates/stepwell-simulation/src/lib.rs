//! Stepwell in a simulated world.
//!
//! A seed decides a history: what tasks do ([`script`]), what clients ask, and what goes wrong at
//! which time ([`plan`]). The history is played (`history`) in a world of [`stepwell::testing`], on
//! virtual time. An oracle that knows nothing of the engine's state (`ledger`, `owners`, `ending`)
//! checks whether the guarantees held.
//!
//! `cargo xtask sim --histories 100000` plays many histories, and `cargo xtask sim --seed 7` shows
//! one.

#![forbid(unsafe_code)]

mod database;
mod ending;
mod files;
mod flow;
mod history;
mod ledger;
mod owners;
mod params;
pub mod plan;
mod postgres;
pub mod script;
mod tasks;

pub use database::Backend;
pub use history::{Played, play, shrink};
pub use postgres::Postgres;
