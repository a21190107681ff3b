-- Claims, and what is due before one.

-- Makes due tasks claimable, and cancels tasks whose time is up. Of many, a part is done at a time,
-- because a batch is also the sign of life of workers. Rows that another transaction has locked are
-- left to it.
CREATE FUNCTION stepwell.do_what_is_due(p_now timestamptz, OUT news stepwell.news)
LANGUAGE plpgsql AS $$
DECLARE
    v_tasks uuid[];
    v_task uuid;
BEGIN
    SELECT array_agg(q.task_id) INTO v_tasks FROM (
        SELECT l.task_id FROM stepwell.live_tasks l WHERE l.cancel_at <= p_now
        ORDER BY l.cancel_at, l.task_id LIMIT 1000 FOR UPDATE SKIP LOCKED
    ) q;
    IF v_tasks IS NOT NULL THEN
        UPDATE stepwell.live_tasks l SET cancel_at = NULL WHERE l.task_id = ANY (v_tasks);
        BEGIN
            news := stepwell.cancel(p_now, v_tasks);
        EXCEPTION WHEN others THEN
            IF stepwell.is_of_the_server(SQLSTATE) THEN
                RAISE;
            END IF;
            -- A task that cannot be cancelled must not keep others from being claimed.
            FOREACH v_task IN ARRAY v_tasks LOOP
                BEGIN
                    news := stepwell.both(news, stepwell.cancel(p_now, ARRAY[v_task]));
                EXCEPTION WHEN others THEN
                    IF stepwell.is_of_the_server(SQLSTATE) THEN
                        RAISE;
                    END IF;
                    RAISE WARNING 'task % cannot be cancelled, though its time is up: %', v_task,
                        SQLERRM;
                END;
            END LOOP;
        END;
    END IF;

    WITH due AS MATERIALIZED (
        SELECT l.task_id FROM stepwell.live_tasks l WHERE l.due_at <= p_now
        ORDER BY l.due_at, l.task_id LIMIT 10000 FOR UPDATE SKIP LOCKED
    ), awake AS (
        UPDATE stepwell.live_tasks l SET state = 'pending', due_at = NULL, ready_at = p_now FROM due
        WHERE l.task_id = due.task_id
        RETURNING l.queue
    )
    SELECT news.ready || array_agg(queue) INTO news.ready FROM awake;
END $$;

-- A queue's rate is kept as the moment up to which the starts so far have used up the time. Returns
-- the part of the time that a start takes, in microseconds.
CREATE FUNCTION stepwell.rate_part(q stepwell.queues) RETURNS bigint LANGUAGE sql IMMUTABLE
    RETURN greatest(1, greatest(1, q.rate_per) / greatest(1, q.rate_starts));

-- Returns the moment up to which the time is used up. A moment that is too far ahead of the clock
-- was written before the clock was set back, and does not count. A minute more is allowed, because
-- the clocks of batches differ a little.
CREATE FUNCTION stepwell.used_until(q stepwell.queues, p_now timestamptz) RETURNS timestamptz
    LANGUAGE sql IMMUTABLE
    RETURN CASE
        WHEN extract(epoch FROM q.used_until - p_now) * 1000000 <= q.rate_per::numeric + 60000000
        THEN greatest(q.used_until, p_now) ELSE p_now END;

CREATE FUNCTION stepwell.starts_left(q stepwell.queues, p_now timestamptz) RETURNS bigint
    LANGUAGE sql IMMUTABLE
    RETURN least(q.rate_starts, greatest(0, q.rate_per
        - (extract(epoch FROM stepwell.used_until(q, p_now) - p_now) * 1000000)::bigint)
        / stepwell.rate_part(q));

-- Returns how many tasks of a queue a worker may claim, of `p_room`: `room` in all, and `starts`
-- that begin an attempt, NULL without a rate. A queue that restricts its tasks is locked until the
-- transaction ends, so that two claims do not both take its last room.
CREATE FUNCTION stepwell.room(p_now timestamptz, p_queue text, p_worker uuid, p_room bigint,
    OUT room bigint, OUT starts bigint)
