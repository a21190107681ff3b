-- Functions over values, which read no tables.

-- Returns the key space of a scope: its text, or a hash of a text that is too long for an index.
CREATE FUNCTION stepwell.key_space(p_scope text) RETURNS text LANGUAGE sql IMMUTABLE
    RETURN CASE WHEN octet_length(p_scope) > 256 THEN encode(sha256(convert_to(p_scope, 'UTF8')),
        'hex')
        ELSE coalesce(p_scope, '') END;

-- Returns whether a task's scope asks for all that another scope does; false for a scope that
-- cannot be read.
CREATE FUNCTION stepwell.is_within(p_scope text, p_other text) RETURNS boolean
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN p_scope::jsonb @> p_other::jsonb;
EXCEPTION WHEN data_exception OR program_limit_exceeded THEN
    RETURN false;
END $$;

-- Returns whether the server is the cause of an error, and not the statement, as `is_of_the_server`
-- in the engine does.
CREATE FUNCTION stepwell.is_of_the_server(p_state text) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
    SELECT left(p_state, 2) IN ('25', '40', '53', '55', '57', '58', 'XX')
$$;

-- Returns how many bytes of payloads are enough for an answer, as the contract of stores says.
-- PostgreSQL has no value, and no row of an answer, of more than 1 GiB.
CREATE FUNCTION stepwell.answer_bytes() RETURNS bigint
    LANGUAGE sql IMMUTABLE AS 'SELECT 33554432::bigint';

-- Returns the id in a text; NULL for any other text.
CREATE FUNCTION stepwell.as_id(p_text text) RETURNS uuid LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN p_text ~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' THEN p_text::uuid END
$$;

-- Returns the failure of a task that was cancelled.
CREATE FUNCTION stepwell.cancellation() RETURNS text LANGUAGE sql IMMUTABLE
    RETURN '{"kind":"cancelled","message":"the task was cancelled","retry":"never"}';

-- Returns the failure of a task that has met so many crashes in a row: `crashed` in the engine.
CREATE FUNCTION stepwell.crashed(p_crashes bigint) RETURNS json LANGUAGE sql IMMUTABLE
    RETURN json_build_object('kind', 'crashed', 'message', format(
        'the worker''s process died %s times in a row while it ran the task, and the task '
        'journaled nothing in between. If the task itself ends its process (out of memory, abort), '
        'mend that, then retry it', p_crashes), 'retry', 'never');

-- Returns the failure of a task whose compensation was given up for that error. The field is
-- appended to the text, because PostgreSQL's own functions refuse some of what serde writes (the
-- escape of a NUL). The failure that is to be undone has no such field yet.
CREATE FUNCTION stepwell.not_undone(p_failure text, p_error json) RETURNS text
LANGUAGE sql IMMUTABLE
    RETURN left(p_failure, -1) || ',"compensation_errors":' || json_build_array(json_build_object(
        'name', 'what is left to undo', 'failure', p_error)) || '}';

-- Returns the value for each item of a list; NULL without a list.
CREATE FUNCTION stepwell.each(p_list anyarray, p_value anycompatible) RETURNS anycompatiblearray
    LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN p_list IS NOT NULL THEN array_fill(p_value, ARRAY[cardinality(p_list)]) END
$$;

-- Returns a list of one value; NULL without a value.
CREATE FUNCTION stepwell.alone(p_value anyelement) RETURNS anyarray LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN p_value IS NOT NULL THEN ARRAY[p_value] END
$$;

-- The news for workers and clients that wait. A list without elements is NULL.
CREATE TYPE stepwell.news AS (
    ready    text[], -- queues with tasks that became claimable, or that are due later
    poked    uuid[], -- running tasks for which something has arrived
    finished uuid[]  -- tasks that have ended
);

-- Returns the news of both. PostgreSQL expands the call in place when its arguments are variables.
CREATE FUNCTION stepwell.both(a stepwell.news, b stepwell.news) RETURNS stepwell.news
LANGUAGE sql IMMUTABLE
    RETURN ROW(a.ready || b.ready, a.poked || b.poked, a.finished || b.finished)::stepwell.news;
