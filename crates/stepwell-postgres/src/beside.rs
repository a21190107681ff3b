//! The writes that go beside batches: imports, purges, the history, descriptions of task types.

mod history;
mod import;
mod purge;
mod task_types;