LANGUAGE plpgsql AS $$
DECLARE
    q stepwell.queues;
BEGIN
    room := p_room;
    -- The first look takes no lock, because most queues restrict nothing.
    IF NOT EXISTS (SELECT FROM stepwell.queues c WHERE c.queue = p_queue AND c.restricts) THEN
        RETURN;
    END IF;
    SELECT c.* INTO q FROM stepwell.queues c WHERE c.queue = p_queue FOR NO KEY UPDATE;
    IF q.paused THEN
        room := 0;
        RETURN;
    END IF;
    IF q.max_running IS NOT NULL THEN
        room := least(room, greatest(0, q.max_running - (SELECT count(*) FROM stepwell.live_tasks l
            WHERE l.running_in = p_queue)));
    END IF;
    IF q.max_running_per_worker IS NOT NULL THEN
        room := least(room, greatest(0, q.max_running_per_worker - (SELECT count(*)
            FROM stepwell.live_tasks l
            WHERE l.running_in = p_queue AND l.worker_id = p_worker)));
    END IF;
    IF q.rate_starts IS NOT NULL THEN
        starts := stepwell.starts_left(q, p_now);
    END IF;
END $$;

-- Notes that this many attempts started in a queue with a rate. Returns when the next one may
-- start, if none may now.
CREATE FUNCTION stepwell.use_rate(p_now timestamptz, p_queue text, p_starts bigint)
    RETURNS timestamptz
LANGUAGE plpgsql AS $$
DECLARE
    q stepwell.queues;
BEGIN
    SELECT c.* INTO STRICT q FROM stepwell.queues c WHERE c.queue = p_queue;
    q.used_until := stepwell.used_until(q, p_now) + stepwell.rate_part(
        q) * p_starts * interval '1 microsecond';
    IF p_starts > 0 THEN
        UPDATE stepwell.queues c SET used_until = q.used_until WHERE c.queue = p_queue;
    END IF;
    IF stepwell.starts_left(q, p_now) = 0 THEN
        RETURN q.used_until - (q.rate_per - stepwell.rate_part(q)) * interval '1 microsecond';
    END IF;
    RETURN NULL;
END $$;

-- Claims tasks of one queue that continue after a suspension, and no others. They have an index of
-- their own, because they may be few among many that the queue's rate does not let start.
CREATE FUNCTION stepwell.claim_going_on(p_now timestamptz, p_batch bigint, p_worker uuid,
    p_queue text, p_types text[], p_version text, p_limit bigint)
RETURNS TABLE (r_task uuid, r_run uuid, r_attempt bigint, r_crashes bigint, r_lost bigint,
    r_had_it boolean, r_had_run boolean)
LANGUAGE plpgsql AS $$
BEGIN
    RETURN QUERY
    WITH picked AS MATERIALIZED (
        SELECT l.task_id, l.priority, l.ready_at, l.worker_id = p_worker AS had_it
            FROM stepwell.live_tasks l
        WHERE l.queue = p_queue AND l.state = 'pending' AND l.due_at IS NULL AND NOT l.blocked
            AND NOT l.paused
            AND l.crashes < 2 AND l.worker_id IS NOT NULL
            AND l.task_type = ANY (p_types)
                AND (l.code_version IS NULL OR l.code_version = p_version)
        ORDER BY l.priority DESC, l.ready_at, l.task_id LIMIT p_limit FOR UPDATE SKIP LOCKED
    ), started AS (
        UPDATE stepwell.live_tasks l SET state = 'running', running_in = l.queue,
            attempt = greatest(0, least(l.attempt, 4294967294)) + 1, worker_id = p_worker,
            claim_batch = p_batch, poked = false, run_id = CASE WHEN p.had_it THEN l.run_id
                ELSE gen_random_uuid() END
        FROM picked p WHERE l.task_id = p.task_id
        RETURNING l.task_id, l.run_id, l.attempt, l.crashes, l.lost, p.had_it, p.priority,
            p.ready_at
    )
    SELECT s.task_id, s.run_id, s.attempt, s.crashes, s.lost, s.had_it, true FROM started s
    ORDER BY s.priority DESC, s.ready_at, s.task_id;
