//! Batches: what is sent for one, and what its answer says.

mod answer;
mod arguments;
mod claims;
mod classify;
mod commit;
mod recover;
