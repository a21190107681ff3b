-- The changes of tasks' states, whatever the cause. Each function takes many tasks at a time, and
-- returns the news that the change has caused.
--
-- These functions run within `commit`, under its settings: plans are made once, for tables of any
-- size. With the statistics of an empty table, PostgreSQL would read whole tables.

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

-- Returns, of these queues, in which tasks have stopped running, those with a limit, in which other
-- tasks may have waited for that.
CREATE FUNCTION stepwell.with_room(p_queues text[]) RETURNS text[]
LANGUAGE plpgsql AS $$
BEGIN
    RETURN (SELECT array_agg(q.queue) FROM stepwell.queues q
        WHERE q.queue = ANY (p_queues) AND (q.max_running IS NOT NULL
            OR q.max_running_per_worker IS NOT NULL));
END $$;

-- Makes tasks that failed or were cancelled claimable as compensating, if they recorded something
-- to undo since they were compensated last. The attempt of a suspended task does not count, but has
-- its number.
CREATE FUNCTION stepwell.compensate(p_now timestamptz, p_tasks uuid[], p_states text[],
    p_failures text[],
    OUT ready text[], OUT compensating uuid[])
LANGUAGE plpgsql AS $$
BEGIN
    WITH recorded AS MATERIALIZED (
        SELECT l.task_id, least(l.attempt, 4294967294) + (l.state = 'suspended')::int AS attempt,
            j.last, x.state AS ends_as, CASE x.state WHEN 'failed' THEN x.failure
                ELSE stepwell.cancellation() END AS failure
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
        SELECT task_id, last + 1, 'compensating', 'compensating', greatest(attempt, 1), 'failed',
            failure, p_now FROM recorded
    ), waited AS (
        DELETE FROM stepwell.waits w USING recorded r WHERE w.task_id = r.task_id
    ), given AS (
        UPDATE stepwell.live_tasks l SET state = 'pending', running_in = NULL, compensating = true,
            ends_as = r.ends_as, cancel_requested = false, attempt = 0, lost = 0, worker_id = NULL,
            poked = false, due_at = NULL, cancel_at = NULL, failure = r.failure, ready_at = p_now
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
        RETURNING l.task_id, l.run_id, x.state, l.attempt, l.cancel_requested, l.started_at,
            x.output,
            CASE x.state WHEN 'cancelled' THEN l.failure ELSE x.failure END AS failure, l.parent,
            l.known, l.concurrency_key, l.key_space,
            CASE WHEN l.state = 'running' THEN l.queue END AS left_queue
    ), ended AS (
        INSERT INTO stepwell.outcomes (task_id, run_id, state, attempt, cancel_requested,
            started_at, finished_at, output, failure)
        SELECT task_id, run_id, state, attempt, cancel_requested, started_at, p_now, output, failure
            FROM gone
    ), waited AS (
        DELETE FROM stepwell.waits w USING gone WHERE w.task_id = gone.task_id
    ), sent AS (
        -- A task that ended otherwise may be retried, and receives then what was accepted.
        DELETE FROM stepwell.messages m USING gone WHERE m.task_id = gone.task_id
            AND gone.state = 'completed'
    )
    SELECT array_agg(task_id), array_agg(task_id) FILTER (WHERE known),
        array_agg(parent) FILTER (WHERE parent IS NOT NULL),
        array_agg(ROW(key_space, concurrency_key)::stepwell.turn)
        FILTER (WHERE concurrency_key IS NOT NULL),
        array_agg(task_id) FILTER (WHERE state = 'cancelled'),
        array_agg(DISTINCT left_queue) FILTER (WHERE left_queue IS NOT NULL)
    INTO news.finished, v_known, v_parents, v_keys, cancelled, v_queues FROM gone;
    IF news.finished IS NULL THEN
        RETURN;
    END IF;
    IF v_known IS NOT NULL THEN
        -- A parent that is about to suspend has its own row locked while it looks for the child's
        -- end. The second of the two transactions sees what the first did.
        PERFORM FROM stepwell.live_tasks l WHERE l.task_id = ANY (v_parents) ORDER BY l.task_id
            FOR UPDATE;
        SELECT array_agg(DISTINCT w.task_id) INTO v_awaiting FROM unnest(v_known) AS x(task_id)
        JOIN stepwell.waits w ON w.target = x.task_id::text AND w.kind = 'child';
        -- The tasks that wait for a task in whose place this one was done.
        SELECT v_awaiting || array_agg(DISTINCT w.task_id) INTO v_awaiting FROM unnest(v_known)
            AS x(task_id)
        JOIN stepwell.outcomes o ON o.instead = x.task_id
        JOIN stepwell.waits w ON w.target = o.task_id::text AND w.kind = 'child';
        IF v_awaiting IS NOT NULL THEN
            -- Some of them are not parents, whose rows are locked already.
            PERFORM FROM stepwell.live_tasks l WHERE l.task_id = ANY (v_awaiting) ORDER BY l.task_id
                FOR UPDATE;
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

