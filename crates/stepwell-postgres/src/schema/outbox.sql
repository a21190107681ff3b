-- The functions that run in users' transactions, and the settlement after these have committed.
--
-- A user's transaction may have any isolation level, take its time, and be rolled back. Therefore
-- it adds rows, and neither locks nor decides anything that other transactions look at:
--
--     spawn_in ───────▶ tasks, live_tasks   at once claimable after the commit, unless it has a key
--              with a key ─▶ outbox ──┐
--     emit_event_in ──────▶ outbox ──┴─▶ settle, in a transaction of its own, before the next batch
--                                         that claims, emits, or spawns with a key

-- Notes that a task of a user's transaction with a key is to be settled. `existing` is a task that
-- has the idempotency key already; `waiting` is a task that waits for its first claim, when the
-- spawn is to be rejected then.
CREATE FUNCTION stepwell.reserve(p_task uuid, p_type text, p_scope text, p_idempotency_key text,
    p_concurrency_key text, p_coalesce text, OUT existing uuid, OUT waiting uuid)
LANGUAGE plpgsql AS $$
DECLARE
    v_reserved boolean;
BEGIN
    IF p_coalesce = 'reject' THEN
        SELECT l.task_id INTO waiting FROM stepwell.live_tasks l
        WHERE l.concurrency_key = p_concurrency_key AND l.key_space = stepwell.key_space(p_scope)
            AND l.task_type = p_type AND l.state = 'pending' AND l.started_at IS NULL
                AND NOT l.compensating
        ORDER BY l.place DESC LIMIT 1;
    END IF;
    IF p_idempotency_key IS NULL AND (p_concurrency_key IS NULL OR waiting IS NOT NULL) THEN
        RETURN;
    END IF;
    LOOP
        -- The statement waits for another user's transaction that has named the key.
        INSERT INTO stepwell.outbox (task_id, task_type, idempotency_key, key_space, coalesce)
        VALUES (p_task, p_type, p_idempotency_key, stepwell.key_space(p_scope), p_coalesce)
            ON CONFLICT DO NOTHING;
        v_reserved := FOUND;
        -- Only after it: that transaction has been settled by now, or is in the outbox.
        SELECT k.task_id INTO existing FROM (
            SELECT k.task_id FROM stepwell.idempotency_keys k
            WHERE k.task_type = p_type AND k.idempotency_key = p_idempotency_key
                AND k.key_space = stepwell.key_space(p_scope)
            UNION ALL
            SELECT o.task_id FROM stepwell.outbox o
            WHERE o.task_type = p_type AND o.idempotency_key = p_idempotency_key
                AND o.key_space = stepwell.key_space(p_scope) AND o.task_id <> p_task
        ) k LIMIT 1;
        EXIT WHEN v_reserved OR existing IS NOT NULL;
    END LOOP;
    IF existing IS NOT NULL THEN
        existing := stepwell.done_by(existing);
        waiting := NULL;
    END IF;
    IF v_reserved AND (existing IS NOT NULL OR waiting IS NOT NULL) THEN
        DELETE FROM stepwell.outbox o WHERE o.task_id = p_task;
    END IF;
END $$;

-- Emits an event when the user's transaction has committed.
CREATE FUNCTION stepwell.emit_within(p_channel text, p_event text, p_queue text, p_payload text)
    RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM stepwell.own_settings(false);
    INSERT INTO stepwell.outbox (event, queue, payload) VALUES (p_event, p_queue, p_payload);
    PERFORM stepwell.tell(p_channel, p_work => true);
END $$;

-- Adds the entry of a step whose work was done in this transaction, if the run owns its task and
-- the journal ends directly before the entry. The locks are taken in the order of batches, and the
-- commit follows at once.
CREATE FUNCTION stepwell.seal(p_open text, p_task uuid, p_run uuid, e_seq bigint, e_kind text,
    e_name text, e_ordinal bigint, e_outcome text, e_payload text, e_at timestamptz,
    OUT accepted boolean, OUT cancel_requested boolean)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan
    SET enable_seqscan = off SET jit = off AS $$
BEGIN
    IF p_open IS DISTINCT FROM 'open' THEN
        RAISE EXCEPTION 'the transaction of the step was ended by its closure: '
            'remove its COMMIT or ROLLBACK';
    END IF;
    PERFORM stepwell.own_settings(false);
    -- A process that stops here must not hold up others: its connection is ended.
    PERFORM set_config('idle_in_transaction_session_timeout', '10s', true);
    PERFORM FROM stepwell.workers w
    WHERE w.worker_id = (SELECT l.worker_id FROM stepwell.live_tasks l WHERE l.task_id = p_task)
        FOR KEY SHARE;
    -- A batch of the same process may give the task back meanwhile.
    SELECT l.cancel_requested INTO cancel_requested FROM stepwell.live_tasks l
    WHERE l.task_id = p_task AND l.run_id = p_run AND l.state = 'running' FOR UPDATE;
    accepted := FOUND AND e_seq - 1 = coalesce((SELECT max(j.seq) FROM stepwell.journal j
        WHERE j.task_id = p_task), 0);
    IF accepted THEN
        INSERT INTO stepwell.journal (task_id, seq, kind, name, ordinal, outcome, payload, at)
        VALUES (p_task, e_seq, e_kind, e_name, e_ordinal, e_outcome, e_payload, e_at);
    END IF;
