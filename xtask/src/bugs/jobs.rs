//! Bugs of workers, batches, queues, schedules and clients, and of the store in memory.

use super::{Bug, fails};

const MEMORY: &str = "crates/stepwell-core/src/memory.rs";
const COMMIT: &str = "crates/stepwell-core/src/engine/commit.rs";
const GATHERING: &str = "crates/stepwell-core/src/engine/commit/gathering.rs";
const SENDING: &str = "crates/stepwell-core/src/engine/run/executor/sending.rs";
const SPAWN: &str = "crates/stepwell-core/src/client/spawn.rs";

pub(super) const BUGS: &[Bug] = &[
    Bug {
        name: "receipt-of-a-stop-dropped",
        breaks: "A run that is stuck while the store refuses is stopped, and its task neither \
                 fails nor is tried again.",
        guarantee: "4",
        file: "crates/stepwell-core/src/engine/worker/slots/losses.rs",
        find: "            insist(&self.engine.runtime, move || {
                commit.transition_beside(Transition::new(task_id, run_id, next.clone()))
            });",
        put: "            drop(commit.transition_beside(Transition::new(task_id, run_id, next)));",
        tests: &[fails(
            "stepwell",
            "ownership",
            "a_stuck_run_fails_though_the_store_refuses_that_at_first",
        )],
    },
    Bug {
        name: "receipt-of-a-wake-up-dropped",
        breaks: "A suspended task whose own timer has passed while the store refuses sleeps for \
                 ever.",
        guarantee: "5",
        file: "crates/stepwell-core/src/engine/worker.rs",
        find: "insist(&slots.engine.runtime, move || commit.command(Command::Wake(task_id)));",
        put: "drop(commit.command(Command::Wake(task_id)));",
        tests: &[fails(
            "stepwell",
            "ownership",
            "a_task_that_waits_beside_its_context_is_woken_though_the_store_refuses_that_at_first",
        )],
    },
    Bug {
        name: "orphans-not-given-back",
        breaks: "A run that the store holds for a worker, and that nobody runs, stays so for ever.",
        guarantee: "4",
        file: "crates/stepwell-core/src/engine/worker/watch.rs",
        find: "for (task_id, run_id) in difference.orphaned {",
        put: "for (task_id, run_id) in difference.orphaned.into_iter().filter(|_| false) {",
        tests: &[fails(
            "stepwell",
            "ownership",
            "a_store_that_is_away_at_any_moment_orphans_nothing",
        )],
    },
    Bug {
        name: "outage-taken-for-silence",
        breaks: "After an outage of the store healthy workers are declared dead, and their tasks \
                 run twice.",
        guarantee: "3",
        file: "crates/stepwell-core/src/engine/worker/watch.rs",
        find: "let passed = if at_once && !hung { interval } else { Duration::ZERO };",
        put: "let passed = if at_once || !hung { interval } else { Duration::ZERO };",
        tests: &[fails(
            "stepwell",
            "ownership",
            "a_pause_at_whose_end_the_store_was_away_counts_against_nobody",
        )],
    },
    Bug {
        name: "lease-of-the-watching",
        breaks: "A worker with a short lease is declared dead by one that looks rarely.",
        guarantee: "3",
        file: "crates/stepwell-core/src/engine/worker/witness.rs",
        find: "before.unchanged + passed.min(third(other.lease))",
        put: "before.unchanged + passed",
        tests: &[
            fails(
                "stepwell",
                "ownership",
                "no_outage_kills_a_worker_that_is_watched_by_another_with_a_longer_lease",
            ),
            fails("stepwell-core", "lib", "a_pause_counts_for_a_third_of_a_lease_at_most"),
        ],
    },
    Bug {
        name: "run-stuck-by-its-store",
        breaks: "A run whose commits the store refuses is taken for stuck, and its attempt fails.",
        guarantee: "4",
        file: SENDING,
        find: "        self.run.wait_for_store(delay);\n",
        put: "",
        tests: &[fails(
            "stepwell",
            "ownership",
            "a_run_whose_own_commits_are_refused_is_not_stuck",
        )],
    },
    Bug {
        name: "crash-counted-as-an-attempt",
        breaks: "A task with one attempt fails when the process dies beside it.",
        guarantee: "8",
        file: "crates/stepwell-core/src/store/rules/leaving.rs",
        find: "                lost: self.lost.saturating_add(1),\n",
        put: "",
        tests: &[fails("stepwell-conformance", "memory", "quarantine")],
    },
    Bug {
        name: "crashes-never-forgiven",
        breaks: "A long task fails after five deploys, though it got further before each.",
        guarantee: "8",
        file: "crates/stepwell-core/src/store/rules/crash.rs",
        find: "if progress > seen { 1 } else { crashes.saturating_add(1) }",
        put: "if progress > seen && crashes == 0 { 1 } else { crashes.saturating_add(1) }",
        tests: &[
            fails(
                "stepwell",
                "ownership",
                "a_task_that_gets_further_outlives_any_number_of_deaths",
            ),
            fails("stepwell-conformance", "memory", "quarantine"),
        ],
    },
    Bug {
        name: "suspects-side-by-side",
        breaks: "Suspects run side by side, so that the innocent among them are convicted with the \
                 guilty.",
        guarantee: "8",
        file: "crates/stepwell-core/src/engine/worker/suspects.rs",
        find: "Some(_) => 0",
        put: "Some(_) => u32::MAX",
        tests: &[
            fails("stepwell", "ownership", "only_those_who_kill_their_process_are_convicted"),
            fails("stepwell", "ownership", "tasks_that_were_caught_in_three_deaths_take_turns"),
        ],
    },
    Bug {
        name: "shutdown-waits-for-the-store",
        breaks: "A shutdown hangs while the store is away.",
        guarantee: "4",
        file: "crates/stepwell-core/src/engine/worker/slots/shutdown.rs",
        find: "let waited = select(Box::pin(slots.stopped.cancelled()),
            engine.runtime.sleep(LAST_WORDS)).await;",
        put: "let waited = select(Box::pin(slots.stopped.cancelled()),
            engine.runtime.sleep(Duration::MAX)).await;",
        tests: &[fails("stepwell", "ownership", "a_shutdown_ends_whatever_the_store_does")],
    },
    Bug {
        name: "shutdown-signs-off-once",
        breaks: "A worker that stops while the store is away for a moment stays registered, and \
                 its tasks with it.",
        guarantee: "4",
        file: "crates/stepwell-core/src/engine/worker/slots/shutdown.rs",
        find: "let signed_off = until_answered(engine.runtime.clone(), move ||
            commit.signal(gone.clone()));",
        put: "let signed_off = commit.signal(gone);",
        tests: &[fails("stepwell", "ownership", "a_shutdown_ends_whatever_the_store_does")],
    },
    Bug {
        name: "stale-execution-goes-on",
        breaks: "A suspended task that another worker ran meanwhile goes on from what is left of \
                 it in memory.",
        guarantee: "7",
        file: "crates/stepwell-core/src/engine/worker/slots.rs",
        find: "        if let Some(journal) = claimed.journal.take() {
            drop(inside);
            // Another worker has run it since: what is in memory here has fallen behind.
            self.forget(task_id);
            return self.begin(claimed, holding, journal, slot, suspect);
        }
        // Another worker may have run it since: what is in memory here has fallen behind then.
        let suspended = inside.suspended.pop(&task_id);
        let (current, behind) = match suspended {
            Some(execution) if execution.run.run_id == claimed.run_id => \
                (Some(execution), None),\n",
        put: "        let suspended = inside.suspended.pop(&task_id);
        if let Some(journal) = claimed.journal.take().filter(|_| suspended.is_none()) {
            drop(inside);
            return self.begin(claimed, holding, journal, slot, suspect);
        }
        let (current, behind) = match suspended {
            Some(execution) if execution.run.task_id == task_id => (Some(execution), None),\n",
        tests: &[fails(
            "stepwell",
            "worker",
            "a_suspended_task_that_others_ran_meanwhile_does_not_go_on_from_what_is_in_memory",
        )],
    },
    Bug {
        name: "late-journal-starts-a-run",
        breaks: "A journal that is read after the worker has lost the task starts it there all the \
                 same.",
        guarantee: "3",
        file: "crates/stepwell-core/src/engine/worker/slots.rs",
        find: "if inside.sealed || inside.held.get(&task_id) != Some(&holding) {",
        put: "if inside.sealed && inside.held.get(&task_id) != Some(&holding) && inside.closed && \
              !inside.sealed {",
        tests: &[fails("stepwell", "ownership", "a_journal_that_is_read_too_late_starts_nothing")],
    },
    Bug {
        name: "receipts-of-a-batch-dropped",
        breaks: "A client that emits an event is told that the store is closed, though the event \
                 was emitted.",
        guarantee: "4",
        file: COMMIT,
        find: "        give(answers.events, committed.events);\n",
        put: "        drop(answers.events);\n",
        tests: &[fails("stepwell", "poison", "each_kind_of_item_is_refused_alone")],
    },
    Bug {
        name: "batch-refused-for-one-item",
        breaks: "One item that the store refuses makes every item of its batch fail.",
        guarantee: "one item that the store refuses holds up nobody",
        file: COMMIT,
        find: "if answers.items() < 2 || !error.is_of_an_item() {",
        put: "if answers.items() < usize::MAX || !error.is_of_an_item() {",
        tests: &[fails("stepwell", "poison", "each_kind_of_item_is_refused_alone")],
    },
    Bug {
        name: "refused-commit-sent-for-ever",
        breaks: "A task whose result the store will never take is sent again and again, and never \
                 fails.",
        guarantee: "one item that the store refuses holds up nobody",
        file: SENDING,
        find: "if !error.is_transient() && !matches!(sent.work, Some((_,
            Working::Transaction(_)))) {",
        put: "if error.is_transient() && !error.is_transient() {",
        tests: &[
            fails(
                "stepwell",
                "poison",
                "a_result_that_the_store_refuses_fails_its_attempt_and_no_other_task",
            ),
            fails("stepwell", "poison", "an_attempt_that_the_store_refuses_tells_its_error"),
        ],
    },
    Bug {
        name: "two-lanes-for-one-run",
        breaks: "Two transitions of one run are on their way at the same time, and may be applied \
                 in the wrong order.",
        guarantee: "3",
        file: GATHERING,
        find: "if self.may_repeat && largest.is_some() {",
        put: "if self.may_repeat && largest.is_none() && largest.is_some() {",
        tests: &[fails("stepwell-core", "lib", "a_run_never_has_a_transition_in_each_lane")],
    },
    Bug {
        name: "heartbeats-behind-a-batch",
        breaks: "Signs of life wait for a batch that hangs, and the worker is declared dead.",
        guarantee: "3",
        file: GATHERING,
        find: "return (main_is_free && self.batch.has_more_than_transitions()).then_some(MAIN);",
        put: "return None;",
        tests: &[fails("stepwell-core", "lib", "signs_of_life_pass_a_batch_that_hangs")],
    },
    Bug {
        name: "message-taken-twice",
        breaks: "A message that was received stays in the mailbox, and the next `recv` gets it \
                 again.",
        guarantee: "5",
        file: MEMORY,
        find: "transition.received.iter().for_each(|id| task.mail.remove(*id));",
        put: "transition.received.iter().skip(1).for_each(|id| task.mail.remove(*id));",
        tests: &[fails("stepwell-conformance", "memory", "messages")],
    },
    Bug {
        name: "suspends-past-an-arrival",
        breaks: "An event that arrives while a task suspends does not wake it.",
        guarantee: "5",
        file: MEMORY,
        find: "if facts.is_empty() { Found::Nothing } else { Found::Something }",
        put: "Found::Nothing",
        tests: &[
            fails("stepwell", "worker", "no_wake_up_is_lost_at_any_moment"),
            fails("stepwell-conformance", "memory", "suspension"),
        ],
    },
    Bug {
        name: "fence-without-the-run",
        breaks: "A worker that lost a task writes into the run of the one that has it.",
        guarantee: "3",
        file: MEMORY,
        find: ".filter(|task| task.run_id == run_id && task.state == TaskState::Running)
            .ok_or(Refused)?;",
        put: ".filter(|task| task.state == TaskState::Running)\n            .ok_or(Refused)?;",
        tests: &[
            fails("stepwell-conformance", "memory", "fencing_after_a_lost_lease"),
            fails(
                "stepwell",
                "worker",
                "a_run_that_lost_its_lease_has_every_write_refused_and_is_told",
            ),
        ],
    },
    Bug {
        name: "cancellation-stops-at-the-task",
        breaks: "The children of a cancelled task go on.",
        guarantee: "cancellation",
        file: MEMORY,
        find: "        if cancelled {\n            self.doomed.push(task_id);\n        }",
        put: "        let _ = cancelled;",
        tests: &[
            fails("stepwell-conformance", "memory", "cancellation_of_families"),
            fails("stepwell", "client", "cancelling_ends_a_task_in_every_state_and_its_children"),
        ],
    },
    Bug {
        name: "children-of-the-dead-in-memory",
        breaks: "The children of a task that was asked to cancel, and whose worker died, go on for \
                 ever.",
        guarantee: "cancellation",
        file: "crates/stepwell-core/src/memory/workers.rs",
        find: "                    self.finish(now, task_id, finish, news);
                }
            }
        }
        self.cancel_doomed(now, news);",
        put: "                    self.finish(now, task_id, finish, news);
                }
            }
        }",
        tests: &[fails("stepwell-conformance", "memory", "dead_workers")],
    },
    Bug {
        name: "needed-child-purged-in-memory",
        breaks: "A purge removes a child that its parent has yet to join.",
        guarantee: "a child is kept for a parent that has yet to join it",
        file: MEMORY,
        find: "                        && self.needed_by(task).is_none()",
        put: "",
        tests: &[
            fails("stepwell-conformance", "memory", "needed_tasks"),
            fails("stepwell", "children", "a_finished_child_is_kept_until_its_parent_has_ended"),
        ],
    },
    Bug {
        name: "child-of-a-failed-parent-purged-in-memory",
        breaks: "A purge removes the children of a failed task, and every retry of it fails by \
                 joining them.",
        guarantee: "a child is kept for a parent that has yet to join it",
        file: MEMORY,
        find: "is_some_and(|task| task.state != TaskState::Completed)\n",
        put: "is_some_and(|task| !task.state.is_finished())\n",
        tests: &[
            fails("stepwell-conformance", "memory", "needed_tasks"),
            fails("stepwell-conformance", "memory", "answered_tasks"),
            fails("stepwell", "retry", "a_child_is_kept_for_a_parent_that_is_retried"),
        ],
    },
    Bug {
        name: "purge-stops-behind-a-parent-in-memory",
        breaks: "A purge removes a failed parent, and leaves its children to the next one.",
        guarantee: "a child is kept for a parent that has yet to join it",
        file: MEMORY,
        find: "            if purged == purged_before {\n",
        put: "            if purged >= purged_before {\n",
        tests: &[fails("stepwell-conformance", "memory", "purged_families")],
    },
    Bug {
        name: "tasks-keep-each-other-in-memory",
        breaks: "Failed tasks that were answered with each other are never removed.",
        guarantee: "a child is kept for a parent that has yet to join it",
        file: MEMORY,
        find: "lives(by) || !self.is_kept_for(*by, task_id)",
        put: "lives(by) || self.is_kept_for(*by, *by)",
        tests: &[fails("stepwell-conformance", "memory", "answered_with_each_other")],
    },
    Bug {
        name: "import-forgets-what-a-task-was-answered-with",
        breaks: "A task that an imported one was answered with is removed before that has joined \
                 it.",
        guarantee: "a child is kept for a parent that has yet to join it",
        file: "crates/stepwell-core/src/client/transfer.rs",
        find: "        record.needs = answered_with(&record.journal);\n",
        put: "",
        tests: &[fails("stepwell", "export", "an_imported_task_keeps_what_it_was_answered_with")],
    },
    Bug {
        name: "mailbox-emptied-by-a-failure-in-memory",
        breaks: "Messages that a task had not received when it failed are lost, and a retry waits \
                 for them for ever.",
        guarantee: "a retry receives what the task had not",
        file: MEMORY,
        find: "        if matches!(finish, Finish::Completed(_)) {\n            task.mail",
        put: "        if finish == finish {\n            task.mail",
        tests: &[
            fails("stepwell-conformance", "memory", "mailboxes_of_retried_tasks"),
            fails("stepwell", "retry", "a_retry_receives_what_the_task_had_not"),
        ],
    },
    Bug {
        name: "tick-comes-twice",
        breaks: "Two workers that come to a tick both spawn its task.",
        guarantee: "a tick spawns one task",
        file: "crates/stepwell-core/src/memory/schedules.rs",
        find: "if schedule.plan.version == seen =>",
        put: "if seen == seen =>",
        tests: &[
            fails("stepwell-conformance", "memory", "schedules_under_races"),
            fails(
                "stepwell",
                "schedules",
                "a_tick_spawns_one_task_however_many_workers_come_to_it",
            ),
        ],
    },
    Bug {
        name: "missed-ticks-all-made-up-for",
        breaks: "A schedule that is to skip what it missed spawns a task for it.",
        guarantee: "a tick spawns one task",
        file: "crates/stepwell-core/src/engine/worker/scheduler.rs",
        find: "(CatchUp::Skip, _) if until(ticks.due(newest), now) > LATE => (Vec::new(), newest),",
        put: "(CatchUp::Skip, _) if until(ticks.due(newest), now) > Duration::MAX => (Vec::new(), \
              newest),",
        tests: &[fails(
            "stepwell",
            "schedules",
            "missed_ticks_are_left_out_or_made_up_for_once_or_each",
        )],
    },
    Bug {
        name: "time-zone-ignored",
        breaks: "A cron pattern ticks by UTC, whatever its time zone.",
        guarantee: "a tick spawns one task",
        file: "crates/stepwell-core/src/store/ticks.rs",
        find: "    Zoned::new(second, zone.clone())\n}\n\nfn zone",
        put: "    let _ = zone;\n    Zoned::new(second, TimeZone::UTC)\n}\n\nfn zone",
        tests: &[
            fails(
                "stepwell-core",
                "lib",
                "an_hour_that_comes_twice_has_ticks_of_one_time_once_and_those_of_wildcards_twice",
            ),
            fails(
                "stepwell-core",
                "lib",
                "an_hour_that_is_left_out_moves_ticks_of_one_time_and_skips_those_of_wildcards",
            ),
        ],
    },
    Bug {
        name: "rate-stopped-by-the-clock",
        breaks: "A queue with a rate starts nothing for an hour after the clock was set back by an \
                 hour.",
        guarantee: "6",
        file: "crates/stepwell-core/src/store/queue.rs",
        find: "if ahead > per.saturating_add(CLOCKS_DIFFER) { 0 } else { ahead.max(0) }",
        put: "ahead.max(0)",
        tests: &[
            fails("stepwell", "ownership", "a_rate_goes_on_when_the_clock_is_set_back"),
            fails("stepwell-core", "lib", "a_clock_that_is_set_back_stops_nobody"),
        ],
    },
    Bug {
        name: "retention-off",
        breaks: "Ended tasks are kept for ever, whatever the retention.",
        guarantee: "retention",
        file: "crates/stepwell-core/src/engine/worker/retention.rs",
        find: "match purge(engine, retention, None, |_| ()).await {",
        put: "match purge(engine, retention.saturating_mul(1_000_000), None, |_| ()).await {",
        tests: &[fails("stepwell", "notes", "ended_tasks_are_forgotten_after_their_time")],
    },
    Bug {
        name: "cursor-off-by-one",
        breaks: "The first task of each further page of a list is missing.",
        guarantee: "a list has everything on some page",
        file: "crates/stepwell-core/src/store/page.rs",
        find: "return Ok(Self { next: items.last().map(T::cursor), items });",
        put: "return Ok(Self { next: Some(item.cursor()), items });",
        tests: &[fails("stepwell-server", "api", "lists_come_in_pages_and_pass_filters")],
    },
    Bug {
        name: "client-waits-for-ever",
        breaks: "A call hangs while the database accepts connections and does not write.",
        guarantee: "a store that does not answer is an error",
        file: "crates/stepwell-core/src/engine.rs",
        find: "if limit == Duration::MAX {",
        put: "if limit > Duration::ZERO {",
        tests: &[fails("stepwell", "approvals", "a_decision_that_is_not_answered_is_an_error")],
    },
    Bug {
        name: "schema-not-checked-for-many",
        breaks: "`spawn_many` accepts parameters that do not fit the schema of their type.",
        guarantee: "what others described is checked at every spawn",
        file: SPAWN,
        find: "            self.check(&name, std::slice::from_ref(&params)).await?;
            let span = trace::spawn(name.as_str());
            let new =",
        put: "            let span = trace::spawn(name.as_str());
            let new =",
        tests: &[fails("stepwell", "schemas", "every_spawn_is_checked_by_what_others_described")],
    },
    Bug {
        name: "schema-not-checked-in-transactions",
        breaks: "A spawn in the user's transaction accepts parameters that do not fit the schema \
                 of their type.",
        guarantee: "what others described is checked at every spawn",
        file: SPAWN,
        find: "check.map_or(Ok(()), |check| check(&params)).map_err(|source| misfit(&name, \
               source))?;",
        put: "drop(check);",
        tests: &[fails(
            "stepwell",
            "exactly_once",
            "a_spawn_in_a_transaction_is_checked_by_what_others_described",
        )],
    },
    Bug {
        name: "schema-not-checked-for-schedules",
        breaks: "A schedule whose parameters do not fit the schema of their type is accepted, and \
                 spawns tasks that fail.",
        guarantee: "what others described is checked at every spawn",
        file: "crates/stepwell-core/src/client/schedules.rs",
        find: "let params = self.client.params(&task_type, params).await?;",
        put: "let params = self.client.encode(params, || task_type.to_string())?;",
        tests: &[fails("stepwell", "schemas", "every_spawn_is_checked_by_what_others_described")],
    },
    Bug {
        name: "history-not-written-again",
        breaks: "What happened while the store was away is missing from the history.",
        guarantee: "the stream of events misses nothing",
        file: "crates/stepwell-core/src/observe/history.rs",
        find: "                parts.push(part);\n                let delay",
        put: "                let delay",
        tests: &[fails(
            "stepwell",
            "history",
            "what_the_store_refuses_is_written_once_it_takes_it",
        )],
    },
];
