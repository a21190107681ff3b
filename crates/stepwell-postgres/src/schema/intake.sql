-- What comes in from clients and from other tasks.

-- Serialises, until the transaction ends, those who begin to await an event with those who emit it, and those who spawn
-- or end tasks of one concurrency key. Each would otherwise miss what the other has not yet committed. Names share 128
-- locks of each sort, taken in order.
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
            UNION ALL SELECT 128 + ((hashtext(u.key) # hashtext(u.space)) & 127), true FROM unnest(p_keys) AS u
        ) n GROUP BY n.lock ORDER BY n.lock
    LOOP
        IF r.alone THEN
            PERFORM pg_advisory_xact_lock('stepwell.tasks'::regclass::oid::int, r.lock);
        ELSE
            PERFORM pg_advisory_xact_lock_shared('stepwell.tasks'::regclass::oid::int, r.lock);
        END IF;
    END LOOP;
END $$;

-- Emits events, those at the given places. `firsts` says of each whether it was the first of its name; those at other
-- places are NULL.
CREATE FUNCTION stepwell.emit(p_now timestamptz, p_names text[], p_queues text[], p_payloads text[], p_at boolean[],
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
            unnest(p_names, p_queues, p_payloads, p_at) WITH ORDINALITY AS x(name, queue, payload, at, i)
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
            -- `OFFSET 0`: name by name, whatever the planner takes the table's size for.
            SELECT w.task_id FROM unnest(v_names, v_queues) AS e(name, queue)
            CROSS JOIN LATERAL (
                SELECT w.task_id FROM stepwell.waits w WHERE w.target = e.name AND w.kind = 'event' OFFSET 0
            ) w
            JOIN stepwell.live_tasks l ON l.task_id = w.task_id AND e.queue IN ('', l.queue)
        ) ORDER BY l.task_id FOR UPDATE
    ) q;
    IF v_tasks IS NOT NULL THEN
        UPDATE stepwell.waits w SET arrived = true FROM unnest(v_names) AS e(name)
        CROSS JOIN LATERAL (
            SELECT w.task_id, w.name, w.ordinal FROM stepwell.waits w
            WHERE w.target = e.name AND w.kind = 'event' AND w.task_id = ANY (v_tasks) AND NOT w.arrived OFFSET 0
        ) f
        WHERE w.task_id = f.task_id AND w.kind = 'event' AND w.name = f.name AND w.ordinal = f.ordinal;
        news := stepwell.arrive(p_now, v_tasks);
    END IF;
END $$;

-- Puts messages into mailboxes, those at the given places. `accepted` says of each whether its task is there and has not
-- ended; those at other places are NULL.
CREATE FUNCTION stepwell.send(p_now timestamptz, p_tasks uuid[], p_topics text[], p_payloads text[], p_at boolean[],
    OUT news stepwell.news, OUT accepted boolean[])
LANGUAGE plpgsql AS $$
DECLARE
    v_live uuid[];
    v_tasks uuid[];
BEGIN
    SELECT array_agg(q.task_id) INTO v_live FROM (
        SELECT l.task_id FROM stepwell.live_tasks l WHERE l.task_id = ANY (p_tasks) ORDER BY l.task_id FOR UPDATE
    ) q;
    INSERT INTO stepwell.messages (task_id, topic, payload)
    SELECT x.task_id, x.topic, x.payload
    FROM unnest(p_tasks, p_topics, p_payloads, p_at) WITH ORDINALITY AS x(task_id, topic, payload, at, i)
    WHERE x.at AND x.task_id = ANY (v_live) ORDER BY x.i;
    SELECT array_agg(CASE WHEN x.at THEN coalesce(x.task_id = ANY (v_live), false) END ORDER BY x.i)
    INTO accepted FROM unnest(p_tasks, p_at) WITH ORDINALITY AS x(task_id, at, i);
    v_tasks := stepwell.mark_messages(p_tasks, p_topics, p_at);
    IF v_tasks IS NOT NULL THEN
        news := stepwell.arrive(p_now, v_tasks);
    END IF;
