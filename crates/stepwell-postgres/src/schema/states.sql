-- How tasks change their states, whatever the cause. Each function takes many tasks at a time, and
-- returns the news that the change has caused.
--
-- These functions run within `commit`, under its settings: plans are made once, for tables of any
-- size. With the statistics of an empty table, PostgreSQL would read whole tables.

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

-- Whether an error lies in the server, and not in what it was asked: as `is_of_the_server` in the engine.
CREATE FUNCTION stepwell.is_of_the_server(p_state text) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
    SELECT left(p_state, 2) IN ('25', '40', '53', '55', '57', '58', 'XX')
$$;

-- Makes suspended tasks claimable, and marks running ones as poked. The caller has locked the rows.
CREATE FUNCTION stepwell.arrive(p_now timestamptz, p_tasks uuid[], OUT news stepwell.news)
LANGUAGE plpgsql AS $$
BEGIN
    SELECT array_agg(l.task_id) INTO news.poked FROM stepwell.live_tasks l
        WHERE l.task_id = ANY (p_tasks) AND l.state = 'running';
    UPDATE stepwell.live_tasks l SET poked = true WHERE l.task_id = ANY (news.poked) AND NOT l.poked;
    WITH awake AS (
        UPDATE stepwell.live_tasks l SET state = 'pending', ready_at = p_now, due_at = NULL
        WHERE l.task_id = ANY (p_tasks) AND l.state = 'suspended'
        RETURNING l.queue
    )
    SELECT array_agg(queue) INTO news.ready FROM awake;
END $$;

-- Lets the next task of each key be claimed, when its turn has come.
CREATE FUNCTION stepwell.next_of_keys(p_now timestamptz, p_keys stepwell.turn[], OUT ready text[])
LANGUAGE plpgsql AS $$
BEGIN
    WITH heads AS MATERIALIZED (
        SELECT h.task_id FROM (SELECT DISTINCT u.space, u.key FROM unnest(p_keys) AS u) k
        CROSS JOIN LATERAL (
            SELECT l.task_id, l.blocked FROM stepwell.live_tasks l
            WHERE l.concurrency_key = k.key AND l.key_space = k.space AND l.place IS NOT NULL
            ORDER BY l.place LIMIT 1
        ) h WHERE h.blocked
    ), unblocked AS (
        UPDATE stepwell.live_tasks l SET blocked = false, ready_at = p_now FROM heads
        WHERE l.task_id = heads.task_id
        RETURNING l.queue
    )
    SELECT array_agg(queue) INTO ready FROM unblocked;
END $$;

-- Of these queues, in which tasks have stopped running, those in which others may have waited for that.
CREATE FUNCTION stepwell.with_room(p_queues text[]) RETURNS text[]
LANGUAGE plpgsql AS $$
BEGIN
    RETURN (SELECT array_agg(q.queue) FROM stepwell.queues q
        WHERE q.queue = ANY (p_queues) AND (q.max_running IS NOT NULL OR q.max_running_per_worker IS NOT NULL));
END $$;

-- Returns the failure of a task that was cancelled.
CREATE FUNCTION stepwell.cancellation() RETURNS text LANGUAGE sql IMMUTABLE
    RETURN '{"kind":"cancelled","message":"the task was cancelled","retry":"never"}';

-- Returns the failure of a task that has met so many crashes in a row: `crashed` in the engine.
CREATE FUNCTION stepwell.crashed(p_crashes bigint) RETURNS json LANGUAGE sql IMMUTABLE
    RETURN json_build_object('kind', 'crashed', 'message', format(
        'the worker''s process died %s times in a row while it ran the task, and the task journaled '
        'nothing in between. If the task itself ends its process (out of memory, abort), mend that, '
        'then retry it', p_crashes), 'retry', 'never');