END $$;

-- Claims tasks of one queue: all, or only those that start; and first a suspect that has met at
-- most `p_suspect` crashes. `r_had_run` says which tasks ran before.
CREATE FUNCTION stepwell.claim_of_queue(p_now timestamptz, p_batch bigint, p_worker uuid,
    p_queue text, p_types text[], p_version text, p_only_starts boolean, p_suspect bigint,
    p_limit bigint)
RETURNS TABLE (r_task uuid, r_run uuid, r_attempt bigint, r_crashes bigint, r_lost bigint,
    r_had_it boolean, r_had_run boolean)
LANGUAGE plpgsql AS $$
BEGIN
    RETURN QUERY
    WITH suspects AS MATERIALIZED (
        SELECT l.task_id, l.priority, l.ready_at, false AS had_it, true AS had_run
        FROM stepwell.live_tasks l
        WHERE l.queue = p_queue AND l.state = 'pending' AND l.due_at IS NULL AND NOT l.blocked
            AND NOT l.paused
            AND l.crashes >= 2 AND l.crashes <= p_suspect
            AND l.task_type = ANY (p_types)
                AND (l.code_version IS NULL OR l.code_version = p_version)
        -- No suspect is read when none is wanted.
        ORDER BY l.priority DESC, l.ready_at, l.task_id
        LIMIT CASE WHEN p_suspect >= 2 THEN least(1, p_limit) ELSE 0 END FOR UPDATE SKIP LOCKED
    ), others AS MATERIALIZED (
        SELECT l.task_id, l.priority, l.ready_at,
            l.worker_id IS NOT DISTINCT FROM p_worker AS had_it, l.started_at IS NOT NULL AS had_run
        FROM stepwell.live_tasks l
        WHERE l.queue = p_queue AND l.state = 'pending' AND l.due_at IS NULL AND NOT l.blocked
            AND NOT l.paused
            AND l.crashes < 2
            AND l.task_type = ANY (p_types)
                AND (l.code_version IS NULL OR l.code_version = p_version)
            AND (l.worker_id IS NULL OR NOT p_only_starts)
        ORDER BY l.priority DESC, l.ready_at, l.task_id
        LIMIT p_limit - (SELECT count(*) FROM suspects) FOR UPDATE SKIP LOCKED
    ), picked AS (
        SELECT * FROM suspects UNION ALL SELECT * FROM others
    ), started AS (
        UPDATE stepwell.live_tasks l SET state = 'running', running_in = l.queue,
            attempt = greatest(0, least(l.attempt, 4294967294)) + 1, worker_id = p_worker,
            claim_batch = p_batch, poked = false, started_at = coalesce(l.started_at, p_now),
            -- Never a run that was used before: the database may have lost an earlier claim, whose
            -- worker continues.
            run_id = CASE WHEN p.had_it THEN l.run_id ELSE gen_random_uuid() END,
            cancel_at = CASE WHEN p.had_run THEN l.cancel_at
                -- At most what leads to the calendar's end.
                ELSE p_now + (SELECT greatest(0, least(t.max_duration, 316224000000000000))
                    FROM stepwell.tasks t
                        WHERE t.task_id = l.task_id AND t.max_duration IS NOT NULL)
                    * interval '1 microsecond' END
        FROM picked p WHERE l.task_id = p.task_id
        -- Together with what was picked, because a join of the two would look at each pair.
        RETURNING l.task_id, l.run_id, l.attempt, l.crashes, l.lost, p.had_it, p.had_run,
            p.priority, p.ready_at
    )
    SELECT s.task_id, s.run_id, s.attempt, s.crashes, s.lost, s.had_it, s.had_run FROM started s
    ORDER BY s.crashes >= 2 DESC, s.priority DESC, s.ready_at, s.task_id;
END $$;