END $$;

-- Ends a task whose work another one does, if `p_does_it`. Those who wait for the task are then
-- told how the other one ends.
CREATE FUNCTION stepwell.end_in_favour(p_now timestamptz, p_task uuid, p_other uuid, p_why text,
    p_does_it boolean, OUT news stepwell.news)
LANGUAGE plpgsql AS $$
DECLARE
    -- The other task may itself have been left undone.
    v_other uuid := stepwell.done_by(p_other);
BEGIN
    UPDATE stepwell.live_tasks l SET failure = json_build_object('kind', 'cancelled', 'message',
        'not run: task ' || v_other || ' ' || p_why, 'retry', 'never')::text
    WHERE l.task_id = p_task;
    news := (stepwell.finish(p_now => p_now, p_tasks => ARRAY[p_task],
        p_states => ARRAY['cancelled'])).news;
    IF p_does_it THEN
        UPDATE stepwell.outcomes o SET instead = v_other WHERE o.task_id = p_task;
        -- Clients that wait for it wait for the other.
        news.finished := NULL;
    END IF;
END $$;

-- Does what follows from these rows of the outbox.
CREATE FUNCTION stepwell.settle_rows(p_now timestamptz, p_ids bigint[], OUT news stepwell.news)
LANGUAGE plpgsql AS $$
DECLARE
    v_events text[];
    v_queues text[];
    v_payloads text[];
    v_keys stepwell.turn[];
    v_waiting uuid[];
    caused stepwell.news;
    item record;
BEGIN
    SELECT array_agg(o.event ORDER BY o.id), array_agg(o.queue ORDER BY o.id),
        array_agg(o.payload ORDER BY o.id)
    INTO v_events, v_queues, v_payloads
    FROM stepwell.outbox o WHERE o.id = ANY (p_ids) AND o.event IS NOT NULL;
    IF v_events IS NOT NULL THEN
        news := (stepwell.emit(p_now => p_now, p_names => v_events, p_queues => v_queues,
            p_payloads => v_payloads,
            p_at => array_fill(true, ARRAY[cardinality(v_events)]))).news;
    END IF;
    INSERT INTO stepwell.idempotency_keys (task_type, idempotency_key, key_space, task_id)
    SELECT o.task_type, o.idempotency_key, o.key_space, o.task_id
    FROM stepwell.outbox o JOIN stepwell.tasks t USING (task_id)
    WHERE o.id = ANY (p_ids) AND o.idempotency_key IS NOT NULL
    ORDER BY o.task_type, o.idempotency_key, o.key_space ON CONFLICT DO NOTHING;
    FOR item IN
        SELECT o.task_id, o.task_type, o.coalesce, k.task_id AS has_the_key, l.concurrency_key,
            l.key_space, t.scope
        FROM stepwell.outbox o JOIN stepwell.tasks t USING (task_id)
        -- A task that was cancelled meanwhile is not here.
        JOIN stepwell.live_tasks l ON l.task_id = o.task_id AND l.blocked AND l.place IS NULL
        LEFT JOIN stepwell.idempotency_keys k
            ON k.task_type = o.task_type AND k.idempotency_key = o.idempotency_key
                AND k.key_space = o.key_space
        WHERE o.id = ANY (p_ids) ORDER BY o.id
    LOOP
        IF item.concurrency_key IS NOT NULL THEN
            v_keys := v_keys || ROW(item.key_space, item.concurrency_key)::stepwell.turn;
        END IF;
        IF item.has_the_key <> item.task_id THEN
            caused := stepwell.end_in_favour(p_now => p_now, p_task => item.task_id,
                p_other => item.has_the_key,
                p_why => 'has its idempotency key and was spawned first', p_does_it => true);
        ELSE
            v_waiting := stepwell.waiting(p_type => item.task_type, p_scope => item.scope,
                p_concurrency_key => item.concurrency_key, p_coalesce => item.coalesce);
            IF item.coalesce <> 'replace' AND v_waiting IS NOT NULL THEN
                caused := stepwell.end_in_favour(p_now => p_now, p_task => item.task_id,
                    p_other => v_waiting[1],
                    p_why => 'of its type and concurrency key waits to start',
                    p_does_it => item.coalesce = 'reuse');
            ELSE
                caused := stepwell.cancel(p_now, v_waiting);
                UPDATE stepwell.live_tasks l SET ready_at = p_now,
                    blocked = l.concurrency_key IS NOT NULL,
                    place = CASE WHEN l.concurrency_key IS NOT NULL
                        THEN nextval('stepwell.places') END
                WHERE l.task_id = item.task_id
                RETURNING news.ready || l.queue INTO news.ready;
            END IF;
        END IF;
        news := stepwell.both(news, caused);
    END LOOP;
    IF v_keys IS NOT NULL THEN
        news.ready := news.ready || stepwell.next_of_keys(p_now, v_keys);
    END IF;
    DELETE FROM stepwell.outbox o WHERE o.id = ANY (p_ids);