-- Returns the failure of a task whose compensation was given up for that error. The field is
-- appended to the text, because PostgreSQL's own functions refuse some of what serde writes (the
-- escape of a NUL). The failure that is to be undone has no such field yet.
CREATE FUNCTION stepwell.not_undone(p_failure text, p_error json) RETURNS text
LANGUAGE sql IMMUTABLE
    RETURN left(p_failure, -1) || ',"compensation_errors":' || json_build_array(json_build_object(
        'name', 'what is left to undo', 'failure', p_error)) || '}';

-- Of tasks that failed or were cancelled, makes those claimable as compensating that have something to undo that they did
-- since they were compensated last. The attempt of a suspended one does not count, and has its number all the same.
CREATE FUNCTION stepwell.compensate(p_now timestamptz, p_tasks uuid[], p_states text[], p_failures text[],
    OUT ready text[], OUT compensating uuid[])
LANGUAGE plpgsql AS $$
BEGIN
    WITH recorded AS MATERIALIZED (
        SELECT l.task_id, least(l.attempt, 4294967294) + (l.state = 'suspended')::int AS attempt, j.last,
            x.state AS ends_as, CASE x.state WHEN 'failed' THEN x.failure ELSE stepwell.cancellation() END AS failure
        FROM unnest(p_tasks, p_states, p_failures) AS x(task_id, state, failure)
        JOIN stepwell.live_tasks l USING (task_id)
        CROSS JOIN LATERAL (
            SELECT max(j.seq) AS last, max(j.seq) FILTER (WHERE j.kind = 'compensate') AS recorded,
                coalesce(max(j.seq) FILTER (WHERE j.kind = 'compensating'), 0) AS undone
            FROM stepwell.journal j WHERE j.task_id = l.task_id
        ) j
        WHERE x.state IN ('failed', 'cancelled') AND NOT l.compensating AND j.recorded > j.undone
    ), marked AS (
        INSERT INTO stepwell.journal (task_id, seq, kind, name, ordinal, outcome, payload, at)
        SELECT task_id, last + 1, 'compensating', 'compensating', greatest(attempt, 1), 'failed', failure, p_now FROM recorded
    ), waited AS (
        DELETE FROM stepwell.waits w USING recorded r WHERE w.task_id = r.task_id
    ), given AS (
        UPDATE stepwell.live_tasks l SET state = 'pending', running_in = NULL, compensating = true,
            ends_as = r.ends_as, cancel_requested = false, attempt = 0, lost = 0, worker_id = NULL, poked = false, due_at = NULL, cancel_at = NULL,
            failure = r.failure, ready_at = p_now
        FROM recorded r WHERE l.task_id = r.task_id
        RETURNING l.task_id, l.queue
    )
    SELECT array_agg(task_id), array_agg(queue) INTO compensating, ready FROM given;
END $$;

-- Ends tasks, whatever their state: those with a final state in `p_states`. Tasks with something to
-- undo are compensated first. `cancelled` are those whose children are to be cancelled.
-- `p_limited` is false when no queue has limits.
CREATE FUNCTION stepwell.finish(p_now timestamptz, p_tasks uuid[], p_states text[],
    p_outputs text[] DEFAULT NULL, p_failures text[] DEFAULT NULL, p_limited boolean DEFAULT true,
    OUT news stepwell.news, OUT cancelled uuid[])
LANGUAGE plpgsql AS $$
DECLARE
    v_known uuid[];
    v_parents uuid[];
    v_keys stepwell.turn[];
    v_queues text[];
    v_awaiting uuid[];
    v_compensating uuid[];
    caused stepwell.news;
