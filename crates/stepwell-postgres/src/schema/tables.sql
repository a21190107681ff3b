-- The name `stepwell` stands for the schema that the store was given.
--
-- Tables that grow with history (tasks, outcomes, journal) are only added to, in the order of
-- time-ordered ids, and retention alone deletes from them: they need no vacuum but the one that
-- freezes. Tables that change (live_tasks, waits, messages, workers, queues) hold unfinished tasks
-- only, and stay small. The exception are the messages of tasks that failed or were cancelled,
-- which a retry receives:
--
--     spawn ──▶ tasks      (what was asked for)     spawn ──▶ live_tasks (where it stands) ──┐
--                                                                                       end │
--     step ───▶ journal                              outcomes (how it ended) ◀──────────────┘
--
-- Payloads are JSON text. The columns are `text`, so that a payload that PostgreSQL's own parser
-- refuses (nested too deeply, for example) belongs to its task alone. The view `overview` shows
-- them as `json`.

CREATE TABLE stepwell.tasks (
    task_id          uuid        PRIMARY KEY,
    task_type        text        NOT NULL,
    queue            text        NOT NULL,
    priority         integer     NOT NULL,
    max_attempts     bigint      NOT NULL,
    parent           uuid,
    idempotency_key  text,
    concurrency_key  text,
    code_version     text,
    spawned_at       timestamptz NOT NULL,
    max_duration     bigint,               -- microseconds
    retry            text        NOT NULL,
    headers          text        NOT NULL,
    params           text        NOT NULL,
    scope            text                  -- JSON; its keys are those of this scope
);

CREATE INDEX tasks_parent ON stepwell.tasks (parent, task_id) WHERE parent IS NOT NULL;

CREATE TABLE stepwell.live_tasks (
    task_id          uuid        PRIMARY KEY,
    run_id           uuid        NOT NULL,
    task_type        text        NOT NULL,
    queue            text        NOT NULL,
    state            text        NOT NULL, -- pending, running, suspended
    priority         integer     NOT NULL,
    attempt          bigint      NOT NULL,
    worker_id        uuid,                 -- who runs it; of a suspended task, who ran it
    claim_batch      bigint,               -- the batch of the worker's process that claimed it
    parent           uuid,
    -- `true` if another task may await its end, because that task has spawned it or was answered
    -- with it: it has a parent, an idempotency key or a concurrency key.
    known            boolean     NOT NULL DEFAULT false,
    code_version     text,                 -- only workers of this version may claim it
    concurrency_key  text,
    key_space        text,                 -- of its concurrency key
    -- Its place among the tasks of its concurrency key and key space; NULL while that is in the
    -- outbox.
    place            bigint,
    blocked          boolean     NOT NULL DEFAULT false, -- another one of these comes first, or may
    paused           boolean     NOT NULL DEFAULT false, -- no worker may claim it
    cancel_requested boolean     NOT NULL DEFAULT false,
    -- `true` while what it did is being undone, before it ends.
    compensating     boolean     NOT NULL DEFAULT false,
    ends_as          text,                 -- failed or cancelled, when its compensation is given up
    poked            boolean     NOT NULL DEFAULT false, -- something arrived while it ran
    crashes          bigint      NOT NULL DEFAULT 0,     -- crashes in a row
    -- The journal's last entry at the last crash.
    progress_at_crash bigint     NOT NULL DEFAULT 0,
    lost             bigint      NOT NULL DEFAULT 0,     -- attempts that a crash has ended
    ready_at         timestamptz NOT NULL,
    started_at       timestamptz,
    due_at           timestamptz,          -- becomes claimable then
    cancel_at        timestamptz,          -- is cancelled then
    failure          text,                 -- of the latest attempt that failed
    -- The queue, while the task runs, for the index of running tasks. An index with a predicate on
    -- `state` would seem small to the planner, which would use it for every statement about a
    -- running task.
    running_in       text
) WITH (
    fillfactor = 70,
    -- Every task passes through this table, and claims read the ends of its indexes.
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000,
    autovacuum_vacuum_cost_delay = 0, vacuum_index_cleanup = on,
    autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 50000
);

CREATE INDEX live_tasks_ready ON stepwell.live_tasks (queue, priority DESC, ready_at, task_id)
    WHERE state = 'pending' AND due_at IS NULL AND NOT blocked AND NOT paused AND crashes < 2;
-- The tasks that continue after a suspension, for queues with a rate.
CREATE INDEX live_tasks_go_on ON stepwell.live_tasks (queue, priority DESC, ready_at, task_id)
    WHERE state = 'pending' AND due_at IS NULL AND NOT blocked AND NOT paused AND crashes < 2
        AND worker_id IS NOT NULL;
