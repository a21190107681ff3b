-- Spawns of tasks.

-- Returns the tasks in whose favour, or in whose place, a coalescing task is to be spawned: those
-- of its type, scope and concurrency key that have never been claimed, the last one first. NULL
-- when the task does not coalesce, or a task has its idempotency key.
CREATE FUNCTION stepwell.waiting(p_type text, p_scope text, p_concurrency_key text,
    p_coalesce text, p_idempotency_key text DEFAULT NULL) RETURNS uuid[]
LANGUAGE plpgsql AS $$
DECLARE
    v_tasks uuid[];
BEGIN
    IF p_coalesce IS NULL OR EXISTS (
        SELECT FROM stepwell.idempotency_keys k WHERE k.task_type = p_type
            AND k.idempotency_key = p_idempotency_key
            AND k.key_space = stepwell.key_space(p_scope)
    ) THEN
        RETURN NULL;
    END IF;
    SELECT array_agg(l.task_id) INTO v_tasks FROM (
        SELECT l.task_id FROM stepwell.live_tasks l
        WHERE l.concurrency_key = p_concurrency_key AND l.key_space = stepwell.key_space(p_scope)
            AND l.task_type = p_type AND l.state = 'pending' AND l.started_at IS NULL
                AND NOT l.compensating
            AND l.place IS NOT NULL
        ORDER BY l.place DESC FOR UPDATE
    ) l;
    RETURN v_tasks;
END $$;

-- Spawns the tasks at the given places. Each label has the place of its task. The answer says of
-- each task whether its `s_claim_by` has it, and which task stands for it, if another one does: the
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
        -- One after the other, because each may find the one before it waiting. Elements are taken
        -- one by one, because a slice copies its whole array first. The labels are in the order of
        -- their tasks.
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
                existing_runs[i] := (SELECT l.run_id FROM stepwell.live_tasks l
                    WHERE l.task_id = v_waiting[1]);
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
    -- `settle` decides about those of a user's transaction when it has committed.
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
        LEFT JOIN stepwell.idempotency_keys k ON k.task_type = x.task_type
            AND k.idempotency_key = x.key
            AND k.key_space = stepwell.key_space(x.scope);
    END IF;

    WITH w AS MATERIALIZED (
        -- A worker that is locked in this way cannot be declared dead before the transaction ends.
        SELECT w.worker_id FROM stepwell.workers w WHERE w.worker_id = ANY (s_claim_by)
            ORDER BY w.worker_id FOR KEY SHARE
    ), x AS MATERIALIZED (
        SELECT x.*, x.claim_by IN (SELECT w.worker_id FROM w) IS TRUE
            AND (x.start_at > p_now) IS NOT TRUE AND x.concurrency_key IS NULL
            AND NOT (p_limited AND EXISTS (SELECT FROM stepwell.queues q
                WHERE q.queue = x.queue AND q.restricts)) AS claimed
        FROM unnest(v_at, s_task, s_run, s_type, s_queue, s_priority, s_max_attempts, s_parent,
            s_scope, s_idempotency_key, s_concurrency_key, s_code_version, s_start_at, s_max_delay,
            s_max_duration, s_claim_by, s_retry, s_headers, s_params) WITH ORDINALITY
            AS x(at, task_id, run_id, task_type, queue, priority, max_attempts, parent, scope,
                idempotency_key, concurrency_key, code_version, start_at, max_delay, max_duration,
                claim_by, retry, headers, params, i)
    ), spawned AS (
        INSERT INTO stepwell.tasks (task_id, task_type, queue, priority, max_attempts, parent,
            idempotency_key, concurrency_key, code_version, spawned_at, max_duration, retry,
            headers, params, scope)
        SELECT x.task_id, x.task_type, x.queue, x.priority, x.max_attempts, x.parent,
            x.idempotency_key, x.concurrency_key, x.code_version, p_now, x.max_duration, x.retry,
            x.headers, x.params, x.scope
        FROM x WHERE x.at
    ), live AS (
        INSERT INTO stepwell.live_tasks AS l (task_id, run_id, task_type, queue, state, running_in,
            priority, attempt, worker_id, parent, known, code_version, concurrency_key, key_space,
            place, blocked, ready_at, started_at, due_at, cancel_at)
        SELECT x.task_id, x.run_id, x.task_type, x.queue,
            CASE WHEN x.claimed THEN 'running' ELSE 'pending' END,
            CASE WHEN x.claimed THEN x.queue END, x.priority, x.claimed::int,
            CASE WHEN x.claimed THEN x.claim_by END, x.parent,
            coalesce(x.parent::text, x.idempotency_key, x.concurrency_key) IS NOT NULL,
            x.code_version, x.concurrency_key,
            CASE WHEN x.concurrency_key IS NOT NULL THEN stepwell.key_space(x.scope) END,
            CASE WHEN x.concurrency_key IS NOT NULL AND p_batch IS NOT NULL
                THEN nextval('stepwell.places') END,
            p_batch IS NULL AND (x.concurrency_key IS NOT NULL OR x.idempotency_key IS NOT NULL),
            p_now,
            CASE WHEN x.claimed THEN p_now END, CASE WHEN x.start_at > p_now THEN x.start_at END,
            p_now + CASE WHEN x.claimed THEN x.max_duration ELSE x.max_delay END
                * interval '1 microsecond'
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
        SELECT array_agg(CASE WHEN x.task_id IS NOT NULL THEN stepwell.done_by(x.task_id) END
            ORDER BY x.i) INTO existing
        FROM unnest(existing) WITH ORDINALITY AS x(task_id, i);
        SELECT array_agg(coalesce(l.run_id, o.run_id) ORDER BY x.i),
            array_agg(coalesce(l.attempt, o.attempt) ORDER BY x.i)
        INTO existing_runs, existing_attempts
        FROM unnest(existing) WITH ORDINALITY AS x(task_id, i)
        LEFT JOIN stepwell.live_tasks l USING (task_id) LEFT JOIN stepwell.outcomes o
            USING (task_id);
    END IF;
END $$;