BEGIN
    IF p_states && ARRAY['failed', 'cancelled'] THEN
        SELECT c.* INTO news.ready, v_compensating
        FROM stepwell.compensate(p_now => p_now, p_tasks => p_tasks, p_states => p_states,
            p_failures => p_failures) c;
    END IF;
    WITH gone AS (
        DELETE FROM stepwell.live_tasks l
        USING unnest(p_tasks, p_states, p_outputs, p_failures) AS x(task_id, state, output, failure)
        WHERE l.task_id = x.task_id AND x.state IN ('completed', 'failed', 'cancelled')
            AND (v_compensating IS NULL OR l.task_id <> ALL (v_compensating))
        RETURNING l.task_id, l.run_id, x.state, l.attempt, l.cancel_requested, l.started_at, x.output,
            CASE x.state WHEN 'cancelled' THEN l.failure ELSE x.failure END AS failure, l.parent, l.known, l.concurrency_key,
            l.key_space,
            CASE WHEN l.state = 'running' THEN l.queue END AS left_queue
    ), ended AS (
        INSERT INTO stepwell.outcomes (task_id, run_id, state, attempt, cancel_requested, started_at, finished_at, output,
            failure)
        SELECT task_id, run_id, state, attempt, cancel_requested, started_at, p_now, output, failure FROM gone
    ), waited AS (
        DELETE FROM stepwell.waits w USING gone WHERE w.task_id = gone.task_id
    ), sent AS (
        -- Any other end may be followed by a retry, which receives what was accepted.
        DELETE FROM stepwell.messages m USING gone WHERE m.task_id = gone.task_id AND gone.state = 'completed'
    )
    SELECT array_agg(task_id), array_agg(task_id) FILTER (WHERE known),
        array_agg(parent) FILTER (WHERE parent IS NOT NULL),
        array_agg(ROW(key_space, concurrency_key)::stepwell.turn) FILTER (WHERE concurrency_key IS NOT NULL),
        array_agg(task_id) FILTER (WHERE state = 'cancelled'),
        array_agg(DISTINCT left_queue) FILTER (WHERE left_queue IS NOT NULL)
    INTO news.finished, v_known, v_parents, v_keys, cancelled, v_queues FROM gone;
    IF news.finished IS NULL THEN
        RETURN;
    END IF;
    IF v_known IS NOT NULL THEN
        -- A parent that is about to suspend has its own row locked while it looks for the child's end. Whichever comes
        -- second sees what the first did.
        PERFORM FROM stepwell.live_tasks l WHERE l.task_id = ANY (v_parents) ORDER BY l.task_id FOR UPDATE;
        SELECT array_agg(DISTINCT w.task_id) INTO v_awaiting FROM unnest(v_known) AS x(task_id)
        JOIN stepwell.waits w ON w.target = x.task_id::text AND w.kind = 'child';
        -- Those that wait for a task that this one was done instead of.
        SELECT v_awaiting || array_agg(DISTINCT w.task_id) INTO v_awaiting FROM unnest(v_known) AS x(task_id)
        JOIN stepwell.outcomes o ON o.instead = x.task_id
        JOIN stepwell.waits w ON w.target = o.task_id::text AND w.kind = 'child';
        IF v_awaiting IS NOT NULL THEN
            -- Not all of them are parents.
            PERFORM FROM stepwell.live_tasks l WHERE l.task_id = ANY (v_awaiting) ORDER BY l.task_id FOR UPDATE;
            UPDATE stepwell.waits w SET arrived = true FROM (
                SELECT x.task_id::text AS child FROM unnest(v_known) AS x(task_id)
                UNION ALL
                SELECT o.task_id::text FROM unnest(v_known) AS x(task_id)
                JOIN stepwell.outcomes o ON o.instead = x.task_id
            ) c WHERE w.target = c.child AND w.kind = 'child' AND NOT w.arrived;
            caused := stepwell.arrive(p_now, v_awaiting);
            news := stepwell.both(news, caused);
        END IF;
    END IF;
    IF v_keys IS NOT NULL THEN
        -- A transaction that spawns a task of the key now would find this one still there, and be
        -- missed here.
        PERFORM stepwell.lock_names(p_keys => v_keys);
        news.ready := news.ready || stepwell.next_of_keys(p_now, v_keys);
    END IF;
    IF p_limited AND v_queues IS NOT NULL THEN
        news.ready := news.ready || stepwell.with_room(v_queues);
    END IF;