END $$;

-- Spawns tasks, those at the given places. Each label has the place of its task. The answer says of
-- each task whether its `claim_by` has it, and which task stands for it, if another one does: the
-- task with its idempotency key, or (without an attempt) the waiting task with which it coalesces.
-- The answers at other places are NULL. `p_batch` is NULL in a user's transaction.
CREATE FUNCTION stepwell.spawn(p_now timestamptz, p_batch bigint, p_limited boolean, p_at boolean[],
    s_task uuid[], s_run uuid[], s_type text[], s_queue text[], s_priority integer[],
    s_max_attempts bigint[], s_retry text[], s_headers text[], s_params text[],
    s_parent uuid[], s_scope text[], s_idempotency_key text[], s_concurrency_key text[],
    s_code_version text[], s_start_at timestamptz[], s_max_delay bigint[], s_max_duration bigint[],
    s_claim_by uuid[], s_coalesce text[] DEFAULT NULL,
    b_of integer[] DEFAULT NULL, b_name text[] DEFAULT NULL, b_value text[] DEFAULT NULL,
    b_own boolean[] DEFAULT NULL,
    OUT news stepwell.news, OUT claimed boolean[], OUT existing uuid[], OUT existing_runs uuid[],
    OUT existing_attempts bigint[])
LANGUAGE plpgsql AS $$
DECLARE
    v_at boolean[] := p_at;
    v_keyed uuid[];
    v_waiting uuid[];
    v_label integer := 1;
    v_names text[];
    v_values text[];
    v_own boolean[];
    caused stepwell.news;
    r record;
