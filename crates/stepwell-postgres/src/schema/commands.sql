-- The commands of clients to tasks, and the tasks that are kept for others.

-- Returns whether a task is the other one, or is kept for it, or for a task that is kept for it.
CREATE FUNCTION stepwell.is_kept_for(p_task uuid, p_other uuid) RETURNS boolean
LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN p_other IN (
        WITH RECURSIVE above AS (
            SELECT p_task AS task_id
            UNION SELECT u.task_id FROM above a CROSS JOIN LATERAL (
                SELECT t.parent AS task_id FROM stepwell.tasks t WHERE t.task_id = a.task_id
                UNION ALL SELECT n.needed_by FROM stepwell.needs n WHERE n.task_id = a.task_id
            ) u WHERE coalesce(
                (SELECT l.state FROM stepwell.live_tasks l WHERE l.task_id = u.task_id),
                (SELECT o.state FROM stepwell.outcomes o
                    WHERE o.task_id = u.task_id)) <> 'completed'
        ) SELECT above.task_id FROM above);
END $$;

-- Returns the task that may have yet to learn how the given one ended: its parent, or the one with
-- the lowest id among the tasks that wait for it or were answered with it. A task that has failed
-- or was cancelled may be retried, and learn it then. The exception is a task that is itself kept
-- for the given one: neither of them would ever be removed.
CREATE FUNCTION stepwell.needed_by(p_task uuid) RETURNS uuid
LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN coalesce(
        (SELECT t.parent FROM stepwell.tasks t
            WHERE t.task_id = p_task AND coalesce(
                (SELECT l.state FROM stepwell.live_tasks l WHERE l.task_id = t.parent),
                (SELECT o.state FROM stepwell.outcomes o
                    WHERE o.task_id = t.parent)) <> 'completed'),
        (SELECT x.task_id FROM (
            SELECT w.task_id FROM stepwell.waits w WHERE w.target = p_task::text
                AND w.kind = 'child'
            UNION ALL
            -- The task waits for another one, in whose place this one was done, and learns how this
            -- one ended.
            SELECT w.task_id FROM stepwell.outcomes o
            JOIN stepwell.waits w ON w.target = o.task_id::text AND w.kind = 'child'
                WHERE o.instead = p_task
            UNION ALL
            SELECT n.needed_by FROM stepwell.needs n WHERE n.task_id = p_task AND coalesce(
                (SELECT true FROM stepwell.live_tasks l WHERE l.task_id = n.needed_by),
                (SELECT o.state <> 'completed' AND NOT stepwell.is_kept_for(n.needed_by, p_task)
                    FROM stepwell.outcomes o WHERE o.task_id = n.needed_by))
        ) x ORDER BY x.task_id LIMIT 1));
END $$;

-- Does what a client asks of a task: cancel, retry, delete, wake, pause or resume. The answer is
-- 'done', 'not_found', 'needed' (by the task in `needed_by`), or the task's state, which does not
-- allow it.
CREATE FUNCTION stepwell.command(p_now timestamptz, p_command text, p_task uuid,
    OUT answer text, OUT needed_by uuid, OUT news stepwell.news)
LANGUAGE plpgsql AS $$
DECLARE
    v_task stepwell.tasks;
    v_outcome stepwell.outcomes;
    v_keys stepwell.turn[];
    v_compensating boolean;
BEGIN
    SELECT l.state, CASE WHEN l.concurrency_key IS NOT NULL
        THEN ARRAY[ROW(l.key_space, l.concurrency_key)::stepwell.turn] END
    INTO answer, v_keys FROM stepwell.live_tasks l WHERE l.task_id = p_task;
    IF p_command = 'retry' THEN
        v_keys := ARRAY (SELECT ROW(stepwell.key_space(t.scope), t.concurrency_key)::stepwell.turn
            FROM stepwell.tasks t
            WHERE t.task_id = p_task AND t.concurrency_key IS NOT NULL);
    END IF;
    IF cardinality(v_keys) > 0 THEN
        PERFORM stepwell.lock_names(p_keys => v_keys);
    END IF;
    SELECT l.state, l.compensating INTO answer, v_compensating FROM stepwell.live_tasks l
        WHERE l.task_id = p_task FOR UPDATE;
    IF answer IS NULL THEN
        -- The lock serialises two commands that delete or retry the task.
        SELECT o.* INTO v_outcome FROM stepwell.outcomes o WHERE o.task_id = p_task FOR UPDATE;
        answer := coalesce(v_outcome.state, 'not_found');
    END IF;
    IF p_command = 'cancel' AND NOT v_compensating THEN
        news := stepwell.cancel(p_now, ARRAY[p_task]);
        answer := 'done';
    ELSIF p_command = 'wake' AND answer = 'suspended' THEN
        news := stepwell.arrive(p_now, ARRAY[p_task]);
        answer := 'done';
    ELSIF p_command = 'delete' AND v_outcome.task_id IS NOT NULL THEN
        needed_by := stepwell.needed_by(p_task);
        answer := 'needed';
        IF needed_by IS NULL THEN
            PERFORM stepwell.delete(ARRAY[p_task]);
            answer := 'done';
        END IF;
    ELSIF p_command = 'retry' AND answer IN ('failed', 'cancelled')
        AND stepwell.done_by(p_task) = p_task THEN
        SELECT t.* INTO STRICT v_task FROM stepwell.tasks t WHERE t.task_id = p_task;
        DELETE FROM stepwell.outcomes o WHERE o.task_id = p_task;
        -- After a compensation, the task begins again.
        INSERT INTO stepwell.journal (task_id, seq, kind, name, ordinal, outcome, payload, at)
        SELECT p_task, max(j.seq) + 1, 'attempt', 'retry', 1, 'done', 'null', p_now
        FROM stepwell.journal j WHERE j.task_id = p_task HAVING bool_or(j.kind = 'compensating');
        INSERT INTO stepwell.live_tasks (task_id, run_id, task_type, queue, state, priority,
            attempt, parent, known, code_version, concurrency_key, key_space, place, blocked,
            ready_at, started_at, failure)
        VALUES (p_task, v_outcome.run_id, v_task.task_type, v_task.queue, 'pending',
            v_task.priority, 0, v_task.parent, coalesce(v_task.parent::text, v_task.idempotency_key,
                v_task.concurrency_key) IS NOT NULL, v_task.code_version, v_task.concurrency_key,
            CASE WHEN v_task.concurrency_key IS NOT NULL THEN stepwell.key_space(v_task.scope) END,
            CASE WHEN v_task.concurrency_key IS NOT NULL THEN nextval('stepwell.places') END,
            EXISTS (SELECT FROM stepwell.live_tasks o
                WHERE o.concurrency_key = v_task.concurrency_key
                AND o.key_space = stepwell.key_space(v_task.scope)),
            p_now, v_outcome.started_at, v_outcome.failure);
        news.ready := ARRAY[v_task.queue];
        answer := 'done';
    ELSIF p_command IN ('pause', 'resume') AND v_compensating IS NOT NULL THEN
        UPDATE stepwell.live_tasks l SET paused = p_command = 'pause' WHERE l.task_id = p_task;
        IF p_command = 'resume' AND answer = 'pending' THEN
            news.ready := ARRAY (SELECT l.queue FROM stepwell.live_tasks l
                WHERE l.task_id = p_task);
        END IF;
        answer := 'done';
    ELSIF v_compensating THEN
        answer := 'compensating';
    END IF;
END $$;