END $$;

-- Cancels tasks that have not ended, and all that descends from them: asks those that run, ends the others. Those that are
-- being compensated end by themselves.
CREATE FUNCTION stepwell.cancel(p_now timestamptz, p_tasks uuid[], OUT news stepwell.news)
LANGUAGE plpgsql AS $$
DECLARE
    v_tasks uuid[] := p_tasks;
    v_asked uuid[];
    ended record;
BEGIN
    WHILE cardinality(v_tasks) > 0 LOOP
        v_tasks := ARRAY (SELECT q.task_id FROM (
            SELECT l.task_id, l.compensating FROM stepwell.live_tasks l WHERE l.task_id = ANY (v_tasks)
            ORDER BY l.task_id FOR UPDATE
        ) q WHERE NOT q.compensating);
        EXIT WHEN cardinality(v_tasks) = 0;
        WITH asked AS (
            UPDATE stepwell.live_tasks l SET cancel_requested = true, poked = true
            WHERE l.task_id = ANY (v_tasks) AND l.state = 'running'
            RETURNING l.task_id
        )
        SELECT array_agg(task_id) INTO v_asked FROM asked;
        news.poked := news.poked || v_asked;
        ended := stepwell.finish(p_now => p_now,
            p_tasks => ARRAY (SELECT t FROM unnest(v_tasks) t
                WHERE v_asked IS NULL OR t <> ALL (v_asked)),
            p_states => array_fill('cancelled'::text, ARRAY[cardinality(v_tasks)]));
        news := stepwell.both(news, ended.news);
        v_tasks := ARRAY (SELECT l.task_id FROM stepwell.live_tasks l
            WHERE l.parent = ANY ((ended.news).finished));
    END LOOP;
END $$;

-- Cancels the children of tasks that were cancelled.
CREATE FUNCTION stepwell.cancel_children(p_now timestamptz, p_parents uuid[], OUT news stepwell.news)
LANGUAGE plpgsql AS $$
BEGIN
    news := stepwell.cancel(p_now,
        ARRAY (SELECT l.task_id FROM stepwell.live_tasks l WHERE l.parent = ANY (p_parents)));
END $$;

-- Makes running tasks pending, without an owner; or cancelled, when that was asked for. Unless their
-- process has crashed, the next crash is their first.
CREATE FUNCTION stepwell.give_back(p_now timestamptz, p_tasks uuid[], p_uncounted boolean[],
    p_due_at timestamptz[] DEFAULT NULL, p_failures text[] DEFAULT NULL,
    p_crashed boolean DEFAULT false, OUT news stepwell.news, OUT cancelled uuid[])
LANGUAGE plpgsql AS $$
DECLARE
    v_asked uuid[];
    v_ready text[];
    ended record;
BEGIN
    WITH given AS (
        UPDATE stepwell.live_tasks l SET state = 'pending', running_in = NULL, worker_id = NULL, poked = false,
            attempt = l.attempt - x.uncounted::int, failure = coalesce(x.failure, l.failure), ready_at = p_now,
            due_at = CASE WHEN x.due_at > p_now THEN x.due_at END, crashes = CASE WHEN p_crashed THEN l.crashes ELSE 0 END
        FROM unnest(p_tasks, p_due_at, p_uncounted, p_failures) AS x(task_id, due_at, uncounted, failure)
        WHERE l.task_id = x.task_id AND l.state = 'running'
        RETURNING l.task_id, l.queue, l.cancel_requested
    )
    SELECT array_agg(queue), array_agg(task_id) FILTER (WHERE cancel_requested) INTO v_ready, v_asked FROM given;
    IF v_asked IS NOT NULL THEN
        ended := stepwell.finish(p_now => p_now, p_tasks => v_asked,
            p_states => array_fill('cancelled'::text, ARRAY[cardinality(v_asked)]));
        news := ended.news;
        cancelled := ended.cancelled;
    END IF;
    news.ready := v_ready || news.ready;