BEGIN
    IF s_coalesce IS NOT NULL AND p_batch IS NOT NULL THEN
        claimed := array_fill(false, ARRAY[cardinality(p_at)]);
        existing := array_fill(NULL::uuid, ARRAY[cardinality(p_at)]);
        existing_runs := existing;
        existing_attempts := array_fill(NULL::bigint, ARRAY[cardinality(p_at)]);
        -- One after the other: each may find the one before it waiting. Elements are taken one by one, since a slice copies its
        -- whole array first; the labels lie in the order of their tasks.
        FOR i IN 1 .. cardinality(p_at) LOOP
            v_names := NULL;
            v_values := NULL;
            v_own := NULL;
            WHILE b_of[v_label] <= i LOOP
                IF b_of[v_label] = i THEN
                    v_names := v_names || b_name[v_label];
                    v_values := v_values || b_value[v_label];
                    v_own := v_own || b_own[v_label];
                END IF;
                v_label := v_label + 1;
            END LOOP;
            CONTINUE WHEN NOT p_at[i];
            v_waiting := stepwell.waiting(p_type => s_type[i], p_scope => s_scope[i],
                p_idempotency_key => s_idempotency_key[i],
                p_concurrency_key => s_concurrency_key[i], p_coalesce => s_coalesce[i]);
            IF s_coalesce[i] <> 'replace' AND v_waiting IS NOT NULL THEN
                existing[i] := v_waiting[1];
                existing_runs[i] := (SELECT l.run_id FROM stepwell.live_tasks l WHERE l.task_id = v_waiting[1]);
                CONTINUE;
            END IF;
            IF v_waiting IS NOT NULL THEN
                caused := stepwell.cancel(p_now, v_waiting);
                news := stepwell.both(news, caused);
            END IF;
            r := stepwell.spawn(p_now => p_now, p_batch => p_batch, p_limited => p_limited,
                p_at => ARRAY[true], s_task => ARRAY[s_task[i]], s_run => ARRAY[s_run[i]],
                s_type => ARRAY[s_type[i]], s_queue => ARRAY[s_queue[i]],
                s_priority => ARRAY[s_priority[i]], s_max_attempts => ARRAY[s_max_attempts[i]],
                s_retry => ARRAY[s_retry[i]], s_headers => ARRAY[s_headers[i]],
                s_params => ARRAY[s_params[i]], s_parent => ARRAY[s_parent[i]],
                s_scope => ARRAY[s_scope[i]],
                s_idempotency_key => stepwell.alone(s_idempotency_key[i]),
                s_concurrency_key => ARRAY[s_concurrency_key[i]],
                s_code_version => ARRAY[s_code_version[i]], s_start_at => ARRAY[s_start_at[i]],
                s_max_delay => ARRAY[s_max_delay[i]], s_max_duration => ARRAY[s_max_duration[i]],
                s_claim_by => ARRAY[s_claim_by[i]],
                b_of => stepwell.each(v_names, 1), b_name => v_names, b_value => v_values,
                b_own => v_own);
            news := stepwell.both(news, r.news);
            claimed[i] := r.claimed[1];
            existing[i] := r.existing[1];
            existing_runs[i] := r.existing_runs[1];
            existing_attempts[i] := r.existing_attempts[1];
        END LOOP;
        RETURN;
    END IF;
    -- Those of a user's transaction are settled when it has committed.
    IF s_idempotency_key IS NOT NULL AND p_batch IS NOT NULL THEN
        INSERT INTO stepwell.idempotency_keys (task_type, idempotency_key, key_space, task_id)
        SELECT x.task_type, x.key, x.space, x.task_id FROM (
            SELECT DISTINCT ON (x.task_type, x.key, x.space) x.* FROM (
                SELECT x.*, stepwell.key_space(x.scope) AS space FROM
                unnest(s_type, s_idempotency_key, s_scope, s_task, p_at) WITH ORDINALITY
                    AS x(task_type, key, scope, task_id, at, i)
            ) x WHERE x.at AND x.key IS NOT NULL ORDER BY x.task_type, x.key, x.space, x.i
        ) x ON CONFLICT DO NOTHING;
        SELECT array_agg(x.at AND (k.task_id IS NULL OR k.task_id = x.task_id) ORDER BY x.i),
            array_agg(CASE WHEN x.at AND k.task_id <> x.task_id THEN k.task_id END ORDER BY x.i)
        INTO v_at, existing
        FROM unnest(s_type, s_idempotency_key, s_scope, s_task, p_at) WITH ORDINALITY
            AS x(task_type, key, scope, task_id, at, i)
        LEFT JOIN stepwell.idempotency_keys k ON k.task_type = x.task_type AND k.idempotency_key = x.key
            AND k.key_space = stepwell.key_space(x.scope);
    END IF;

    WITH w AS MATERIALIZED (
        -- A worker that is locked like this cannot be buried before the transaction ends.
        SELECT w.worker_id FROM stepwell.workers w WHERE w.worker_id = ANY (s_claim_by) ORDER BY w.worker_id FOR KEY SHARE
    ), x AS MATERIALIZED (
        SELECT x.*, x.claim_by IN (SELECT w.worker_id FROM w) IS TRUE AND (x.start_at > p_now) IS NOT TRUE
            AND x.concurrency_key IS NULL
            AND NOT (p_limited AND EXISTS (SELECT FROM stepwell.queues q WHERE q.queue = x.queue AND q.restricts)) AS claimed
        FROM unnest(v_at, s_task, s_run, s_type, s_queue, s_priority, s_max_attempts, s_parent,
            s_scope, s_idempotency_key, s_concurrency_key, s_code_version, s_start_at, s_max_delay, s_max_duration,
            s_claim_by, s_retry, s_headers, s_params) WITH ORDINALITY
            AS x(at, task_id, run_id, task_type, queue, priority, max_attempts, parent, scope, idempotency_key, concurrency_key,
                code_version, start_at, max_delay, max_duration, claim_by, retry, headers, params, i)
    ), spawned AS (
        INSERT INTO stepwell.tasks (task_id, task_type, queue, priority, max_attempts, parent, idempotency_key,
            concurrency_key, code_version, spawned_at, max_duration, retry, headers, params, scope)
        SELECT x.task_id, x.task_type, x.queue, x.priority, x.max_attempts, x.parent, x.idempotency_key,
            x.concurrency_key, x.code_version, p_now, x.max_duration, x.retry, x.headers, x.params,
            x.scope
        FROM x WHERE x.at
    ), live AS (
        INSERT INTO stepwell.live_tasks AS l (task_id, run_id, task_type, queue, state, running_in, priority, attempt,
            worker_id, parent, known, code_version, concurrency_key, key_space, place, blocked, ready_at, started_at, due_at,
            cancel_at)
        SELECT x.task_id, x.run_id, x.task_type, x.queue, CASE WHEN x.claimed THEN 'running' ELSE 'pending' END,
            CASE WHEN x.claimed THEN x.queue END, x.priority, x.claimed::int, CASE WHEN x.claimed THEN x.claim_by END,
            x.parent, coalesce(x.parent::text, x.idempotency_key, x.concurrency_key) IS NOT NULL, x.code_version,
            x.concurrency_key, CASE WHEN x.concurrency_key IS NOT NULL THEN stepwell.key_space(x.scope) END,
            CASE WHEN x.concurrency_key IS NOT NULL AND p_batch IS NOT NULL THEN nextval('stepwell.places') END,
            p_batch IS NULL AND (x.concurrency_key IS NOT NULL OR x.idempotency_key IS NOT NULL), p_now,
            CASE WHEN x.claimed THEN p_now END, CASE WHEN x.start_at > p_now THEN x.start_at END,
            p_now + CASE WHEN x.claimed THEN x.max_duration ELSE x.max_delay END * interval '1 microsecond'
        FROM x WHERE x.at ORDER BY x.i
    )
    SELECT array_agg(x.at AND x.claimed), array_agg(x.queue) FILTER (WHERE x.at AND NOT x.claimed),
        array_agg(x.task_id) FILTER (WHERE x.at AND x.concurrency_key IS NOT NULL)
    INTO claimed, news.ready, v_keyed FROM x;

    IF b_of IS NOT NULL THEN
        INSERT INTO stepwell.labels (task_id, name, value, own)
        SELECT s_task[b.of], b.name, b.value, b.own
        FROM unnest(b_of, b_name, b_value, b_own) AS b(of, name, value, own)
        WHERE v_at[b.of];
    END IF;
    IF v_keyed IS NOT NULL AND p_batch IS NOT NULL THEN
        UPDATE stepwell.live_tasks l SET blocked = true
        WHERE l.task_id = ANY (v_keyed) AND EXISTS (
            SELECT FROM stepwell.live_tasks o WHERE o.concurrency_key = l.concurrency_key
                AND o.key_space = l.key_space AND o.place < l.place
        );
    END IF;
    IF existing IS NOT NULL THEN
        SELECT array_agg(CASE WHEN x.task_id IS NOT NULL THEN stepwell.done_by(x.task_id) END ORDER BY x.i) INTO existing
        FROM unnest(existing) WITH ORDINALITY AS x(task_id, i);
        SELECT array_agg(coalesce(l.run_id, o.run_id) ORDER BY x.i),
            array_agg(coalesce(l.attempt, o.attempt) ORDER BY x.i)
        INTO existing_runs, existing_attempts
        FROM unnest(existing) WITH ORDINALITY AS x(task_id, i)
        LEFT JOIN stepwell.live_tasks l USING (task_id) LEFT JOIN stepwell.outcomes o USING (task_id);
    END IF;
