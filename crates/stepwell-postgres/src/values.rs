//! The engine's types as values of the database.

pub(crate) mod columns;
pub(crate) mod rows;
