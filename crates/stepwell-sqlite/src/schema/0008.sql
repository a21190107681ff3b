-- Workers are declared dead by others that watch their heartbeats; crashes are counted for each task.

ALTER TABLE stepwell_workers RENAME COLUMN lease_until TO heartbeat_at;
ALTER TABLE stepwell_workers ADD COLUMN heartbeats INTEGER NOT NULL DEFAULT 0; -- how often it showed that it is alive
ALTER TABLE stepwell_workers ADD COLUMN lease INTEGER NOT NULL DEFAULT 30000000;

ALTER TABLE stepwell_tasks ADD COLUMN crashes INTEGER NOT NULL DEFAULT 0; -- crashes in a row
ALTER TABLE stepwell_tasks ADD COLUMN progress_at_crash INTEGER NOT NULL DEFAULT 0; -- the journal's last entry at the last crash
ALTER TABLE stepwell_tasks ADD COLUMN lost INTEGER NOT NULL DEFAULT 0; -- attempts that a crash has ended

DROP INDEX stepwell_tasks_ready;
CREATE INDEX stepwell_tasks_ready ON stepwell_tasks (queue, priority DESC, ready_at, task_id)
    WHERE state = 'pending' AND due_at IS NULL AND blocked = 0 AND paused = 0 AND crashes < 2;
-- What almost no task has comes first: each change of a task looks at the conditions until one is false.
CREATE INDEX stepwell_tasks_suspects ON stepwell_tasks (queue, priority DESC, ready_at, task_id)
    WHERE crashes >= 2 AND state = 'pending' AND due_at IS NULL AND blocked = 0 AND paused = 0;

-- Scopes of tasks, in which their keys are alone; and labels, by which tasks are found.

ALTER TABLE stepwell_tasks ADD COLUMN scope TEXT NOT NULL DEFAULT ''; -- JSON, or empty

DROP INDEX stepwell_tasks_idempotency;
CREATE UNIQUE INDEX stepwell_tasks_idempotency ON stepwell_tasks (task_type, idempotency_key, scope)
    WHERE idempotency_key IS NOT NULL;
DROP INDEX stepwell_tasks_key;
CREATE INDEX stepwell_tasks_key ON stepwell_tasks (concurrency_key, scope, place) WHERE place IS NOT NULL;

CREATE TABLE stepwell_labels (
    task_id TEXT NOT NULL,
    name    TEXT NOT NULL,
    value   TEXT NOT NULL,
    PRIMARY KEY (task_id, name)
) STRICT, WITHOUT ROWID;

CREATE INDEX stepwell_labels_value ON stepwell_labels (name, value, task_id);

INSERT INTO stepwell_labels (task_id, name, value)
SELECT t.task_id, h.key, h.value
FROM stepwell_tasks t, json_each(CASE WHEN json_valid(t.headers) THEN t.headers ELSE '{}' END) h
WHERE h.type = 'text' AND h.key NOT IN ('stepwell.tick', 'traceparent', 'tracestate')
    AND octet_length(h.key) BETWEEN 1 AND 512 AND octet_length(h.value) BETWEEN 1 AND 512
    AND instr(h.key, char(0)) = 0 AND instr(h.value, char(0)) = 0;
