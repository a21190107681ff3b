//! Identifiers: each is a UUID v7, so that ids sort by the time at which they were made.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::base::runtime::Runtime;
use crate::base::time::Timestamp;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// Returns a new id, made from the runtime's clock and randomness.
            pub fn new(runtime: &dyn Runtime) -> Self {
                Self(new_uuid(runtime))
            }

            /// Returns the time at which the id was made, to the millisecond, by the clock of its
            /// maker.
            ///
            /// The result is `None` for an id that is not a UUID v7.
            pub fn made_at(&self) -> Option<Timestamp> {
                let (seconds, nanos) = self.0.get_timestamp()?.to_unix();
                let millis = i64::try_from(seconds).ok()? * 1_000 + i64::from(nanos / 1_000_000);
                Timestamp::from_millisecond(millis).ok()
            }

            /// Returns the id as a UUID.
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
    /// The id of a task, which never changes.
    TaskId
}
id! {
    /// The id of a run, which is its fencing token: a store refuses every write of a run that no
    /// longer owns its task.
    RunId
}
id! {
    /// The id of a worker: a loop that claims and executes tasks.
    WorkerId
}
id! {
    /// The id of a schedule's state between two changes.
    ScheduleVersion
}

/// Makes a UUID v7 from the runtime's clock and randomness.
///
/// The first 12 random bits of the UUID hold the fraction of the millisecond, as RFC 9562 allows
/// (section 6.2, method 3). Thousands of tasks are spawned within one millisecond, and stores keep
/// tasks in the order of their ids. So tasks that were spawned one after the other lie side by
/// side, and a claim touches few pages.
pub(crate) fn new_uuid(runtime: &dyn Runtime) -> Uuid {
    // A UUID holds no time before 1970: a clock that is so wrong gives ids that are the oldest.
    let micros = u64::try_from(runtime.now().as_microsecond()).unwrap_or(0);
    let fraction = u16::try_from((micros % 1_000) * 4_096 / 1_000).unwrap_or(0);
    let mut rest = [0; 10];
    rest[..2].copy_from_slice(&fraction.to_be_bytes());
    rest[2..].copy_from_slice(&runtime.random().to_be_bytes());
    uuid::Builder::from_unix_timestamp_millis(micros / 1_000, &rest).into_uuid()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicI64, Ordering};
    use std::time::Duration;

    use super::*;
    use crate::base::runtime::BoxFuture;
    use crate::base::time::from_micros;

    /// A runtime whose clock is set by a test, and whose randomness is the same at each call.
    struct Fixed(AtomicI64, u64);

    impl Runtime for Fixed {
        fn now(&self) -> Timestamp {
            from_micros(self.0.load(Ordering::Relaxed))
        }

        fn sleep(&self, _: Duration) -> BoxFuture<'static, ()> {
            unreachable!("an id needs no timer")
        }

        fn spawn(&self, _: BoxFuture<'static, ()>) {
            unreachable!("an id needs no future")
        }

        fn random(&self) -> u64 {
            self.1
        }
    }

    #[test]
    fn ids_sort_by_the_microsecond_in_which_they_were_made() {
        const START: i64 = 1_767_225_600_000_000;
        let (late, early) = (Fixed(AtomicI64::new(0), 0), Fixed(AtomicI64::new(0), u64::MAX));
        for micros in 0..2_000 {
            early.0.store(START + micros, Ordering::Relaxed);
            late.0.store(START + micros + 1, Ordering::Relaxed);
            let (before, after) = (TaskId::new(&early), TaskId::new(&late));
            assert!(before < after, "{before} {after}");
            assert_eq!(before.as_uuid().get_version_num(), 7);
            let millis = from_micros((START + micros) / 1_000 * 1_000);
            assert_eq!(before.made_at(), Some(millis));
        }
    }
}
