//! The writer's memory between batches: its statements, the ends of journals, and its lock file.

pub(crate) mod ends;
pub(crate) mod liveness;
pub(crate) mod prepared;
