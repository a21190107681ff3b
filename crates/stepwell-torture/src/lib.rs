//! Torture: real processes, real files and servers, thousands of kills, and a proof of what really
//! ran.
//!
//! ```text
//!   host ──▶ spawns tasks, kills, stops, restarts …       (host, plan, crew, load)
//!     │         workers ──▶ a line at each start ──▶ ledger, a file beside the database
//!     │         clients ──▶ a line at each answer ─▶
//!     │         the database ──▶ who owned what ──▶ chronicle, a table that triggers fill
//!     └──▶ proof: ledger, chronicle and journals, window by window
//! ```
//!
//! The killed programs are this program in other roles. `cargo xtask torture` is the long run, and
//! the tests play a short one.

#![forbid(unsafe_code)]

mod crew;
mod host;
mod ledger;
mod load;
mod place;
mod plan;
mod programs;
mod proof;
mod work;

pub use host::{Options, Report, run};
pub use plan::Store;
pub use programs::{ClientArgs, WorkerArgs, ask, work};
