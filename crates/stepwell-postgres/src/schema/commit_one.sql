-- Applies a batch of one item: a transition with at most one entry, or a spawn that a worker of its
-- process claims at once. On a system with little to do every batch is of this kind, and a client
-- waits for each of them. Plain values and statements over one row take half as long as sets of
-- one. An item that turns out to be special is left to `commit_plain`, as is a batch that is sent
-- again.
CREATE FUNCTION stepwell.commit_one(
    p_channel text, p_process uuid, p_line smallint, p_batch bigint,
    p_now timestamptz DEFAULT NULL, p_timeline text DEFAULT NULL,
    t_task uuid DEFAULT NULL, t_run uuid DEFAULT NULL, t_output text DEFAULT NULL,
    e_seq bigint DEFAULT NULL, e_kind text DEFAULT NULL, e_name text DEFAULT NULL,
    e_ordinal bigint DEFAULT NULL, e_outcome text DEFAULT NULL, e_payload text DEFAULT NULL,
    e_at timestamptz DEFAULT NULL,
    s_task uuid DEFAULT NULL, s_run uuid DEFAULT NULL, s_type text DEFAULT NULL,
    s_queue text DEFAULT NULL, s_priority integer DEFAULT NULL, s_max_attempts bigint DEFAULT NULL,
    s_claim_by uuid DEFAULT NULL, s_retry text DEFAULT NULL, s_headers text DEFAULT NULL,
    s_params text DEFAULT NULL,
    OUT repeated boolean, OUT moved text, OUT r_now timestamptz, OUT t_accepted boolean[],
    OUT t_cancel_requested boolean[],
    OUT s_claimed boolean[], OUT ready text[], OUT poked uuid[], OUT finished uuid[])
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
SET enable_bitmapscan = off SET enable_material = off SET jit = off AS $$
DECLARE
    v_ends boolean := t_output IS NOT NULL;
    v_lock bigint := uuid_hash_extended(p_process, p_line);
    v_attempt bigint;
    v_started_at timestamptz;
    v_special boolean;
    v_heard boolean;
BEGIN
    repeated := false;
    IF current_setting('transaction_isolation') <> 'read committed'
        OR current_setting('synchronous_commit') = 'off'
    THEN
        PERFORM stepwell.own_settings(true);
    END IF;
    IF NOT pg_try_advisory_xact_lock(v_lock) THEN
        PERFORM pg_advisory_xact_lock(v_lock);
    END IF;
    IF p_timeline IS NOT NULL
        AND p_timeline <> left(pg_walfile_name(pg_current_wal_insert_lsn()), 8)
    THEN
        moved := left(pg_walfile_name(pg_current_wal_insert_lsn()), 8);
        r_now := coalesce(p_now, clock_timestamp());
        RETURN;
    END IF;
    r_now := coalesce(p_now, clock_timestamp());
    IF t_task IS NOT NULL THEN
        -- The worker's row is locked as in `fence`. A transaction that takes the task from the
        -- worker deletes that row, and then nothing is found here.
        SELECT l.attempt, l.started_at,
            l.cancel_requested OR v_ends AND (l.known OR EXISTS (SELECT FROM stepwell.queues)),
            v_ends AND EXISTS (SELECT FROM stepwell.processes o
                WHERE o.process_id <> p_process
                    AND o.seen_at > clock_timestamp() - interval '1 minute')
        INTO v_attempt, v_started_at, v_special, v_heard
        FROM stepwell.live_tasks l JOIN stepwell.workers w USING (worker_id)
        WHERE l.task_id = t_task AND l.run_id = t_run AND l.state = 'running'
        FOR KEY SHARE OF w;
        IF v_special IS FALSE THEN
            IF e_seq IS NOT NULL THEN
                INSERT INTO stepwell.journal (task_id, seq, kind, name, ordinal, outcome, payload,
                    at)
                VALUES (t_task, e_seq, e_kind, e_name, e_ordinal, e_outcome, e_payload, e_at);
            END IF;
            IF v_ends THEN
                DELETE FROM stepwell.live_tasks l WHERE l.task_id = t_task;
                DELETE FROM stepwell.waits w WHERE w.task_id = t_task;
                DELETE FROM stepwell.messages m WHERE m.task_id = t_task;
                INSERT INTO stepwell.outcomes (task_id, run_id, state, attempt, cancel_requested,
                    started_at, finished_at, output)
                VALUES (t_task, t_run, 'completed', v_attempt, false, v_started_at, r_now,
                    t_output);
                finished := ARRAY[t_task];
            END IF;
        END IF;
    ELSE
        SELECT EXISTS (SELECT FROM stepwell.queues) INTO v_special
        FROM stepwell.workers w WHERE w.worker_id = s_claim_by FOR KEY SHARE;
        IF v_special IS FALSE THEN
            INSERT INTO stepwell.tasks (task_id, task_type, queue, priority, max_attempts,
                spawned_at, retry, headers, params)
            VALUES (s_task, s_type, s_queue, s_priority, s_max_attempts, r_now, s_retry, s_headers,
                s_params);
            INSERT INTO stepwell.live_tasks (task_id, run_id, task_type, queue, state, running_in,
                priority, attempt, worker_id, ready_at, started_at)
            VALUES (s_task, s_run, s_type, s_queue, 'running', s_queue, s_priority, 1, s_claim_by,
                r_now, r_now);
            s_claimed := '{true}';
        END IF;
    END IF;
    IF v_special IS NOT FALSE THEN
        SELECT c.repeated, c.r_now, c.t_accepted, c.t_cancel_requested, c.s_claimed, c.ready,
            c.poked, c.finished
        INTO repeated, r_now, t_accepted, t_cancel_requested, s_claimed, ready, poked, finished
        FROM stepwell.commit_plain(p_channel => p_channel, p_process => p_process,
            p_line => p_line, p_batch => p_batch, p_again => false, p_now => p_now,
            p_timeline => p_timeline, e_of => CASE WHEN e_seq IS NOT NULL THEN ARRAY[1] END,
            t_task => stepwell.alone(t_task), t_run => stepwell.alone(t_run),
            t_output => stepwell.alone(t_output), e_seq => stepwell.alone(e_seq),
            e_kind => stepwell.alone(e_kind), e_name => stepwell.alone(e_name),
            e_ordinal => stepwell.alone(e_ordinal), e_outcome => stepwell.alone(e_outcome),
            e_payload => stepwell.alone(e_payload), e_at => stepwell.alone(e_at),
            s_task => stepwell.alone(s_task), s_run => stepwell.alone(s_run),
            s_type => stepwell.alone(s_type), s_queue => stepwell.alone(s_queue),
            s_priority => stepwell.alone(s_priority),
            s_max_attempts => stepwell.alone(s_max_attempts),
            s_claim_by => stepwell.alone(s_claim_by), s_retry => stepwell.alone(s_retry),
            s_headers => stepwell.alone(s_headers), s_params => stepwell.alone(s_params)) c;
    ELSIF v_heard THEN
        PERFORM stepwell.tell(p_channel, p_process, p_work => ready IS NOT NULL,
            p_finished => finished IS NOT NULL);
    END IF;
END $$;
