//! A disk that misbehaves, for tests that show what a store keeps.
//!
//! ```text
//!   a store ──▶ the kernel ──▶ Disk (FUSE, in the test's own process) ──▶ Recording
//!                                 │                                          │
//!                                 └─ fails the n-th write or sync            └─ what is left after a power cut
//! ```
//!
//! [`Disk`] is a folder whose files live in memory. It records each change and each sync. From a
//! [`Recording`] follows what a power cut may leave at each moment: all that was synced, and of the
//! rest any part, sector by sector. The program runs once, and each of its moments is tried.
//!
//! Mounting takes `/dev/fuse`, and the right to mount or `fusermount3` (Debian's package `fuse3`).

#![forbid(unsafe_code)]
#![cfg(target_os = "linux")]

mod disk;
mod recording;

pub use disk::{Disk, Fault};
pub use fuser::Errno;
pub use recording::{Files, Recording, Survivors};
