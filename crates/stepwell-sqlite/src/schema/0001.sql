-- Ids are UUIDs as text. Times are UTC microseconds since 1970, and durations are microseconds.
-- Flags are 0 or 1. Payloads are JSON, or envelopes of a codec. `docs/format.md` describes the
-- tables for people who read a database with other tools.
--
-- SQLite reads the columns of a row from left to right, and a long row continues on other pages.
-- The short columns of a table therefore come before its payloads.

-- The tasks. Every index but the unique ones is partial: a task that has ended is in none that
-- claims look at. Each change of a task pays for every index that there is.
CREATE TABLE stepwell_tasks (
    -- Which task it is, and which run owns it.
    task_id           TEXT    NOT NULL UNIQUE,
    run_id            TEXT    NOT NULL,              -- of the latest run; the fencing token
    -- Where the task stands.
    state             TEXT    NOT NULL,              -- pending, running, suspended, completed, …
    queue             TEXT    NOT NULL,
    task_type         TEXT    NOT NULL,
    worker_id         TEXT,                          -- runs it; of a suspended task, ran it last
    cancel_requested  INTEGER NOT NULL DEFAULT 0,    -- the task ends when its run sees this
    compensating      INTEGER NOT NULL DEFAULT 0,    -- what it did is undone before it ends
    poked             INTEGER NOT NULL DEFAULT 0,    -- something arrived for it while it ran
    paused            INTEGER NOT NULL DEFAULT 0,    -- no worker may claim it
    blocked           INTEGER NOT NULL DEFAULT 0,    -- another task of its concurrency key is first
    place             INTEGER,                       -- among the unfinished tasks of that key
    priority          INTEGER NOT NULL,              -- higher ones are claimed first
    attempt           INTEGER NOT NULL,              -- attempts that count, with the present one
    max_attempts      INTEGER NOT NULL,
    lost              INTEGER NOT NULL DEFAULT 0,    -- further attempts, which crashes have ended
    crashes           INTEGER NOT NULL DEFAULT 0,    -- crashes in a row
    progress_at_crash INTEGER NOT NULL DEFAULT 0,    -- the journal's last entry at the last crash
    -- Its times.
    ready_at          INTEGER NOT NULL,              -- became claimable, or will be ordered by this
    due_at            INTEGER,                       -- becomes claimable
    cancel_at         INTEGER,                       -- is cancelled
    spawned_at        INTEGER NOT NULL,
    started_at        INTEGER,                       -- of its first run
    finished_at       INTEGER,
    max_duration      INTEGER,                       -- from its first start until it is cancelled
    -- What it was spawned with.
    parent            TEXT,
    idempotency_key   TEXT,
    concurrency_key   TEXT,
    code_version      TEXT,                          -- only workers of this version may claim it
    scope             TEXT    NOT NULL DEFAULT '',   -- JSON, or empty; its keys are of this scope
    -- The documents.
    retry             TEXT    NOT NULL,              -- JSON: the retry strategy
    headers           TEXT    NOT NULL,              -- JSON: an object of texts
    params            TEXT    NOT NULL,
    output            TEXT,                          -- of a completed task
    failure           TEXT                           -- JSON: of the latest attempt that failed
) STRICT;

-- What workers claim, in their order. Suspects, which crashed twice in a row, are apart.
CREATE INDEX stepwell_tasks_ready
    ON stepwell_tasks (queue, crashes >= 2, priority DESC, ready_at, task_id)
    WHERE state = 'pending' AND due_at IS NULL AND blocked = 0 AND paused = 0;
CREATE INDEX stepwell_tasks_due ON stepwell_tasks (due_at, task_id) WHERE due_at IS NOT NULL;
CREATE INDEX stepwell_tasks_deadline ON stepwell_tasks (cancel_at, task_id)
    WHERE cancel_at IS NOT NULL;
CREATE INDEX stepwell_tasks_running ON stepwell_tasks (worker_id) WHERE state = 'running';
CREATE INDEX stepwell_tasks_poked ON stepwell_tasks (worker_id, task_id) WHERE poked = 1;
CREATE INDEX stepwell_tasks_parent ON stepwell_tasks (parent, task_id) WHERE parent IS NOT NULL;
CREATE UNIQUE INDEX stepwell_tasks_idempotency
    ON stepwell_tasks (task_type, idempotency_key, scope) WHERE idempotency_key IS NOT NULL;
CREATE INDEX stepwell_tasks_key ON stepwell_tasks (concurrency_key, scope, place)
    WHERE place IS NOT NULL;
-- Lists of a queue. Most tasks are in the queue `default`, and their spawns pay for no further
-- index.
CREATE INDEX stepwell_tasks_queue ON stepwell_tasks (queue, task_id)
    WHERE scope = '' AND queue <> 'default';

-- The labels of tasks. The tasks of a scope are those for which its labels are their own: labels of
-- their own scope, or of tasks without a scope. The queue of a task's scope, if the task is in it,
-- is a label without a name.
CREATE TABLE stepwell_labels (
    task_id TEXT    NOT NULL,
    name    TEXT    NOT NULL,
    value   TEXT    NOT NULL,
    own     INTEGER NOT NULL,
    PRIMARY KEY (task_id, name)
) STRICT, WITHOUT ROWID;

