//! Batches: what is sent for one, and what its answer says.

pub(crate) mod answer;
pub(crate) mod arguments;
pub(crate) mod classify;
mod commit;
mod recover;

pub(crate) use commit::{WAYS_GIVEN, pause};
