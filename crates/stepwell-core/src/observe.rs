//! Observation of running tasks: lifecycle events, their history, metrics, traces.

pub(crate) mod history;
pub(crate) mod lifecycle;
pub(crate) mod measures;
pub(crate) mod notes;
pub(crate) mod trace;
