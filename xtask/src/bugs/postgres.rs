//! Bugs of the PostgreSQL store. They come last: their tests need a server.

use super::{Bug, fails};

const CLAIM: &str = "crates/stepwell-postgres/src/schema/claim.sql";
const COMMANDS: &str = "crates/stepwell-postgres/src/schema/commands.sql";
const COMMIT: &str = "crates/stepwell-postgres/src/schema/commit.sql";
const STATES: &str = "crates/stepwell-postgres/src/schema/states.sql";
const GUARDS: &str = "crates/stepwell-postgres/src/schema/guards.sql";
const OUTBOX: &str = "crates/stepwell-postgres/src/schema/outbox.sql";
const PURGE: &str = "crates/stepwell-postgres/src/schema/purge.sql";
const SESSION: &str = "crates/stepwell-postgres/src/connection/session.rs";

const fn test(name: &'static str) -> super::Test {
    fails("stepwell-postgres", "postgres", name)
}

pub(super) const BUGS: &[Bug] = &[
    Bug {
        name: "postgres-fence-without-the-run",
        breaks: "A worker that lost a task writes into the run of the one that has it.",
        guarantee: "3",
        file: GUARDS,
        find: "AS o(task_id, run_id, asked) USING (task_id, run_id);",
        put: "AS o(task_id, run_id, asked) USING (task_id);",
        tests: &[test("conformance::fencing_after_a_lost_lease")],
    },
    Bug {
        name: "postgres-fence-of-one-without-the-run",
        breaks: "A worker that lost a task completes it, in a batch of one item.",
        guarantee: "3",
        file: "crates/stepwell-postgres/src/schema/commit_one.sql",
        find: "WHERE l.task_id = t_task AND l.run_id = t_run AND l.state = 'running'",
        put: "WHERE l.task_id = t_task AND t_run IS NOT NULL AND l.state = 'running'",
        tests: &[test("conformance::fencing_after_a_lost_lease")],
    },
    Bug {
        name: "postgres-fence-of-a-transaction-without-the-run",
        breaks: "A worker that lost a task commits its step's transaction.",
        guarantee: "3",
        file: OUTBOX,
        find: "WHERE l.task_id = p_task AND l.run_id = p_run AND l.state = 'running' FOR UPDATE;",
        put: "WHERE l.task_id = p_task AND p_run IS NOT NULL AND l.state = 'running' FOR UPDATE;",
        tests: &[test("exactly_once::a_transaction_of_a_run_that_was_lost_is_undone")],
    },
    Bug {
        name: "postgres-journal-end-not-compared",
        breaks: "After a failover to a replica that lacks the last entries, a journal has a hole, \
                 and its task diverges later.",
        guarantee: "3",
        file: COMMIT,
        find: "    IF t_after IS NOT NULL THEN\n",
        put: "    IF t_after IS NULL AND t_after IS NOT NULL THEN\n",
        tests: &[
            test("conformance::fencing_of_shorter_journals"),
            test(
                "asynchronous_failover::tasks_whose_last_entries_are_lost_go_on_from_what_is_there",
            ),
        ],
    },
    Bug {
        name: "postgres-timeline-not-looked-at",
        breaks: "A promotion of the replica is not noticed, and nothing is compared after it.",
        guarantee: "3",
        file: "crates/stepwell-postgres/src/connection/timeline.rs",
        find: "        *inside = Inside { name: Some(name.into()), runs: HashSet::new() };",
        put: "        inside.name = Some(name.into());",
        tests: &[test(
            "asynchronous_failover::tasks_whose_last_entries_are_lost_go_on_from_what_is_there",
        )],
    },
    Bug {
        name: "postgres-lost-claim-shares-its-run",
        breaks: "A claim that the replica never had is made again under the same run, and two \
                 workers own the task.",
        guarantee: "3",
        file: CLAIM,
        find: "run_id = CASE WHEN p.had_it THEN l.run_id ELSE gen_random_uuid() END,\n\
               cancel_at = ",
        put: "run_id = l.run_id,\ncancel_at = ",
        tests: &[test(
            "asynchronous_failover::a_claim_that_is_lost_shares_its_run_with_none_that_follows",
        )],
    },
    Bug {
        name: "postgres-lost-answer-sent-again",
        breaks: "A batch whose answer was lost is applied a second time.",
        guarantee: "a batch whose answer was lost is applied once",
        file: GUARDS,
        find: "        repeated := NOT FOUND;\n",
        put: "        repeated := false;\n",
        tests: &[test(
            "schedules::each_tick_and_each_trigger_spawns_one_task_though_answers_are_lost",
        )],
    },
    Bug {
        name: "postgres-lost-plain-answer-sent-again",
        breaks: "A batch of the commonest kind whose answer was lost is applied a second time, \
                 and refused.",
        guarantee: "a batch whose answer was lost is applied once",
        file: "crates/stepwell-postgres/src/batch/commit.rs",
        find: "arguments::plain(options, envelope, sorted, was_sent)",
        put: "arguments::plain(options, envelope, sorted, false)",
        tests: &[test(
            "lost_answers::spawns_steps_and_ends_are_applied_once_though_answers_are_lost",
        )],
    },
    Bug {
        name: "postgres-suspends-past-an-arrival",
        breaks: "An event that arrives while a task suspends does not wake it.",
        guarantee: "5",
        file: COMMIT,
        find: "                    AND (v_found IS NULL OR l.task_id <> ALL (v_found))\n",
        put: "",
        tests: &[test("conformance::suspension"), test("conformance::wake_ups_by_events")],
    },
    Bug {
        name: "postgres-event-not-locked",
        breaks: "An event that is emitted while a task begins to await it is seen by neither.",
        guarantee: "5",
        file: "crates/stepwell-postgres/src/schema/arrivals.sql",
        find: "            SELECT hashtext(name) & 127 AS lock, false AS alone FROM \
               unnest(p_awaited) AS name\n",
        put: "            SELECT hashtext(name) & 127 AS lock, false AS alone FROM \
              unnest(p_awaited) AS name WHERE false\n",
        tests: &[test("conformance::wake_ups_by_events")],
    },
    Bug {
        name: "postgres-timers-a-second-early",
        breaks: "A suspended task wakes a second before its time.",
        guarantee: "6",
        file: CLAIM,
        find: "WHERE l.due_at <= p_now\n",
        put: "WHERE l.due_at <= p_now + interval '1 second'\n",
        tests: &[test("conformance::timers"), test("conformance::delayed_starts")],
    },
    Bug {
        name: "postgres-rate-stopped-by-the-clock",
        breaks: "A queue with a rate starts nothing for an hour after the server's clock was set \
                 back by an hour.",
        guarantee: "6",
        file: CLAIM,
        find: "CASE WHEN extract(epoch FROM q.used_until - p_now) * 1000000 <= \
               q.rate_per::numeric + 60000000",
        put: "CASE WHEN true",
        tests: &[test("conformance::queue_rates")],
    },
    Bug {
        name: "postgres-children-of-the-dead",
        breaks: "The children of a task that was asked to cancel, and whose worker died, go on \
                 for ever.",
        guarantee: "cancellation",
        file: STATES,
        find: "    v_cancelled := v_cancelled || r.cancelled;\n    IF v_cancelled IS NOT NULL THEN",
        put: "    IF v_cancelled IS NOT NULL THEN",
        tests: &[test("conformance::dead_workers"), test("conformance::deregistration")],
    },
    Bug {
        name: "postgres-crashes-never-forgiven",
        breaks: "A long task fails after five deploys, though it got further before each.",
        guarantee: "8",
        file: STATES,
        find: "crashes = CASE WHEN x.progress > l.progress_at_crash THEN 1 ELSE",
        put: "crashes = CASE WHEN x.progress > l.progress_at_crash AND l.crashes = 0 THEN 1 ELSE",
        tests: &[test("conformance::quarantine")],
    },
    Bug {
        name: "postgres-answer-without-bounds",
        breaks: "A claim with more than a gibibyte of journals fails for ever.",
        guarantee: "8",
        file: COMMIT,
        find: "                    SELECT c.i::int, j.*, sum(octet_length(j.payload) + \
               octet_length(j.name) + 64) OVER (ORDER BY c.i)\n                        <= \
               stepwell.answer_bytes() AS fits",
        put: "                    SELECT c.i::int, j.*, true AS fits",
        tests: &[test("long_answers::steps_with_long_names_and_nothing_else_come_in_parts")],
    },
    Bug {
        name: "postgres-bad-row-ends-the-list",
        breaks: "One row that cannot be read makes the answers of its whole batch errors.",
        guarantee: "8",
        file: "crates/stepwell-postgres/src/values/rows.rs",
        find: "        *hurt = Some(unreadable(what, error)?);\n        Ok(T::default())",
        put: "        *hurt = None;\n        let _ = what;\n        Err(error)",
        tests: &[fails(
            "stepwell",
            "postgres_unreadable",
            "a_row_that_cannot_be_read_hurts_its_own_task_only_on_postgresql",
        )],
    },
    Bug {
        name: "postgres-scope-left-out-of-a-key",
        breaks: "A tenant that spawns with a key gets the task of another tenant.",
        guarantee: "9",
        file: "crates/stepwell-postgres/src/schema/values.sql",
        find: "        ELSE coalesce(p_scope, '') END;",
        put: "        ELSE '' END;",
        tests: &[test("conformance::keys_of_scopes"), test("conformance::turns_of_scopes")],
    },
    Bug {
        name: "postgres-list-reads-the-labels-of-others",
        breaks: "The lists of a tenant read all tasks of others that have been given its label.",
        guarantee: "costs",
        file: "crates/stepwell-postgres/src/read/filter.rs",
        find: "            self.sql.push_str(&format!(\" AND {alias}.own\"));\n",
        put: "            self.sql.push_str(\" AND true\");\n",
        tests: &[test("plans::a_list_by_label_reads_the_tasks_of_the_label_in_order")],
    },
    Bug {
        name: "postgres-purge-of-a-needed-child",
        breaks: "A purge removes a child that its parent has yet to join, and the parent fails \
                 for good.",
        guarantee: "a child is kept for a parent that has yet to join it",
        file: PURGE,
        find: "            AND stepwell.needed_by(o.task_id) IS NULL\n        ORDER BY o.task_id \
               LIMIT p_limit FOR",
        put: "        ORDER BY o.task_id LIMIT p_limit FOR",
        tests: &[test("conformance::needed_tasks"), test("conformance::answered_tasks")],
    },
    Bug {
        name: "postgres-batch-waits-for-a-user",
        breaks: "What users' transactions bring, and the batch that works it off, wait for a \
                 transaction that has emitted an event and stays open.",
        guarantee: "no batch and no query waits for a user's transaction",
        file: OUTBOX,
        find: "    PERFORM stepwell.own_settings(false);\n    INSERT INTO stepwell.outbox (event, \
               queue, payload)",
        put: "    PERFORM stepwell.own_settings(false);\n    PERFORM \
              pg_advisory_xact_lock('stepwell.outbox'::regclass::oid::int, 0);\n    INSERT INTO \
              stepwell.outbox (event, queue, payload)",
        tests: &[test("user_transactions::no_batch_waits_for_a_users_transaction")],
    },
    Bug {
        name: "postgres-outbox-not-settled",
        breaks: "An event of a user's transaction is stored, and nobody is woken by it.",
        guarantee: "5",
        file: COMMIT,
        find: "        unsettled := EXISTS (SELECT FROM stepwell.outbox);\n",
        put: "        unsettled := false;\n",
        tests: &[test(
            "user_transactions::an_event_wakes_those_who_began_to_wait_after_the_transaction_did",
        )],
    },
    Bug {
        name: "postgres-any-isolation-level",
        breaks: "With repeatable read as the database's default, a batch does not see what others \
                 have just committed: wake-ups are lost.",
        guarantee: "no default of the database is in the way",
        file: GUARDS,
        find: "    IF p_isolated AND current_setting('transaction_isolation') <> 'read committed' \
               THEN",
        put: "    IF false AND current_setting('transaction_isolation') <> 'read committed' THEN",
        tests: &[test("settings::no_default_of_the_database_or_the_role_is_in_the_way")],
    },
    Bug {
        name: "postgres-statement-timeout-not-owned",
        breaks: "With a short `statement_timeout` as the database's default, batches are cut off \
                 again and again.",
        guarantee: "no default of the database is in the way",
        file: SESSION,
        find: "; SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0;",
        put: "; SET LOCAL lock_timeout = 0;",
        tests: &[test("settings::no_default_of_the_database_or_the_role_is_in_the_way")],
    },
    Bug {
        name: "postgres-transaction-timeout-not-owned",
        breaks: "With a short `transaction_timeout` as the database's default, migrations are cut \
                 off again and again.",
        guarantee: "no default of the database is in the way",
        file: SESSION,
        find: "    settings!(\"READ WRITE\", \"'1min'\"),\n    without_limit!(),\n",
        put: "    settings!(\"READ WRITE\", \"'1min'\"),\n",
        tests: &[test("settings::no_default_of_the_database_or_the_role_is_in_the_way").since(17)],
    },
    Bug {
        name: "postgres-commits-not-synced",
        breaks: "With `synchronous_commit` off as the role's default, what is accepted is lost in \
                 a power cut.",
        guarantee: "1",
        file: GUARDS,
        find: "        PERFORM set_config('synchronous_commit', 'on', true);\n",
        put: "        NULL;\n",
        tests: &[test(
            "settings::what_is_accepted_is_durable_though_the_role_does_not_wait_for_the_disk",
        )],
    },
    Bug {
        name: "postgres-functions-of-others",
        breaks: "A role that may create functions in `public` has its code run with Stepwell's \
                 rights.",
        guarantee: "no default of the database is in the way",
        file: COMMIT,
        find: "SET search_path = pg_catalog, pg_temp SET plan_cache_mode",
        put: "SET plan_cache_mode",
        tests: &[test("settings::functions_that_others_put_in_the_way_are_not_called")],
    },
    Bug {
        name: "postgres-tick-comes-twice",
        breaks: "Two workers that come to a tick both spawn its task.",
        guarantee: "a tick spawns one task",
        file: "crates/stepwell-postgres/src/schema/schedules.sql",
        find: "        WHERE s.name = p_name AND s.version = p_seen\n",
        put: "        WHERE s.name = p_name AND p_seen IS NOT NULL\n",
        tests: &[test("conformance::schedules_under_races")],
    },
    Bug {
        name: "postgres-answer-waited-for-ever",
        breaks: "A connection that is half open holds a batch up for ever, and the worker is \
                 declared dead.",
        guarantee: "a store that does not answer is an error",
        file: "crates/stepwell-postgres/src/connection/link.rs",
        find: "        FIRST_ANSWER * (1 << self.silences.min(8))",
        put: "        FIRST_ANSWER * (10_000 << self.silences.min(8))",
        tests: &[test(
            "standby::a_connection_that_goes_dead_is_given_up_and_its_batch_applied_once",
        )],
    },
    Bug {
        name: "postgres-child-of-a-failed-parent-removed",
        breaks: "A child of a failed task can be removed, and every retry of the task fails by \
                 joining it.",
        guarantee: "a child is kept for a parent that has yet to join it",
        file: COMMANDS,
        find: "                (SELECT o.state FROM stepwell.outcomes o WHERE o.task_id = \
               t.parent)) <> 'completed'),",
        put: "                NULL) <> 'completed'),",
        tests: &[test("conformance::needed_tasks"), test("conformance::purged_families")],
    },
    Bug {
        name: "postgres-answer-of-a-failed-task-removed",
        breaks: "A task that a failed one was answered with can be removed, and every retry of \
                 that fails by joining it.",
        guarantee: "a child is kept for a parent that has yet to join it",
        file: COMMANDS,
        find: "(SELECT o.state <> 'completed' AND NOT stepwell.is_kept_for",
        put: "(SELECT false AND NOT stepwell.is_kept_for",
        tests: &[test("conformance::answered_tasks")],
    },
    Bug {
        name: "postgres-purge-stops-behind-a-parent",
        breaks: "A purge removes a failed parent, and leaves its children to the next one.",
        guarantee: "a child is kept for a parent that has yet to join it",
        file: PURGE,
        find: "WHERE o.task_id = ANY (v_kept)",
        put: "WHERE o.task_id = ANY (v_tasks)",
        tests: &[test("conformance::purged_families")],
    },
    Bug {
        name: "postgres-tasks-keep-each-other",
        breaks: "Failed tasks that were answered with each other are never removed.",
        guarantee: "a child is kept for a parent that has yet to join it",
        file: COMMANDS,
        find: " AND NOT stepwell.is_kept_for(n.needed_by, p_task)",
        put: "",
        tests: &[test("conformance::answered_with_each_other")],
    },
    Bug {
        name: "postgres-mailbox-emptied-by-a-failure",
        breaks: "Messages that a task had not received when it failed are lost, and a retry waits \
                 for them for ever.",
        guarantee: "a retry receives what the task had not",
        file: STATES,
        find: "WHERE m.task_id = gone.task_id AND gone.state = 'completed'",
        put: "WHERE m.task_id = gone.task_id",
        tests: &[test("conformance::mailboxes_of_retried_tasks")],
    },
    Bug {
        name: "postgres-mailbox-outlasts-its-task",
        breaks: "The messages of a task that was removed stay in the database for ever.",
        guarantee: "a retry receives what the task had not",
        file: PURGE,
        find: "    DELETE FROM stepwell.messages m WHERE m.task_id = ANY (p_tasks);\n",
        put: "",
        tests: &[test("conformance::mailboxes_of_retried_tasks")],
    },
];
