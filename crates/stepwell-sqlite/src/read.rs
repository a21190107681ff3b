//! Queries, which change nothing. Most of them run on the reader's connection.

pub(crate) mod history;
pub(crate) mod labels;
pub(crate) mod query;
pub(crate) mod queues;
pub(crate) mod schedules;
pub(crate) mod task_types;
pub(crate) mod waits;
pub(crate) mod workers;
