//! Gates: nothing starts before all that was delivered earlier is durable.

use std::any::Any;
use std::collections::VecDeque;
use std::fmt;
use std::task::Waker;

use crate::base::journal::Key;
use crate::engine::run::state::RunState;
use crate::engine::run::state::stage::Stage;
use crate::store::NewTask;

/// The work of the store for an operation, within the commit of what was delivered earlier.
pub(crate) enum Work {
    /// Work of the user's, of a type that only the backend knows.
    Transaction(Box<dyn Any + Send>),
    /// The spawn of a child that may exist already.
    Spawn(Box<NewTask>),
}

impl fmt::Debug for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Transaction(_) => "Transaction",
            Self::Spawn(_) => "Spawn",
        })
    }
}

/// The operations that open gates let through.
pub(crate) enum Opened {
    /// The wakers of closures.
    Closures(Vec<Waker>),
    /// One operation whose work the store does.
    Work(Key, Work),
}

/// The shut gates, in the order in which their barriers become durable.
///
/// Operations of some of them may be gone.
#[derive(Default)]
pub(super) struct Gates {
    pub(super) closures: VecDeque<(u64, Key)>,
    /// Gates of steps whose work the store does.
    pub(super) works: VecDeque<(u64, Key)>,
}

impl Gates {
    /// Queues the gate of an operation, and returns the operation's stage.
    pub(super) fn shut(&mut self, key: &Key, work: Option<Work>, delivered: u64) -> Stage {
        // A spawn runs no code, and is committed along with what was delivered before it.
        let after = if let Some(Work::Spawn(_)) = work { 0 } else { delivered };
        let gates = if work.is_some() { &mut self.works } else { &mut self.closures };
        gates.push_back((after, key.clone()));
        Stage::Gate { after, work }
    }
}

/// Returns the next of these gates whose barrier is durable.
fn next(gates: &mut VecDeque<(u64, Key)>, durable: u64) -> Option<(u64, Key)> {
    gates.front().filter(|(after, _)| *after <= durable)?;
    gates.pop_front()
}

impl RunState {
    /// Opens the gates whose barrier is durable, and returns the wakers of their closures.
    ///
    /// When no gate of a closure opens and no commit is on its way (`idle`), it takes one operation
    /// whose work the store does with the next commit.
    pub(crate) fn open_gates(&mut self, idle: bool) -> Opened {
        let shut = self.operations.counts().gates;
        if shut == 0 || self.is_replaying() || self.control.is_some() {
            return Opened::Closures(Vec::new());
        }
        let durable = self.written.durable_seq();
        let (mut wakers, mut has_opened) = (Vec::new(), false);
        while let Some((barrier, key)) = next(&mut self.gates.closures, durable) {
            if let Some(waker) = self.operations.open(&key, barrier) {
                wakers.extend(waker);
                has_opened = true;
            }
        }
        while !has_opened
            && idle
            && let Some((barrier, key)) = next(&mut self.gates.works, durable)
        {
            if let Some(work) = self.operations.begin_work(&key, barrier) {
                return Opened::Work(key, work);
            }
        }
        Opened::Closures(wakers)
    }
}
