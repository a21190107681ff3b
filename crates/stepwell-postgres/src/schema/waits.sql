-- The waits of tasks, and the arrivals that fulfil them.

-- Makes suspended tasks claimable, and marks running tasks, whose workers are then notified. The
-- caller has locked the rows.
CREATE FUNCTION stepwell.arrive(p_now timestamptz, p_tasks uuid[], OUT news stepwell.news)
LANGUAGE plpgsql AS $$
BEGIN
    SELECT array_agg(l.task_id) INTO news.poked FROM stepwell.live_tasks l
        WHERE l.task_id = ANY (p_tasks) AND l.state = 'running';
    UPDATE stepwell.live_tasks l SET poked = true WHERE l.task_id = ANY (news.poked)
        AND NOT l.poked;
    WITH awake AS (
        UPDATE stepwell.live_tasks l SET state = 'pending', ready_at = p_now, due_at = NULL
        WHERE l.task_id = ANY (p_tasks) AND l.state = 'suspended'
        RETURNING l.queue
    )
    SELECT array_agg(queue) INTO news.ready FROM awake;
END $$;

-- Returns the task that does what the given one was to do: itself, unless another task was there
-- first.
CREATE FUNCTION stepwell.done_by(p_task uuid) RETURNS uuid
LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN coalesce((SELECT t.task_id FROM stepwell.outcomes o JOIN stepwell.tasks t
        ON t.task_id = o.instead
        WHERE o.task_id = p_task), p_task);
END $$;

-- Marks, for each of these tasks, a wait for a message of the topic, at the given places, if there
-- is such a message. Returns the tasks that have such a wait.
CREATE FUNCTION stepwell.mark_messages(p_tasks uuid[], p_topics text[],
    p_at boolean[] DEFAULT NULL) RETURNS uuid[]
LANGUAGE plpgsql AS $$
DECLARE
    v_tasks uuid[];
BEGIN
    WITH awaited AS MATERIALIZED (
        SELECT w.* FROM (
            SELECT DISTINCT x.task_id, x.topic FROM unnest(p_tasks, p_topics, p_at)
                AS x(task_id, topic, at)
            WHERE x.at IS NOT FALSE
        ) x CROSS JOIN LATERAL (
            SELECT w.task_id, w.name, w.ordinal, w.arrived FROM stepwell.waits w
            WHERE w.target = x.topic AND w.kind = 'message' AND w.task_id = x.task_id LIMIT 1
        ) w
        WHERE EXISTS (SELECT FROM stepwell.messages m WHERE m.task_id = x.task_id
            AND m.topic = x.topic)
    ), marked AS (
        UPDATE stepwell.waits w SET arrived = true FROM awaited a
        WHERE NOT a.arrived AND w.task_id = a.task_id AND w.kind = 'message' AND w.name = a.name
            AND w.ordinal = a.ordinal
    )
    SELECT array_agg(DISTINCT a.task_id) INTO v_tasks FROM awaited a;
    RETURN v_tasks;
END $$;

-- Returns what tasks wait for, as [[position in p_tasks, kind, name, ordinal, target, due_at in
-- microseconds], …].
CREATE FUNCTION stepwell.waits_of(p_tasks uuid[]) RETURNS json
LANGUAGE plpgsql AS $$
BEGIN
    RETURN (SELECT json_agg(json_build_array(x.i, w.kind, w.name, w.ordinal, w.target,
        CASE WHEN isfinite(w.due_at) THEN (extract(epoch FROM w.due_at) * 1000000)::bigint END))
    FROM unnest(p_tasks) WITH ORDINALITY AS x(task_id, i) JOIN stepwell.waits w USING (task_id));
END $$;

-- Removes the marks of waits for whose target nothing has arrived.
CREATE FUNCTION stepwell.unmark(p_tasks uuid[]) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    UPDATE stepwell.waits w SET arrived = false WHERE w.task_id = ANY (p_tasks) AND w.arrived
        AND CASE w.kind
        WHEN 'event' THEN NOT EXISTS (SELECT FROM stepwell.events e WHERE e.name = w.target
            AND e.queue IN ('', (SELECT l.queue FROM stepwell.live_tasks l
                WHERE l.task_id = w.task_id)))
        WHEN 'message' THEN NOT EXISTS (SELECT FROM stepwell.messages m
            WHERE m.task_id = w.task_id AND m.topic = w.target)
        WHEN 'child' THEN stepwell.as_id(w.target) IS NULL
            OR EXISTS (SELECT FROM stepwell.live_tasks l
            WHERE l.task_id = stepwell.done_by(stepwell.as_id(w.target)))
        ELSE true END;
END $$;

-- Returns what has arrived for tasks (`found_for`). `facts` is JSON, in which payloads are strings,
-- and the last ones are left out when they are too much for an answer:
--     [[place, 'event', name, payload], [place, 'message', id, topic, payload],
--      [place, 'child', task_id, state, output, failure], [place, 'more'], …]
CREATE FUNCTION stepwell.look(p_tasks uuid[], OUT facts json, OUT found_for uuid[])
LANGUAGE plpgsql AS $$
DECLARE
    v_careful boolean := false;
    v_marked bigint;
    v_found bigint;
