-- As `commit`, for batches of the commonest kind: transitions that only journal, or complete or fail their tasks, and
-- clients' spawns without anything special. Half of the time of a small batch is what its statements take to start, so
-- here are as few as can be; whatever turns out to be special after all is left to `commit`.
CREATE FUNCTION stepwell.commit_plain(
    p_process uuid, p_line smallint, p_batch bigint, p_channel text, p_now timestamptz,
    t_task uuid[], t_run uuid[], t_next text[], t_output text[],
    e_of integer[], e_seq bigint[], e_kind text[], e_name text[], e_ordinal bigint[], e_outcome text[],
    e_payload text[], e_at timestamptz[],
    s_task uuid[], s_run uuid[], s_type text[], s_queue text[], s_priority integer[], s_max_attempts bigint[],
    s_claim_by uuid[], s_retry text[], s_headers text[], s_params text[],
    OUT repeated boolean, OUT r_now timestamptz, OUT t_accepted boolean[], OUT t_cancel_requested boolean[],
    OUT s_claimed boolean[], OUT ready text[], OUT poked uuid[], OUT finished uuid[])
LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_hashjoin = off
SET enable_mergejoin = off SET enable_bitmapscan = off SET enable_material = off SET jit = off AS $$
DECLARE
    v_heard boolean;
    v_special boolean;
    v_runs uuid[];
    v_workers uuid[];
    -- Left to `commit` with the batch, when this is not the batch that follows on the line's last one.
    v_batch bigint;
BEGIN
    repeated := false;
    UPDATE stepwell.processes p SET batch = p_batch, seen_at = clock_timestamp()
    WHERE p.process_id = p_process AND p.line = p_line AND p.batch < p_batch
    RETURNING EXISTS (SELECT FROM stepwell.processes o WHERE o.process_id <> p_process
        AND o.seen_at > clock_timestamp() - interval '1 minute'), EXISTS (SELECT FROM stepwell.queues)
    INTO v_heard, v_special;
    IF NOT FOUND THEN
        v_special := true;
        v_batch := p_batch;
    END IF;

    IF t_task IS NOT NULL AND NOT v_special THEN
        SELECT array_agg(o.run_id), array_agg(o.cancel_requested), array_agg(o.worker_id),
            bool_or(o.parent IS NOT NULL OR o.concurrency_key IS NOT NULL)
        INTO v_runs, t_cancel_requested, v_workers, v_special
        FROM (
            SELECT l.* FROM stepwell.live_tasks l WHERE l.task_id = ANY (t_task) AND l.state = 'running'
            ORDER BY l.task_id
        ) o;
        -- One worker, mostly; its row is locked as in `fence`.
        v_special := v_special OR v_runs <> t_run OR v_workers[1] <> ANY (v_workers);
        IF v_special IS FALSE THEN
            PERFORM FROM stepwell.workers w WHERE w.worker_id = v_workers[1] FOR KEY SHARE;
            v_special := NOT FOUND;
        END IF;
    END IF;
    IF v_special IS NOT FALSE THEN
        SELECT c.repeated, c.r_now, c.t_accepted, c.t_cancel_requested, c.s_claimed, c.ready, c.poked, c.finished
        INTO repeated, r_now, t_accepted, t_cancel_requested, s_claimed, ready, poked, finished
        FROM stepwell.commit(p_process, p_line, v_batch, p_channel, p_now, NULL,
            t_task, t_run, t_next, NULL, t_output, NULL,
            e_of, e_seq, e_kind, e_name, e_ordinal, e_outcome, e_payload, e_at,
            NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
            NULL,
            CASE WHEN s_task IS NOT NULL THEN array_fill(NULL::integer, ARRAY[cardinality(s_task)]) END,
            s_task, s_run, s_type, s_queue, s_priority, s_max_attempts, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
            s_claim_by, s_retry, s_headers, s_params,
            NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL) c;
        IF v_heard THEN
            PERFORM stepwell.tell(p_channel, p_process, ready, poked, finished);
        END IF;
        RETURN;
    END IF;

    r_now := coalesce(p_now, clock_timestamp());
    IF t_task IS NOT NULL THEN
        t_accepted := array_fill(true, ARRAY[cardinality(t_task)]);
    END IF;
    IF e_of IS NOT NULL THEN
        INSERT INTO stepwell.journal (task_id, seq, kind, name, ordinal, outcome, payload, at)
        SELECT t_task[e.of], e.seq, e.kind, e.name, e.ordinal, e.outcome, e.payload, e.at
        FROM unnest(e_of, e_seq, e_kind, e_name, e_ordinal, e_outcome, e_payload, e_at)
            AS e(of, seq, kind, name, ordinal, outcome, payload, at);
    END IF;
    IF 'completed' = ANY (t_next) THEN
        WITH gone AS (
            DELETE FROM stepwell.live_tasks l
            USING unnest(t_task, t_next, t_output) AS x(task_id, state, output)
            WHERE l.task_id = x.task_id AND x.state = 'completed'
            RETURNING l.task_id, l.run_id, l.attempt, l.cancel_requested, l.started_at, x.output
        ), waited AS (
            DELETE FROM stepwell.waits w USING gone WHERE w.task_id = gone.task_id
        ), sent AS (
            DELETE FROM stepwell.messages m USING gone WHERE m.task_id = gone.task_id
        ), ended AS (
            INSERT INTO stepwell.outcomes (task_id, run_id, state, attempt, cancel_requested, started_at, finished_at, output)
            SELECT g.task_id, g.run_id, 'completed', g.attempt, g.cancel_requested, g.started_at, r_now, g.output
            FROM gone g
            RETURNING task_id
        )
        SELECT array_agg(e.task_id) INTO finished FROM ended e;
    END IF;
    IF s_task IS NOT NULL THEN
        WITH w AS MATERIALIZED (
            SELECT w.worker_id FROM stepwell.workers w WHERE w.worker_id = ANY (s_claim_by) ORDER BY w.worker_id FOR KEY SHARE
        ), x AS MATERIALIZED (
            SELECT x.*, x.claim_by IN (SELECT w.worker_id FROM w) IS TRUE AS claimed
            FROM unnest(s_task, s_run, s_type, s_queue, s_priority, s_max_attempts, s_claim_by, s_retry, s_headers, s_params)
                AS x(task_id, run_id, task_type, queue, priority, max_attempts, claim_by, retry, headers, params)
        ), spawned AS (
            INSERT INTO stepwell.tasks (task_id, task_type, queue, priority, max_attempts, spawned_at, retry, headers, params)
            SELECT x.task_id, x.task_type, x.queue, x.priority, x.max_attempts, r_now, x.retry, x.headers, x.params FROM x
        ), live AS (
            INSERT INTO stepwell.live_tasks (task_id, run_id, task_type, queue, state, running_in, priority, attempt,
                worker_id, ready_at, started_at)
            SELECT x.task_id, x.run_id, x.task_type, x.queue, CASE WHEN x.claimed THEN 'running' ELSE 'pending' END,
                CASE WHEN x.claimed THEN x.queue END, x.priority, x.claimed::int, CASE WHEN x.claimed THEN x.claim_by END, r_now,
                CASE WHEN x.claimed THEN r_now END
            FROM x
        )
        SELECT array_agg(x.claimed), array_agg(x.queue) FILTER (WHERE NOT x.claimed) INTO s_claimed, ready FROM x;
    END IF;
    IF v_heard THEN
        PERFORM stepwell.tell(p_channel, p_process, ready, poked, finished);
    END IF;
END $$;
