//! Bugs of the SQLite store.

use super::{Bug, fails, hangs};

const CLAIM: &str = "crates/stepwell-sqlite/src/apply/claim.rs";
const INTAKE: &str = "crates/stepwell-sqlite/src/apply/intake.rs";
const LIMITS: &str = "crates/stepwell-sqlite/src/apply/limits.rs";
const PURGE: &str = "crates/stepwell-sqlite/src/apply/purge.rs";
const TRANSITION: &str = "crates/stepwell-sqlite/src/apply/transition.rs";
const WORKERS: &str = "crates/stepwell-sqlite/src/apply/workers.rs";

/// A point of the suite that every store passes, on a file.
const fn point(name: &'static str) -> super::Test {
    fails("stepwell-sqlite", "conformance", name)
}

pub(super) const BUGS: &[Bug] = &[
    Bug {
        name: "sqlite-fence-without-the-run",
        breaks: "A worker that lost a task writes into the run of the one that has it.",
        guarantee: "3",
        file: TRANSITION,
        find: "WHERE task_id = ?1 AND run_id = ?2 AND state = 'running'\";\n\n/// The fence of a \
               transition that only",
        put: "WHERE task_id = ?1 AND ?2 = ?2 AND state = 'running'\";\n\n/// The fence of a \
              transition that only",
        tests: &[point("on_a_file::fencing_after_a_lost_lease")],
    },
    Bug {
        name: "sqlite-light-fence-without-the-run",
        breaks: "A worker that lost a task adds to its journal.",
        guarantee: "3",
        file: TRANSITION,
        find: "\"SELECT cancel_requested FROM stepwell_tasks WHERE task_id = ?1 AND run_id = ?2 \
               AND state = 'running'\";",
        put: "\"SELECT cancel_requested FROM stepwell_tasks WHERE task_id = ?1 AND ?2 = ?2 AND \
              state = 'running'\";",
        tests: &[point("on_a_file::fencing_after_a_lost_lease")],
    },
    Bug {
        name: "sqlite-end-without-the-run",
        breaks: "A worker that lost a task completes it.",
        guarantee: "3",
        file: "crates/stepwell-sqlite/src/apply/states.rs",
        find: "(?2 IS NULL OR (run_id = ?2 AND state = 'running'))",
        put: "(?2 IS NULL OR (?2 = ?2 AND state = 'running'))",
        tests: &[point("on_a_file::fencing_after_a_lost_lease")],
    },
    Bug {
        name: "sqlite-journal-end-not-compared",
        breaks: "A run goes on behind a gap in its journal, which a restored backup has left, and \
                 diverges later.",
        guarantee: "3",
        file: TRANSITION,
        find: "        Ok(last == i64::try_from(after).ok())",
        put: "        Ok(last.is_some() || last == i64::try_from(after).ok())",
        tests: &[
            point("on_a_file::fencing_of_shorter_journals"),
            fails(
                "stepwell-sqlite",
                "lib",
                "a_journal_that_another_handle_has_set_back_is_noticed",
            ),
        ],
    },
    Bug {
        name: "sqlite-ends-not-forgotten",
        breaks: "What another process did to a journal is not noticed before more is written \
                 behind it.",
        guarantee: "3",
        file: "crates/stepwell-sqlite/src/state/ends.rs",
        find: "if version.is_none() || version != self.version || self.of.len() > MOST {",
        put: "if version.is_none() || self.of.len() > MOST {",
        tests: &[fails(
            "stepwell-sqlite",
            "lib",
            "a_journal_that_another_handle_has_set_back_is_noticed",
        )],
    },
    Bug {
        name: "sqlite-suspends-past-an-arrival",
        breaks: "An event that arrives while a task suspends does not wake it.",
        guarantee: "5",
        file: TRANSITION,
        find: "if applied.facts.is_empty() { Found::Nothing } else { Found::Something }",
        put: "Found::Nothing",
        tests: &[point("on_a_file::suspension"), point("on_a_file::wake_ups_by_events")],
    },
    Bug {
        name: "sqlite-message-taken-twice",
        breaks: "A message that was received stays in the mailbox, and the next `recv` gets it \
                 again.",
        guarantee: "5",
        file: TRANSITION,
        find: "\"DELETE FROM stepwell_messages WHERE id = ?1 AND task_id = ?2\",",
        put: "\"DELETE FROM stepwell_messages WHERE id = -?1 AND task_id = ?2\",",
        tests: &[point("on_a_file::messages")],
    },
    Bug {
        name: "sqlite-keyed-child-not-journaled",
        breaks: "A child that is spawned with a key is forgotten by its parent in a crash, and \
                 spawned again as the child of another task.",
        guarantee: "a spawn tells the id of a task that exists",
        file: TRANSITION,
        find: "                self.add_entries(transition.task_id, \
               std::slice::from_ref(&keyed.entry))?;\n",
        put: "",
        tests: &[
            point("on_a_file::keyed_children"),
            fails(
                "stepwell",
                "crashes",
                "a_crash_before_or_after_any_commit_changes_nothing_on_sqlite",
            ),
        ],
    },
    Bug {
        name: "sqlite-timers-a-second-early",
        breaks: "A suspended task wakes a second before its time.",
        guarantee: "6",
        file: CLAIM,
        find: "WHERE due_at <= ?1 AND state IN",
        put: "WHERE due_at <= ?1 + 1000000 AND state IN",
        tests: &[point("on_a_file::timers"), point("on_a_file::delayed_starts")],
    },
    Bug {
        name: "sqlite-crash-takes-an-attempt",
        breaks: "A task with one attempt fails when the process dies beside it.",
        guarantee: "8",
        file: CLAIM,
        find: "max_attempts.saturating_add(lost).max(1)",
        put: "max_attempts.max(lost.min(1))",
        tests: &[point("on_a_file::quarantine")],
    },
    Bug {
        name: "sqlite-suspects-side-by-side",
        breaks: "Suspects are claimed like any other task.",
        guarantee: "8",
        file: CLAIM,
        find: "starts.extend(ready(READY, rate.is_none(), FEW_CRASHES, startable - \
               starts.len())?);",
        put: "starts.extend(ready(READY, rate.is_none(), FEW_CRASHES, startable - \
              starts.len())?);\n        starts.extend(ready(SUSPECTS, true, u32::MAX, startable - \
              starts.len())?);",
        tests: &[point("on_a_file::suspects")],
    },
    Bug {
        name: "sqlite-bad-row-ends-the-claim",
        breaks: "One row that cannot be read keeps every worker from claiming anything.",
        guarantee: "8",
        file: CLAIM,
        find: "        *hurt = Some(unreadable(what, error)?);\n        Ok(T::default())",
        put: "        *hurt = None;\n        let _ = (what, unreadable);\n        Err(error)",
        tests: &[
            hangs(
                "stepwell",
                "unreadable",
                "a_row_that_cannot_be_read_hurts_its_own_task_only_on_sqlite",
            ),
            fails("stepwell-sqlite", "lib", "whatever_is_in_a_column_the_others_go_on"),
        ],
    },
    Bug {
        name: "sqlite-bad-row-ends-the-list",
        breaks: "One row that cannot be read makes every list an error.",
        guarantee: "8",
        file: "crates/stepwell-sqlite/src/base/rows.rs",
        find: "                    let error = unreadable(self.what, error)?;\n                    \
             self.left_out += 1;",
        put: "                    if self.left_out == 0 {\n                        return \
              Err(error);\n                    }\n                    let error = \
              unreadable(self.what, error)?;\n                    self.left_out += 1;",
        tests: &[fails("stepwell-sqlite", "lib", "whatever_is_in_a_column_the_others_go_on")],
    },
    Bug {
        name: "sqlite-scope-left-out-of-a-key",
        breaks: "A tenant that spawns with a key gets the task of another tenant.",
        guarantee: "9",
        file: INTAKE,
        find: "AND idempotency_key = ?2 AND scope = ?3\";",
        put: "AND idempotency_key = ?2 AND ?3 = ?3\";",
        tests: &[
            point("on_a_file::keys_of_scopes"),
            fails("stepwell-server", "scopes", "no_two_scopes_meet"),
        ],
    },
    Bug {
        name: "sqlite-scope-left-out-of-a-turn",
        breaks: "A tenant's tasks wait for those of another that has the same concurrency key.",
        guarantee: "9",
        file: LIMITS,
        find: "        WHERE o.concurrency_key = stepwell_tasks.concurrency_key AND o.scope = \
               stepwell_tasks.scope\n",
        put: "        WHERE o.concurrency_key = stepwell_tasks.concurrency_key\n",
        tests: &[point("on_a_file::turns_of_scopes")],
    },
    Bug {
        name: "sqlite-scope-left-out-of-coalescing",
        breaks: "A tenant that replaces its own waiting task cancels that of another.",
        guarantee: "9",
        file: INTAKE,
        find: "WHERE concurrency_key = ?1 AND scope = ?3 AND place IS NOT NULL",
        put: "WHERE concurrency_key = ?1 AND ?3 = ?3 AND place IS NOT NULL",
        tests: &[point("on_a_file::turns_of_scopes")],
    },
    Bug {
        name: "sqlite-list-reads-the-labels-of-others",
        breaks: "The lists of a tenant read all tasks of others that have been given its label.",
        guarantee: "costs",
        file: "crates/stepwell-sqlite/src/read/query.rs",
        find: "let own = if label.own { \"name = ? AND value = ? AND own = 1\" } else { \"name = \
               ? AND value = ?\" };",
        put: "let own = \"name = ? AND value = ?\";",
        tests: &[fails(
            "stepwell-sqlite",
            "lib",
            "what_others_put_into_headers_is_not_in_the_way_of_a_scopes_lists",
        )],
    },
    Bug {
        name: "sqlite-list-begins-with-the-commonest",
        breaks: "A list by two labels reads all tasks of the one that nearly every task has.",
        guarantee: "costs",
        file: "crates/stepwell-sqlite/src/read/labels.rs",
        find: "    labels.swap(0, rarest.1);\n",
        put: "    let _ = rarest;\n",
        tests: &[fails(
            "stepwell-sqlite",
            "lib",
            "a_list_by_two_labels_reads_the_tasks_of_the_rarer",
        )],
    },
    Bug {
        name: "sqlite-purge-of-a-needed-child",
        breaks: "A purge removes a child that its parent has yet to join, and the parent fails \
                 for good.",
        guarantee: "a child is kept for a parent that has yet to join it",
        file: "crates/stepwell-sqlite/src/apply/purge.rs",
        find: "WHERE parent.task_id = task.parent AND parent.state <> 'completed')
                \
             AND NOT EXISTS (SELECT 1 FROM stepwell_waits wait",
        put: "WHERE parent.task_id = task.parent AND parent.state IN ('pending'))\n                \
             AND NOT EXISTS (SELECT 1 FROM stepwell_waits wait",
        tests: &[point("on_a_file::needed_tasks")],
    },
    Bug {
        name: "sqlite-purge-of-an-answered-task",
        breaks: "A purge removes a task that a parent was answered with and has yet to join.",
        guarantee: "a child is kept for a parent that has yet to join it",
        file: "crates/stepwell-sqlite/src/apply/purge.rs",
        find: "conn.run(sql, params![Sql(&task_id), Sql(&needed_by)]).map(drop)",
        put: "let _ = (conn, sql, task_id, needed_by);\n    Ok(())",
        tests: &[point("on_a_file::answered_tasks")],
    },
    Bug {
        name: "sqlite-children-of-the-dead",
        breaks: "The children of a task that was asked to cancel, and whose worker died, go on \
                 for ever.",
        guarantee: "cancellation",
        file: WORKERS,
        find: "applying.release_after_crash(task_id))
        })?;
        self.cancel_doomed_apart()",
        put: "applying.release_after_crash(task_id))
        })?;
        self.doomed.clear();
        Ok(())",
        tests: &[point("on_a_file::dead_workers")],
    },
    Bug {
        name: "sqlite-children-of-the-released",
        breaks: "The children of a task that was asked to cancel, and whose worker stopped, go on \
                 for ever.",
        guarantee: "cancellation",
        file: WORKERS,
        find: "                applying.give_back(&task, \
               &task.counts.left(Leaving::Released).into())\n            })\n        })?;\n        \
               self.cancel_doomed_apart()",
        put: "                applying.give_back(&task, \
              &task.counts.left(Leaving::Released).into())\n            })\n        })?;\n        \
              self.doomed.clear();\n        Ok(())",
        tests: &[point("on_a_file::deregistration")],
    },
    Bug {
        name: "sqlite-heartbeat-not-compared",
        breaks: "A worker that was heard of meanwhile is declared dead all the same.",
        guarantee: "3",
        file: WORKERS,
        find: "WHERE worker_id = ?1 AND max(heartbeats, 0) = ?2\n",
        put: "WHERE worker_id = ?1 AND ?2 = ?2\n",
        tests: &[point("on_a_file::leases")],
    },
    Bug {
        name: "sqlite-lock-file-deleted",
        breaks: "When a user tidies lock files away, living workers are taken for dead.",
        guarantee: "3",
        file: "crates/stepwell-sqlite/src/state/liveness.rs",
        find: "Ok(_) | Err(_) => false",
        put: "            Ok(_) => false,\n            Err(error) => error.kind() == \
              ErrorKind::NotFound,",
        tests: &[fails(
            "stepwell-sqlite",
            "lib",
            "a_lock_file_that_is_gone_kills_nobody_and_is_made_anew",
        )],
    },
    Bug {
        name: "sqlite-lock-file-not-made-again",
        breaks: "After its lock file was deleted, a process's death is noticed by its lease only.",
        guarantee: "4",
        file: WORKERS,
        find: "if let Some((handle, lost)) = self.liveness.renewed() {",
        put: "if let Some((handle, lost)) = self.liveness.renewed().filter(|_| false) {",
        tests: &[fails(
            "stepwell-sqlite",
            "lib",
            "a_lock_file_that_is_gone_kills_nobody_and_is_made_anew",
        )],
    },
    Bug {
        name: "sqlite-file-not-looked-at",
        breaks: "A file that was deleted or replaced is written to, and all that was accepted \
                 since is lost.",
        guarantee: "what is accepted is in the file that the path names",
        file: "crates/stepwell-sqlite/src/state.rs",
        find: "self.identity.as_ref().map_or(Ok(()), |identity| identity.check())",
        put: "Ok(self.identity.as_ref().map_or((), |identity| identity.check().unwrap_or(())))",
        tests: &[
            fails(
                "stepwell-sqlite",
                "lib",
                "a_database_that_was_moved_accepts_nothing_until_it_is_back",
            ),
            fails(
                "stepwell-sqlite",
                "lib",
                "a_database_that_was_replaced_accepts_nothing_and_leaves_the_other_alone",
            ),
        ],
    },
    Bug {
        name: "sqlite-log-of-others-deleted",
        breaks: "A process whose log's index was replaced deletes the log that others have begun \
                 to use, and writes into their database.",
        guarantee: "what is accepted is in the file that the path names",
        file: "crates/stepwell-sqlite/src/file/identity.rs",
        find: "        self.database.look().is_err() || replaced(&self.wal) || replaced(&self.shm)",
        put: "        replaced(&self.wal) && replaced(&self.shm) && \
              self.database.path.as_os_str().is_empty()",
        tests: &[fails(
            "stepwell-sqlite",
            "lib",
            "an_index_of_the_log_that_was_deleted_is_noticed",
        )],
    },
    Bug {
        name: "sqlite-commits-not-synced",
        breaks: "What is accepted is lost in a power cut.",
        guarantee: "1",
        file: "crates/stepwell-sqlite/src/file/checkpoint.rs",
        find: "\"PRAGMA synchronous = FULL; PRAGMA fullfsync = ON;",
        put: "\"PRAGMA synchronous = NORMAL; PRAGMA fullfsync = ON;",
        tests: &[fails("stepwell-sqlite", "lib", "a_connections_settings_are_the_stores_own")],
    },
    Bug {
        name: "sqlite-names-not-synced",
        breaks: "A folder whose sync fails once takes the log's name in a power cut, and all that \
                 was accepted since.",
        guarantee: "1",
        file: "crates/stepwell-sqlite/src/file/open.rs",
        find: "Ok(folder) => folder.sync_all(),",
        put: "Ok(_) => Ok(()),",
        tests: &[fails("stepwell-disk", "store", "a_write_or_sync_that_fails_once_loses_nothing")],
    },
    Bug {
        name: "sqlite-log-trusted",
        breaks: "After a failed sync and the death of its program, what is accepted by the next \
                 one is lost in a power cut.",
        guarantee: "1",
        file: "crates/stepwell-sqlite/src/file/log.rs",
        find: "    log.seek(SeekFrom::Start(start))?;\n    log.write_all(buffer)?;",
        put: "    log.seek(SeekFrom::Start(start + buffer.len() as u64))?;\n    \
              log.write_all(&[])?;",
        tests: &[fails(
            "stepwell-disk",
            "store",
            "what_a_program_leaves_that_dies_after_a_failure_is_not_trusted",
        )],
    },
    Bug {
        name: "sqlite-log-copied-untrusted",
        breaks: "A program that cannot open the database copies what is not durable into it, and \
                 a power cut damages it.",
        guarantee: "1",
        file: "crates/stepwell-sqlite/src/file/open.rs",
        find: "writer.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;",
        put: "writer.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false)?;",
        tests: &[fails(
            "stepwell-disk",
            "store",
            "what_a_program_leaves_that_dies_after_a_failure_is_not_trusted",
        )],
    },
    Bug {
        name: "sqlite-folder-trusted-at-once",
        breaks: "A file that is moved just after another change of its folder is written to, and \
                 what was accepted is lost.",
        guarantee: "what is accepted is in the file that the path names",
        file: "crates/stepwell-sqlite/src/file/identity.rs",
        find: "(changed + tick < now).then_some(",
        put: "(changed + tick >= changed || now < changed).then_some(",
        tests: &[fails(
            "stepwell-sqlite",
            "lib",
            "a_folder_has_settled_once_later_changes_have_another_time",
        )],
    },
    Bug {
        name: "sqlite-log-without-bounds",
        breaks: "After a long reader the write-ahead log stays as long as it has become.",
        guarantee: "what is accepted is in the file that the path names",
        file: "crates/stepwell-sqlite/src/file/checkpoint.rs",
        find: "is_ok_and(|wal| wal.len() > GROWN)",
        put: "is_ok_and(|wal| wal.len() > 1_000 * GROWN)",
        tests: &[hangs("stepwell-sqlite", "lib", "the_log_is_short_again_after_a_long_reader")],
    },
    Bug {
        name: "sqlite-tick-comes-twice",
        breaks: "Two workers that come to a tick both spawn its task.",
        guarantee: "a tick spawns one task",
        file: "crates/stepwell-sqlite/src/apply/schedules.rs",
        find: "                    WHERE name = ?1 AND version = ?2\",",
        put: "                    WHERE name = ?1 AND ?2 = ?2\",",
        tests: &[point("on_a_file::schedules_under_races")],
    },
    Bug {
        name: "sqlite-overlap-not-skipped",
        breaks: "A schedule that is not to overlap spawns a task while its last one runs.",
        guarantee: "a tick spawns one task",
        file: "crates/stepwell-sqlite/src/apply/schedules.rs",
        find: "&& !(*unless_running && self.last_task_runs(name)?)",
        put: "&& !(*unless_running && !self.last_task_runs(name)? && spawns.is_empty())",
        tests: &[point("on_a_file::schedules_without_overlap")],
    },
    Bug {
        name: "sqlite-one-more-than-the-limit",
        breaks: "A queue runs one task more than its limit allows.",
        guarantee: "queues",
        file: LIMITS,
        find: "left = left.min(limit.saturating_sub(running) as usize);",
        put: "left = left.min((limit + 1).saturating_sub(running) as usize);",
        tests: &[point("on_a_file::queue_limits")],
    },
    Bug {
        name: "sqlite-paused-tasks-claimed",
        breaks: "A paused task is run.",
        guarantee: "a paused task is claimed by nobody",
        file: CLAIM,
        find: "WHERE queue = ?1 AND state = 'pending' AND due_at IS NULL AND blocked = 0 AND \
               paused = 0 AND \",",
        put: "WHERE queue = ?1 AND state = 'pending' AND due_at IS NULL AND blocked = 0 AND \
              paused IN (0, 1) AND \",",
        tests: &[point("on_a_file::paused_tasks")],
    },
    Bug {
        name: "sqlite-history-cursor-off-by-one",
        breaks: "A reader that continues the history from a number gets the event of that number \
                 again.",
        guarantee: "the stream of events misses nothing",
        file: "crates/stepwell-sqlite/src/read/history.rs",
        find: "WHERE id > ?1 AND ?2 IS NULL ORDER BY id",
        put: "WHERE id >= ?1 AND ?2 IS NULL ORDER BY id",
        tests: &[point("on_a_file::histories")],
    },
    Bug {
        name: "sqlite-list-cursor-off-by-one",
        breaks: "The first task of each further page is the last one of the page before.",
        guarantee: "a list has everything on some page",
        file: "crates/stepwell-sqlite/src/read/query.rs",
        find: "(&format!(\"{id} < ?\"),",
        put: "(&format!(\"{id} <= ?\"),",
        tests: &[point("on_a_file::lists")],
    },
    Bug {
        name: "sqlite-transaction-of-the-closure-kept",
        breaks: "What a step's transaction wrote before it failed stays.",
        guarantee: "2",
        file: "crates/stepwell-sqlite/src/apply/work.rs",
        find: "        if result.is_err() {\n",
        put: "        if result.is_err() && self.conn.is_autocommit() {\n",
        tests: &[fails(
            "stepwell-sqlite",
            "lib",
            "work_that_fails_or_panics_is_undone_and_the_rest_stands",
        )],
    },
    Bug {
        name: "sqlite-child-of-a-failed-parent-deleted",
        breaks: "A child of a failed task can be deleted, and every retry of the task fails by \
                 joining it.",
        guarantee: "a child is kept for a parent that has yet to join it",
        file: PURGE,
        find: "WHERE task.task_id = ?1 AND parent.state <> 'completed'),",
        put: "WHERE task.task_id = ?1 AND parent.state IN ('pending', 'running', 'suspended')),",
        tests: &[point("on_a_file::needed_tasks")],
    },
    Bug {
        name: "sqlite-child-of-a-failed-parent-purged",
        breaks: "A purge removes the children of a failed task, and every retry of it fails by \
                 joining them.",
        guarantee: "a child is kept for a parent that has yet to join it",
        file: PURGE,
        find: "WHERE parent.task_id = task.parent AND parent.state <> 'completed')",
        put: "WHERE parent.task_id = task.parent AND parent.state IN ('pending', 'running', \
              'suspended'))",
        tests: &[point("on_a_file::needed_tasks"), point("on_a_file::purged_families")],
    },
    Bug {
        name: "sqlite-purge-stops-behind-a-parent",
        breaks: "A purge removes a failed parent, and leaves its children to the next one.",
        guarantee: "a child is kept for a parent that has yet to join it",
        file: PURGE,
        find: "                left.extend(tx",
        put: "                drop(tx",
        tests: &[point("on_a_file::purged_families")],
    },
    Bug {
        name: "sqlite-tasks-keep-each-other",
        breaks: "Failed tasks that were answered with each other are never removed.",
        guarantee: "a child is kept for a parent that has yet to join it",
        file: PURGE,
        find: "(\n                    SELECT other.task_id\n",
        put: "(\n                    SELECT 'nobody'\n",
        tests: &[point("on_a_file::answered_with_each_other")],
    },
    Bug {
        name: "sqlite-mailbox-emptied-by-a-failure",
        breaks: "Messages that a task had not received when it failed are lost, and a retry waits \
                 for them for ever.",
        guarantee: "a retry receives what the task had not",
        file: "crates/stepwell-sqlite/src/apply/states.rs",
        find: "        if mail && state == TaskState::Completed {\n",
        put: "        if mail {\n",
        tests: &[
            point("on_a_file::mailboxes_of_retried_tasks"),
            fails("stepwell", "retry", "a_retry_receives_what_the_task_had_not"),
        ],
    },
    Bug {
        name: "sqlite-mailbox-outlasts-its-task",
        breaks: "The messages of a task that was removed stay in the database for ever.",
        guarantee: "a retry receives what the task had not",
        file: PURGE,
        find: "    conn.run(\"DELETE FROM stepwell_messages WHERE task_id = ?1\", \
               params![Sql(&task_id)])?;\n",
        put: "",
        tests: &[point("on_a_file::mailboxes_of_retried_tasks")],
    },
];