END $$;

-- The tasks in whose favour, or in whose place, a task is to be spawned that coalesces: those of its type, scope and concurrency
-- key that have never been claimed, the last first. None when it does not, or its idempotency key is there.
CREATE FUNCTION stepwell.waiting(p_type text, p_scope text, p_concurrency_key text,
    p_coalesce text, p_idempotency_key text DEFAULT NULL) RETURNS uuid[]
LANGUAGE plpgsql AS $$
DECLARE
    v_tasks uuid[];
BEGIN
    IF p_coalesce IS NULL OR EXISTS (
        SELECT FROM stepwell.idempotency_keys k WHERE k.task_type = p_type AND k.idempotency_key = p_idempotency_key
            AND k.key_space = stepwell.key_space(p_scope)
    ) THEN
        RETURN NULL;
    END IF;
    SELECT array_agg(l.task_id) INTO v_tasks FROM (
        SELECT l.task_id FROM stepwell.live_tasks l
        WHERE l.concurrency_key = p_concurrency_key AND l.key_space = stepwell.key_space(p_scope)
            AND l.task_type = p_type AND l.state = 'pending' AND l.started_at IS NULL AND NOT l.compensating
            AND l.place IS NOT NULL
        ORDER BY l.place DESC FOR UPDATE
    ) l;
    RETURN v_tasks;
