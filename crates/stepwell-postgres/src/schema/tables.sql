-- The name `stepwell` stands for the schema that the store was given.
--
-- What grows with history (tasks, outcomes, journal) is only ever added to, in the order of time-ordered ids, and is
-- deleted by retention alone: it needs no vacuum but the one that freezes. What changes (live_tasks, waits, messages,
-- workers, queues) holds unfinished tasks only, and stays small; but for the messages of tasks that
-- failed or were cancelled, which a retry receives:
--
--     spawn ──▶ tasks      (what was asked for)     spawn ──▶ live_tasks (where it stands) ──┐
--                                                                                       end │
--     step ───▶ journal                              outcomes (how it ended) ◀──────────────┘
--
-- Payloads are JSON text. They are kept as `text`, so that a payload that PostgreSQL's own parser refuses (nested too
-- deeply, say) still belongs to its task alone; the view `overview` shows them as `json`.

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
    -- Whether a task may have spawned it, or been answered with it, and so may await its end: it has a parent, an
    -- idempotency key or a concurrency key.
    known            boolean     NOT NULL DEFAULT false,
    code_version     text,                 -- only workers of this version may claim it
    concurrency_key  text,
    key_space        text,                 -- of its concurrency key
    place            bigint,               -- its place among the tasks of its concurrency key and key space; NULL while
                                           -- that is in the outbox
    blocked          boolean     NOT NULL DEFAULT false, -- another one of these comes first, or may
    paused           boolean     NOT NULL DEFAULT false, -- no worker may claim it
    cancel_requested boolean     NOT NULL DEFAULT false,
    compensating     boolean     NOT NULL DEFAULT false, -- what it did is being undone, then it ends
    ends_as          text,                 -- failed or cancelled, when its compensation is given up
    poked            boolean     NOT NULL DEFAULT false, -- something arrived while it ran
    crashes          bigint      NOT NULL DEFAULT 0,     -- crashes in a row
    progress_at_crash bigint     NOT NULL DEFAULT 0,     -- the journal's last entry at the last crash
    lost             bigint      NOT NULL DEFAULT 0,     -- attempts that a crash has ended
    ready_at         timestamptz NOT NULL,
    started_at       timestamptz,
    due_at           timestamptz,          -- becomes claimable then
    cancel_at        timestamptz,          -- is cancelled then
    failure          text,                 -- of the latest attempt that failed
    -- The queue, while it runs: for the index of what does. A predicate on `state` would tempt the planner: an index that
    -- seems small, for every statement that asks for a running task.
    running_in       text
) WITH (
    fillfactor = 70,
    -- Every task passes through; the ends of its indexes are where claims look.
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000,
    autovacuum_vacuum_cost_delay = 0, vacuum_index_cleanup = on,
    autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 50000
);

CREATE INDEX live_tasks_ready ON stepwell.live_tasks (queue, priority DESC, ready_at, task_id)
    WHERE state = 'pending' AND due_at IS NULL AND NOT blocked AND NOT paused AND crashes < 2;
-- Those that go on after a suspension, for queues with a rate.
CREATE INDEX live_tasks_go_on ON stepwell.live_tasks (queue, priority DESC, ready_at, task_id)
    WHERE state = 'pending' AND due_at IS NULL AND NOT blocked AND NOT paused AND crashes < 2 AND worker_id IS NOT NULL;
-- Those of which a process runs one at a time.
CREATE INDEX live_tasks_suspects ON stepwell.live_tasks (queue, priority DESC, ready_at, task_id)
    WHERE state = 'pending' AND due_at IS NULL AND NOT blocked AND NOT paused AND crashes >= 2;
CREATE INDEX live_tasks_due ON stepwell.live_tasks (due_at, task_id) WHERE due_at IS NOT NULL;
CREATE INDEX live_tasks_deadline ON stepwell.live_tasks (cancel_at, task_id) WHERE cancel_at IS NOT NULL;
-- By queue first, for its limits; a dead worker's tasks are looked for among all that run, which are few.
CREATE INDEX live_tasks_running ON stepwell.live_tasks (running_in, worker_id) WHERE running_in IS NOT NULL;
CREATE INDEX live_tasks_poked ON stepwell.live_tasks (worker_id) WHERE poked;
CREATE INDEX live_tasks_parent ON stepwell.live_tasks (parent) WHERE parent IS NOT NULL;
CREATE INDEX live_tasks_key ON stepwell.live_tasks (concurrency_key, key_space, place) WHERE concurrency_key IS NOT NULL;

