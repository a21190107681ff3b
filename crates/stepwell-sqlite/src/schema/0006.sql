-- Lifecycle events that are kept, and what is known of task types.

CREATE TABLE stepwell_history (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,  -- a number is never given again: readers go on behind the last that they have
    task_id TEXT    NOT NULL,
    at      INTEGER NOT NULL,
    name    TEXT    NOT NULL,
    event   TEXT    NOT NULL
) STRICT;

CREATE INDEX stepwell_history_task ON stepwell_history (task_id, id);

CREATE TABLE stepwell_task_types (
    task_type TEXT PRIMARY KEY,
    params    TEXT NOT NULL,    -- JSON schemas
    output    TEXT NOT NULL
) STRICT;