END $$;

-- Takes their tasks from workers that are gone, and gives the tasks back. The attempts of workers
-- that have stopped do not count. Attempts that a crash has ended (`p_died`) are replaced, and tasks
-- that have met too many crashes in a row fail, as `crash_limit` in the engine says. Tasks that were
-- being compensated end as they would have.
CREATE FUNCTION stepwell.release_from(p_now timestamptz, p_workers uuid[], p_died boolean,
    OUT news stepwell.news)
LANGUAGE plpgsql AS $$
DECLARE
    v_tasks uuid[];
    v_quarantined uuid[];
    v_states text[];
    v_failures text[];
    v_cancelled uuid[];
    r record;
BEGIN
    SELECT array_agg(q.task_id) INTO v_tasks FROM (
        SELECT l.task_id FROM stepwell.live_tasks l WHERE l.running_in IS NOT NULL AND l.worker_id = ANY (p_workers)
        ORDER BY l.task_id FOR UPDATE
    ) q;
    IF v_tasks IS NULL THEN
        RETURN;
    END IF;
    IF p_died THEN
        UPDATE stepwell.live_tasks l SET progress_at_crash = x.progress, lost = least(l.lost, 4294967294) + 1,
            crashes = CASE WHEN x.progress > l.progress_at_crash THEN 1 ELSE least(l.crashes, 4294967294) + 1 END
        FROM (
            SELECT t.task_id, coalesce((SELECT j.seq FROM stepwell.journal j
                WHERE j.task_id = t.task_id AND j.kind NOT IN ('log', 'progress') ORDER BY j.seq DESC LIMIT 1), 0) AS progress
            FROM unnest(v_tasks) AS t(task_id)
        ) x
        WHERE l.task_id = x.task_id;
        SELECT array_agg(l.task_id),
            array_agg(CASE WHEN l.compensating AND l.ends_as = 'cancelled' THEN 'cancelled'
                ELSE 'failed' END),
            array_agg(CASE WHEN l.compensating
                THEN stepwell.not_undone(l.failure, stepwell.crashed(l.crashes))
                ELSE stepwell.crashed(l.crashes)::text END)
        INTO v_quarantined, v_states, v_failures
        FROM stepwell.live_tasks l JOIN stepwell.tasks t USING (task_id)
        WHERE l.task_id = ANY (v_tasks) AND NOT l.cancel_requested
            AND l.crashes >= greatest(t.max_attempts, CASE WHEN l.compensating THEN 10 ELSE 5 END);
    END IF;
    IF v_quarantined IS NOT NULL THEN
        r := stepwell.finish(p_now => p_now, p_tasks => v_quarantined, p_states => v_states,
            p_failures => v_failures);
        news := r.news;
        v_cancelled := r.cancelled;
        -- Those that are to be compensated are pending now, and stay as they are.
    END IF;
    r := stepwell.give_back(p_now => p_now, p_tasks => v_tasks,
        p_uncounted => array_fill(NOT p_died, ARRAY[cardinality(v_tasks)]), p_crashed => p_died);
    news := stepwell.both(news, r.news);
    v_cancelled := v_cancelled || r.cancelled;
    IF v_cancelled IS NOT NULL THEN
        news := stepwell.both(news, stepwell.cancel_children(p_now, v_cancelled));
    END IF;
END $$;

-- How many bytes of payloads are enough for an answer, as the contract of stores has it; and PostgreSQL has no value, and no
-- row in an answer, of more than 1 GiB.
CREATE FUNCTION stepwell.answer_bytes() RETURNS bigint LANGUAGE sql IMMUTABLE AS 'SELECT 33554432::bigint';

-- A task's id in a text; NULL for any other text.
CREATE FUNCTION stepwell.as_id(p_text text) RETURNS uuid LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN p_text ~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' THEN p_text::uuid END
$$;

