-- Ids are UUIDs as text, times are UTC microseconds, durations are microseconds, payloads are JSON.
--
-- Every index on tasks but the unique ones is partial: a task that has ended is in none that claims look at.

CREATE TABLE stepwell_tasks (
    task_id          TEXT    NOT NULL UNIQUE,
    run_id           TEXT    NOT NULL,
    task_type        TEXT    NOT NULL,
    queue            TEXT    NOT NULL,
    state            TEXT    NOT NULL,
    priority         INTEGER NOT NULL,
    attempt          INTEGER NOT NULL,
    max_attempts     INTEGER NOT NULL,
    worker_id        TEXT,              -- who runs it; of a suspended task, who ran it
    parent           TEXT,
    idempotency_key  TEXT,
    cancel_requested INTEGER NOT NULL DEFAULT 0,
    poked            INTEGER NOT NULL DEFAULT 0, -- something arrived while it ran
    spawned_at       INTEGER NOT NULL,
    ready_at         INTEGER NOT NULL,
    started_at       INTEGER,
    finished_at      INTEGER,
    due_at           INTEGER,           -- becomes claimable then
    cancel_at        INTEGER,           -- is cancelled then
    max_duration     INTEGER,
    retry            TEXT    NOT NULL,
    headers          TEXT    NOT NULL,
    params           TEXT    NOT NULL,
    failure          TEXT,
    output           TEXT
) STRICT;

CREATE INDEX stepwell_tasks_ready ON stepwell_tasks (queue, priority DESC, ready_at, task_id)
    WHERE state = 'pending' AND due_at IS NULL;
CREATE INDEX stepwell_tasks_due ON stepwell_tasks (due_at, task_id) WHERE due_at IS NOT NULL;
CREATE INDEX stepwell_tasks_deadline ON stepwell_tasks (cancel_at, task_id) WHERE cancel_at IS NOT NULL;
CREATE INDEX stepwell_tasks_running ON stepwell_tasks (worker_id) WHERE state = 'running';
CREATE INDEX stepwell_tasks_poked ON stepwell_tasks (worker_id, task_id) WHERE poked = 1;
CREATE INDEX stepwell_tasks_parent ON stepwell_tasks (parent, task_id) WHERE parent IS NOT NULL;
CREATE UNIQUE INDEX stepwell_tasks_idempotency ON stepwell_tasks (task_type, idempotency_key)
    WHERE idempotency_key IS NOT NULL;

CREATE TABLE stepwell_journal (
    task_id TEXT    NOT NULL,
    seq     INTEGER NOT NULL,
    kind    TEXT    NOT NULL,
    name    TEXT    NOT NULL,
    ordinal INTEGER NOT NULL,
    outcome TEXT    NOT NULL,
    payload TEXT    NOT NULL,
    at      INTEGER NOT NULL,
    PRIMARY KEY (task_id, seq)
) STRICT, WITHOUT ROWID;

CREATE TABLE stepwell_waits (
    task_id TEXT    NOT NULL,
    kind    TEXT    NOT NULL,
    name    TEXT    NOT NULL,
    ordinal INTEGER NOT NULL,
    target  TEXT,                       -- an event's name, a message's topic, a child's id
    due_at  INTEGER,
    PRIMARY KEY (task_id, kind, name, ordinal)
) STRICT, WITHOUT ROWID;

CREATE INDEX stepwell_waits_target ON stepwell_waits (target) WHERE target IS NOT NULL;

CREATE TABLE stepwell_events (
    name    TEXT NOT NULL,
    queue   TEXT NOT NULL,              -- '' for all queues
    payload TEXT NOT NULL,
    PRIMARY KEY (name, queue)
) STRICT, WITHOUT ROWID;

CREATE TABLE stepwell_messages (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    task_id TEXT NOT NULL,
    topic   TEXT NOT NULL,
    payload TEXT NOT NULL
) STRICT;

CREATE INDEX stepwell_messages_mailbox ON stepwell_messages (task_id, topic, id);

CREATE TABLE stepwell_workers (
    worker_id  TEXT    PRIMARY KEY,
    name       TEXT    NOT NULL,
    lease_until INTEGER NOT NULL,
    handle     TEXT                     -- names the file that its process holds locked while it lives
) STRICT, WITHOUT ROWID;