END $$;

-- Whether a task is that other one, or is kept for it, or for one that is kept for it.
CREATE FUNCTION stepwell.is_kept_for(p_task uuid, p_other uuid) RETURNS boolean
LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN p_other IN (
        WITH RECURSIVE above AS (
            SELECT p_task AS task_id
            UNION SELECT u.task_id FROM above a CROSS JOIN LATERAL (
                SELECT t.parent AS task_id FROM stepwell.tasks t WHERE t.task_id = a.task_id
                UNION ALL SELECT n.needed_by FROM stepwell.needs n WHERE n.task_id = a.task_id
            ) u WHERE coalesce(
                (SELECT l.state FROM stepwell.live_tasks l WHERE l.task_id = u.task_id),
                (SELECT o.state FROM stepwell.outcomes o WHERE o.task_id = u.task_id)) <> 'completed'
        ) SELECT above.task_id FROM above);
END $$;

-- The task that may have yet to learn how that one ended: its parent, or else of those that wait for it, or were answered with
-- it, the one with the lowest id. One that has failed or was cancelled may be retried, and learn it
-- then; but where it was answered with a task that it is itself kept for, neither would ever be
-- removed.
CREATE FUNCTION stepwell.needed_by(p_task uuid) RETURNS uuid
LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN coalesce(
        (SELECT t.parent FROM stepwell.tasks t
            WHERE t.task_id = p_task AND coalesce(
                (SELECT l.state FROM stepwell.live_tasks l WHERE l.task_id = t.parent),
                (SELECT o.state FROM stepwell.outcomes o WHERE o.task_id = t.parent)) <> 'completed'),
        (SELECT x.task_id FROM (
            SELECT w.task_id FROM stepwell.waits w WHERE w.target = p_task::text AND w.kind = 'child'
            UNION ALL
            -- It is told how another one ended, that was done in the place of the one that it waits for.
            SELECT w.task_id FROM stepwell.outcomes o
            JOIN stepwell.waits w ON w.target = o.task_id::text AND w.kind = 'child' WHERE o.instead = p_task
            UNION ALL
            SELECT n.needed_by FROM stepwell.needs n WHERE n.task_id = p_task AND coalesce(
                (SELECT true FROM stepwell.live_tasks l WHERE l.task_id = n.needed_by),
                (SELECT o.state <> 'completed' AND NOT stepwell.is_kept_for(n.needed_by, p_task)
                    FROM stepwell.outcomes o WHERE o.task_id = n.needed_by))
        ) x ORDER BY x.task_id LIMIT 1));
END $$;

-- Does what a client asks of a task: cancel, retry, delete, wake, pause or resume. The answer is
-- 'done', 'not_found', 'needed' (by the task in `needed_by`), or the task's state, which does not
-- allow it.
CREATE FUNCTION stepwell.command(p_now timestamptz, p_command text, p_task uuid,
    OUT answer text, OUT needed_by uuid, OUT news stepwell.news)
