-- Waits for whose target something may have arrived, so that a look reads these and no others.

ALTER TABLE stepwell_waits ADD COLUMN arrived INTEGER NOT NULL DEFAULT 0;

UPDATE stepwell_waits SET arrived = 1 WHERE target IS NOT NULL;

CREATE INDEX stepwell_waits_arrived ON stepwell_waits (task_id) WHERE arrived = 1;

-- Of the waits for one target, those of one task.
DROP INDEX stepwell_waits_target;
CREATE INDEX stepwell_waits_target ON stepwell_waits (target, kind, task_id) WHERE target IS NOT NULL;