-- The task that does what that one was to do: itself, unless another one was there first.
CREATE FUNCTION stepwell.done_by(p_task uuid) RETURNS uuid
LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN coalesce((SELECT t.task_id FROM stepwell.outcomes o JOIN stepwell.tasks t ON t.task_id = o.instead
        WHERE o.task_id = p_task), p_task);
END $$;

-- Marks a wait of each of these tasks for a message of that topic, at the given places, if there is such a message. Returns
-- the tasks that have such a wait.
CREATE FUNCTION stepwell.mark_messages(p_tasks uuid[], p_topics text[],
    p_at boolean[] DEFAULT NULL) RETURNS uuid[]
LANGUAGE plpgsql AS $$
DECLARE
    v_tasks uuid[];
BEGIN
    WITH awaited AS MATERIALIZED (
        SELECT w.* FROM (
            SELECT DISTINCT x.task_id, x.topic FROM unnest(p_tasks, p_topics, p_at) AS x(task_id, topic, at)
            WHERE x.at IS NOT FALSE
        ) x CROSS JOIN LATERAL (
            SELECT w.task_id, w.name, w.ordinal, w.arrived FROM stepwell.waits w
            WHERE w.target = x.topic AND w.kind = 'message' AND w.task_id = x.task_id LIMIT 1
        ) w
        WHERE EXISTS (SELECT FROM stepwell.messages m WHERE m.task_id = x.task_id AND m.topic = x.topic)
    ), marked AS (
        UPDATE stepwell.waits w SET arrived = true FROM awaited a
        WHERE NOT a.arrived AND w.task_id = a.task_id AND w.kind = 'message' AND w.name = a.name AND w.ordinal = a.ordinal
    )
    SELECT array_agg(DISTINCT a.task_id) INTO v_tasks FROM awaited a;
    RETURN v_tasks;
END $$;