BEGIN
    IF NOT EXISTS (SELECT FROM stepwell.waits w WHERE w.task_id = ANY (p_tasks) AND w.arrived) THEN
        RETURN;
    END IF;
    LOOP
        BEGIN
            -- Only the values that fit are put into JSON: the others are not even read.
            WITH marked AS MATERIALIZED (
                SELECT DISTINCT x.i, w.task_id, w.kind, w.target FROM unnest(p_tasks)
                    WITH ORDINALITY AS x(task_id, i)
                JOIN stepwell.waits w USING (task_id) WHERE w.arrived
            ), fact AS (
                SELECT x.i, x.task_id, 'event' AS kind, x.target AS name, 0::bigint AS id,
                    NULL AS state, e.payload, NULL AS failure
                FROM marked x JOIN stepwell.live_tasks l USING (task_id)
                CROSS JOIN LATERAL (
                    -- An event for all queues comes before an event for the task's own queue.
                    SELECT e.payload FROM stepwell.events e WHERE e.name = x.target
                        AND e.queue IN ('', l.queue)
                    ORDER BY e.queue LIMIT 1
                ) e
                WHERE x.kind = 'event'
                UNION ALL
                SELECT x.i, x.task_id, 'message', x.target, m.id, NULL, m.payload, NULL
                FROM marked x CROSS JOIN LATERAL (
                    -- As many as there are waits, which are counted up to the number of messages.
                    -- The other messages wait for another look.
                    SELECT m.id, m.payload FROM stepwell.messages m WHERE m.task_id = x.task_id
                        AND m.topic = x.target
                    ORDER BY m.id LIMIT (SELECT count(*) FROM (
                        SELECT FROM stepwell.waits w
                        WHERE w.target = x.target AND w.kind = 'message' AND w.task_id = x.task_id
                        LIMIT (SELECT count(*) FROM (
                            SELECT FROM stepwell.messages n WHERE n.task_id = x.task_id
                                AND n.topic = x.target LIMIT 1000
                        ) n)
                    ) w)
                ) m
                WHERE x.kind = 'message'
                UNION ALL
                SELECT x.i, x.task_id, 'child', x.target, 0,
                    CASE WHEN o.instead IS NULL THEN o.state ELSE i.state END,
                    CASE WHEN o.instead IS NULL THEN o.output ELSE i.output END,
                    CASE WHEN o.instead IS NULL THEN o.failure ELSE i.failure END
                FROM marked x CROSS JOIN LATERAL (
                    SELECT CASE WHEN v_careful THEN stepwell.as_id(x.target)
                        ELSE x.target::uuid END AS id OFFSET 0
                ) c
                LEFT JOIN stepwell.outcomes o ON o.task_id = c.id
                LEFT JOIN LATERAL (
                    SELECT i.* FROM stepwell.outcomes i WHERE o.instead IS NOT NULL
                        AND i.task_id = stepwell.done_by(c.id) OFFSET 0
                ) i ON true
                WHERE x.kind = 'child' AND c.id IS NOT NULL
                    AND CASE WHEN o.task_id IS NULL
                        THEN NOT EXISTS (SELECT FROM stepwell.live_tasks l WHERE l.task_id = c.id)
                        ELSE o.instead IS NULL OR i.task_id IS NOT NULL END
            ), counted AS (
                SELECT f.*, sum(f.bytes) OVER (ORDER BY f.i, f.id,
                    f.name ROWS UNBOUNDED PRECEDING) - f.bytes
                    < stepwell.answer_bytes() AS fits
                FROM (
                    SELECT f.*, coalesce(octet_length(f.payload),
                        0) + coalesce(octet_length(f.failure), 0) AS bytes FROM fact f
                ) f
            )
            SELECT json_agg(CASE WHEN NOT f.fits THEN json_build_array(f.i, 'more')
                    WHEN f.kind = 'event' THEN json_build_array(f.i, f.kind, f.name, f.payload)
                    WHEN f.kind = 'message' THEN json_build_array(f.i, f.kind, f.id, f.name,
                        f.payload)
                    ELSE json_build_array(f.i, f.kind, f.name, f.state, f.payload, f.failure) END),
                array_agg(DISTINCT f.task_id), (SELECT count(*) FROM marked),
                count(DISTINCT (f.i, f.kind, f.name))
            INTO facts, found_for, v_marked, v_found FROM counted f;
            EXIT;
        EXCEPTION WHEN invalid_text_representation THEN
            -- A child's id is not an id. A check of each id before it is read would take longer
            -- than all else here.
            IF v_careful THEN
                RAISE;
            END IF;
            v_careful := true;
        END;
    END LOOP;
    IF v_marked > v_found THEN
        PERFORM stepwell.unmark(p_tasks);
    END IF;
END $$;
