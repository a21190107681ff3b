-- Limits of queues, concurrency keys, versions of code.

ALTER TABLE stepwell_tasks ADD COLUMN concurrency_key TEXT;
ALTER TABLE stepwell_tasks ADD COLUMN code_version TEXT;   -- only workers of this version may claim it
ALTER TABLE stepwell_tasks ADD COLUMN place INTEGER;       -- among the unfinished tasks of its concurrency key
ALTER TABLE stepwell_tasks ADD COLUMN blocked INTEGER NOT NULL DEFAULT 0; -- another task of the key comes first

DROP INDEX stepwell_tasks_ready;
CREATE INDEX stepwell_tasks_ready ON stepwell_tasks (queue, priority DESC, ready_at, task_id)
    WHERE state = 'pending' AND due_at IS NULL AND blocked = 0;
CREATE INDEX stepwell_tasks_key ON stepwell_tasks (concurrency_key, place) WHERE place IS NOT NULL;

CREATE TABLE stepwell_queues (
    queue                  TEXT    PRIMARY KEY,
    paused                 INTEGER NOT NULL DEFAULT 0,
    max_running            INTEGER,
    max_running_per_worker INTEGER,
    rate_starts            INTEGER,
    rate_per               INTEGER,
    used_until             INTEGER     -- up to when the rate is used up
) STRICT, WITHOUT ROWID;
