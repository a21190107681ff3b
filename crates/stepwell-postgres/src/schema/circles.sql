-- Circles of tasks that wait for each other, as `waits_for_ever` in the engine defines them.

-- Returns at most `p_most` tasks (NULL: all) that have to end before the given task continues.
-- Tasks in `p_suspending` count as suspended.
CREATE FUNCTION stepwell.held_up_by(p_task uuid, p_suspending uuid[], p_most bigint) RETURNS uuid[]
LANGUAGE plpgsql AS $$
DECLARE
    l stepwell.live_tasks;
BEGIN
    SELECT t.* INTO l FROM stepwell.live_tasks t WHERE t.task_id = p_task;
    IF l.state = 'pending' AND l.blocked THEN
        RETURN ARRAY (SELECT o.task_id FROM stepwell.live_tasks o
            WHERE o.concurrency_key = l.concurrency_key AND o.key_space = l.key_space
                AND o.place < l.place
            ORDER BY o.place LIMIT 1);
    END IF;
    IF l.due_at IS NULL AND (l.state = 'suspended' OR l.task_id = ANY (p_suspending))
        AND (SELECT w.kind FROM stepwell.waits w WHERE w.task_id = p_task ORDER BY w.kind
            LIMIT 1) = 'child'
        AND (SELECT w.kind FROM stepwell.waits w WHERE w.task_id = p_task ORDER BY w.kind DESC
            LIMIT 1) = 'child'
    THEN
        RETURN ARRAY (SELECT stepwell.done_by(stepwell.as_id(w.target)) FROM stepwell.waits w
            WHERE w.task_id = p_task AND w.kind = 'child' ORDER BY w.name LIMIT p_most);
    END IF;
    RETURN '{}';
END $$;

-- Returns a child that a task would wait for for ever, if it were suspended now together with the
-- other tasks in `p_suspending`. The caller holds the locks of the task's row and of its parent's.
--
-- Two transactions that suspend tasks of one circle do not see each other's suspensions, so one of
-- them must wait for the other. A look at a running child of the task's own needs no further lock:
-- to suspend, the child locks the row of its parent, and so comes before or after. Every look that
-- goes beyond such a child takes one common lock, and starts again.
--
-- Then the last suspension of a circle to commit sees all others. Suppose that it misses one, N,
-- that commits before it. N does not hold the common lock, or it would be seen; so N's look has
-- ended at a running child of its own. That child's suspension has waited for N's commit, and in
-- turn holds the common lock or has missed a child of its own. A circle has a suspension with the
-- common lock, because no task descends from itself. That suspension commits after N, and before
-- the last one gets the lock; so N is seen.
CREATE FUNCTION stepwell.blocked_by(p_task uuid, p_suspending uuid[]) RETURNS uuid
LANGUAGE plpgsql AS $$
DECLARE
    v_locked boolean := false;
    v_seen uuid[];
    v_left uuid[];
    v_others uuid[];
    v_at uuid;
BEGIN
    LOOP
        -- Any path usually ends at a task that continues.
        v_seen := '{}';
        v_at := p_task;
        WHILE v_at <> ALL (v_seen) LOOP
            v_seen := v_seen || v_at;
            v_others := stepwell.held_up_by(v_at, p_suspending, 1);
            v_at := v_others[1];
        END LOOP;
        EXIT WHEN v_locked;
        IF v_at IS NULL AND (cardinality(v_seen) = 1 OR cardinality(v_seen) = 2
            AND EXISTS (SELECT FROM stepwell.live_tasks l WHERE l.task_id = v_seen[2]
                AND l.parent = p_task))
        THEN
            RETURN NULL;
        END IF;
        PERFORM pg_advisory_xact_lock('stepwell.waits'::regclass::oid::int, 0);
        v_locked := true;
    END LOOP;
    IF v_at IS NULL THEN
        RETURN NULL;
    END IF;
    v_seen := '{}';
    v_left := ARRAY[p_task];
    WHILE cardinality(v_left) > 0 LOOP
        v_at := v_left[cardinality(v_left)];
        v_left := trim_array(v_left, 1);
        CONTINUE WHEN v_at = ANY (v_seen);
        v_seen := v_seen || v_at;
        v_others := stepwell.held_up_by(v_at, p_suspending, NULL);
        IF cardinality(v_others) = 0 THEN
            RETURN NULL;
        END IF;
        v_left := v_left || v_others;
    END LOOP;
    RETURN (SELECT stepwell.as_id(w.target) FROM stepwell.waits w WHERE w.task_id = p_task
        AND w.kind = 'child'
        ORDER BY w.name LIMIT 1);
END $$;

-- Looks for circles that the tasks at these places would close, in their order, except for tasks in
-- `p_found`. `blocked` has, at the place of a task that would wait for ever, a child that it waits
-- for. `stay` are those tasks.
CREATE FUNCTION stepwell.blocked_among(p_tasks uuid[], p_places integer[], p_found uuid[],
    OUT blocked uuid[], OUT stay uuid[])
LANGUAGE plpgsql AS $$
DECLARE
    v_suspending uuid[];
    v_place integer;
    v_child uuid;
BEGIN
    FOREACH v_place IN ARRAY p_places LOOP
        CONTINUE WHEN p_tasks[v_place] = ANY (p_found);
        v_child := stepwell.blocked_by(p_tasks[v_place], v_suspending || p_tasks[v_place]);
        IF v_child IS NULL THEN
            v_suspending := v_suspending || p_tasks[v_place];
        ELSE
            stay := stay || p_tasks[v_place];
            blocked := coalesce(blocked, array_fill(NULL::uuid, ARRAY[cardinality(p_tasks)]));
            blocked[v_place] := v_child;
        END IF;
    END LOOP;
END $$;
