-- The beginning and the end of each commit: its settings, its number, the fence, and the
-- notification of other processes.

-- Sets what a transaction must have that a caller relies on, and refuses what cannot be set within
-- it. It is called when one of the two settings differs.
CREATE FUNCTION stepwell.own_settings(p_isolated boolean) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF current_setting('synchronous_commit') = 'off' THEN
        -- This setting lasts until the transaction ends.
        PERFORM set_config('synchronous_commit', 'on', true);
    END IF;
    IF p_isolated AND current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'the transaction''s isolation level is %: it has to be read committed, '
            'so that a batch sees what others have committed',
            current_setting('transaction_isolation') USING ERRCODE = 'SW001';
    END IF;
END $$;

-- Notes a batch's number. `heard` is true if other processes may have to be notified, `limited` if
-- queues may have limits: both when in doubt. `repeated` is true if the process has sent the batch
-- before.
CREATE FUNCTION stepwell.number(p_process uuid, p_line smallint, p_batch bigint,
    OUT repeated boolean, OUT heard boolean, OUT limited boolean)
LANGUAGE plpgsql AS $$
BEGIN
    repeated := false;
    UPDATE stepwell.processes p SET batch = p_batch, seen_at = clock_timestamp()
    WHERE p.process_id = p_process AND p.line = p_line AND p.batch < p_batch
    RETURNING EXISTS (SELECT FROM stepwell.processes o WHERE o.process_id <> p_process
        AND o.seen_at > clock_timestamp() - interval '1 minute'),
            EXISTS (SELECT FROM stepwell.queues)
    INTO heard, limited;
    IF NOT FOUND THEN
        INSERT INTO stepwell.processes (process_id, line, batch, seen_at)
        VALUES (p_process, p_line, p_batch, clock_timestamp()) ON CONFLICT DO NOTHING;
        repeated := NOT FOUND;
        -- Processes that were silent for a day. No other process may be there to remove them.
        DELETE FROM stepwell.processes p WHERE p.process_id IN (
            SELECT o.process_id FROM stepwell.processes o
                WHERE o.seen_at < clock_timestamp() - interval '1 day'
            ORDER BY o.process_id, o.line FOR UPDATE SKIP LOCKED
        ) AND p.seen_at < clock_timestamp() - interval '1 day';
        heard := true;
        limited := true;
    END IF;
END $$;

-- The fence: says of each run whether it owns its task. The lock on the worker's row keeps that
-- true until the commit, because no transaction takes a task from a worker without that lock.
-- `parents` and `keys` are those of the accepted runs.
CREATE FUNCTION stepwell.fence(p_tasks uuid[], p_runs uuid[], OUT accepted boolean[],
    OUT cancel_requested boolean[],
    OUT parents uuid[], OUT keys stepwell.turn[])
LANGUAGE plpgsql AS $$
DECLARE
    v_tasks uuid[];
    v_runs uuid[];
    v_asked boolean[];
    v_workers uuid[];
    v_locked bigint;
BEGIN
    FOR tries IN 1 .. 100 LOOP
        SELECT array_agg(o.task_id), array_agg(o.run_id), array_agg(o.cancel_requested),
            array_agg(o.worker_id),
            array_agg(o.parent) FILTER (WHERE o.parent IS NOT NULL),
            array_agg(ROW(o.key_space, o.concurrency_key)::stepwell.turn)
            FILTER (WHERE o.concurrency_key IS NOT NULL)
        INTO v_tasks, v_runs, v_asked, v_workers, parents, keys
        FROM (
            SELECT l.* FROM stepwell.live_tasks l WHERE l.task_id = ANY (p_tasks)
                AND l.state = 'running'
            ORDER BY l.task_id
        ) o;
        IF v_workers[1] <> ANY (v_workers) THEN
            v_workers := ARRAY (SELECT DISTINCT w FROM unnest(v_workers) AS w);
        ELSE
            v_workers := v_workers[1:1];
        END IF;
        PERFORM FROM stepwell.workers w WHERE w.worker_id = ANY (v_workers) ORDER BY w.worker_id
            FOR KEY SHARE;
        GET DIAGNOSTICS v_locked = ROW_COUNT;
        IF v_locked = coalesce(cardinality(v_workers), 0) THEN
            IF v_runs = p_runs THEN
                accepted := array_fill(true, ARRAY[cardinality(p_runs)]);
                cancel_requested := v_asked;
            ELSE
                SELECT array_agg(o.task_id IS NOT NULL ORDER BY x.i),
                    array_agg(coalesce(o.asked, false) ORDER BY x.i)
                INTO accepted, cancel_requested
                FROM unnest(p_tasks, p_runs) WITH ORDINALITY AS x(task_id, run_id, i)
                LEFT JOIN unnest(v_tasks, v_runs, v_asked) AS o(task_id, run_id, asked)
                    USING (task_id, run_id);
            END IF;
            RETURN;
        END IF;
        -- A worker was declared dead between the two statements, and its tasks are no longer its
        -- own.
    END LOOP;
    RAISE EXCEPTION 'running tasks name a worker that is not in %: were its rows deleted by hand?',
        'stepwell.workers'::regclass;
END $$;

-- Returns what each transition asks for next; NULL for refused transitions.
CREATE FUNCTION stepwell.unless_refused(p_next text[], p_accepted boolean[]) RETURNS text[]
LANGUAGE plpgsql AS $$
BEGIN
    IF true = ALL (p_accepted) THEN
        RETURN p_next;
    END IF;
    RETURN ARRAY (SELECT CASE WHEN x.accepted THEN x.next END
        FROM unnest(p_next, p_accepted) WITH ORDINALITY AS x(next, accepted, i) ORDER BY x.i);
END $$;

-- Notifies other processes of work, and of tasks that have ended.
CREATE FUNCTION stepwell.tell(p_channel text, p_process uuid DEFAULT NULL,
    p_work boolean DEFAULT false, p_finished boolean DEFAULT false) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    IF p_work OR p_finished THEN
        PERFORM pg_notify(p_channel, coalesce(p_process::text, '-') || ' '
            || CASE WHEN p_work THEN 'w' ELSE '' END || CASE WHEN p_finished THEN 'f' ELSE '' END);
    END IF;
END $$;