LANGUAGE plpgsql AS $$
DECLARE
    v_task stepwell.tasks;
    v_outcome stepwell.outcomes;
    v_keys stepwell.turn[];
    v_compensating boolean;
BEGIN
    SELECT l.state, CASE WHEN l.concurrency_key IS NOT NULL THEN ARRAY[ROW(l.key_space, l.concurrency_key)::stepwell.turn] END
    INTO answer, v_keys FROM stepwell.live_tasks l WHERE l.task_id = p_task;
    IF p_command = 'retry' THEN
        v_keys := ARRAY (SELECT ROW(stepwell.key_space(t.scope), t.concurrency_key)::stepwell.turn FROM stepwell.tasks t
            WHERE t.task_id = p_task AND t.concurrency_key IS NOT NULL);
    END IF;
    IF cardinality(v_keys) > 0 THEN
        PERFORM stepwell.lock_names(p_keys => v_keys);
    END IF;
    SELECT l.state, l.compensating INTO answer, v_compensating FROM stepwell.live_tasks l WHERE l.task_id = p_task FOR UPDATE;
    IF answer IS NULL THEN
        -- Locked, so that of two who delete or retry it one comes second.
        SELECT o.* INTO v_outcome FROM stepwell.outcomes o WHERE o.task_id = p_task FOR UPDATE;
        answer := coalesce(v_outcome.state, 'not_found');
    END IF;
    IF p_command = 'cancel' AND NOT v_compensating THEN
        news := stepwell.cancel(p_now, ARRAY[p_task]);
        answer := 'done';
    ELSIF p_command = 'wake' AND answer = 'suspended' THEN
        news := stepwell.arrive(p_now, ARRAY[p_task]);
        answer := 'done';
    ELSIF p_command = 'delete' AND v_outcome.task_id IS NOT NULL THEN
        needed_by := stepwell.needed_by(p_task);
        answer := 'needed';
        IF needed_by IS NULL THEN
            PERFORM stepwell.delete(ARRAY[p_task]);
            answer := 'done';
        END IF;
    ELSIF p_command = 'retry' AND answer IN ('failed', 'cancelled') AND stepwell.done_by(p_task) = p_task THEN
        SELECT t.* INTO STRICT v_task FROM stepwell.tasks t WHERE t.task_id = p_task;
        DELETE FROM stepwell.outcomes o WHERE o.task_id = p_task;
        -- Behind a compensation, the task begins anew.
        INSERT INTO stepwell.journal (task_id, seq, kind, name, ordinal, outcome, payload, at)
        SELECT p_task, max(j.seq) + 1, 'attempt', 'retry', 1, 'done', 'null', p_now
        FROM stepwell.journal j WHERE j.task_id = p_task HAVING bool_or(j.kind = 'compensating');
        INSERT INTO stepwell.live_tasks (task_id, run_id, task_type, queue, state, priority, attempt, parent, known,
            code_version, concurrency_key, key_space, place, blocked, ready_at, started_at, failure)
        VALUES (p_task, v_outcome.run_id, v_task.task_type, v_task.queue, 'pending', v_task.priority, 0, v_task.parent,
            coalesce(v_task.parent::text, v_task.idempotency_key, v_task.concurrency_key) IS NOT NULL, v_task.code_version, v_task.concurrency_key,
            CASE WHEN v_task.concurrency_key IS NOT NULL THEN stepwell.key_space(v_task.scope) END,
            CASE WHEN v_task.concurrency_key IS NOT NULL THEN nextval('stepwell.places') END,
            EXISTS (SELECT FROM stepwell.live_tasks o WHERE o.concurrency_key = v_task.concurrency_key
                AND o.key_space = stepwell.key_space(v_task.scope)),
            p_now, v_outcome.started_at, v_outcome.failure);
        news.ready := ARRAY[v_task.queue];
        answer := 'done';
    ELSIF p_command IN ('pause', 'resume') AND v_compensating IS NOT NULL THEN
        UPDATE stepwell.live_tasks l SET paused = p_command = 'pause' WHERE l.task_id = p_task;
        IF p_command = 'resume' AND answer = 'pending' THEN
            news.ready := ARRAY (SELECT l.queue FROM stepwell.live_tasks l WHERE l.task_id = p_task);
        END IF;
        answer := 'done';
    ELSIF v_compensating THEN
        answer := 'compensating';
    END IF;
