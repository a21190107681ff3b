//! The exit statuses of the program, which its help lists.

use std::io::ErrorKind;
use std::process::ExitCode;

use anyhow::Error;

/// The status when the task, worker, schedule or database does not exist.
pub(crate) const NOT_FOUND: u8 = 3;
/// The status when the task's state does not allow the operation.
pub(crate) const NOT_ALLOWED: u8 = 4;
/// The status when a watched task failed or was cancelled.
pub(crate) const UNHAPPY: u8 = 5;

pub(crate) fn code(error: &Error) -> ExitCode {
    use stepwell::Error as Why;
    let code = match error.downcast_ref::<Why>() {
        Some(
            Why::NotFound(_)
            | Why::UnknownWorker(_)
            | Why::UnknownApproval { .. }
            | Why::UnknownSchedule(_),
        ) => NOT_FOUND,
        Some(Why::NotAllowed { .. } | Why::AlreadyDecided { .. }) => NOT_ALLOWED,
        _ if error.is::<crate::connect::NoDatabase>() => NOT_FOUND,
        _ => 1,
    };
    ExitCode::from(code)
}

pub(crate) fn is_broken_pipe(error: &Error) -> bool {
    error
        .downcast_ref::<std::io::Error>()
        .is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
}
