//! The writes that go beside batches: imports, the history, descriptions of task types.

mod history;
mod import;
mod task_types;
