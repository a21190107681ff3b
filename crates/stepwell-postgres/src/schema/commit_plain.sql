-- Returns whether a batch of `commit_plain` was applied.
CREATE FUNCTION stepwell.was_applied(t_task uuid[], t_run uuid[], e_of integer[], e_seq bigint[],
    s_task uuid[]) RETURNS boolean
LANGUAGE plpgsql AS $$
BEGIN
    -- Rows of other runs say nothing of this batch.
    RETURN EXISTS (SELECT FROM stepwell.tasks t WHERE t.task_id = ANY (s_task))
        OR EXISTS (SELECT FROM unnest(t_task, t_run) AS x(task_id, run_id)
            JOIN stepwell.outcomes o USING (task_id, run_id) WHERE o.state = 'completed')
        OR EXISTS (SELECT FROM unnest(e_of, e_seq) AS e(of, seq)
            JOIN stepwell.live_tasks l ON l.task_id = t_task[e.of] AND l.run_id = t_run[e.of]
            JOIN stepwell.journal j ON j.task_id = l.task_id AND j.seq = e.seq);
END $$;

-- Applies a batch of the most common kind: transitions that only journal or complete their tasks,
-- and clients' spawns without special options. Half of the time of a small batch is what its
-- statements take to start, so there are few of them. A batch that turns out to be special is left
-- to `commit`. Arrays are unfolded side by side in a SELECT list, which stores nothing: in FROM,
-- each of them would be stored first. Usual values are NULL. An entry is of a step, the first of
-- its name, and done. A transition completes its task when it has an output, and journals
-- otherwise. In the answer, all transitions are accepted, and no cancellation is requested.
--
-- Such a batch notes no number. All that it writes has a key of its own, or is a row that only one
-- run may delete, so it cannot be applied twice. When its answer was lost, what it wrote tells
-- whether it was applied (`p_again`). A process has one batch at a time on a line, which the lock
-- guarantees: the same batch, sent again, waits for the end of the first sending.
CREATE FUNCTION stepwell.commit_plain(
    p_channel text, p_process uuid, p_line smallint, p_batch bigint, p_again boolean,
    p_now timestamptz DEFAULT NULL, p_timeline text DEFAULT NULL,
    t_task uuid[] DEFAULT NULL, t_run uuid[] DEFAULT NULL, t_output text[] DEFAULT NULL,
    e_of integer[] DEFAULT NULL, e_seq bigint[] DEFAULT NULL, e_kind text[] DEFAULT NULL,
    e_name text[] DEFAULT NULL, e_ordinal bigint[] DEFAULT NULL, e_outcome text[] DEFAULT NULL,
    e_payload text[] DEFAULT NULL, e_at timestamptz[] DEFAULT NULL,
    s_task uuid[] DEFAULT NULL, s_run uuid[] DEFAULT NULL, s_type text[] DEFAULT NULL,
    s_queue text[] DEFAULT NULL, s_priority integer[] DEFAULT NULL,
    s_max_attempts bigint[] DEFAULT NULL, s_claim_by uuid[] DEFAULT NULL,
    s_retry text[] DEFAULT NULL, s_headers text[] DEFAULT NULL, s_params text[] DEFAULT NULL,
    OUT repeated boolean, OUT moved text, OUT r_now timestamptz, OUT t_accepted boolean[],
    OUT t_cancel_requested boolean[],
    OUT s_claimed boolean[], OUT ready text[], OUT poked uuid[], OUT finished uuid[])
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
SET enable_bitmapscan = off SET enable_material = off SET jit = off AS $$
DECLARE
    v_heard boolean;
    v_special boolean := false;
    v_ends boolean := t_output IS NOT NULL;
    v_lock bigint := uuid_hash_extended(p_process, p_line);
    v_runs uuid[];
    v_workers uuid[];
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
    IF p_again THEN
        repeated := stepwell.was_applied(t_task, t_run, e_of, e_seq, s_task);
        IF repeated THEN
            r_now := coalesce(p_now, clock_timestamp());
            RETURN;
        END IF;
    END IF;
    IF p_timeline IS NOT NULL
        AND p_timeline <> left(pg_walfile_name(pg_current_wal_insert_lsn()), 8)
    THEN
        moved := left(pg_walfile_name(pg_current_wal_insert_lsn()), 8);
        r_now := coalesce(p_now, clock_timestamp());
        RETURN;
    END IF;

    IF t_task IS NOT NULL THEN
        IF v_ends OR s_task IS NOT NULL THEN
            SELECT array_agg(o.run_id), array_agg(o.worker_id),
                bool_or(o.cancel_requested OR v_ends AND o.known)
                    OR EXISTS (SELECT FROM stepwell.queues),
                v_ends AND EXISTS (SELECT FROM stepwell.processes o
                    WHERE o.process_id <> p_process
                        AND o.seen_at > clock_timestamp() - interval '1 minute')
            INTO v_runs, v_workers, v_special, v_heard
            FROM (
                SELECT l.run_id, l.cancel_requested, l.worker_id, l.known
                FROM stepwell.live_tasks l WHERE l.task_id = ANY (t_task) AND l.state = 'running'
                ORDER BY l.task_id
            ) o;
        ELSE
            -- The columns for ends and spawns would double the cost.
            SELECT array_agg(o.run_id), array_agg(o.worker_id), bool_or(o.cancel_requested)
                INTO v_runs, v_workers, v_special
            FROM (
                SELECT l.run_id, l.cancel_requested, l.worker_id
                FROM stepwell.live_tasks l WHERE l.task_id = ANY (t_task) AND l.state = 'running'
                ORDER BY l.task_id
            ) o;
        END IF;
        -- There is usually one worker, whose row is locked as in `fence`.
        v_special := v_special OR v_runs <> t_run OR v_workers[1] <> ANY (v_workers);
        IF v_special IS FALSE THEN
            PERFORM FROM stepwell.workers w WHERE w.worker_id = v_workers[1] FOR KEY SHARE;
            v_special := NOT FOUND;
        END IF;
    END IF;
    r_now := coalesce(p_now, clock_timestamp());
    IF v_special IS FALSE THEN
        IF e_of IS NOT NULL THEN
            INSERT INTO stepwell.journal (task_id, seq, kind, name, ordinal, outcome, payload, at)
            SELECT t_task[e.of], e.seq, coalesce(e.kind, 'step'), e.name, coalesce(e.ordinal, 1),
                coalesce(e.outcome, 'done'), e.payload, e.at
            FROM (
                SELECT unnest(e_of) AS of, unnest(e_seq) AS seq, unnest(e_kind) AS kind,
                    unnest(e_name) AS name, unnest(e_ordinal) AS ordinal,
                    unnest(e_outcome) AS outcome, unnest(e_payload) AS payload, unnest(e_at) AS at
            ) e;
        END IF;
        IF v_ends THEN
            WITH gone AS (
                DELETE FROM stepwell.live_tasks l
                USING (SELECT unnest(t_task) AS task_id, unnest(t_output) AS output) x
                WHERE l.task_id = x.task_id AND x.output IS NOT NULL
                RETURNING l.task_id, l.run_id, l.attempt, l.cancel_requested, l.started_at, x.output
            ), waited AS (
                DELETE FROM stepwell.waits w USING gone WHERE w.task_id = gone.task_id
            ), sent AS (
                DELETE FROM stepwell.messages m USING gone WHERE m.task_id = gone.task_id
            ), ended AS (
                INSERT INTO stepwell.outcomes (task_id, run_id, state, attempt, cancel_requested,
                    started_at, finished_at, output)
                SELECT g.task_id, g.run_id, 'completed', g.attempt, g.cancel_requested,
                    g.started_at, r_now, g.output
                FROM gone g
                RETURNING task_id
            )
            SELECT array_agg(e.task_id) INTO finished FROM ended e;
        END IF;
        IF s_task IS NOT NULL THEN
            WITH w AS MATERIALIZED (
                SELECT w.worker_id FROM stepwell.workers w WHERE w.worker_id = ANY (s_claim_by)
                    ORDER BY w.worker_id
                FOR KEY SHARE
            ), x AS MATERIALIZED (
                SELECT x.*, x.claim_by IN (SELECT w.worker_id FROM w) IS TRUE AS claimed
                FROM (
                    SELECT unnest(s_task) AS task_id, unnest(s_run) AS run_id,
                        unnest(s_type) AS task_type, unnest(s_queue) AS queue,
                        unnest(s_priority) AS priority, unnest(s_max_attempts) AS max_attempts,
                        unnest(s_claim_by) AS claim_by, unnest(s_retry) AS retry,
                        unnest(s_headers) AS headers, unnest(s_params) AS params
                ) x
                -- With transitions, this is known already, and they are written.
                WHERE t_task IS NOT NULL OR NOT EXISTS (SELECT FROM stepwell.queues)
            ), spawned AS (
                INSERT INTO stepwell.tasks (task_id, task_type, queue, priority, max_attempts,
                    spawned_at, retry, headers, params)
                SELECT x.task_id, x.task_type, x.queue, x.priority, x.max_attempts, r_now, x.retry,
                    x.headers, x.params FROM x
            ), live AS (
                INSERT INTO stepwell.live_tasks (task_id, run_id, task_type, queue, state,
                    running_in, priority, attempt, worker_id, ready_at, started_at)
                SELECT x.task_id, x.run_id, x.task_type, x.queue, CASE WHEN x.claimed THEN 'running'
                    ELSE 'pending' END,
                    CASE WHEN x.claimed THEN x.queue END, x.priority, x.claimed::int,
                    CASE WHEN x.claimed THEN x.claim_by END, r_now,
                    CASE WHEN x.claimed THEN r_now END
                FROM x
            )
            SELECT array_agg(x.claimed), array_agg(x.queue) FILTER (WHERE NOT x.claimed), v_heard
                OR bool_or(NOT x.claimed)
                AND EXISTS (SELECT FROM stepwell.processes o
                    WHERE o.process_id <> p_process
                        AND o.seen_at > clock_timestamp() - interval '1 minute')
            INTO s_claimed, ready, v_heard FROM x;
            v_special := s_claimed IS NULL;
        END IF;
    END IF;
    IF v_special IS NOT FALSE THEN
        SELECT c.repeated, c.r_now, c.t_accepted, c.t_cancel_requested, c.s_claimed, c.ready,
            c.poked, c.finished
        INTO repeated, r_now, t_accepted, t_cancel_requested, s_claimed, ready, poked, finished
        FROM stepwell.commit(p_channel => p_channel, p_settled => true, p_process => p_process,
            p_line => p_line, p_batch => p_batch, p_now => p_now, p_timeline => p_timeline,
            t_task => t_task, t_run => t_run, t_output => t_output, t_next => (
                SELECT array_agg(CASE WHEN x.output IS NULL THEN 'continue' ELSE 'completed' END
                    ORDER BY x.i)
                FROM unnest(t_task, t_output) WITH ORDINALITY AS x(task_id, output, i)
            ),
            e_of => e_of, e_seq => e_seq, e_name => e_name, e_payload => e_payload, e_at => e_at,
            e_kind => coalesce(e_kind, stepwell.each(e_of, 'step'::text)),
            e_ordinal => coalesce(e_ordinal, stepwell.each(e_of, 1::bigint)),
            e_outcome => coalesce(e_outcome, stepwell.each(e_of, 'done'::text)),
            s_task => s_task, s_run => s_run, s_type => s_type, s_queue => s_queue,
            s_priority => s_priority, s_max_attempts => s_max_attempts, s_claim_by => s_claim_by,
            s_retry => s_retry, s_headers => s_headers, s_params => s_params) c;
    ELSIF v_heard THEN
        PERFORM stepwell.tell(p_channel, p_process, p_work => ready IS NOT NULL,
            p_finished => finished IS NOT NULL);
    END IF;
END $$;