-- The suspects, of which a process runs one at a time.
CREATE INDEX live_tasks_suspects ON stepwell.live_tasks (queue, priority DESC, ready_at, task_id)
    WHERE state = 'pending' AND due_at IS NULL AND NOT blocked AND NOT paused AND crashes >= 2;
CREATE INDEX live_tasks_due ON stepwell.live_tasks (due_at, task_id) WHERE due_at IS NOT NULL;
CREATE INDEX live_tasks_deadline ON stepwell.live_tasks (cancel_at, task_id)
    WHERE cancel_at IS NOT NULL;
-- The queue comes first, for its limits. The tasks of a dead worker are searched among all running
-- tasks, which are few.
CREATE INDEX live_tasks_running ON stepwell.live_tasks (running_in, worker_id)
    WHERE running_in IS NOT NULL;
CREATE INDEX live_tasks_poked ON stepwell.live_tasks (worker_id) WHERE poked;
CREATE INDEX live_tasks_parent ON stepwell.live_tasks (parent) WHERE parent IS NOT NULL;
CREATE INDEX live_tasks_key ON stepwell.live_tasks (concurrency_key, key_space, place)
    WHERE concurrency_key IS NOT NULL;

-- The labels among the tasks' headers. A scope contains the tasks that have its labels as their
-- own: of their scope, or without a scope. Other headers do not slow the lists of a scope.
CREATE TABLE stepwell.labels (
    task_id uuid    NOT NULL,
    name    text    NOT NULL,
    value   text    NOT NULL,
    own     boolean NOT NULL,
    PRIMARY KEY (task_id, name)
);

CREATE INDEX labels_value ON stepwell.labels (name, value, task_id);
CREATE INDEX labels_own ON stepwell.labels (name, value, task_id) WHERE own;

CREATE SEQUENCE stepwell.places;

-- A concurrency key, in the key space of its scope.
CREATE TYPE stepwell.turn AS (space text, key text);

CREATE TABLE stepwell.outcomes (
    task_id          uuid        PRIMARY KEY,
    run_id           uuid        NOT NULL,
    state            text        NOT NULL, -- completed, failed, cancelled
    attempt          bigint      NOT NULL,
    cancel_requested boolean     NOT NULL,
    started_at       timestamptz,
    finished_at      timestamptz NOT NULL,
    output           text,
    failure          text,
    instead          uuid                  -- the task that is done in its place
);

CREATE INDEX outcomes_unhappy ON stepwell.outcomes (state, task_id) WHERE state <> 'completed';
CREATE INDEX outcomes_instead ON stepwell.outcomes (instead) WHERE instead IS NOT NULL;

CREATE TABLE stepwell.idempotency_keys (
    task_type        text        NOT NULL,
    idempotency_key  text        NOT NULL,
    key_space        text        NOT NULL,
    task_id          uuid        NOT NULL,
    PRIMARY KEY (task_type, idempotency_key, key_space)
);

-- Tasks that others were answered with, and may have yet to await. A task that has failed or was
-- cancelled may be retried, and await them then, so its rows stay until it is deleted.
CREATE TABLE stepwell.needs (
    task_id   uuid NOT NULL,
    needed_by uuid NOT NULL,
    PRIMARY KEY (task_id, needed_by)
);

CREATE INDEX needs_needed_by ON stepwell.needs (needed_by);

CREATE TABLE stepwell.journal (
    task_id uuid        NOT NULL,
    seq     bigint      NOT NULL,
    kind    text        NOT NULL,
    name    text        NOT NULL,
    ordinal bigint      NOT NULL,
    outcome text        NOT NULL,
    payload text        NOT NULL,
    at      timestamptz NOT NULL,
    PRIMARY KEY (task_id, seq)
);

CREATE TABLE stepwell.waits (
    task_id uuid   NOT NULL,
    kind    text   NOT NULL,
    name    text   NOT NULL,
    ordinal bigint NOT NULL,
    -- An event's name, a message's topic, or a child's id. Lists search for its beginning, for
    -- which an index needs the order of bytes; columns that are compared with it have the same
    -- order.
    target  text   COLLATE "C",
    due_at  timestamptz,
    -- `true` if something may have arrived. A look reads these waits only. The transaction that
    -- changes it has locked the task's row in live_tasks. One marked wait for a topic is enough.
    arrived boolean NOT NULL DEFAULT false,
    PRIMARY KEY (task_id, kind, name, ordinal)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000,
    autovacuum_vacuum_cost_delay = 0, vacuum_index_cleanup = on);

CREATE INDEX waits_target ON stepwell.waits (target, kind, task_id) WHERE target IS NOT NULL;
CREATE INDEX waits_arrived ON stepwell.waits (task_id) WHERE arrived;

