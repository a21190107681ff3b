//! Bugs of how a task executes: deliveries, replays, retries, compensations, and calls into the
//! application's code.

use super::{Bug, fails, hangs};

const SENDING: &str = "crates/stepwell-core/src/engine/run/executor/sending.rs";
const ENDING: &str = "crates/stepwell-core/src/engine/run/executor/ending.rs";
const STATE: &str = "crates/stepwell-core/src/engine/run/state.rs";
const DELIVER: &str = "crates/stepwell-core/src/engine/run/state/deliver.rs";
const FAILURES: &str = "crates/stepwell-core/src/engine/run/state/failures.rs";
const GATES: &str = "crates/stepwell-core/src/engine/run/state/gates.rs";
const REPLAY: &str = "crates/stepwell-core/src/engine/run/state/replay.rs";
const WAITS: &str = "crates/stepwell-core/src/engine/run/state/waits.rs";
const WRITTEN: &str = "crates/stepwell-core/src/engine/run/state/written.rs";
const EXECUTOR: &str = "crates/stepwell-core/src/engine/run/executor.rs";

pub(super) const BUGS: &[Bug] = &[
    Bug {
        name: "barrier-removed",
        breaks: "A step begins before the result that it follows is durable; a crash then runs the \
                 earlier step again, after the later one.",
        guarantee: "2",
        file: GATES,
        find: "if let Some(Work::Spawn(_)) = work { 0 } else { delivered };",
        put: "if work.is_some() { delivered } else { 0 };",
        tests: &[fails(
            "stepwell",
            "crashes",
            "a_crash_before_or_after_any_commit_changes_nothing_in_memory",
        )],
    },
    Bug {
        name: "gates-open-in-a-replay",
        breaks: "While a task is replayed, a step that lost a `select!` starts its closure again.",
        guarantee: "7",
        file: GATES,
        find: "if shut == 0 || self.is_replaying() || self.control.is_some() {",
        put: "if shut == 0 || self.control.is_some() {",
        tests: &[fails(
            "stepwell",
            "context",
            "a_step_that_lost_is_not_begun_again_while_a_replay_waits_for_something_else",
        )],
    },
    Bug {
        name: "two-deliveries-at-once",
        breaks: "Two results are ready at one poll, so that `select!` may choose another branch in \
                 a replay.",
        guarantee: "7",
        file: EXECUTOR,
        find: "                let waker = self.take_note_of(delivery, &mut state);
                unlock(state);
",
        put: "                let waker = self.take_note_of(delivery, &mut state);
                let second = state.deliver_next();
                let second = second.ok().flatten().and_then(|second| self.take_note_of(second,
            &mut state));
                unlock(state);
                if let Some(second) = second {
                    second.wake();
                }
",
        tests: &[fails(
            "stepwell",
            "deliveries",
            "a_replay_takes_the_same_way_through_every_combinator",
        )],
    },
    Bug {
        name: "report-in-the-place-of-a-transaction",
        breaks: "A line that a transaction logs has its number, and the run loses its task.",
        guarantee: "7",
        file: WRITTEN,
        find: "        self.unsent.entries.iter_mut().for_each(|report| report.seq += 1);\n",
        put: "",
        tests: &[
            fails(
                "stepwell-core",
                "lib",
                "a_report_that_is_written_while_the_store_does_a_work_comes_after_it",
            ),
            fails("stepwell", "notes", "a_line_that_a_transaction_writes_comes_after_it"),
        ],
    },
    Bug {
        name: "timers-a-second-early",
        breaks: "A sleep of a running task ends a second before its time.",
        guarantee: "6",
        file: WAITS,
        find: "*due_at <= now).cloned()",
        put: "due_at.as_microsecond() <= now.as_microsecond() + 1_000_000).cloned()",
        tests: &[fails(
            "stepwell",
            "context",
            "sleeps_last_as_long_as_they_say_also_none_at_all_and_a_thousand_years",
        )],
    },
    Bug {
        name: "timer-blind-to-the-clock",
        breaks: "A running task sleeps on for an hour though its clock was set forward past the \
                 end of the sleep.",
        guarantee: "6",
        file: EXECUTOR,
        find: "until(engine.store.now(), at).min(CLOCK_CHECK);",
        put: "until(engine.store.now(), at).min(CLOCK_CHECK * 10_000);",
        tests: &[fails(
            "stepwell",
            "ownership",
            "timers_deadlines_and_delays_go_by_the_clock_that_jumped",
        )],
    },
    Bug {
        name: "timer-started-again",
        breaks: "After a crash a sleep begins from the start.",
        guarantee: "6",
        file: WAITS,
        find: "self.waits.inherited.get(key).copied().flatten()",
        put: "self.waits.inherited.get(key).copied().flatten().filter(|_| false)",
        tests: &[
            fails(
                "stepwell",
                "context",
                "a_sleep_goes_on_while_no_process_is_alive_and_does_not_start_anew",
            ),
            fails("stepwell", "context", "a_durable_timeout_is_not_started_anew_by_a_crash"),
        ],
    },
    Bug {
        name: "event-for-the-first-only",
        breaks: "Of several branches of a task that await an event, one gets it and the others \
                 wait for ever.",
        guarantee: "5",
        file: WAITS,
        find: "for key in self.waits.awaited.remove(&(Kind::Event, name)).unwrap_or_default() {",
        put: "for key in self.waits.awaited.remove(&(Kind::Event,
            name)).unwrap_or_default().into_iter().take(1) {",
        tests: &[hangs(
            "stepwell",
            "context",
            "an_event_reaches_those_who_wait_and_those_who_come_late_and_each_await_once",
        )],
    },
    Bug {
        name: "lost-lease-not-told",
        breaks: "Code whose run was given to another worker goes on, and is never told.",
        guarantee: "3",
        file: SENDING,
        find: "            Some(Ok(Err(Refused))) => {
                self.run.stop(ControlFlow::LeaseLost);",
        put: "            Some(Ok(Err(Refused))) => {",
        tests: &[fails(
            "stepwell",
            "ownership",
            "a_run_that_is_refused_is_told_and_begins_nothing_more",
        )],
    },
    Bug {
        name: "divergence-not-seen-at-the-end",
        breaks: "Code that ends before its journal does completes its task, with a result that the \
                 journal does not prove.",
        guarantee: "7",
        file: ENDING,
        find: "(Ok(_), None) if state.is_replaying() => state.divergence(true).to_failure(),",
        put: "",
        tests: &[fails(
            "stepwell",
            "worker",
            "code_that_diverges_from_its_journal_is_reported_with_both_sides",
        )],
    },
    Bug {
        name: "no-grace-for-foreign-waits",
        breaks: "A task that waits for something beside its context is taken for diverged in its \
                 replay.",
        guarantee: "7",
        file: EXECUTOR,
        find: "if !has_passed(&self.run, &mut self.stalled, self.grace, cx) {",
        put: "if !has_passed(&self.run, &mut self.stalled, Duration::ZERO, cx) {",
        tests: &[fails("stepwell", "ownership", "grace_is_a_duration_whatever_the_clock_says")],
    },
    Bug {
        name: "grace-beside-the-next-run",
        breaks: "The code of a cancelled task goes on for its grace though another worker runs the \
                 task.",
        guarantee: "4",
        file: STATE,
        find: "if self.control >= Some(why) {",
        put: "if self.control.is_some() {",
        tests: &[fails("stepwell", "ownership", "grace_ends_with_the_lease_and_with_the_worker")],
    },
    Bug {
        name: "no-grace-to-stop",
        breaks: "The code of a cancelled task is dropped at once, in the midst of what it does.",
        guarantee: "cancellation",
        file: EXECUTOR,
        find: "if control == ControlFlow::Cancelled { self.grace } else { Duration::ZERO };",
        put: "if control == ControlFlow::Cancelled { Duration::ZERO } else { Duration::ZERO };",
        tests: &[
            fails("stepwell", "ownership", "grace_is_a_duration_whatever_the_clock_says"),
            fails(
                "stepwell",
                "context",
                "a_cancelled_tasks_closure_is_told_and_what_it_finishes_is_journaled",
            ),
        ],
    },
    Bug {
        name: "rewind-cuts-too-much",
        breaks: "A retry tries again what had failed and was handled: the card is charged after \
                 the account.",
        guarantee: "2",
        file: FAILURES,
        find: "let sources = handled.iter().filter(is_source).chain(unhandled);",
        put: "let _ = is_source;\n        let sources = handled.iter().chain(unhandled);",
        tests: &[
            fails("stepwell", "retries", "a_failure_that_was_handled_is_not_tried_again"),
            fails("stepwell", "retries", "a_timeout_that_was_handled_is_not_waited_for_again"),
        ],
    },
    Bug {
        name: "rewind-cuts-too-little",
        breaks: "A retry replays the failure that ended the attempt, and fails at once.",
        guarantee: "4",
        file: FAILURES,
        find: "let sources = handled.iter().filter(is_source).chain(unhandled);",
        put: "let sources = handled.iter().chain(unhandled).filter(is_source);",
        tests: &[fails(
            "stepwell",
            "retries",
            "without_a_word_of_its_source_an_error_rewinds_what_nothing_was_done_about",
        )],
    },
    Bug {
        name: "kept-results-lost",
        breaks: "Steps that succeeded beside the one that failed run again with the next attempt.",
        guarantee: "2",
        file: "crates/stepwell-core/src/base/journal.rs",
        find: "            if !of_a_try && entry.key.kind != Kind::Approval {",
        put: "            if !of_a_try && entry.key.kind == Kind::Value {",
        tests: &[fails(
            "stepwell",
            "retries",
            "over_all_attempts_results_and_handled_failures_stay_as_they_were",
        )],
    },
    Bug {
        name: "stopped-step-journaled-as-failed",
        breaks: "A step that ends with an error because it was told to stop is journaled as \
                 failed, and a retry of the task replays that.",
        guarantee: "2",
        file: DELIVER,
        find: "if self.control.is_some() && !matches!(outcome, Outcome::Done(_)) {",
        put: "if self.control.is_none() && self.control.is_some() {",
        tests: &[fails("stepwell", "retry", "a_step_that_was_told_to_stop_runs_again")],
    },
    Bug {
        name: "one-try-too-many",
        breaks: "A step is tried once more often than its `max_attempts` say.",
        guarantee: "2",
        file: "crates/stepwell-core/src/engine/run/step.rs",
        find: "_ if self.again.is_none() || tries >= self.max_tries => None,",
        put: "_ if self.again.is_none() || tries > self.max_tries => None,",
        tests: &[fails(
            "stepwell",
            "context",
            "a_step_has_as_many_tries_as_it_is_given_and_a_permanent_error_has_none",
        )],
    },
    Bug {
        name: "context-used-anywhere",
        breaks: "A call of the context in a spawned future hangs, where it should say what to do \
                 in its place.",
        guarantee: "8",
        file: "crates/stepwell-core/src/engine/run/polled.rs",
        find: "    POLLED.get() == Arc::as_ptr(run) as usize",
        put: "    POLLED.get() == Arc::as_ptr(run) as usize || POLLED.get() == 0",
        tests: &[fails("stepwell", "context", "a_context_out_of_place_says_what_to_do_instead")],
    },
    Bug {
        name: "panic-in-drop-not-guarded",
        breaks: "A destructor that panics while a suspended task is dropped ends the group commit; \
                 every later call hangs.",
        guarantee: "8",
        file: ENDING,
        find: "poll_closure(|| discard(future));",
        put: "poll_closure(|| drop(future));",
        tests: &[hangs("stepwell", "panics", "a_panic_hurts_its_own_task_only")],
    },
    Bug {
        name: "panic-of-a-waker-not-guarded",
        breaks: "A waker that panics ends its caller, and with it the tasks of others.",
        guarantee: "8",
        file: "crates/stepwell-core/src/base/guard.rs",
        find: "tell(\"the caller that waits for an answer\", || drop(caller.send(value)));",
        put: "drop(caller.send(value));",
        tests: &[fails(
            "stepwell",
            "panics",
            "a_caller_whose_waker_panics_keeps_no_other_from_its_answer",
        )],
    },
    Bug {
        name: "panic-before-the-undoing-future",
        breaks: "A compensation that panics before it gives its future keeps all others from \
                 running.",
        guarantee: "8",
        file: "crates/stepwell-core/src/engine/run/compensation.rs",
        find: "undo.as_ref().map(|undo| guard(|| Guarded::new(undo.undo(result.as_ref()))));",
        put: "undo.as_ref().map(|undo| Ok(Guarded::new(undo.undo(result.as_ref()))));",
        tests: &[fails(
            "stepwell",
            "panics",
            "a_compensation_that_panics_before_it_gives_a_future_stops_no_other",
        )],
    },
    Bug {
        name: "store-panic-not-guarded",
        breaks: "A store of the application's own that panics takes the engine with it.",
        guarantee: "8",
        file: "crates/stepwell-core/src/engine.rs",
        find: "Encoded::over(Arc::new(Shield(backend.clone())), &settings.codecs);",
        put: "Encoded::over(backend.clone(), &settings.codecs);",
        tests: &[fails(
            "stepwell",
            "panics",
            "a_store_that_panics_answers_with_an_error_and_is_asked_again",
        )],
    },
    Bug {
        name: "undone-in-the-wrong-order",
        breaks: "Compensations run in the order of their steps, and not in reverse.",
        guarantee: "what is recorded is undone, once",
        file: "crates/stepwell-core/src/engine/run/compensation.rs",
        find: "for (key, record) in recorded.into_iter().rev() {",
        put: "for (key, record) in recorded {",
        tests: &[fails("stepwell", "sagas", "a_failed_task_is_undone_in_reverse_order")],
    },
    Bug {
        name: "what-had-no-result-is-undone",
        breaks: "A step that failed is undone though it asked for that after a result only.",
        guarantee: "what is recorded is undone, once",
        file: "crates/stepwell-core/src/engine/run/compensation.rs",
        find: "if result.is_none() && !begun {",
        put: "if result.is_none() && begun {",
        tests: &[
            fails("stepwell", "sagas", "a_failed_task_is_undone_in_reverse_order"),
            fails("stepwell", "sagas", "what_has_begun_is_undone_without_its_result"),
        ],
    },
    Bug {
        name: "record-after-the-closure",
        breaks: "A step's closure starts before its compensation is recorded; a crash in it leaves \
                 nothing to undo.",
        guarantee: "what is recorded is undone, once",
        file: "crates/stepwell-core/src/engine/run/step.rs",
        find: "            if let Some(recording) = &mut this.record {",
        put: "            if let Some(recording) = this.record.as_mut()\
              .filter(|_| this.closure.is_none()) {",
        tests: &[fails(
            "stepwell",
            "sagas",
            "what_has_begun_is_undone_when_its_process_has_died_too_often",
        )],
    },
    Bug {
        name: "child-id-before-the-decision",
        breaks: "A parent whose child's idempotency key is taken receives an id that exists \
                 nowhere.",
        guarantee: "a spawn tells the id of a task that exists",
        file: "crates/stepwell-core/src/engine/run/child.rs",
        find: "Some(Spawned::Existing { task_id, .. }) => (task_id, Disposition::Existing),",
        put: "Some(Spawned::Existing { .. }) => (task.task_id, Disposition::Existing),",
        tests: &[fails(
            "stepwell",
            "children",
            "a_child_whose_key_is_taken_is_the_task_that_has_it",
        )],
    },
    Bug {
        name: "join-of-a-blocked-child",
        breaks: "A task that joins a child of its own concurrency key waits for ever.",
        guarantee: "4",
        file: "crates/stepwell-core/src/context/children.rs",
        find: "run.state().lines_up(&key);",
        put: "let _ = &key;",
        tests: &[
            fails("stepwell", "children", "a_task_that_joins_a_child_of_its_own_key_is_told_so"),
            fails(
                "stepwell",
                "children",
                "a_task_that_joins_a_child_of_its_own_key_is_told_so_on_sqlite",
            ),
        ],
    },
    Bug {
        name: "children-not-retried",
        breaks: "A cancelled parent that is retried joins its cancelled children, and fails again.",
        guarantee: "4",
        file: "crates/stepwell-core/src/client/tasks.rs",
        find: "                    family.push(child);",
        put: "                    let _ = child;",
        tests: &[
            fails("stepwell", "retry", "a_cancelled_parent_runs_again_with_its_children"),
            fails("stepwell", "retry", "a_parent_runs_again_with_its_child_that_failed_for_good"),
        ],
    },
    Bug {
        name: "reminders-all-at-once",
        breaks: "After ten days of downtime an approval sends all the reminders that it missed.",
        guarantee: "approvals",
        file: "crates/stepwell-core/src/context/approval.rs",
        find: "reminders = reminders.max(u32::try_from(due).unwrap_or(u32::MAX))\
               .saturating_add(1);",
        put: "reminders = reminders.max(u32::try_from(due.min(0)).unwrap_or(u32::MAX))\
              .saturating_add(1);",
        tests: &[fails(
            "stepwell",
            "approvals",
            "reminders_that_were_missed_are_not_sent_all_at_once",
        )],
    },
    Bug {
        name: "items-done-again",
        breaks: "After a crash, a step over many items begins with the first of them again.",
        guarantee: "an item is done once",
        file: REPLAY,
        find: "self.replay.items.remove(key).unwrap_or_default()",
        put: "self.replay.items.remove(key).filter(|_| false).unwrap_or_default()",
        tests: &[fails(
            "stepwell",
            "items",
            "after_a_crash_it_goes_on_with_the_items_that_are_not_done",
        )],
    },
    Bug {
        name: "quadratic-timers",
        breaks: "20,000 sleeps side by side take ten seconds, each delivery looking at all of \
                 them.",
        guarantee: "costs",
        file: WAITS,
        find: "self.waits.timers.first().map(|(due_at, _)| *due_at)\n",
        put: "self.operations.iter().filter_map(|(_, operation)| operation.wait()?.1).min()\n",
        tests: &[fails("stepwell", "costs", "of_sleeps_side_by_side")],
    },
    Bug {
        name: "quadratic-gates",
        breaks: "Thousands of spawns side by side take minutes, each looking at all of them for \
                 the next gate to open.",
        guarantee: "costs",
        file: GATES,
        find: "        let (mut wakers, mut has_opened) = (Vec::new(), false);\n",
        put: "        let gates = self.operations.iter().filter(|(_, operation)|
            matches!(operation.stage(), Stage::Gate { .. }));
        if gates.map(|(key, _)| key).min().is_none() {
            return Opened::Closures(Vec::new());
        }
        let (mut wakers, mut has_opened) = (Vec::new(), false);
",
        tests: &[fails("stepwell", "costs", "of_spawns_side_by_side")],
    },
    Bug {
        name: "old-code-path-forgotten",
        breaks: "A task that began before a change of its code takes the changed way in its \
                 replay.",
        guarantee: "7",
        file: REPLAY,
        find: "let patched = !self.is_replaying();",
        put: "let patched = true;",
        tests: &[fails(
            "stepwell",
            "context",
            "changed_code_takes_the_old_way_with_old_tasks_and_the_new_way_with_new_ones",
        )],
    },
];
