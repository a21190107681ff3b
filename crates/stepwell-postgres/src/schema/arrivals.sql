-- Events and messages that come in, from clients and from other tasks.

-- Serialises, until the transaction ends, transactions that begin to await an event with those that
-- emit it, and transactions that spawn or end tasks of one concurrency key. Each would otherwise
-- miss what the other has not yet committed. Names share 128 locks of each sort, taken in order.
CREATE FUNCTION stepwell.lock_names(p_awaited text[] DEFAULT NULL, p_emitted text[] DEFAULT NULL,
    p_keys stepwell.turn[] DEFAULT NULL) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    r record;
BEGIN
    FOR r IN
        SELECT n.lock, bool_or(n.alone) AS alone FROM (
            SELECT hashtext(name) & 127 AS lock, false AS alone FROM unnest(p_awaited) AS name
            UNION ALL SELECT hashtext(name) & 127, true FROM unnest(p_emitted) AS name
            UNION ALL SELECT 128 + ((hashtext(u.key) # hashtext(u.space)) & 127), true
                FROM unnest(p_keys) AS u
        ) n GROUP BY n.lock ORDER BY n.lock
    LOOP
        IF r.alone THEN
            PERFORM pg_advisory_xact_lock('stepwell.tasks'::regclass::oid::int, r.lock);
        ELSE
            PERFORM pg_advisory_xact_lock_shared('stepwell.tasks'::regclass::oid::int, r.lock);
        END IF;
    END LOOP;
END $$;

-- Emits the events at the given places. `firsts` says of each whether it was the first of its name;
-- NULL at other places.
CREATE FUNCTION stepwell.emit(p_now timestamptz, p_names text[], p_queues text[], p_payloads text[],
    p_at boolean[],
    OUT news stepwell.news, OUT firsts boolean[])
LANGUAGE plpgsql AS $$
DECLARE
    v_names text[];
    v_queues text[];
    v_tasks uuid[];
BEGIN
    WITH emitted AS (
        INSERT INTO stepwell.events AS e (name, queue, payload, emitted_at)
        SELECT x.name, x.queue, x.payload, p_now FROM (
            SELECT DISTINCT ON (x.name, x.queue) x.* FROM
            unnest(p_names, p_queues, p_payloads, p_at) WITH ORDINALITY
                AS x(name, queue, payload, at, i)
            WHERE x.at ORDER BY x.name, x.queue, x.i
        ) x ON CONFLICT DO NOTHING
        RETURNING e.name, e.queue
    )
    SELECT array_agg(name), array_agg(queue) INTO v_names, v_queues FROM emitted;
    SELECT array_agg(CASE WHEN x.at THEN
        x.nth = 1 AND EXISTS (SELECT FROM unnest(v_names, v_queues) AS e(name, queue)
            WHERE e.name = x.name AND e.queue = x.queue)
        END ORDER BY x.i)
    INTO firsts FROM (
        SELECT x.*, row_number() OVER (PARTITION BY x.name, x.queue, x.at ORDER BY x.i) AS nth
        FROM unnest(p_names, p_queues, p_at) WITH ORDINALITY AS x(name, queue, at, i)
    ) x;
    IF v_names IS NULL THEN
        RETURN;
    END IF;
    SELECT array_agg(q.task_id) INTO v_tasks FROM (
        SELECT l.task_id FROM stepwell.live_tasks l WHERE l.task_id IN (
            -- `OFFSET 0` has them read name by name, whatever size the planner assumes for the
            -- table.
            SELECT w.task_id FROM unnest(v_names, v_queues) AS e(name, queue)
            CROSS JOIN LATERAL (
                SELECT w.task_id FROM stepwell.waits w WHERE w.target = e.name
                    AND w.kind = 'event' OFFSET 0
            ) w
            JOIN stepwell.live_tasks l ON l.task_id = w.task_id AND e.queue IN ('', l.queue)
        ) ORDER BY l.task_id FOR UPDATE
    ) q;
    IF v_tasks IS NOT NULL THEN
        UPDATE stepwell.waits w SET arrived = true FROM unnest(v_names) AS e(name)
        CROSS JOIN LATERAL (
            SELECT w.task_id, w.name, w.ordinal FROM stepwell.waits w
            WHERE w.target = e.name AND w.kind = 'event' AND w.task_id = ANY (v_tasks)
                AND NOT w.arrived OFFSET 0
        ) f
        WHERE w.task_id = f.task_id AND w.kind = 'event' AND w.name = f.name
            AND w.ordinal = f.ordinal;
        news := stepwell.arrive(p_now, v_tasks);
    END IF;
END $$;

-- Puts the messages at the given places into mailboxes. `accepted` says of each whether its task
-- exists and has not ended; NULL at other places.
CREATE FUNCTION stepwell.send(p_now timestamptz, p_tasks uuid[], p_topics text[], p_payloads text[],
    p_at boolean[],
    OUT news stepwell.news, OUT accepted boolean[])
LANGUAGE plpgsql AS $$
DECLARE
    v_live uuid[];
    v_tasks uuid[];
BEGIN
    SELECT array_agg(q.task_id) INTO v_live FROM (
        SELECT l.task_id FROM stepwell.live_tasks l WHERE l.task_id = ANY (p_tasks)
            ORDER BY l.task_id FOR UPDATE
    ) q;
    INSERT INTO stepwell.messages (task_id, topic, payload)
    SELECT x.task_id, x.topic, x.payload
    FROM unnest(p_tasks, p_topics, p_payloads, p_at) WITH ORDINALITY
        AS x(task_id, topic, payload, at, i)
    WHERE x.at AND x.task_id = ANY (v_live) ORDER BY x.i;
    SELECT array_agg(CASE WHEN x.at THEN coalesce(x.task_id = ANY (v_live), false) END ORDER BY x.i)
    INTO accepted FROM unnest(p_tasks, p_at) WITH ORDINALITY AS x(task_id, at, i);
    v_tasks := stepwell.mark_messages(p_tasks, p_topics, p_at);
    IF v_tasks IS NOT NULL THEN
        news := stepwell.arrive(p_now, v_tasks);
    END IF;
END $$;
