//! The rules of a task's life, as pure functions that all stores use.
//!
//! A store reads what a rule asks for from its rows, and writes what the rule answers. The guide's
//! page "The states of a task" is written from these functions, and the conformance suite compares
//! every store with them.
//!
//! | file | rule |
//! | --- | --- |
//! | `position` | the positions of a task in its life, and which of them can be reached |
//! | `command` | the commands that a position allows, and their effects |
//! | `ending` | the ends of tasks, and the compensation before an end |
//! | `leaving` | the ways in which a run leaves its task, and the counts of attempts after them |
//! | `crash` | the death of a worker |
//! | `suspension` | the suspension of a task, and the arrival of what it waits for |
//! | `spawn` | the start in the commit that spawns a task, and the tasks that spawns coalesce with |
//! | `circle` | circles of tasks that wait for each other |

pub(crate) mod circle;
pub(crate) mod command;
pub(crate) mod crash;
pub(crate) mod ending;
pub(crate) mod leaving;
#[cfg(test)]
mod page;
pub(crate) mod position;
pub(crate) mod spawn;
pub(crate) mod suspension;

pub use command::{CommandKind, Effect, Verdict, on_cancel, on_command};
pub use crash::{Death, end_after_death, on_death};
pub use ending::{Ending, Undo, attempt_to_undo, on_end};
pub use leaving::{Counts, GivenBack, Leaving, Progress, given_back};
pub use position::{Activity, Cancellation, Claims, Course, End, Live, Position};
pub use spawn::{Queueing, Registration, Start, Started, Turn, is_waiting, starts_with_spawn};
pub use suspension::{Arrival, Found, Suspension, WakeAt, on_arrival, on_suspension};
