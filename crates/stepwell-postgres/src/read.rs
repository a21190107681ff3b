//! Queries, which change nothing, and the pages of their lists.

mod filter;
mod journal;
mod lists;
pub(crate) mod page;
mod tasks;
mod waits;
