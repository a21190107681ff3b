//! The failures that were delivered to the code, and which of them ended the attempt.
//!
//! The next attempt tries the operations again whose failures ended the one before it. Every other
//! failure stays as it is: the code has handled it, and it may be the reason of a later step.

use crate::base::failure::Failure;
use crate::base::journal::{Key, Kind, Outcome};
use crate::base::name::Name;
use crate::base::time::Timestamp;
use crate::engine::run::outcome::{read_arrival, read_child, read_step};
use crate::engine::run::state::RunState;

/// A failure that was delivered to the code.
struct Failed {
    seq: u64,
    key: Key,
    failure: Failure,
}

impl Failed {
    fn is_quoted_in(&self, text: &str) -> bool {
        let outcome = Outcome::failed(self.failure.clone());
        let error = match self.key.kind {
            Kind::Child => read_child::<()>(&self.key, outcome),
            Kind::Step => read_step(&self.key, outcome),
            _ => read_arrival(&self.key, outcome),
        };
        error.is_err_and(|error| text.contains(&error.to_string()))
    }
}

/// The failures that were delivered, in their order.
#[derive(Default)]
pub(super) struct Failures {
    all: Vec<Failed>,
    /// The number of failures that the code may have handled.
    ///
    /// They were delivered before the code last asked for something.
    handled: usize,
}

impl Failures {
    pub(super) fn delivered(&mut self, seq: u64, key: &Key, failure: Failure) {
        self.all.push(Failed { seq, key: key.clone(), failure });
    }

    /// Notes that the code goes on after the failures that it has seen.
    pub(super) fn asked_for_something(&mut self) {
        self.handled = self.all.len();
    }

    /// Removes the failures whose entries are not durable, and never will be.
    pub(super) fn discard_after(&mut self, seq: u64) {
        self.all.retain(|failed| failed.seq <= seq);
        self.handled = self.handled.min(self.all.len());
    }

    /// Returns the numbers of the failures that ended an attempt with this failure, which carries
    /// some of them.
    ///
    /// The error of the code carries its sources, or quotes the text of a failure. Besides, the
    /// code has not handled a failure after which it asked for nothing more.
    fn sources(&self, failure: &Failure, mut carried: Vec<u64>) -> Vec<u64> {
        let (handled, unhandled) = self.all.split_at(self.handled);
        carried.retain(|seq| self.all.iter().any(|failed| failed.seq == *seq));
        let text = failure.to_string();
        let is_source = |failed: &&Failed| {
            if carried.is_empty() {
                failed.is_quoted_in(&text)
            } else {
                carried.contains(&failed.seq)
            }
        };
        let sources = handled.iter().filter(is_source).chain(unhandled);
        sources.map(|failed| failed.seq).collect()
    }
}

impl RunState {
    /// Sets the sources of an attempt's failure, and returns whether there are any, which are to be
    /// [journaled](Self::mark_failed_attempt).
    pub(crate) fn find_sources(&self, failure: &mut Failure) -> bool {
        let carried = Vec::from(std::mem::take(&mut failure.sources));
        if !self.is_replaying() {
            failure.sources = self.failures.sources(failure, carried).into();
        }
        !failure.sources.is_empty()
    }

    /// Journals the failure of an attempt with its sources.
    pub(crate) fn mark_failed_attempt(&mut self, attempt: u32, failure: Failure, at: Timestamp) {
        let key = Key { kind: Kind::Attempt, name: Name::known("attempt"), ordinal: attempt };
        self.written.write(key, Outcome::failed(failure), at);
    }
}
