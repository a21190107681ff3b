//! The suite that every store passes. Anyone can run it against their own.
//!
//! A store is a [`Store`](stepwell_core::Store); its words are explained there. To run the suite,
//! say how it gets at one, and name that in a test file of the store's crate:
//!
//! ```no_run
//! use std::sync::Arc;
//! use stepwell_conformance::{Backend, Clock};
//! use stepwell_core::{MemoryStore, Store};
//!
//! struct Memory;
//!
//! impl Backend for Memory {
//!     // Whatever has to live as long as the data: a folder, a container, a schema that is dropped.
//!     type Database = std::sync::OnceLock<MemoryStore>;
//!
//!     async fn create(&self) -> Self::Database {
//!         Self::Database::new()
//!     }
//!
//!     async fn connect(&self, database: &Self::Database, clock: Arc<Clock>) -> Arc<dyn Store> {
//!         Arc::new(database.get_or_init(|| MemoryStore::new(clock)).connect())
//!     }
//!
//!     fn refuses_duplicates(&self) -> bool {
//!         false
//!     }
//! }
//!
//! stepwell_conformance::suite!(Memory);
//! ```
//!
//! This makes a test for each of the [`points`]. The backend is made anew for each of them. Points
//! run side by side, and so their databases must not know of each other. A point that takes longer
//! than a minute fails.
//!
//! [`model`](points::model) tries as many sequences as `CONFORMANCE_CASES` says, and otherwise
//! 1000, or fewer when ten seconds have passed.
//!
//! # The contract
//!
//! What stands behind a point is the test that checks it.
//!
//! ## Batches
//!
//! 1. **A batch is applied as a whole or not at all.** One that the store refuses (it fails, or a
//!    task's id or a place in a journal is taken) leaves no trace, and the next one is as good as
//!    ever. `atomicity`
//! 2. **A refused item leaves no trace either**, and does not undo the others: a transition of a
//!    run that does not own its task, a command that the task's state does not allow, a further
//!    emission, a message to a finished task, a key that is taken, an unknown worker.
//!    `refused_items`
//! 3. **A batch has an order**: transitions, commands, events, messages, spawns, schedules,
//!    signals, claims; each list in its own. Each item sees what came before it. It holds one
//!    transition of each run at most. `order_within_a_batch`
//! 4. **Transitions write before they look.** A task that suspends finds what another transition of
//!    its batch brings, wherever that stands. `transitions_write_before_they_look`
//!
//! ## Ownership
//!
//! 5. **Only the owner writes.** A transition is refused unless its task is running under its run;
//!    refused with its entries, spawns, events, messages, waits, and what it received. `fencing`,
//!    `fencing_of_mailboxes`
//! 6. **A lost lease is lost for good**: once another run has the task, nothing of the old one is
//!    accepted. `fencing_after_a_lost_lease`
//! 7. **A claim is exclusive.** However many handles claim at once, no task goes to two of them,
//!    and none is lost. `exclusive_claims`
//! 8. **Claims have an order**: the queues as they are named; of each the highest priority, then
//!    what became ready first, then the lowest id. `claim_order`
//! 9. **A claim gets only what it asks for**: its queues, the types that its worker knows, its
//!    limit; and a worker that is not registered gets nothing. `claim_filters`
//! 10. **A task comes as it was spawned**, and each claim that does not resume it makes a new run:
//!     a database may have lost an earlier claim. `claimed_tasks`
//! 11. **A suspended task keeps its run for the worker that ran it**, and comes to it without its
//!     journal and its waits. Another worker gets a new run, and both. `resumption`
//! 12. **A task may begin in the commit that inserts it**, when its `claim_by` is registered. That
//!     counts as any claim. `eager_start`
//!
//! ## Spawns
//!
//! 13. **Of the tasks of a type and scope that have the same key, one is spawned**, and all others
//!     get that one, until it is deleted. `idempotency_keys`. A key of one scope is never that of
//!     another. `keys_of_scopes`, `turns_of_scopes`
//! 14. **Also when many handles spawn them at once**, and in any order: no batch fails.
//!     `idempotency_races`
//! 15. **A spawn may be one with a task that waits**: of its type and concurrency key, pending,
//!     never claimed. It is reused, or rejects the spawn, or is replaced; of many spawns at once,
//!     one makes the task. `coalescing_spawns`, `coalescing_replaces`, `coalescing_under_races`. A
//!     child's entry is in its parent's journal when the child was created, and only then.
//!     `keyed_children`, `keyed_children_under_races`
//!
//! ## Waits
//!
//! 16. **An event reaches all that await it**, suspended, running, or only later. Its first
//!     emission stands. `events`, `events_wake_once`
//! 17. **An event of a queue is seen by that queue's tasks.** One of all queues is another event,
//!     and comes before it. `events_of_queues`
//! 18. **Messages come in order, and each is received once**; at most as many are given as there
//!     are waits, and each stays until it is received. `messages`, `messages_from_many`
//! 19. **A mailbox accepts messages until its task ends**, and is there until the task completes or
//!     is removed: neither a failed attempt nor a failed task loses what it had not received.
//!     `mailboxes`, `mailboxes_of_retried_tasks`
//! 20. **A parent learns how a child ended**, suspended, running, or only later; and of a child
//!     that is gone, that it is. `children`, `children_of_running_parents`. So does a task that was
//!     answered with another's child, or a client's task, for its own. `joining_others`
//! 21. **A task is suspended only when there is nothing to do.** It stays running when something is
//!     there, its time has come, or it was asked to cancel. `suspension`
//! 22. **A suspended task has given up its run**, and its attempt does not count. `suspended_tasks`
//! 23. **No wake-up is lost**, whatever is committed at the same time: a task either stays running
//!     and is given what has arrived, or is claimable. A running task that something arrived for is
//!     told to its worker. `wake_ups_by_events`, `wake_ups_by_messages`, `wake_ups_among_tasks`,
//!     `wake_ups_by_children`, `wake_ups_by_others`, `wake_ups_by_cancellation`,
//!     `wake_ups_of_running_tasks`, `wake_ups_in_circles`. A look finds what has arrived, whenever
//!     the wait began, until the wait is gone. `looks`, `looks_under_races`. A task that would wait
//!     for ever for the ends of others, which wait in turn for its own, stays running and is told
//!     so. `circles`, `ways_out_of_circles`, `circles_under_races`
//!
//! ## Time
//!
//! 24. **Times are the runtime's**, and nothing is early by a microsecond. A claim says when
//!     something is due next. `timers`
//! 25. **A delayed start waits**, whatever its priority. `delayed_starts`
//! 26. **A failed attempt is followed by another one at its time**, counted, without the waits of
//!     the last. `retry_delays`
//! 27. **A task that is late is cancelled**: not claimed in time, or not ended.
//!     `cancellation_policies`
//!
//! ## Workers
//!
//! 28. **A worker lives until another one declares it dead**, which counts only if the worker has
//!     shown no sign of life since it was watched. Then its tasks are given back, and their
//!     attempts do not count. `leases`, `heartbeats`, `dead_workers`
//! 29. **Crashes are counted apart from attempts.** A task fails after so many in a row between
//!     which nothing was journaled; before that it is a suspect, of which a claim gets one at most.
//!     `quarantine`, `suspects`
//! 30. **A worker that stops gives its tasks back**, not counted, and gets no others.
//!     `deregistration`
//! 31. **Workers are known**: what they serve, what they run, when they last showed that they are
//!     alive; one that is told to stop learns of it with its next sign of life. `worker_registry`
//! 32. **What waits for a worker that knows it can be seen.** `waiting_types`
//!
//! ## Schedules
//!
//! 33. **A schedule changes from the version that was seen**, or not at all: of those who come to
//!     one tick at the same time, one changes it. `schedules`, `schedules_under_races`,
//!     `schedules_in_any_order`
//! 34. **A change and the tasks that it spawns are one.** `scheduled_tasks`, `schedules_are_atomic`
//! 35. **Where tasks of a schedule must not overlap**, none is spawned before the last one has
//!     ended. `schedules_without_overlap`
//!
//! ## Commands
//!
//! 36. **Cancellation is at once where nobody runs**, and a request where somebody does. A task
//!     that was asked to cancel is not tried again. `cancellation`
//! 37. **Cancellation goes down all generations.** `cancellation_of_families`,
//!     `cancellation_of_generations`
//! 38. **A failed or cancelled task can be run again**, from its journal, its attempts counted from
//!     1. `retry_command`
//! 39. **A finished task can be deleted**, with all that belongs to it, unless its parent, or a
//!     task that was answered with it, has not completed, or another task waits for it. Nor is it
//!     purged then. `delete_command`, `purging`, `needed_tasks`, `answered_tasks`. A family that
//!     has failed can be removed all the same. `purged_families`, `answered_with_each_other`
//! 40. **A suspended task can be woken.** `wake_command`
//! 41. **A task with something to undo is claimed once more before it ends**, failed or cancelled,
//!     whatever ends it; and with its attempts used up it ends. `compensation`,
//!     `compensation_whatever_ends_it`, `compensation_attempts`, `compensation_tells_the_attempt`
//!
//! ## What is kept
//!
//! 42. **Payloads come back byte for byte**: of 4 MiB, with all that JSON allows.
//!     `payloads_come_back`
//! 43. **Failures, names, headers, entries and waits come back as they were**, and no name is taken
//!     for another one. `failures_come_back`, `odd_names`, `entries_come_back`. Entries leave a
//!     journal when others take their place. `superseded_entries`. And a task that is put into
//!     another store is there as it was. `importing`
//! 44. **Times come back to the microsecond**, however far away they are. `times_come_back`
//! 45. **Lists hold what passes their filter**, newest first, a page at a time; how tasks ended is
//!     told of many at once, and what they wait for by the beginnings of its names. `lists`,
//!     `labels`, `ends`, `waits`. Those of a scope hold nothing of others. `lists_of_scopes`
//!
//! ## The history
//!
//! 46. **The history is in the order in which it was recorded**, whole or of one task, and goes
//!     with its tasks. No number is given twice. `histories`
//! 47. **Whoever reads on behind the last number misses nothing**, however many record.
//!     `histories_of_many`
//! 48. **What is known of a task type is kept**, as it was described last. `task_types`
//!
//! ## Several handles
//!
//! 49. **A handle learns of what others wrote**: of work, and of tasks that ended; not of claims in
//!     vain. `changes`
//! 50. **Clients that work at once do not harm each other.** Every task is there once, its journal
//!     has no gaps and holds all that was accepted, nothing ends twice. `concurrent_clients`
//!
//! ## Answers
//!
//! 51. **No answer holds more than [`ANSWER_BYTES`](stepwell_core::ANSWER_BYTES) and its last
//!     item.** The rest is on the next page, comes with another look, or is read by itself; nothing
//!     of it is lost, or comes twice. `long_lists`, `long_ends`, `long_waits`, `long_mailboxes`,
//!     `long_histories`, `long_schedules`, `long_facts`, `long_journals`
//!
//! ## All else
//!
//! 52. **A store does what the reference model does**, the store in memory, whatever is asked of
//!     it. `model`, `model_with_several_handles`

#![forbid(unsafe_code)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a suite reports by panicking"
)]

mod backend;
mod clock;
mod handle;
mod make;
mod model;
pub mod points;
mod run;
mod setup;
mod suite;

pub use backend::Backend;
pub use clock::Clock;
pub use run::run;
