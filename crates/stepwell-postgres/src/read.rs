//! Queries, which change nothing, and the pages of their lists.

pub(crate) mod page;
pub(crate) mod query;
