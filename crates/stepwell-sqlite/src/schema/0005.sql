-- Schedules.

CREATE TABLE stepwell_schedules (
    name       TEXT PRIMARY KEY,
    version    TEXT NOT NULL,           -- another one after each change
    definition TEXT NOT NULL,
    next_at    INTEGER,                 -- is looked at then
    last_task  TEXT                     -- the last one that it spawned
) STRICT;

CREATE INDEX stepwell_schedules_next ON stepwell_schedules (next_at, name) WHERE next_at IS NOT NULL;
