//! Identifiers. Each is a UUID v7, so that ids sort by the time at which they were made.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::runtime::Runtime;
use crate::time::Timestamp;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// A new id, from the runtime's clock and randomness.
            pub fn new(runtime: &dyn Runtime) -> Self {
                Self(new_uuid(runtime))
            }

            /// When it was made, by the clock of whoever made it, to the millisecond; `None` for one that is no UUID v7.
            pub fn made_at(&self) -> Option<Timestamp> {
                let (seconds, nanos) = self.0.get_timestamp()?.to_unix();
                let millis = i64::try_from(seconds).ok()? * 1_000 + i64::from(nanos / 1_000_000);
                Timestamp::from_millisecond(millis).ok()
            }

            /// The id as a UUID.
            pub const fn as_uuid(&self) -> &Uuid {
                &self.0
            }
        }

        impl From<Uuid> for $name {
            fn from(uuid: Uuid) -> Self {
                Self(uuid)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Uuid::parse_str(text).map(Self)
            }
        }
    };
}

id! {
    /// Names one task, for good.
    TaskId
}
id! {
    /// Names one run of a task. It is the fencing token: a store refuses every write of a run that no longer
    /// owns its task.
    RunId
}
id! {
    /// Names one worker: a process's loop that claims and executes tasks.
    WorkerId
}
id! {
    /// Names what a schedule is between one change of it and the next.
    ScheduleVersion
}

/// A UUID v7 from the runtime's clock and randomness.
pub(crate) fn new_uuid(runtime: &dyn Runtime) -> Uuid {
    let millis = u64::try_from(runtime.now().as_millisecond()).unwrap_or(0);
    let mut random = [0; 10];
    random[..8].copy_from_slice(&runtime.random().to_le_bytes());
    random[8..].copy_from_slice(&runtime.random().to_le_bytes()[..2]);
    uuid::Builder::from_unix_timestamp_millis(millis, &random).into_uuid()
}
