//! The connections: how they are made, what they carry, and what their errors mean.

pub(crate) mod call;
pub(crate) mod changes;
pub(crate) mod clock;
pub(crate) mod error;
pub(crate) mod link;
pub(crate) mod options;
pub(crate) mod session;
pub(crate) mod timeline;
