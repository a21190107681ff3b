//! A disk that misbehaves, for tests that show what a store keeps.
//!
//! ```text
//!   a store ──▶ the kernel ──▶ Disk (FUSE, in the test's own process) ──▶ Recording
//!                                 │                                          │
//!                                 └─ fails the n-th write or sync            └─ what is left after
//!                                                                               a power cut
//! ```
//!
//! [`Disk`] is a folder whose files live in memory. A disk records each change and each sync. A
//! [`Recording`] determines what a power cut may leave at each moment. All synced data survives,
//! and so does any part of the other data, sector by sector. The program runs once, and a test can
//! try each of its moments.
//!
//! Mounting needs `/dev/fuse`, and either the right to mount or `fusermount3` (Debian's package
//! `fuse3`).

#![forbid(unsafe_code)]
#![cfg(target_os = "linux")]

mod disk;
mod recording;

pub use disk::{Disk, Fault};
pub use fuser::Errno;
pub use recording::{Files, Recording, Survivors};