END $$;

-- Puts a row of the outbox aside that the database does not accept, and ends its task. `refused`
-- says what the row was.
CREATE FUNCTION stepwell.put_aside(p_now timestamptz, p_id bigint, p_reason text,
    OUT refused text, OUT news stepwell.news)
LANGUAGE plpgsql AS $$
DECLARE
    v_task uuid;
BEGIN
    WITH gone AS (
        DELETE FROM stepwell.outbox o WHERE o.id = p_id RETURNING o.*
    ), kept AS (
        INSERT INTO stepwell.outbox_refused SELECT g.*, p_now, p_reason FROM gone g
    )
    SELECT g.task_id, coalesce('the event ' || g.event, 'task ' || g.task_id, 'a row') || ': '
        || p_reason
    INTO v_task, refused FROM gone g;
    -- The task waits for its place, which it does not get.
    IF EXISTS (SELECT FROM stepwell.live_tasks l WHERE l.task_id = v_task AND l.blocked
        AND l.place IS NULL) THEN
        BEGIN
            news := (stepwell.finish(p_now => p_now, p_tasks => ARRAY[v_task],
                p_states => ARRAY['failed'],
                p_failures => ARRAY[json_build_object('kind', 'error', 'message',
                    'the store refuses its keys: ' || p_reason, 'retry', 'never')::text])).news;
        EXCEPTION WHEN others THEN
            IF stepwell.is_of_the_server(SQLSTATE) THEN
                RAISE;
            END IF;
            refused := refused || '; and it cannot be ended: ' || SQLERRM;
        END;
    END IF;
END $$;

-- Does what follows from committed transactions of users, in the order in which they asked for it,
-- and a part of it when there is much: `more` is true if the rest is left. A row that the database
-- does not accept makes the call fail. A call with `p_one_by_one` puts such rows aside, and returns
-- them as `refused`, with the reasons.
CREATE FUNCTION stepwell.settle(p_process uuid, p_channel text, p_one_by_one boolean,
    p_now timestamptz DEFAULT NULL, OUT more boolean, OUT refused text[])
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
SET enable_bitmapscan = off SET enable_material = off SET jit = off AS $$
DECLARE
    v_now timestamptz;
    v_ids bigint[];
    v_id bigint;
    v_tasks uuid[];
    v_events text[];
    v_keys stepwell.turn[];
    news stepwell.news;
    caused stepwell.news;
    aside record;
BEGIN
    PERFORM stepwell.own_settings(true);
    -- One call at a time.
    PERFORM pg_advisory_xact_lock('stepwell.outbox'::regclass::oid::int, 0);
    SELECT array_agg(o.id ORDER BY o.id), array_agg(o.task_id) FILTER (WHERE o.task_id IS NOT NULL),
        array_agg(o.event) FILTER (WHERE o.event IS NOT NULL)
    INTO v_ids, v_tasks, v_events
    FROM (
        SELECT o.*, sum(octet_length(o.payload)) OVER (ORDER BY o.id) - octet_length(
            o.payload) AS before
        FROM (SELECT o.* FROM stepwell.outbox o ORDER BY o.id LIMIT 1000) o
    ) o
    WHERE (o.before >= stepwell.answer_bytes()) IS NOT TRUE;
    IF v_ids IS NULL THEN
        more := false;
        RETURN;
    END IF;
    SELECT array_agg(DISTINCT ROW(stepwell.key_space(t.scope), t.concurrency_key)::stepwell.turn)
        FILTER (WHERE t.concurrency_key IS NOT NULL)
    INTO v_keys FROM stepwell.tasks t WHERE t.task_id = ANY (v_tasks);
    PERFORM stepwell.lock_names(p_emitted => v_events, p_keys => v_keys);
    v_now := coalesce(p_now, clock_timestamp());
    IF NOT p_one_by_one THEN
        news := stepwell.settle_rows(v_now, v_ids);
    ELSE
        FOREACH v_id IN ARRAY v_ids LOOP
            BEGIN
                caused := stepwell.settle_rows(v_now, ARRAY[v_id]);
            EXCEPTION WHEN others THEN
                IF stepwell.is_of_the_server(SQLSTATE) THEN
                    RAISE;
                END IF;
                aside := stepwell.put_aside(v_now, v_id, SQLERRM);
                refused := refused || aside.refused;
                caused := aside.news;
            END;
            news := stepwell.both(news, caused);
        END LOOP;
    END IF;
    more := EXISTS (SELECT FROM stepwell.outbox);
    PERFORM stepwell.tell(p_channel, p_process,
        p_work => more OR news.ready IS NOT NULL OR news.poked IS NOT NULL,
        p_finished => news.finished IS NOT NULL);
END $$;
