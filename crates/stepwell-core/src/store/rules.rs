//! The rules of a task's life, as pure functions that all stores use.

pub(crate) mod circle;
pub(crate) mod crash;
pub(crate) mod ending;
