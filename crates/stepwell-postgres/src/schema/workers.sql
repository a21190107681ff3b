-- Signals of workers: signs of life, and the ends of workers that stop or die.

-- Applies one signal. `status` is JSON: the worker's state, the runs that it holds, and other
-- workers for it to watch, with their leases in microseconds:
--     {"state": "active", "runs": [[task_id, run_id], …],
--      "others": [[worker_id, heartbeats, lease], …]}
CREATE FUNCTION stepwell.signal(p_now timestamptz, p_worker uuid, p_signal jsonb,
    OUT status text, OUT news stepwell.news)
LANGUAGE plpgsql AS $$
DECLARE
    v_state text;
    v_unowned uuid[];
BEGIN
    CASE p_signal ->> 'signal'
    WHEN 'register' THEN
        INSERT INTO stepwell.workers AS w (worker_id, name, queues, concurrency, code_version,
            registered_at, heartbeat_at, lease)
        VALUES (p_worker, p_signal ->> 'name',
            ARRAY (SELECT jsonb_array_elements_text(p_signal -> 'queues')),
            (p_signal ->> 'concurrency')::bigint, p_signal ->> 'code_version', p_now, p_now,
            (p_signal ->> 'lease')::bigint)
        ON CONFLICT (worker_id) DO UPDATE SET name = EXCLUDED.name, queues = EXCLUDED.queues,
            concurrency = EXCLUDED.concurrency, code_version = EXCLUDED.code_version,
            state = 'active', registered_at = EXCLUDED.registered_at,
            heartbeat_at = EXCLUDED.heartbeat_at, lease = EXCLUDED.lease, heartbeats = 0
        RETURNING w.state INTO v_state;
        -- Tasks that run under workers without a row, which a person must have deleted.
        SELECT array_agg(DISTINCT l.worker_id) INTO v_unowned FROM stepwell.live_tasks l
        WHERE l.running_in IS NOT NULL
            AND NOT EXISTS (SELECT FROM stepwell.workers w WHERE w.worker_id = l.worker_id);
        IF v_unowned IS NOT NULL THEN
            news := stepwell.release_from(p_now, v_unowned, p_died => false);
        END IF;
    WHEN 'heartbeat' THEN
        UPDATE stepwell.workers w SET heartbeats = CASE WHEN w.heartbeats < 9223372036854775807
            THEN w.heartbeats + 1 ELSE 0 END, heartbeat_at = p_now WHERE w.worker_id = p_worker
        RETURNING w.state INTO v_state;
    WHEN 'declare_dead' THEN
        -- A worker whose row is locked is committing something at this moment.
        PERFORM FROM stepwell.workers w
        WHERE w.worker_id = p_worker
            AND greatest(w.heartbeats, 0) = (p_signal ->> 'heartbeats')::bigint
            FOR UPDATE SKIP LOCKED;
        IF FOUND THEN
            DELETE FROM stepwell.workers w WHERE w.worker_id = p_worker RETURNING w.state
                INTO v_state;
            news := stepwell.release_from(p_now, ARRAY[p_worker], p_died => true);
        ELSE
            SELECT w.state INTO v_state FROM stepwell.workers w WHERE w.worker_id = p_worker;
        END IF;
    WHEN 'drain' THEN
        UPDATE stepwell.workers w SET state = 'draining' WHERE w.worker_id = p_worker
            RETURNING w.state INTO v_state;
    WHEN 'deregister' THEN
        DELETE FROM stepwell.workers w WHERE w.worker_id = p_worker RETURNING w.state INTO v_state;
        news := stepwell.release_from(p_now, ARRAY[p_worker], p_died => false);
    END CASE;
    IF v_state IS NULL OR p_signal ->> 'signal' NOT IN ('register', 'heartbeat') THEN
        status := json_build_object('state', coalesce(v_state, 'gone'));
        RETURN;
    END IF;
    status := json_build_object('state', v_state, 'runs', (
        SELECT json_agg(json_build_array(l.task_id, l.run_id)) FROM stepwell.live_tasks l
        WHERE l.running_in IS NOT NULL AND l.worker_id = p_worker
    ), 'others', (
        SELECT json_agg(json_build_array(o.worker_id, greatest(o.heartbeats, 0),
            greatest(o.lease, 0))) FROM (
            SELECT w.* FROM stepwell.workers w WHERE w.worker_id <> p_worker
            ORDER BY w.worker_id < p_worker, w.worker_id LIMIT (p_signal ->> 'watched')::bigint
        ) o
    ));
END $$;