CREATE TABLE stepwell.events (
    name       text        COLLATE "C" NOT NULL,
    queue      text        NOT NULL,       -- '' for all queues
    payload    text        NOT NULL,
    emitted_at timestamptz NOT NULL,
    PRIMARY KEY (name, queue)
);

CREATE TABLE stepwell.messages (
    id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    task_id uuid   NOT NULL,
    topic   text   COLLATE "C" NOT NULL,
    payload text   NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000,
    autovacuum_vacuum_cost_delay = 0, vacuum_index_cleanup = on);

CREATE INDEX messages_mailbox ON stepwell.messages (task_id, topic, id);

CREATE TABLE stepwell.workers (
    worker_id     uuid        PRIMARY KEY,
    name          text        NOT NULL,
    queues        text[]      NOT NULL,
    concurrency   bigint      NOT NULL,
    code_version  text,
    state         text        NOT NULL DEFAULT 'active', -- active, draining
    registered_at timestamptz NOT NULL,
    heartbeats    bigint      NOT NULL DEFAULT 0, -- how often it showed that it is alive
    heartbeat_at  timestamptz NOT NULL,
    lease         bigint      NOT NULL            -- microseconds
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);

-- Queues that a client has paused or limited.
CREATE TABLE stepwell.queues (
    queue                  text        PRIMARY KEY,
    paused                 boolean     NOT NULL DEFAULT false,
    max_running            bigint,
    max_running_per_worker bigint,
    rate_starts            bigint,
    rate_per               bigint,         -- microseconds
    used_until             timestamptz,    -- up to when the rate is used up
    -- `true` if a task of the queue may not always be started.
    restricts              boolean         GENERATED ALWAYS AS (paused OR max_running IS NOT NULL
        OR max_running_per_worker IS NOT NULL OR rate_starts IS NOT NULL) STORED
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);

CREATE TABLE stepwell.schedules (
    name       text        PRIMARY KEY,
    version    uuid        NOT NULL,       -- another one after each change
    definition text        NOT NULL,       -- JSON
    next_at    timestamptz,                -- is looked at then
    last_task  uuid                        -- the last one that it spawned
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);

CREATE INDEX schedules_next ON stepwell.schedules (next_at, name COLLATE "C")
    WHERE next_at IS NOT NULL;

-- What users' transactions ask for beyond a row of their own: events, and the places of tasks among
-- the tasks with their idempotency or concurrency key. `settle` decides what follows, after the
-- transaction has committed. The snapshot of a user's transaction may be old by then, and others
-- would wait for its locks. Only users' transactions that name the same idempotency key wait for
-- each other here.
CREATE TABLE stepwell.outbox (
    id              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    event           text,                  -- to be emitted
    queue           text,
    payload         text,
    task_id         uuid,                  -- a task that is blocked until its place is known
    task_type       text,
    idempotency_key text,
    key_space       text,                  -- of its idempotency key
    coalesce        text
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);

-- The rows of the outbox that the database does not accept, and why. A row that a person puts back
-- is tried again.
CREATE TABLE stepwell.outbox_refused (
    LIKE stepwell.outbox,
    refused_at timestamptz NOT NULL,
    reason     text        NOT NULL
);

CREATE UNIQUE INDEX outbox_key ON stepwell.outbox (task_type, idempotency_key, key_space)
    WHERE idempotency_key IS NOT NULL;

-- The last batch on each line of a process, so that a batch whose answer was lost with its
-- connection is not applied twice; and the time of its last sign of life, so that a process that is
-- alone notifies no other.
CREATE TABLE stepwell.processes (
    process_id uuid        NOT NULL,
    line       smallint    NOT NULL,
    batch      bigint      NOT NULL,
    seen_at    timestamptz NOT NULL,
    PRIMARY KEY (process_id, line)
) WITH (fillfactor = 10, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);

-- Every task, with its payloads as JSON, for people and their tools.
CREATE VIEW stepwell.overview AS
    SELECT t.task_id, t.task_type, t.queue,
        CASE WHEN l.compensating THEN 'compensating' ELSE coalesce(l.state, o.state) END AS state,
        coalesce(l.run_id, o.run_id) AS run_id, coalesce(l.attempt, o.attempt) AS attempt,
        t.max_attempts, t.priority, t.parent, t.idempotency_key, t.concurrency_key, t.code_version,
        t.scope, coalesce(l.cancel_requested, o.cancel_requested) AS cancel_requested, t.spawned_at,
        coalesce(l.started_at, o.started_at) AS started_at, o.finished_at, l.due_at, l.worker_id,
        t.params::json AS params, t.headers::json AS headers, o.output::json AS output,
        coalesce(l.failure, o.failure)::json AS failure
    FROM stepwell.tasks t
    LEFT JOIN stepwell.live_tasks l USING (task_id)
    LEFT JOIN stepwell.outcomes o USING (task_id);
