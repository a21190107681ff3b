//! The ground floor: locations, errors, threads, and statements with their columns.

pub(crate) mod error;
pub(crate) mod location;
pub(crate) mod rows;
pub(crate) mod threads;
