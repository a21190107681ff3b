//! The files of a database: how they are opened and migrated, and what keeps them in order.

pub(crate) mod checkpoint;
pub(crate) mod identity;
pub(crate) mod log;
pub(crate) mod migrate;
pub(crate) mod open;
