-- Suspects and the others are apart in one index: each change of a task pays for every index that there is.
DROP INDEX stepwell_tasks_ready;
DROP INDEX stepwell_tasks_suspects;
CREATE INDEX stepwell_tasks_ready ON stepwell_tasks (queue, crashes >= 2, priority DESC, ready_at, task_id)
    WHERE state = 'pending' AND due_at IS NULL AND blocked = 0 AND paused = 0;

-- Lists of a queue. Not for the queue that most tasks are in: whoever spawns one there pays for no further index.
CREATE INDEX stepwell_tasks_queue ON stepwell_tasks (queue, task_id) WHERE scope = '' AND queue <> 'default';

-- A scope's tasks are those with its labels that have these of their own: of their scope, or without any. The queue of a
-- task's scope, where the task is in it, is a label without a name.
ALTER TABLE stepwell_labels ADD COLUMN own INTEGER NOT NULL DEFAULT 1;

CREATE INDEX stepwell_labels_own ON stepwell_labels (name, value, task_id) WHERE own = 1;

UPDATE stepwell_labels SET own = 0
FROM (SELECT task_id AS id, CASE WHEN json_valid(scope) THEN scope ELSE '{}' END AS scope FROM stepwell_tasks
    WHERE scope <> '') task
WHERE task_id = task.id AND NOT EXISTS (
    SELECT 1 FROM json_each(task.scope, '$.labels') own WHERE own.key = stepwell_labels.name AND own.value = stepwell_labels.value);

INSERT INTO stepwell_labels (task_id, name, value)
SELECT task_id, '', queue FROM stepwell_tasks
WHERE scope <> '' AND json_extract(CASE WHEN json_valid(scope) THEN scope ELSE '{}' END, '$.queue') = queue;

-- The tasks that others were answered with, and may have yet to learn the end of.
CREATE TABLE stepwell_needs (
    task_id   TEXT NOT NULL,
    needed_by TEXT NOT NULL,
    PRIMARY KEY (task_id, needed_by)
) STRICT, WITHOUT ROWID;

CREATE INDEX stepwell_needs_by ON stepwell_needs (needed_by);
