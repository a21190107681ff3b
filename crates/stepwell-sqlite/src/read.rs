//! Queries, which change nothing. They run on the reader's connection.

pub(crate) mod labels;
pub(crate) mod query;
