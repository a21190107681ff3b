-- Applies a batch as one. Parallel arrays hold its lists, and a list without items is NULL. Callers
-- name the arguments. `…_of` is the position of the transition to which an item belongs, from 1;
-- NULL for an item of a client. `s_schedule` is the position of the change of a schedule that
-- spawns the task. Items of transitions come first, then those of schedules, then those of clients.
-- Transitions come in the order of their tasks' ids, so that all commits lock rows in one order.
--
-- The answer is one of these three when the batch was not applied:
--
-- - `repeated`: the process has sent the batch before.
-- - `unsettled`: the outbox is to be settled first.
-- - `moved`: the database is on this timeline, and not on `p_timeline`. It was promoted or
--   restored, and may lack what was committed last.
--
-- Without a number (`p_batch`), the batch is a spawn in a user's transaction. `p_claims_of` is the
-- number of a batch whose claims are returned again. `t_after` is where the journals of the
-- transitions' tasks are to end, NULL for journals of which that is certain.
CREATE FUNCTION stepwell.commit(
    p_channel text, p_settled boolean,
    p_process uuid DEFAULT NULL, p_line smallint DEFAULT NULL, p_batch bigint DEFAULT NULL,
    p_now timestamptz DEFAULT NULL, p_timeline text DEFAULT NULL, p_claims_of bigint DEFAULT NULL,
    -- Transitions.
    t_task uuid[] DEFAULT NULL, t_run uuid[] DEFAULT NULL, t_after bigint[] DEFAULT NULL,
    t_next text[] DEFAULT NULL, t_at timestamptz[] DEFAULT NULL, t_output text[] DEFAULT NULL,
    t_failure text[] DEFAULT NULL,
    -- Their journal entries, and the entries that they supersede.
    e_of integer[] DEFAULT NULL, e_seq bigint[] DEFAULT NULL, e_kind text[] DEFAULT NULL,
    e_name text[] DEFAULT NULL, e_ordinal bigint[] DEFAULT NULL, e_outcome text[] DEFAULT NULL,
    e_payload text[] DEFAULT NULL, e_at timestamptz[] DEFAULT NULL,
    x_of integer[] DEFAULT NULL, x_seq bigint[] DEFAULT NULL,
    -- The messages that they have received, and the waits that they remove and add.
    d_of integer[] DEFAULT NULL, d_id bigint[] DEFAULT NULL,
    u_of integer[] DEFAULT NULL, u_kind text[] DEFAULT NULL, u_name text[] DEFAULT NULL,
    u_ordinal bigint[] DEFAULT NULL,
    w_of integer[] DEFAULT NULL, w_kind text[] DEFAULT NULL, w_name text[] DEFAULT NULL,
    w_ordinal bigint[] DEFAULT NULL, w_target text[] DEFAULT NULL,
    w_due_at timestamptz[] DEFAULT NULL,
    -- Events and messages.
    ev_of integer[] DEFAULT NULL, ev_name text[] DEFAULT NULL, ev_queue text[] DEFAULT NULL,
    ev_payload text[] DEFAULT NULL,
    m_of integer[] DEFAULT NULL, m_task uuid[] DEFAULT NULL, m_topic text[] DEFAULT NULL,
    m_payload text[] DEFAULT NULL,
    -- Tasks to spawn, with their labels. `s_seq` is the entry that goes when a task is not created.
    s_of integer[] DEFAULT NULL, s_schedule integer[] DEFAULT NULL, s_seq bigint[] DEFAULT NULL,
    s_task uuid[] DEFAULT NULL, s_run uuid[] DEFAULT NULL, s_type text[] DEFAULT NULL,
    s_queue text[] DEFAULT NULL, s_priority integer[] DEFAULT NULL,
    s_max_attempts bigint[] DEFAULT NULL, s_parent uuid[] DEFAULT NULL,
    s_scope text[] DEFAULT NULL, s_idempotency_key text[] DEFAULT NULL,
    s_concurrency_key text[] DEFAULT NULL, s_coalesce text[] DEFAULT NULL,
    s_code_version text[] DEFAULT NULL, s_start_at timestamptz[] DEFAULT NULL,
    s_max_delay bigint[] DEFAULT NULL, s_max_duration bigint[] DEFAULT NULL,
    s_claim_by uuid[] DEFAULT NULL, s_retry text[] DEFAULT NULL, s_headers text[] DEFAULT NULL,
    s_params text[] DEFAULT NULL,
    b_of integer[] DEFAULT NULL, b_name text[] DEFAULT NULL, b_value text[] DEFAULT NULL,
    b_own boolean[] DEFAULT NULL,
    -- Commands of clients, changes of schedules and of queues.
    c_command text[] DEFAULT NULL, c_task uuid[] DEFAULT NULL,
    h_name text[] DEFAULT NULL, h_seen uuid[] DEFAULT NULL, h_version uuid[] DEFAULT NULL,
    h_definition text[] DEFAULT NULL, h_next_at timestamptz[] DEFAULT NULL,
    h_last_task uuid[] DEFAULT NULL, h_unless_running boolean[] DEFAULT NULL,
    q_queue text[] DEFAULT NULL, q_action text[] DEFAULT NULL, q_max_running bigint[] DEFAULT NULL,
    q_max_per_worker bigint[] DEFAULT NULL, q_rate_starts bigint[] DEFAULT NULL,
    q_rate_per bigint[] DEFAULT NULL,
    -- Signals and claims of workers.
    signals jsonb DEFAULT NULL, claims jsonb DEFAULT NULL,
    OUT repeated boolean, OUT unsettled boolean, OUT moved text, OUT r_now timestamptz,
    OUT t_accepted boolean[], OUT t_cancel_requested boolean[], OUT t_suspended boolean[],
    OUT t_facts json, OUT t_blocked uuid[],
    OUT c_answer text[], OUT c_needed_by uuid[], OUT ev_first boolean[], OUT m_accepted boolean[],
    OUT s_claimed boolean[], OUT s_existing uuid[], OUT s_existing_run uuid[],
    OUT s_existing_attempt bigint[],
    OUT h_outcome text[], OUT signal_status text[],
    OUT cl_of integer[], OUT cl_task uuid[], OUT cl_run uuid[], OUT cl_attempt bigint[],
    OUT cl_crashes bigint[], OUT cl_lost bigint[], OUT cl_had_it boolean[],
    OUT cl_max_attempts bigint[], OUT cl_type text[], OUT cl_queue text[], OUT cl_params text[],
    OUT cl_headers text[], OUT cl_scope text[], OUT cl_key text[], OUT cl_retry text[],
    OUT cl_apart uuid[], OUT cl_waits json, OUT cl_facts json,
    OUT cl_poked_of integer[], OUT cl_poked uuid[],
    OUT j_of integer[], OUT j_seq bigint[], OUT j_kind text[], OUT j_name text[],
    OUT j_ordinal bigint[], OUT j_outcome text[], OUT j_payload text[], OUT j_at timestamptz[],
    OUT next_due timestamptz[], OUT ready text[], OUT poked uuid[], OUT finished uuid[])
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
SET enable_bitmapscan = off SET enable_material = off SET jit = off AS $$
DECLARE
    v_parents uuid[];
    v_keys stepwell.turn[];
    v_rows uuid[];
    v_tasks uuid[];
    v_topics text[];
    v_queues text[];
    v_found uuid[];
    v_state text;
    v_left bigint;
    v_suspect bigint;
    v_queue text;
    v_types text[];
    v_room record;
    v_starts bigint;
    v_due timestamptz;
    v_worker uuid;
    v_at boolean[];
    v_apart integer[];
    v_joining integer[];
    -- `true` if other processes may have to be notified, and if queues may have limits; both when
    -- in doubt.
    v_heard boolean := true;
    v_limited boolean := true;
    news stepwell.news;
    caused stepwell.news;
    r record;
    item record;
