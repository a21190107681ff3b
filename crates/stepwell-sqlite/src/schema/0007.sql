-- Tasks that an operator has paused.

ALTER TABLE stepwell_tasks ADD COLUMN paused INTEGER NOT NULL DEFAULT 0; -- no worker may claim it

DROP INDEX stepwell_tasks_ready;
CREATE INDEX stepwell_tasks_ready ON stepwell_tasks (queue, priority DESC, ready_at, task_id)
    WHERE state = 'pending' AND due_at IS NULL AND blocked = 0 AND paused = 0;
