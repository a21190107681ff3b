//! The suite that every store passes. Anyone can run it against their own store.
//!
//! A store is a [`Store`](stepwell_core::Store), whose documentation explains its words. To run the
//! suite, implement a [`Backend`] for the store, and name the backend in a test file of the store's
//! crate:
//!
//! ```no_run
//! use std::sync::Arc;
//! use stepwell_conformance::{Backend, Clock};
//! use stepwell_core::{MemoryStore, Store};
//!
//! struct Memory;
//!
//! impl Backend for Memory {
//!     // What has to live as long as the data: a folder, a container, a schema that is dropped.
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
//! The macro makes a test for each of the [`points`]. Each test makes its own backend. Points run
//! in parallel, so their databases must be independent of each other. A point that takes longer
//! than a minute fails.
//!
//! [`model`](points::model) tries the number of sequences in `CONFORMANCE_CASES`. Without this
//! variable, it tries 1,000 sequences, or fewer when ten seconds have passed.
//!
//! # The contract
//!
//! The names after a point are the tests that check it.
//!
//! ## Batches
//!
//! 1. **A batch is applied as a whole or not at all.** A batch that the store refuses leaves no
//!    trace, and the next one is unaffected. The store refuses a batch when the store fails, or
//!    when a task's id or a place in a journal is taken. `atomicity`
//! 2. **A refused item leaves no trace either**, and does not undo the others. Refused items are: a
//!    transition of a run that does not own its task, a command that the task's state does not
//!    allow, a further emission, a message to a finished task, a key that is taken, an unknown
//!    worker. `refused_items`
//! 3. **A batch has an order**: transitions, commands, events, messages, spawns, schedules,
//!    signals, claims. Each list has its own order. Each item sees what came before it. A batch
//!    holds at most one transition of each run. `order_within_a_batch`
//! 4. **Transitions write before they look.** A task that suspends finds what another transition of
//!    its batch brings, wherever that transition stands. `transitions_write_before_they_look`
//!
//! ## Ownership
//!
//! 5. **Only the owner writes.** A transition is refused unless its task is running under its run.
//!    It is refused with its entries, spawns, events, messages, waits, and what it received.
//!    `fencing`, `fencing_of_mailboxes`
//! 6. **A lost lease is lost for good.** Once another run has the task, nothing of the old run is
//!    accepted. `fencing_after_a_lost_lease`
//! 7. **A claim is exclusive.** However many handles claim at once, no task goes to two of them,
//!    and no task is lost. `exclusive_claims`
//! 8. **Claims have an order.** The queues come in the order in which they are named. Within a
//!    queue, the highest priority comes first, then what became ready first, then the lowest id.
//!    `claim_order`
//! 9. **A claim returns only what it asks for**: tasks of its queues, of the types that its worker
//!    knows, up to its limit. A worker that is not registered receives nothing. `claim_filters`
//! 10. **A task comes as it was spawned.** Each claim that does not resume a task makes a new run,
//!     because a database may have lost an earlier claim. `claimed_tasks`
//! 11. **A suspended task keeps its run for the worker that ran it**, and comes to that worker
//!     without its journal and its waits. Another worker receives a new run, with the journal and
//!     the waits. `resumption`
//! 12. **A task may begin in the commit that inserts it**, when its `claim_by` is registered. The
//!     start counts like any claim. `eager_start`
//!
//! ## Spawns
//!
//! 13. **Of the tasks of a type and scope that have the same key, one is spawned.** All other
//!     spawns are answered with that task, until it is deleted. `idempotency_keys`. A key of one
//!     scope is never that of another. `keys_of_scopes`, `turns_of_scopes`
//! 14. **The same holds when many handles spawn them at once**, and in any order: no batch fails.
//!     `idempotency_races`
//! 15. **A spawn may coalesce with a task that waits.** That task has the same type and concurrency
//!     key, is pending, and was never claimed. The task is reused, or it rejects the spawn, or it
//!     is replaced. Of many spawns at once, one makes the task. `coalescing_spawns`,
//!     `coalescing_replaces`, `coalescing_under_races`. A child's entry is in its parent's journal
//!     when the child was created, and only then. `keyed_children`, `keyed_children_under_races`
//!
//! ## Waits
//!
//! 16. **An event reaches every task that awaits it**, suspended, running, or only later. Its first
//!     emission stands. `events`, `events_wake_once`
//! 17. **An event of a queue is seen by that queue's tasks.** One of all queues is another event,
//!     and comes before it. `events_of_queues`
//! 18. **Messages come in order, and each is received once.** A look returns at most as many
//!     messages as there are waits, and each message stays until it is received. `messages`,
//!     `messages_from_many`
//! 19. **A mailbox accepts messages until its task ends.** The mailbox exists until the task
//!     completes or is removed. A failed attempt or a failed task does not lose the messages that
//!     it had not received. `mailboxes`, `mailboxes_of_retried_tasks`
//! 20. **A parent learns how a child ended**, whether it is suspended, running, or asks only later.
//!     It also learns that a child no longer exists. `children`, `children_of_running_parents`. The
//!     same holds for a task whose spawn was answered with another task's child or a client's task.
//!     `joining_others`
//! 21. **A task is suspended only when there is nothing to do.** It stays running when something
//!     has arrived, when its time has come, or when it was asked to cancel. `suspension`
//! 22. **A suspended task has given up its run**, and its attempt does not count. `suspended_tasks`
//! 23. **No wake-up is lost**, whatever is committed at the same time. A task either stays running
//!     and receives what has arrived, or is claimable. When something arrives for a running task,
//!     its worker is notified. `wake_ups_by_events`, `wake_ups_by_messages`,
//!     `wake_ups_among_tasks`, `wake_ups_by_children`, `wake_ups_by_others`,
//!     `wake_ups_by_cancellation`, `wake_ups_of_running_tasks`, `wake_ups_in_circles`. A look finds
//!     what has arrived, whenever the wait began, until the wait is gone. `looks`,
//!     `looks_under_races`. A task must not wait forever for the ends of others that wait in turn
//!     for its own end. Such a task stays running, and its facts say so. `circles`,
//!     `ways_out_of_circles`, `circles_under_races`
//!
//! ## Time
//!
//! 24. **Times are the runtime's**, and nothing is early by a microsecond. A claim says when
//!     something is due next. `timers`
//! 25. **A delayed start waits**, whatever its priority. `delayed_starts`
//! 26. **A failed attempt is followed by another one at its time.** The new attempt is counted, and
//!     has no waits of the last one. `retry_delays`
//! 27. **A task that is late is cancelled**: one that was not claimed in time, or has not ended in
//!     time. `cancellation_policies`
//!
//! ## Workers
//!
//! 28. **A worker lives until another one declares it dead.** The declaration counts only if the
//!     worker has sent no heartbeat since it was watched. The tasks of a dead worker become pending
//!     again, and their attempts do not count. `leases`, `heartbeats`, `dead_workers`
//! 29. **Crashes are counted apart from attempts.** A task fails after a number of crashes in a row
//!     between which nothing was journaled. Before that it is a suspect, and a claim returns at
//!     most one suspect. `quarantine`, `suspects`
//! 30. **A worker that stops releases its tasks.** Their attempts do not count, and the worker
//!     receives no others. `deregistration`
//! 31. **Workers are known**: what they serve, what they run, and when they last sent a heartbeat.
//!     A worker that is told to stop learns it with its next heartbeat. `worker_registry`
//! 32. **The tasks that wait for a worker that knows their type can be seen.** `waiting_types`
//!
//! ## Schedules
//!
//! 33. **A schedule changes from the version that was seen**, or not at all. Of several handles
//!     that come to one tick at the same time, one changes it. `schedules`,
//!     `schedules_under_races`, `schedules_in_any_order`
//! 34. **A change and the tasks that it spawns are one.** `scheduled_tasks`, `schedules_are_atomic`
//! 35. **Where tasks of a schedule must not overlap**, none is spawned before the last one has
//!     ended. `schedules_without_overlap`
//!
//! ## Commands
//!
//! 36. **Cancellation is immediate for a task that does not run**, and a request for one that runs.
//!     A task that was asked to cancel is not tried again. `cancellation`
//! 37. **Cancellation goes down all generations.** `cancellation_of_families`,
//!     `cancellation_of_generations`
//! 38. **A failed or cancelled task can be run again**, from its journal, and its attempts are
//!     counted from 1. `retry_command`
//! 39. **A finished task can be deleted**, with all that belongs to it, unless another task needs
//!     it. It is needed while its parent, or a task that was answered with it, has not completed,
//!     and while another task waits for it. A purge does not remove a needed task either.
//!     `delete_command`, `purging`, `needed_tasks`, `answered_tasks`. A family that has failed can
//!     still be removed. `purged_families`, `answered_with_each_other`
//! 40. **A suspended task can be woken.** `wake_command`
//! 41. **A task with something to undo is claimed once more before it ends**, failed or cancelled,
//!     whatever ends it. It ends when its attempts are used up. `compensation`,
//!     `compensation_whatever_ends_it`, `compensation_attempts`, `compensation_tells_the_attempt`
//!
//! ## What is kept
//!
//! 42. **Payloads come back byte for byte**, up to 4 MiB, with everything that JSON allows.
//!     `payloads_come_back`
//! 43. **Failures, names, headers, entries and waits come back unchanged**, and no name is mistaken
//!     for another one. `failures_come_back`, `odd_names`, `entries_come_back`. Entries leave a
//!     journal when others supersede them. `superseded_entries`. A task that is imported into
//!     another store is unchanged there. `importing`
//! 44. **Times come back to the microsecond**, however far away they are. `times_come_back`
//! 45. **Lists hold what passes their filter**, the newest first, one page at a time. The ends of
//!     many tasks can be read at once, and their waits by the beginnings of the waits' targets.
//!     `lists`, `labels`, `ends`, `waits`. The lists of a scope hold nothing of others.
//!     `lists_of_scopes`
//!
//! ## The history
//!
//! 46. **The history is in the order in which it was recorded**, whole or of one task, and is
//!     removed with its tasks. No number is used twice. `histories`
//! 47. **A reader that goes on after the last number misses nothing**, however many handles record.
//!     `histories_of_many`
//! 48. **The description of a task type is kept**, as it was last written. `task_types`
//!
//! ## Several handles
//!
//! 49. **A handle learns of what others wrote**: of work, and of tasks that ended. It does not
//!     learn of claims that found nothing. `changes`
//! 50. **Clients that work at once do not harm each other.** Every task exists once, its journal
//!     has no gaps and holds all that was accepted, and nothing ends twice. `concurrent_clients`
//!
//! ## Answers
//!
//! 51. **No answer holds more than [`ANSWER_BYTES`](stepwell_core::ANSWER_BYTES) and its last
//!     item.** The rest is on the next page, comes with another look, or is read by itself. None of
//!     the rest is lost, and none comes twice. `long_lists`, `long_ends`, `long_waits`,
//!     `long_mailboxes`, `long_histories`, `long_schedules`, `long_facts`, `long_journals`
//!
//! ## The rules
//!
//! 52. **In each state that a task can be in, a store does what the [rules](stepwell_core::store::rules)
//!     say**: with each command, each end, each way in which a run leaves its task, each number of
//!     crashes, each suspension, each arrival and each spawn. `states_and_commands`,
//!     `states_and_ends`, `states_and_runs`, `states_and_deaths`, `states_and_suspensions`,
//!     `states_and_arrivals`, `states_and_spawns`, `states_and_coalescing`
//!
//! ## Everything else
//!
//! 53. **A store behaves like the reference model**, which is the store in memory, in any sequence
//!     of batches. `model`, `model_with_several_handles`

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

/// The examples of the page that crates.io shows.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