CREATE INDEX stepwell_labels_value ON stepwell_labels (name, value, task_id);
CREATE INDEX stepwell_labels_own ON stepwell_labels (name, value, task_id) WHERE own = 1;

-- The tasks that others were answered with. Those others may have yet to learn how they ended.
CREATE TABLE stepwell_needs (
    task_id   TEXT NOT NULL,
    needed_by TEXT NOT NULL,
    PRIMARY KEY (task_id, needed_by)
) STRICT, WITHOUT ROWID;

CREATE INDEX stepwell_needs_by ON stepwell_needs (needed_by);

-- The journals. The kind, the name and the ordinal are the key of an operation.
CREATE TABLE stepwell_journal (
    task_id TEXT    NOT NULL,
    seq     INTEGER NOT NULL,           -- the number of the entry, from 1
    kind    TEXT    NOT NULL,
    name    TEXT    NOT NULL,
    ordinal INTEGER NOT NULL,           -- the number of the call with this kind and name, from 1
    outcome TEXT    NOT NULL,           -- done, failed, retrying
    at      INTEGER NOT NULL,           -- when it was delivered
    payload TEXT    NOT NULL,
    PRIMARY KEY (task_id, seq)
) STRICT, WITHOUT ROWID;

-- What suspended and running tasks wait for.
CREATE TABLE stepwell_waits (
    task_id TEXT    NOT NULL,
    kind    TEXT    NOT NULL,
    name    TEXT    NOT NULL,
    ordinal INTEGER NOT NULL,
    target  TEXT,                       -- an event's name, a message's topic, a child's id
    due_at  INTEGER,                    -- when the wait ends without it
    arrived INTEGER NOT NULL,           -- the target may be there: a look reads no other wait
    PRIMARY KEY (task_id, kind, name, ordinal)
) STRICT, WITHOUT ROWID;

CREATE INDEX stepwell_waits_target ON stepwell_waits (target, kind, task_id)
    WHERE target IS NOT NULL;
CREATE INDEX stepwell_waits_arrived ON stepwell_waits (task_id) WHERE arrived = 1;

-- The events that were emitted.
CREATE TABLE stepwell_events (
    name    TEXT NOT NULL,
    queue   TEXT NOT NULL,              -- the tasks that it is for; '' for all queues
    payload TEXT NOT NULL,
    PRIMARY KEY (name, queue)
) STRICT, WITHOUT ROWID;

-- The messages that no task has received yet. A number is never given again.
CREATE TABLE stepwell_messages (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    task_id TEXT NOT NULL,              -- the recipient
    topic   TEXT NOT NULL,
    payload TEXT NOT NULL
) STRICT;

CREATE INDEX stepwell_messages_mailbox ON stepwell_messages (task_id, topic, id);

-- The workers.
CREATE TABLE stepwell_workers (
    worker_id     TEXT    PRIMARY KEY,
    name          TEXT    NOT NULL,
    state         TEXT    NOT NULL,     -- active, draining
    code_version  TEXT,
    concurrency   INTEGER NOT NULL,     -- how many tasks it runs at a time
    registered_at INTEGER NOT NULL,
    heartbeats    INTEGER NOT NULL,     -- how often it showed that it is alive
    heartbeat_at  INTEGER NOT NULL,     -- when it did so last
    lease         INTEGER NOT NULL,     -- how long it may be silent
    handle        TEXT,                 -- names the file that its process keeps locked
    queues        TEXT    NOT NULL      -- JSON: a list of names
) STRICT, WITHOUT ROWID;

-- The queues that were paused or limited.
CREATE TABLE stepwell_queues (
    queue                  TEXT    PRIMARY KEY,
    paused                 INTEGER NOT NULL DEFAULT 0,
    max_running            INTEGER,
    max_running_per_worker INTEGER,
    rate_starts            INTEGER,     -- so many tasks may start …
    rate_per               INTEGER,     -- … in so long
    used_until             INTEGER      -- up to when the rate is used up
) STRICT, WITHOUT ROWID;

-- The schedules.
CREATE TABLE stepwell_schedules (
    name       TEXT PRIMARY KEY,
    version    TEXT NOT NULL,           -- another one after each change
    next_at    INTEGER,                 -- a worker looks at it then
    last_task  TEXT,                    -- the last task that it spawned
    definition TEXT NOT NULL
) STRICT;

CREATE INDEX stepwell_schedules_next ON stepwell_schedules (next_at, name)
    WHERE next_at IS NOT NULL;

-- The lifecycle events. A number is never given again: readers continue after the last one that
-- they have.
CREATE TABLE stepwell_history (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    task_id TEXT    NOT NULL,
    at      INTEGER NOT NULL,
    name    TEXT    NOT NULL,
    event   TEXT    NOT NULL
) STRICT;

CREATE INDEX stepwell_history_task ON stepwell_history (task_id, id);

-- The task types that workers know.
CREATE TABLE stepwell_task_types (
    task_type TEXT PRIMARY KEY,
    params    TEXT NOT NULL,            -- JSON schema
    output    TEXT NOT NULL             -- JSON schema
) STRICT;