-- The labels among the tasks' headers. A scope's tasks are those with its labels that have these of their own: of their scope,
-- or without any. So what others put into headers is not in the way of a scope's lists.
CREATE TABLE stepwell.labels (
    task_id uuid    NOT NULL,
    name    text    NOT NULL,
    value   text    NOT NULL,
    own     boolean NOT NULL,
    PRIMARY KEY (task_id, name)
);

CREATE INDEX labels_value ON stepwell.labels (name, value, task_id);
CREATE INDEX labels_own ON stepwell.labels (name, value, task_id) WHERE own;

-- Whether a task's scope asks for all that another one does. One that cannot be read does not.
CREATE FUNCTION stepwell.is_within(p_scope text, p_other text) RETURNS boolean
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN p_scope::jsonb @> p_other::jsonb;
EXCEPTION WHEN data_exception OR program_limit_exceeded THEN
    RETURN false;
END $$;

CREATE SEQUENCE stepwell.places;

-- A concurrency key, in the key space of its scope.
CREATE TYPE stepwell.turn AS (space text, key text);

-- The key space of a scope: its text, or what stands for one that is too long for an index.
CREATE FUNCTION stepwell.key_space(p_scope text) RETURNS text LANGUAGE sql IMMUTABLE
    RETURN CASE WHEN octet_length(p_scope) > 256 THEN encode(sha256(convert_to(p_scope, 'UTF8')), 'hex')
        ELSE coalesce(p_scope, '') END;

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

-- Tasks that others were answered with, which may have yet to await them. One that has failed or
-- was cancelled may be retried, and await them then: so its rows stay until it is deleted.
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
    -- An event's name, a message's topic, a child's id. It is looked for by how it begins, which only an index of bytes
    -- can do; and so is compared with columns that are kept like it.
    target  text   COLLATE "C",
    due_at  timestamptz,
    -- Whether something may have arrived. A look reads these waits, and no others. Whoever changes it has locked the task's row
    -- in live_tasks. One of the waits for a topic is enough.
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

-- Queues that somebody has changed.
CREATE TABLE stepwell.queues (
    queue                  text        PRIMARY KEY,
    paused                 boolean     NOT NULL DEFAULT false,
    max_running            bigint,
    max_running_per_worker bigint,
    rate_starts            bigint,
    rate_per               bigint,         -- microseconds
    used_until             timestamptz,    -- up to when the rate is used up
    -- Whether a task of it may not simply be started.
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

CREATE INDEX schedules_next ON stepwell.schedules (next_at, name COLLATE "C") WHERE next_at IS NOT NULL;

-- What users' transactions ask for beyond a row of their own: events, and the place of tasks among those of their idempotency
-- or concurrency key. Whatever follows from it is decided by `settle`, after the transaction has committed: its snapshot
-- may be old by then, and what it has locked would be waited for. Only users' transactions wait for each other here, where they name one
-- idempotency key.
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

-- What the database does not accept of the outbox, and why. What is put back by hand is tried again.
CREATE TABLE stepwell.outbox_refused (
    LIKE stepwell.outbox,
    refused_at timestamptz NOT NULL,
    reason     text        NOT NULL
);

CREATE UNIQUE INDEX outbox_key ON stepwell.outbox (task_type, idempotency_key, key_space)
    WHERE idempotency_key IS NOT NULL;

-- The last batch on each of a process's lines, so that one whose answer was lost with its connection is not applied twice; and when the
-- process was last heard of, so that those who are alone notify nobody.
CREATE TABLE stepwell.processes (
    process_id uuid        NOT NULL,
    line       smallint    NOT NULL,
    batch      bigint      NOT NULL,
    seen_at    timestamptz NOT NULL,
    PRIMARY KEY (process_id, line)
) WITH (fillfactor = 10, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);

-- For people and their tools: every task, with its payloads as JSON.
CREATE VIEW stepwell.overview AS
    SELECT t.task_id, t.task_type, t.queue,
        CASE WHEN l.compensating THEN 'compensating' ELSE coalesce(l.state, o.state) END AS state,
        coalesce(l.run_id, o.run_id) AS run_id, coalesce(l.attempt, o.attempt) AS attempt, t.max_attempts,
        t.priority, t.parent, t.idempotency_key, t.concurrency_key, t.code_version, t.scope,
        coalesce(l.cancel_requested, o.cancel_requested) AS cancel_requested, t.spawned_at,
        coalesce(l.started_at, o.started_at) AS started_at, o.finished_at, l.due_at, l.worker_id,
        t.params::json AS params, t.headers::json AS headers, o.output::json AS output,
        coalesce(l.failure, o.failure)::json AS failure
    FROM stepwell.tasks t
    LEFT JOIN stepwell.live_tasks l USING (task_id)
    LEFT JOIN stepwell.outcomes o USING (task_id);