-- Cancels tasks that have not ended, and all of their descendants: asks running tasks, and ends the
-- others. Tasks that are being compensated end by themselves.
CREATE FUNCTION stepwell.cancel(p_now timestamptz, p_tasks uuid[], OUT news stepwell.news)
LANGUAGE plpgsql AS $$
DECLARE
    v_tasks uuid[] := p_tasks;
    v_asked uuid[];
    ended record;
BEGIN
    WHILE cardinality(v_tasks) > 0 LOOP
        v_tasks := ARRAY (SELECT q.task_id FROM (
            SELECT l.task_id, l.compensating FROM stepwell.live_tasks l
                WHERE l.task_id = ANY (v_tasks)
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
CREATE FUNCTION stepwell.cancel_children(p_now timestamptz, p_parents uuid[],
    OUT news stepwell.news)
LANGUAGE plpgsql AS $$
BEGIN
    news := stepwell.cancel(p_now,
        ARRAY (SELECT l.task_id FROM stepwell.live_tasks l WHERE l.parent = ANY (p_parents)));
END $$;

-- Makes running tasks pending, without an owner; or cancelled, when that was asked for. Unless
-- their process has crashed, the next crash counts as their first.
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
        UPDATE stepwell.live_tasks l SET state = 'pending', running_in = NULL, worker_id = NULL,
            poked = false, attempt = l.attempt - x.uncounted::int,
            failure = coalesce(x.failure, l.failure), ready_at = p_now,
            due_at = CASE WHEN x.due_at > p_now THEN x.due_at END,
            crashes = CASE WHEN p_crashed THEN l.crashes ELSE 0 END
        FROM unnest(p_tasks, p_due_at, p_uncounted, p_failures)
            AS x(task_id, due_at, uncounted, failure)
        WHERE l.task_id = x.task_id AND l.state = 'running'
        RETURNING l.task_id, l.queue, l.cancel_requested
    )
    SELECT array_agg(queue), array_agg(task_id) FILTER (WHERE cancel_requested) INTO v_ready,
        v_asked FROM given;
    IF v_asked IS NOT NULL THEN
        ended := stepwell.finish(p_now => p_now, p_tasks => v_asked,
            p_states => array_fill('cancelled'::text, ARRAY[cardinality(v_asked)]));
        news := ended.news;
        cancelled := ended.cancelled;
    END IF;
    news.ready := v_ready || news.ready;
END $$;

-- Takes the tasks of workers that are gone, and gives them back. The attempts of workers that have
-- stopped do not count. Attempts that a crash has ended (`p_died`) are replaced, and tasks that
-- have met too many crashes in a row fail, as `crash_limit` in the engine says. Tasks that were
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
        SELECT l.task_id FROM stepwell.live_tasks l WHERE l.running_in IS NOT NULL
            AND l.worker_id = ANY (p_workers)
        ORDER BY l.task_id FOR UPDATE
    ) q;
    IF v_tasks IS NULL THEN
        RETURN;
    END IF;
    IF p_died THEN
        UPDATE stepwell.live_tasks l SET progress_at_crash = x.progress,
            lost = least(l.lost, 4294967294) + 1,
            crashes = CASE WHEN x.progress > l.progress_at_crash THEN 1
                ELSE least(l.crashes, 4294967294) + 1 END
        FROM (
            SELECT t.task_id, coalesce((SELECT j.seq FROM stepwell.journal j
                WHERE j.task_id = t.task_id AND j.kind NOT IN ('log', 'progress')
                    ORDER BY j.seq DESC LIMIT 1), 0) AS progress
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
        -- Tasks that are to be compensated are pending now, and stay as they are.
    END IF;
    r := stepwell.give_back(p_now => p_now, p_tasks => v_tasks,
        p_uncounted => array_fill(NOT p_died, ARRAY[cardinality(v_tasks)]), p_crashed => p_died);
    news := stepwell.both(news, r.news);
    v_cancelled := v_cancelled || r.cancelled;
    IF v_cancelled IS NOT NULL THEN
        news := stepwell.both(news, stepwell.cancel_children(p_now, v_cancelled));
    END IF;
END $$;