END $$;

-- Removes finished tasks that nobody needs, the oldest first: those that ended before, of that state or (NULL) of all. None of
-- them has that id or a higher one, since ids hold the time at which they were made: so tasks that ended later are not even looked at.
-- Those that were kept for removed ones are removed behind them, generation by generation.
CREATE FUNCTION stepwell.purge(p_before timestamptz, p_state text, p_limit bigint, p_end uuid) RETURNS bigint
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan SET enable_seqscan = off
SET enable_hashjoin = off SET enable_mergejoin = off SET enable_bitmapscan = off SET enable_material = off SET jit = off AS $$
DECLARE
    v_tasks uuid[];
    v_kept uuid[];
    v_removed bigint := 0;
BEGIN
    SELECT array_agg(o.task_id) INTO v_tasks FROM (
        SELECT o.task_id FROM stepwell.outcomes o
        WHERE o.task_id < p_end AND o.finished_at < p_before AND (p_state IS NULL OR o.state = p_state)
            AND stepwell.needed_by(o.task_id) IS NULL
        ORDER BY o.task_id LIMIT p_limit FOR UPDATE SKIP LOCKED
    ) o;
    WHILE v_tasks IS NOT NULL LOOP
        v_kept := ARRAY (
            SELECT t.task_id FROM stepwell.outcomes o JOIN stepwell.tasks t ON t.parent = o.task_id
            WHERE o.task_id = ANY (v_tasks) AND o.state <> 'completed'
            UNION SELECT n.task_id FROM stepwell.needs n WHERE n.needed_by = ANY (v_tasks));
        PERFORM stepwell.delete(v_tasks);
        v_removed := v_removed + cardinality(v_tasks);
        SELECT array_agg(o.task_id) INTO v_tasks FROM (
            SELECT o.task_id FROM stepwell.outcomes o
            WHERE o.task_id = ANY (v_kept) AND o.finished_at < p_before AND (p_state IS NULL OR o.state = p_state)
                AND stepwell.needed_by(o.task_id) IS NULL
            ORDER BY o.task_id LIMIT p_limit - v_removed FOR UPDATE SKIP LOCKED
        ) o;
    END LOOP;
    RETURN v_removed;
END $$;

-- Removes finished tasks and all that belongs to them.
CREATE FUNCTION stepwell.delete(p_tasks uuid[]) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM stepwell.outcomes o WHERE o.task_id = ANY (p_tasks);
    DELETE FROM stepwell.labels b WHERE b.task_id = ANY (p_tasks);
    DELETE FROM stepwell.journal j WHERE j.task_id = ANY (p_tasks);
    DELETE FROM stepwell.history h WHERE h.task_id = ANY (p_tasks);
    DELETE FROM stepwell.messages m WHERE m.task_id = ANY (p_tasks);
    DELETE FROM stepwell.needs n WHERE n.task_id = ANY (p_tasks);
    DELETE FROM stepwell.needs n WHERE n.needed_by = ANY (p_tasks);
    WITH gone AS (
        DELETE FROM stepwell.tasks t WHERE t.task_id = ANY (p_tasks)
        RETURNING t.task_id, t.task_type, t.idempotency_key, t.scope
    )
    DELETE FROM stepwell.idempotency_keys k USING gone
    WHERE k.task_type = gone.task_type AND k.idempotency_key = gone.idempotency_key
        AND k.key_space = stepwell.key_space(gone.scope) AND k.task_id = gone.task_id;
END $$;
