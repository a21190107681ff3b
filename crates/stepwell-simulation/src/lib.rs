//! Stepwell in a simulated world.
//!
//! A seed decides a history: what tasks do ([`script`]), what clients ask, what goes wrong and when
//! ([`plan`]). The history is played (`history`) in a world of [`stepwell::testing`], on virtual
//! time, and an oracle that knows nothing of the engine's state (`ledger`, `owners`, `ending`) says
//! whether the guarantees held.
//!
//! `cargo xtask sim --histories 100000` plays many of them, `cargo xtask sim --seed 7` shows one.

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
