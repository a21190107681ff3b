//! Observation of running tasks: lifecycle events, their history, metrics, traces. The engine knows
//! only the `observer`, which tells all of them.

pub(crate) mod history;
pub(crate) mod lifecycle;
pub(crate) mod measures;
pub(crate) mod notes;
pub(crate) mod observer;
pub(crate) mod trace;
