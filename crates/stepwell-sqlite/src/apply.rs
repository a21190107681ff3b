//! The application of a batch's items, and of the operations that change the database without a
//! batch.

pub(crate) mod circles;
pub(crate) mod claim;
pub(crate) mod history;
pub(crate) mod import;
pub(crate) mod intake;
pub(crate) mod limits;
pub(crate) mod purge;
pub(crate) mod schedules;
pub(crate) mod states;
pub(crate) mod task_types;
pub(crate) mod transition;
pub(crate) mod waits;
pub(crate) mod work;
pub(crate) mod workers;