-- What tasks wait for: [[task's place in p_tasks, kind, name, ordinal, target, due_at in microseconds], …]
CREATE FUNCTION stepwell.waits_of(p_tasks uuid[]) RETURNS json
LANGUAGE plpgsql AS $$
BEGIN
    RETURN (SELECT json_agg(json_build_array(x.i, w.kind, w.name, w.ordinal, w.target,
        CASE WHEN isfinite(w.due_at) THEN (extract(epoch FROM w.due_at) * 1000000)::bigint END))
    FROM unnest(p_tasks) WITH ORDINALITY AS x(task_id, i) JOIN stepwell.waits w USING (task_id));
END $$;

-- Takes the marks from waits for whose target nothing has arrived.
CREATE FUNCTION stepwell.unmark(p_tasks uuid[]) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    UPDATE stepwell.waits w SET arrived = false WHERE w.task_id = ANY (p_tasks) AND w.arrived AND CASE w.kind
        WHEN 'event' THEN NOT EXISTS (SELECT FROM stepwell.events e WHERE e.name = w.target
            AND e.queue IN ('', (SELECT l.queue FROM stepwell.live_tasks l WHERE l.task_id = w.task_id)))
        WHEN 'message' THEN NOT EXISTS (SELECT FROM stepwell.messages m
            WHERE m.task_id = w.task_id AND m.topic = w.target)
        WHEN 'child' THEN stepwell.as_id(w.target) IS NULL OR EXISTS (SELECT FROM stepwell.live_tasks l
            WHERE l.task_id = stepwell.done_by(stepwell.as_id(w.target)))
        ELSE true END;
END $$;

-- What has arrived for tasks: `facts` are what is there, the first of it where it is too much for an answer:
--     [[place, 'event', name, payload], [place, 'message', id, topic, payload],
--      [place, 'child', task_id, state, output, failure], [place, 'more'] for each that is left out, …]
-- Payloads in it are JSON strings that hold JSON.
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
            -- The values are put into JSON only when it is known which ones: before, long ones are not even read.
            WITH marked AS MATERIALIZED (
                SELECT DISTINCT x.i, w.task_id, w.kind, w.target FROM unnest(p_tasks) WITH ORDINALITY AS x(task_id, i)
                JOIN stepwell.waits w USING (task_id) WHERE w.arrived
            ), fact AS (
                SELECT x.i, x.task_id, 'event' AS kind, x.target AS name, 0::bigint AS id, NULL AS state, e.payload, NULL AS failure
                FROM marked x JOIN stepwell.live_tasks l USING (task_id)
                CROSS JOIN LATERAL (
                    -- One for all queues comes before one for the task's own.
                    SELECT e.payload FROM stepwell.events e WHERE e.name = x.target AND e.queue IN ('', l.queue)
                    ORDER BY e.queue LIMIT 1
                ) e
                WHERE x.kind = 'event'
                UNION ALL
                SELECT x.i, x.task_id, 'message', x.target, m.id, NULL, m.payload, NULL
                FROM marked x CROSS JOIN LATERAL (
                    -- As many as there are waits, of which no more are counted than there are messages; the rest waits for another look.
                    SELECT m.id, m.payload FROM stepwell.messages m WHERE m.task_id = x.task_id AND m.topic = x.target
                    ORDER BY m.id LIMIT (SELECT count(*) FROM (
                        SELECT FROM stepwell.waits w
                        WHERE w.target = x.target AND w.kind = 'message' AND w.task_id = x.task_id
                        LIMIT (SELECT count(*) FROM (
                            SELECT FROM stepwell.messages n WHERE n.task_id = x.task_id AND n.topic = x.target LIMIT 1000
                        ) n)
                    ) w)
                ) m
                WHERE x.kind = 'message'
                UNION ALL
                SELECT x.i, x.task_id, 'child', x.target, 0, CASE WHEN o.instead IS NULL THEN o.state ELSE i.state END,
                    CASE WHEN o.instead IS NULL THEN o.output ELSE i.output END,
                    CASE WHEN o.instead IS NULL THEN o.failure ELSE i.failure END
                FROM marked x CROSS JOIN LATERAL (
                    SELECT CASE WHEN v_careful THEN stepwell.as_id(x.target) ELSE x.target::uuid END AS id OFFSET 0
                ) c
                LEFT JOIN stepwell.outcomes o ON o.task_id = c.id
                LEFT JOIN LATERAL (
                    SELECT i.* FROM stepwell.outcomes i WHERE o.instead IS NOT NULL AND i.task_id = stepwell.done_by(c.id) OFFSET 0
                ) i ON true
                WHERE x.kind = 'child' AND c.id IS NOT NULL
                    AND CASE WHEN o.task_id IS NULL THEN NOT EXISTS (SELECT FROM stepwell.live_tasks l WHERE l.task_id = c.id)
                        ELSE o.instead IS NULL OR i.task_id IS NOT NULL END
            ), counted AS (
                SELECT f.*, sum(f.bytes) OVER (ORDER BY f.i, f.id, f.name ROWS UNBOUNDED PRECEDING) - f.bytes
                    < stepwell.answer_bytes() AS fits
                FROM (
                    SELECT f.*, coalesce(octet_length(f.payload), 0) + coalesce(octet_length(f.failure), 0) AS bytes FROM fact f
                ) f
            )
            SELECT json_agg(CASE WHEN NOT f.fits THEN json_build_array(f.i, 'more')
                    WHEN f.kind = 'event' THEN json_build_array(f.i, f.kind, f.name, f.payload)
                    WHEN f.kind = 'message' THEN json_build_array(f.i, f.kind, f.id, f.name, f.payload)
                    ELSE json_build_array(f.i, f.kind, f.name, f.state, f.payload, f.failure) END),
                array_agg(DISTINCT f.task_id), (SELECT count(*) FROM marked), count(DISTINCT (f.i, f.kind, f.name))
            INTO facts, found_for, v_marked, v_found FROM counted f;
            EXIT;
        EXCEPTION WHEN invalid_text_representation THEN
            -- A child's id is none. To look at each before it is read takes longer than all else here.
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
