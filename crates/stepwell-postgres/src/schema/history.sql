-- Lifecycle events that are kept, and the descriptions of task types.

CREATE TABLE stepwell.task_types (
    task_type text PRIMARY KEY,
    params    text NOT NULL,               -- JSON schemas
    output    text NOT NULL
);

CREATE TABLE stepwell.history (
    id      bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    task_id uuid        NOT NULL,
    at      timestamptz NOT NULL,
    name    text        NOT NULL,
    event   text        NOT NULL           -- JSON
);

CREATE INDEX history_task ON stepwell.history (task_id, id);

-- Adds to the history, one call at a time, so that numbers become visible in their order, and a
-- reader that has read up to a number misses nothing.
CREATE FUNCTION stepwell.record(p_tasks uuid[], p_at timestamptz[], p_names text[], p_events text[])
    RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM pg_advisory_xact_lock('stepwell.history'::regclass::oid::int, 0);
    INSERT INTO stepwell.history (task_id, at, name, event)
    SELECT x.task_id, x.at, x.name, x.event
    FROM unnest(p_tasks, p_at, p_names, p_events) WITH ORDINALITY AS x(task_id, at, name, event, i)
        ORDER BY x.i;
END $$;
