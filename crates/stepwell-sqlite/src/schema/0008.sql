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
CREATE INDEX stepwell_tasks_suspects ON stepwell_tasks (queue, priority DESC, ready_at, task_id)
    WHERE state = 'pending' AND due_at IS NULL AND blocked = 0 AND paused = 0 AND crashes >= 2;
