-- The removal of finished tasks.

-- Removes finished tasks that no other task needs, the oldest first: tasks that ended before
-- `p_before`, of the given state or (NULL) of all. None of them has an id from `p_end` on, because
-- an id holds the time at which it was made, so later tasks are not read. Tasks that were kept for
-- removed ones are removed after them, generation by generation.
CREATE FUNCTION stepwell.purge(p_before timestamptz, p_state text, p_limit bigint, p_end uuid)
    RETURNS bigint
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
SET enable_bitmapscan = off SET enable_material = off SET jit = off AS $$
DECLARE
    v_tasks uuid[];
    v_kept uuid[];
    v_removed bigint := 0;
BEGIN
    SELECT array_agg(o.task_id) INTO v_tasks FROM (
        SELECT o.task_id FROM stepwell.outcomes o
        WHERE o.task_id < p_end AND o.finished_at < p_before
            AND (p_state IS NULL OR o.state = p_state)
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
            WHERE o.task_id = ANY (v_kept) AND o.finished_at < p_before
                AND (p_state IS NULL OR o.state = p_state)
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