BEGIN
    repeated := false;
    IF current_setting('transaction_isolation') <> 'read committed'
        OR current_setting('synchronous_commit') = 'off'
    THEN
        PERFORM stepwell.own_settings(p_batch IS NOT NULL);
    END IF;
    IF p_timeline IS NOT NULL
        AND p_timeline <> left(pg_walfile_name(pg_current_wal_insert_lsn()), 8)
    THEN
        moved := left(pg_walfile_name(pg_current_wal_insert_lsn()), 8);
        r_now := coalesce(p_now, clock_timestamp());
        RETURN;
    END IF;
    IF NOT p_settled AND (claims IS NOT NULL OR ev_name IS NOT NULL OR s_idempotency_key IS NOT NULL
        OR s_concurrency_key IS NOT NULL)
    THEN
        unsettled := EXISTS (SELECT FROM stepwell.outbox);
        IF unsettled THEN
            r_now := coalesce(p_now, clock_timestamp());
            RETURN;
        END IF;
    END IF;
    IF p_batch IS NOT NULL THEN
        r := stepwell.number(p_process, p_line, p_batch);
        repeated := r.repeated;
        v_heard := r.heard;
        v_limited := r.limited OR q_queue IS NOT NULL;
        IF repeated THEN
            r_now := coalesce(p_now, clock_timestamp());
            RETURN;
        END IF;
    END IF;

    IF t_task IS NOT NULL THEN
        r := stepwell.fence(t_task, t_run);
        t_accepted := r.accepted;
        t_cancel_requested := r.cancel_requested;
        v_parents := r.parents;
        v_keys := r.keys;
    END IF;
    IF v_keys IS NOT NULL OR w_of IS NOT NULL OR ev_name IS NOT NULL
        OR s_concurrency_key IS NOT NULL AND p_batch IS NOT NULL
    THEN
        PERFORM stepwell.lock_names(
            p_awaited => ARRAY (SELECT DISTINCT w.target FROM unnest(w_kind, w_target)
                AS w(kind, target) WHERE w.kind = 'event'),
            p_emitted => ev_name,
            p_keys => v_keys || ARRAY (
                SELECT DISTINCT ROW(stepwell.key_space(s.scope), s.key)::stepwell.turn
                FROM unnest(s_scope, s_concurrency_key) AS s(scope, key) WHERE s.key IS NOT NULL));
    END IF;
    -- After these locks: a batch that held one of them before has an earlier time.
    r_now := coalesce(p_now, clock_timestamp());

    IF t_after IS NOT NULL THEN
        -- Tasks whose journals end before or after what their runs know continue from what is
        -- there.
        SELECT array_agg(x.accepted AND x.behind IS NOT TRUE ORDER BY x.i),
            array_agg(x.task_id) FILTER (WHERE x.accepted AND x.behind)
        INTO t_accepted, v_tasks FROM (
            SELECT x.*, x.after <> coalesce((SELECT max(j.seq) FROM stepwell.journal j
                WHERE j.task_id = x.task_id), 0) AS behind
            FROM unnest(t_task, t_accepted, t_after) WITH ORDINALITY
                AS x(task_id, accepted, after, i)
        ) x;
        IF v_tasks IS NOT NULL THEN
            PERFORM FROM stepwell.live_tasks l WHERE l.task_id = ANY (v_tasks) ORDER BY l.task_id
                FOR UPDATE;
            r := stepwell.give_back(p_now => r_now, p_tasks => v_tasks,
                p_uncounted => array_fill(true, ARRAY[cardinality(v_tasks)]));
            news := r.news;
            IF r.cancelled IS NOT NULL THEN
                news := stepwell.both(news, stepwell.cancel_children(r_now, r.cancelled));
            END IF;
        END IF;
        v_tasks := NULL;
    END IF;

    IF t_task IS NOT NULL THEN
        -- All rows of others that this batch may touch, and its own, are locked in one order. A
        -- batch that only journals, or ends tasks that no task awaits, touches no other rows. Its
        -- own rows are locked as they change, in the same order.
        IF v_parents IS NOT NULL OR ev_name IS NOT NULL OR m_task IS NOT NULL
            OR 'suspend' = ANY (t_next) OR 'collect' = ANY (t_next)
            OR ARRAY['event', 'message', 'child'] && (w_kind || u_kind)
        THEN
            SELECT array_agg(x.task_id) INTO v_rows
            FROM unnest(t_task, t_accepted, t_next) WITH ORDINALITY
                AS x(task_id, accepted, next, i)
            WHERE x.accepted AND (x.next <> 'continue' OR x.i = ANY (w_of) OR x.i = ANY (u_of));
            v_rows := v_rows || v_parents || m_task || ARRAY (
                SELECT w.task_id FROM unnest(ev_name) AS e(emitted)
                CROSS JOIN LATERAL (
                    SELECT w.task_id FROM stepwell.waits w WHERE w.target = e.emitted
                        AND w.kind = 'event' OFFSET 0
                ) w);
            -- The end of such a task does not lock the row of the task that awaits it. The second
            -- of the two transactions sees the first.
            IF 'child' = ANY (w_kind) THEN
                v_rows := v_rows || ARRAY (
                    SELECT l.task_id FROM unnest(w_of, w_kind, w_target) AS w(of, kind, target)
                    JOIN stepwell.live_tasks l ON l.task_id =
                        CASE w.kind WHEN 'child' THEN stepwell.done_by(w.target::uuid) END
                    WHERE l.parent IS DISTINCT FROM t_task[w.of]);
            END IF;
            PERFORM FROM stepwell.live_tasks l WHERE l.task_id = ANY (v_rows) ORDER BY l.task_id
                FOR UPDATE;
        END IF;

        IF x_of IS NOT NULL THEN
            DELETE FROM stepwell.journal j USING unnest(x_of, x_seq) AS x(of, seq)
            WHERE j.task_id = t_task[x.of] AND j.seq = x.seq AND t_accepted[x.of];
        END IF;
        IF e_of IS NOT NULL THEN
            INSERT INTO stepwell.journal (task_id, seq, kind, name, ordinal, outcome, payload, at)
            SELECT t_task[e.of], e.seq, e.kind, e.name, e.ordinal, e.outcome, e.payload, e.at
            FROM unnest(e_of, e_seq, e_kind, e_name, e_ordinal, e_outcome, e_payload, e_at)
                AS e(of, seq, kind, name, ordinal, outcome, payload, at)
            WHERE t_accepted[e.of];
        END IF;
        IF d_of IS NOT NULL THEN
            DELETE FROM stepwell.messages m USING unnest(d_of, d_id) AS d(of, id)
            WHERE m.id = d.id AND m.task_id = t_task[d.of] AND t_accepted[d.of];
        END IF;
        IF u_of IS NOT NULL THEN
            WITH gone AS (
                DELETE FROM stepwell.waits w USING unnest(u_of, u_kind, u_name, u_ordinal)
                    AS u(of, kind, name, ordinal)
                WHERE w.task_id = t_task[u.of] AND w.kind = u.kind AND w.name = u.name
                    AND w.ordinal = u.ordinal AND t_accepted[u.of]
                RETURNING w.task_id, w.kind, w.target, w.arrived
            )
            SELECT array_agg(g.task_id), array_agg(g.target) INTO v_tasks, v_topics FROM gone g
            WHERE g.kind = 'message' AND g.arrived;
            -- The mark of a topic moves to another wait, if there is one.
            IF v_tasks IS NOT NULL THEN
                PERFORM stepwell.mark_messages(v_tasks, v_topics);
            END IF;
        END IF;
        IF s_of IS NOT NULL THEN
            r := stepwell.spawn(p_now => r_now, p_batch => p_batch, p_limited => v_limited,
                p_at => ARRAY (SELECT coalesce(t_accepted[of], false)
                    FROM unnest(s_of) WITH ORDINALITY AS o(of, i) ORDER BY i),
                s_task => s_task, s_run => s_run, s_type => s_type, s_queue => s_queue,
                s_priority => s_priority, s_max_attempts => s_max_attempts, s_retry => s_retry,
                s_headers => s_headers, s_params => s_params, s_parent => s_parent,
                s_scope => s_scope, s_idempotency_key => s_idempotency_key,
                s_concurrency_key => s_concurrency_key, s_code_version => s_code_version,
                s_start_at => s_start_at, s_max_delay => s_max_delay,
                s_max_duration => s_max_duration, s_claim_by => s_claim_by,
                s_coalesce => s_coalesce, b_of => b_of, b_name => b_name, b_value => b_value,
                b_own => b_own);
            news := stepwell.both(news, r.news);
            IF s_seq IS NOT NULL THEN
                s_existing := r.existing;
                s_existing_run := r.existing_runs;
                s_existing_attempt := r.existing_attempts;
                -- The entry of a child that was not created was added with the others.
                DELETE FROM stepwell.journal j USING unnest(s_of, s_seq, s_existing)
                    AS x(of, seq, existing)
                WHERE x.existing IS NOT NULL AND j.task_id = t_task[x.of] AND j.seq = x.seq;
                INSERT INTO stepwell.needs (task_id, needed_by) SELECT x.existing, t_task[x.of]
                FROM unnest(s_of, s_existing) AS x(of, existing) WHERE x.existing IS NOT NULL
                ON CONFLICT DO NOTHING;
            END IF;
        END IF;
        IF w_of IS NOT NULL THEN
            -- After the spawns: a child without a row has ended. Of the waits for one topic, the
            -- first is marked.
            INSERT INTO stepwell.waits AS o (task_id, kind, name, ordinal, target, due_at, arrived)
            SELECT w.task_id, w.kind, w.name, w.ordinal, w.target, w.due_at, CASE w.kind
                WHEN 'event' THEN EXISTS (SELECT FROM stepwell.events e WHERE e.name = w.target
                    AND e.queue IN ('', (SELECT l.queue FROM stepwell.live_tasks l
                        WHERE l.task_id = w.task_id)))
                WHEN 'message' THEN w.nth = 1
                    AND EXISTS (SELECT FROM stepwell.messages m
                        WHERE m.task_id = w.task_id AND m.topic = w.target)
                    AND NOT EXISTS (SELECT FROM stepwell.waits t
                        WHERE t.task_id = w.task_id AND t.arrived AND t.kind = 'message'
                            AND t.target = w.target)
                WHEN 'child' THEN NOT EXISTS (SELECT FROM stepwell.live_tasks l
                    WHERE l.task_id = w.target::uuid)
                ELSE false END
            FROM (
                SELECT t_task[w.of] AS task_id, w.*,
                    row_number() OVER (PARTITION BY w.of, w.kind, w.target) AS nth
                FROM unnest(w_of, w_kind, w_name, w_ordinal, w_target, w_due_at)
                    AS w(of, kind, name, ordinal, target, due_at)
                WHERE t_accepted[w.of]
            ) w
            ON CONFLICT (task_id, kind, name, ordinal) DO UPDATE
            SET target = EXCLUDED.target, due_at = EXCLUDED.due_at,
                arrived = o.arrived OR EXCLUDED.arrived;
        END IF;
        IF ev_of IS NOT NULL THEN
            r := stepwell.emit(p_now => r_now, p_names => ev_name, p_queues => ev_queue,
                p_payloads => ev_payload, p_at => ARRAY (SELECT coalesce(t_accepted[of], false)
                    FROM unnest(ev_of) WITH ORDINALITY AS o(of, i) ORDER BY i));
            news := stepwell.both(news, r.news);
        END IF;
        IF m_of IS NOT NULL THEN
            r := stepwell.send(p_now => r_now, p_tasks => m_task, p_topics => m_topic,
                p_payloads => m_payload, p_at => ARRAY (SELECT coalesce(t_accepted[of], false)
                    FROM unnest(m_of) WITH ORDINALITY AS o(of, i) ORDER BY i));
            news := stepwell.both(news, r.news);
        END IF;

        IF t_next && ARRAY['completed', 'failed', 'cancelled'] THEN
            r := stepwell.finish(p_now => r_now, p_tasks => t_task,
                p_states => stepwell.unless_refused(t_next, t_accepted), p_outputs => t_output,
                p_failures => t_failure, p_limited => v_limited);
            news := stepwell.both(news, r.news);
            v_found := r.cancelled;
        END IF;
        IF 'retry' = ANY (t_next) OR 'release' = ANY (t_next) THEN
            v_tasks := ARRAY (SELECT x.task_id FROM unnest(t_task, t_accepted, t_next)
                AS x(task_id, accepted, next)
                WHERE x.accepted AND x.next = 'retry');
            DELETE FROM stepwell.waits w WHERE w.task_id = ANY (v_tasks);
            SELECT g.* INTO r FROM (
                SELECT array_agg(x.task_id) AS tasks, array_agg(x.at) AS due_at,
                    array_agg(x.next = 'release') AS uncounted, array_agg(x.failure) AS failures
                FROM unnest(t_task, t_accepted, t_next, t_at, t_failure)
                    AS x(task_id, accepted, next, at, failure)
                WHERE x.accepted AND x.next IN ('retry', 'release')
            ) b CROSS JOIN LATERAL stepwell.give_back(p_now => r_now, p_tasks => b.tasks,
                p_uncounted => b.uncounted, p_due_at => b.due_at, p_failures => b.failures) g;
            news := stepwell.both(news, r.news);
            v_found := v_found || r.cancelled;
        END IF;
        IF v_found IS NOT NULL THEN
            news := stepwell.both(news, stepwell.cancel_children(r_now, v_found));
            v_found := NULL;
        END IF;

        IF 'suspend' = ANY (t_next) OR 'collect' = ANY (t_next) THEN
            -- Tasks that do not look are a NULL, so that each task keeps its place.
            SELECT array_agg(l.task_id ORDER BY x.i),
                array_agg(coalesce(l.cancel_requested, (t_cancel_requested)[x.i]) ORDER BY x.i),
                -- The places of tasks that wait for nothing but the ends of others, or seem to.
                array_agg(x.i::integer ORDER BY x.i) FILTER (WHERE x.next = 'suspend'
                    AND x.at IS NULL AND NOT l.cancel_requested
                    AND (SELECT w.kind FROM stepwell.waits w WHERE w.task_id = l.task_id
                        ORDER BY w.kind DESC LIMIT 1) = 'child')
            INTO v_tasks, t_cancel_requested, v_joining
            FROM unnest(t_task, t_run, t_next, t_at) WITH ORDINALITY
                AS x(task_id, run_id, next, at, i)
            LEFT JOIN LATERAL (
                SELECT l.* FROM stepwell.live_tasks l WHERE l.task_id = x.task_id OFFSET 0
            ) l ON x.next IN ('suspend', 'collect') AND l.run_id = x.run_id AND l.state = 'running';
            SELECT k.facts, k.found_for INTO t_facts, v_found FROM stepwell.look(v_tasks) k;
            IF v_joining IS NOT NULL THEN
                SELECT b.blocked, v_found || b.stay INTO t_blocked, v_found
                FROM stepwell.blocked_among(t_task, v_joining, v_found) b;
            END IF;
            WITH suspended AS (
                UPDATE stepwell.live_tasks l SET state = 'suspended', running_in = NULL,
                    attempt = l.attempt - 1, crashes = 0, poked = false, due_at = x.at
                FROM unnest(t_task, t_run, t_next, t_at) AS x(task_id, run_id, next, at)
                WHERE x.next = 'suspend' AND l.task_id = x.task_id AND l.run_id = x.run_id
                    AND l.state = 'running' AND NOT l.cancel_requested
                    AND (x.at <= r_now) IS NOT TRUE
                    AND (v_found IS NULL OR l.task_id <> ALL (v_found))
                RETURNING l.task_id, l.due_at, l.queue
            )
            SELECT array_agg(task_id),
                news.ready || array_agg(queue) FILTER (WHERE due_at IS NOT NULL), array_agg(queue)
            INTO v_tasks, news.ready, v_queues FROM suspended;
            IF v_limited THEN
                news.ready := news.ready || stepwell.with_room(v_queues);
            END IF;
            t_suspended := ARRAY (SELECT coalesce(x.task_id = ANY (v_tasks), false)
                FROM unnest(t_task) WITH ORDINALITY AS x(task_id, i) ORDER BY x.i);
            UPDATE stepwell.live_tasks l SET poked = false
            FROM unnest(t_task, t_run, t_next) AS x(task_id, run_id, next)
            WHERE x.next IN ('suspend', 'collect') AND l.task_id = x.task_id AND l.run_id = x.run_id
                AND l.state = 'running' AND CASE WHEN l.poked THEN true END;
        END IF;
    END IF;

    FOR place IN 1 .. coalesce(cardinality(c_command), 0) LOOP
        r := stepwell.command(r_now, c_command[place], c_task[place]);
        c_answer := c_answer || r.answer;
        c_needed_by := c_needed_by || r.needed_by;
        news := stepwell.both(news, r.news);
    END LOOP;
    IF ev_name IS NOT NULL AND ev_of[cardinality(ev_of)] IS NULL THEN
        r := stepwell.emit(p_now => r_now, p_names => ev_name, p_queues => ev_queue,
            p_payloads => ev_payload, p_at => ARRAY (SELECT e.of IS NULL
                FROM unnest(ev_name, ev_of) WITH ORDINALITY AS e(name, of, i) ORDER BY e.i));
        ev_first := r.firsts;
        news := stepwell.both(news, r.news);
    END IF;
    IF m_task IS NOT NULL AND m_of[cardinality(m_of)] IS NULL THEN
        r := stepwell.send(p_now => r_now, p_tasks => m_task, p_topics => m_topic,
            p_payloads => m_payload, p_at => ARRAY (SELECT m.of IS NULL
                FROM unnest(m_task, m_of) WITH ORDINALITY AS m(task_id, of, i) ORDER BY m.i));
        m_accepted := r.accepted;
        news := stepwell.both(news, r.news);
    END IF;
    IF s_task IS NOT NULL AND s_of[cardinality(s_of)] IS NULL
        AND s_schedule[cardinality(s_schedule)] IS NULL
    THEN
        v_at := array_fill(true, ARRAY[cardinality(s_task)]);
        IF s_of IS NOT NULL OR s_schedule IS NOT NULL THEN
            v_at := ARRAY (SELECT s.of IS NULL AND s.schedule IS NULL
                FROM unnest(s_task, s_of, s_schedule) WITH ORDINALITY AS s(task_id, of, schedule, i)
                ORDER BY s.i);
        END IF;
        IF p_batch IS NULL THEN
            -- One task, in a user's transaction.
            r := stepwell.reserve(p_task => s_task[1], p_type => s_type[1], p_scope => s_scope[1],
                p_idempotency_key => s_idempotency_key[1],
                p_concurrency_key => s_concurrency_key[1], p_coalesce => s_coalesce[1]);
            s_existing := ARRAY[coalesce(r.existing, r.waiting)];
            IF s_existing[1] IS NOT NULL THEN
                v_at := ARRAY[false];
                SELECT ARRAY[l.run_id], CASE WHEN r.existing IS NOT NULL THEN ARRAY[l.attempt] END
                INTO s_existing_run, s_existing_attempt
                FROM (SELECT l.task_id, l.run_id, l.attempt FROM stepwell.live_tasks l
                    UNION ALL SELECT o.task_id, o.run_id, o.attempt FROM stepwell.outcomes o) l
                WHERE l.task_id = s_existing[1];
            END IF;
        END IF;
        r := stepwell.spawn(p_now => r_now, p_batch => p_batch, p_limited => v_limited,
            p_at => v_at,
            s_task => s_task, s_run => s_run, s_type => s_type, s_queue => s_queue,
            s_priority => s_priority, s_max_attempts => s_max_attempts, s_retry => s_retry,
            s_headers => s_headers, s_params => s_params, s_parent => s_parent, s_scope => s_scope,
            s_idempotency_key => s_idempotency_key, s_concurrency_key => s_concurrency_key,
            s_code_version => s_code_version, s_start_at => s_start_at,
            s_max_delay => s_max_delay, s_max_duration => s_max_duration, s_claim_by => s_claim_by,
            s_coalesce => s_coalesce, b_of => b_of, b_name => b_name, b_value => b_value,
            b_own => b_own);
        s_claimed := r.claimed;
        IF s_existing IS NULL THEN
            s_existing := r.existing;
            s_existing_run := r.existing_runs;
            s_existing_attempt := r.existing_attempts;
        ELSIF r.existing IS NOT NULL THEN
            SELECT array_agg(coalesce(x.own, x.client) ORDER BY x.i),
                array_agg(coalesce(x.own_run, x.client_run) ORDER BY x.i),
                array_agg(coalesce(x.own_attempt, x.client_attempt) ORDER BY x.i)
            INTO s_existing, s_existing_run, s_existing_attempt
            FROM unnest(s_existing, r.existing, s_existing_run, r.existing_runs,
                s_existing_attempt, r.existing_attempts) WITH ORDINALITY
                AS x(own, client, own_run, client_run, own_attempt, client_attempt, i);
        END IF;
        news := stepwell.both(news, r.news);
    END IF;

    IF h_name IS NOT NULL THEN
        -- In one order, whatever order the batch has.
        PERFORM FROM stepwell.schedules s WHERE s.name = ANY (h_name) ORDER BY s.name FOR UPDATE;
        FOR item IN SELECT * FROM unnest(h_name, h_seen, h_version, h_definition, h_next_at,
            h_last_task, h_unless_running) WITH ORDINALITY
            AS c(name, seen, version, definition, next_at, last_task, unless_running, i)
            ORDER BY c.i
        LOOP
            v_state := stepwell.change_schedule(p_name => item.name, p_seen => item.seen,
                p_version => item.version, p_definition => item.definition,
                p_next_at => item.next_at, p_last_task => item.last_task,
                p_unless_running => item.unless_running);
            IF v_state = 'spawns' THEN
                r := stepwell.spawn(p_now => r_now, p_batch => p_batch, p_limited => v_limited,
                    p_at => ARRAY (SELECT coalesce(s.schedule = item.i, false)
                        FROM unnest(s_schedule) WITH ORDINALITY AS s(schedule, i) ORDER BY s.i),
                    s_task => s_task, s_run => s_run, s_type => s_type, s_queue => s_queue,
                    s_priority => s_priority, s_max_attempts => s_max_attempts, s_retry => s_retry,
                    s_headers => s_headers, s_params => s_params, s_parent => s_parent,
                    s_scope => s_scope, s_idempotency_key => s_idempotency_key,
                    s_concurrency_key => s_concurrency_key, s_code_version => s_code_version,
                    s_start_at => s_start_at, s_max_delay => s_max_delay,
                    s_max_duration => s_max_duration, s_claim_by => s_claim_by,
                    s_coalesce => s_coalesce, b_of => b_of, b_name => b_name, b_value => b_value,
                    b_own => b_own);
                news := stepwell.both(news, r.news);
            END IF;
            h_outcome := h_outcome || v_state;
        END LOOP;
    END IF;

    IF q_queue IS NOT NULL THEN
        FOR item IN SELECT * FROM unnest(q_queue, q_action, q_max_running, q_max_per_worker,
            q_rate_starts, q_rate_per) WITH ORDINALITY
            AS c(queue, action, max_running, max_per_worker, rate_starts, rate_per, i)
            ORDER BY c.i
        LOOP
            INSERT INTO stepwell.queues (queue) VALUES (item.queue) ON CONFLICT DO NOTHING;
            IF item.action = 'limit' THEN
                UPDATE stepwell.queues c SET max_running = item.max_running,
                    max_running_per_worker = item.max_per_worker,
                    used_until = CASE WHEN c.rate_starts IS NOT DISTINCT FROM item.rate_starts
                        AND c.rate_per IS NOT DISTINCT FROM item.rate_per THEN c.used_until END,
                    rate_starts = item.rate_starts, rate_per = item.rate_per
                WHERE c.queue = item.queue;
            ELSE
                UPDATE stepwell.queues c SET paused = item.action = 'pause'
                    WHERE c.queue = item.queue;
            END IF;
            news.ready := news.ready || ARRAY (SELECT c.queue FROM stepwell.queues c
                WHERE c.queue = item.queue AND NOT c.paused);
        END LOOP;
    END IF;

    IF signals IS NOT NULL THEN
        FOR item IN SELECT s.value FROM jsonb_array_elements(signals) WITH ORDINALITY AS s(value, i)
            ORDER BY s.i
        LOOP
            v_worker := (item.value ->> 'worker_id')::uuid;
            r := stepwell.signal(r_now, v_worker, item.value);
            news := stepwell.both(news, r.news);
            signal_status := signal_status || r.status;
        END LOOP;
    END IF;

    IF claims IS NOT NULL THEN
        v_tasks := NULL;
        FOR item IN SELECT c.value, c.i::int FROM jsonb_array_elements(claims) WITH ORDINALITY
            AS c(value, i) ORDER BY c.i
        LOOP
            caused := stepwell.do_what_is_due(r_now);
            news := stepwell.both(news, caused);
            v_worker := (item.value ->> 'worker_id')::uuid;
            v_left := (item.value ->> 'limit')::bigint;
            v_suspect := (item.value ->> 'suspect')::bigint;
            v_types := ARRAY (SELECT jsonb_array_elements_text(item.value -> 'task_types'));
            v_due := NULL;
            SELECT cl_poked_of || array_agg(item.i), cl_poked || array_agg(l.task_id)
            INTO cl_poked_of, cl_poked FROM (
                SELECT l.task_id FROM stepwell.live_tasks l
                WHERE l.worker_id = v_worker AND l.poked ORDER BY l.task_id
            ) l;
            IF v_left > 0 THEN
                PERFORM FROM stepwell.workers w WHERE w.worker_id = v_worker FOR KEY SHARE;
                IF NOT FOUND THEN
                    v_left := 0;
                END IF;
            END IF;
            FOR v_queue IN SELECT q.value #>> '{}'
                FROM jsonb_array_elements(item.value -> 'queues') WITH ORDINALITY
                AS q(value, i) ORDER BY q.i
            LOOP
                EXIT WHEN v_left = 0;
                IF p_claims_of IS NOT NULL THEN
                    -- The claims of a batch whose answer was lost.
                    SELECT array_agg(item.i) AS claims, array_agg(l.task_id) AS tasks,
                        array_agg(l.run_id) AS runs,
                        array_agg(l.attempt) AS attempts, array_agg(l.crashes) AS crashes,
                        array_agg(l.lost) AS lost, array_agg(false) AS had,
                        array_agg(true) AS run
                    INTO r FROM stepwell.live_tasks l
                    WHERE l.running_in = v_queue AND l.worker_id = v_worker
                        AND l.claim_batch = p_claims_of;
                ELSE
                    v_room := stepwell.room(p_now => r_now, p_queue => v_queue,
                        p_worker => v_worker, p_room => v_left);
                    CONTINUE WHEN v_room.room = 0;
                    IF v_room.starts IS NULL THEN
                        SELECT array_agg(item.i) AS claims, array_agg(c.r_task) AS tasks,
                            array_agg(c.r_run) AS runs,
                            array_agg(c.r_attempt) AS attempts, array_agg(c.r_crashes) AS crashes,
                            array_agg(c.r_lost) AS lost, array_agg(c.r_had_it) AS had,
                            array_agg(c.r_had_run) AS run
                        INTO r FROM stepwell.claim_of_queue(p_now => r_now, p_batch => p_batch,
                            p_worker => v_worker, p_queue => v_queue, p_types => v_types,
                            p_version => item.value ->> 'code_version', p_only_starts => false,
                            p_suspect => v_suspect, p_limit => v_room.room) c;
                    ELSE
                        SELECT array_agg(item.i) AS claims, array_agg(c.r_task) AS tasks,
                            array_agg(c.r_run) AS runs,
                            array_agg(c.r_attempt) AS attempts, array_agg(c.r_crashes) AS crashes,
                            array_agg(c.r_lost) AS lost, array_agg(c.r_had_it) AS had,
                            array_agg(c.r_had_run) AS run
                        INTO r FROM stepwell.claim_going_on(p_now => r_now, p_batch => p_batch,
                            p_worker => v_worker, p_queue => v_queue, p_types => v_types,
                            p_version => item.value ->> 'code_version', p_limit => v_room.room) c;
                        v_starts := least(v_room.starts,
                            v_room.room - coalesce(cardinality(r.tasks), 0));
                        SELECT r.claims || array_agg(item.i) AS claims,
                            r.tasks || array_agg(c.r_task) AS tasks,
                            r.runs || array_agg(c.r_run) AS runs,
                            r.attempts || array_agg(c.r_attempt) AS attempts,
                            r.crashes || array_agg(c.r_crashes) AS crashes,
                            r.lost || array_agg(c.r_lost) AS lost,
                            r.had || array_agg(c.r_had_it) AS had,
                            r.run || array_agg(c.r_had_run) AS run, count(*) AS started
                        INTO r FROM stepwell.claim_of_queue(p_now => r_now, p_batch => p_batch,
                            p_worker => v_worker, p_queue => v_queue, p_types => v_types,
                            p_version => item.value ->> 'code_version', p_only_starts => true,
                            p_suspect => v_suspect, p_limit => v_starts) c;
                        v_due := least(v_due, stepwell.use_rate(r_now, v_queue, r.started));
                    END IF;
                END IF;
                CONTINUE WHEN r.tasks IS NULL;
                cl_of := cl_of || r.claims;
                cl_task := cl_task || r.tasks;
                cl_run := cl_run || r.runs;
                cl_attempt := cl_attempt || r.attempts;
                cl_crashes := cl_crashes || r.crashes;
                cl_lost := cl_lost || r.lost;
                IF 2 <= ANY (r.crashes) THEN
                    v_suspect := 0;
                END IF;
                cl_had_it := cl_had_it || r.had;
                v_left := v_left - cardinality(r.tasks);
                v_tasks := v_tasks || ARRAY (SELECT CASE WHEN c.had_run THEN c.task_id END
                    FROM unnest(r.tasks, r.run) WITH ORDINALITY AS c(task_id, had_run, i)
                        ORDER BY c.i);
            END LOOP;
            next_due := next_due || least(v_due,
                (SELECT l.due_at FROM stepwell.live_tasks l WHERE l.due_at IS NOT NULL
                    ORDER BY l.due_at LIMIT 1),
                (SELECT l.cancel_at FROM stepwell.live_tasks l WHERE l.cancel_at IS NOT NULL
                    ORDER BY l.cancel_at LIMIT 1));
        END LOOP;
        IF cl_task IS NOT NULL THEN
            -- Long parameters are read by themselves, task by task. A task without a row in `tasks`
            -- has no type, and keeps its place.
            SELECT array_agg(coalesce(t.max_attempts, 1)), array_agg(t.task_type),
                array_agg(coalesce(t.queue, 'gone')),
                array_agg(CASE WHEN t.fits AND t.params IS NOT NULL THEN t.params ELSE 'null' END),
                array_agg(CASE WHEN t.fits AND t.headers IS NOT NULL THEN t.headers ELSE '{}' END),
                array_agg(coalesce(t.retry, '{"kind":"none"}')),
                CASE WHEN bool_or(t.scope IS NOT NULL) THEN array_agg(t.scope) END,
                CASE WHEN bool_or(t.concurrency_key IS NOT NULL)
                    THEN array_agg(t.concurrency_key) END,
                array_agg(t.task_id) FILTER (WHERE NOT t.fits)
            INTO cl_max_attempts, cl_type, cl_queue, cl_params, cl_headers, cl_retry, cl_scope,
                cl_key, cl_apart
            FROM (
                SELECT t.*, sum(octet_length(t.params) + octet_length(t.headers))
                    OVER (ORDER BY c.i) <= stepwell.answer_bytes() AS fits
                FROM unnest(cl_task) WITH ORDINALITY AS c(task_id, i)
                LEFT JOIN stepwell.tasks t USING (task_id)
                ORDER BY c.i
            ) t;
            -- A task that never ran has no journal, and waits for nothing.
            IF EXISTS (SELECT FROM unnest(v_tasks) AS c(task_id) WHERE c.task_id IS NOT NULL) THEN
                cl_waits := stepwell.waits_of(
                    ARRAY (SELECT CASE WHEN NOT c.had_it THEN c.task_id END
                        FROM unnest(v_tasks, cl_had_it) WITH ORDINALITY AS c(task_id, had_it, i)
                        ORDER BY c.i));
                cl_facts := (stepwell.look(v_tasks)).facts;
                -- Journals that are too long for the answer are read by themselves, as are those
                -- that may be in memory.
                SELECT array_agg(j.i) FILTER (WHERE j.fits), array_agg(j.seq) FILTER (WHERE j.fits),
                    array_agg(j.kind) FILTER (WHERE j.fits),
                    array_agg(j.name) FILTER (WHERE j.fits),
                    array_agg(j.ordinal) FILTER (WHERE j.fits),
                    array_agg(j.outcome) FILTER (WHERE j.fits),
                    array_agg(j.payload) FILTER (WHERE j.fits),
                    array_agg(j.at) FILTER (WHERE j.fits),
                    array_agg(DISTINCT j.i) FILTER (WHERE NOT j.fits)
                INTO j_of, j_seq, j_kind, j_name, j_ordinal, j_outcome, j_payload, j_at, v_apart
                FROM (
                    SELECT c.i::int, j.*, sum(octet_length(j.payload) + octet_length(j.name) + 64)
                        OVER (ORDER BY c.i) <= stepwell.answer_bytes() AS fits
                    FROM unnest(v_tasks, cl_had_it) WITH ORDINALITY AS c(task_id, had_it, i)
                    JOIN stepwell.journal j USING (task_id) WHERE NOT c.had_it
                    ORDER BY c.i, j.seq
                ) j;
                FOR i IN 1 .. coalesce(cardinality(v_apart), 0) LOOP
                    cl_had_it[v_apart[i]] := true;
                END LOOP;
            END IF;
        END IF;
    END IF;

    ready := news.ready;
    poked := news.poked;
    finished := news.finished;
    IF v_heard THEN
        PERFORM stepwell.tell(p_channel, p_process,
            p_work => ready IS NOT NULL OR poked IS NOT NULL, p_finished => finished IS NOT NULL);
    END IF;
END $$;
