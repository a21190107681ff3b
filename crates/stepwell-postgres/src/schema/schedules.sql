-- Changes of schedules.

-- Changes a schedule: creates it when no version was seen, deletes it when there is no new version,
-- and otherwise replaces the version that was seen. `p_last_task` is the last of the tasks that the
-- change is to spawn. The answer is 'refused', 'changed', or 'spawns'.
CREATE FUNCTION stepwell.change_schedule(p_name text, p_seen uuid, p_version uuid,
    p_definition text, p_next_at timestamptz, p_last_task uuid, p_unless_running boolean)
    RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
    v_last uuid;
BEGIN
    IF p_version IS NULL THEN
        DELETE FROM stepwell.schedules s WHERE s.name = p_name;
    ELSIF p_seen IS NULL THEN
        INSERT INTO stepwell.schedules (name, version, definition, next_at)
        VALUES (p_name, p_version, p_definition, p_next_at) ON CONFLICT DO NOTHING;
    ELSE
        UPDATE stepwell.schedules s SET version = p_version, definition = p_definition,
            next_at = p_next_at
        WHERE s.name = p_name AND s.version = p_seen
        RETURNING s.last_task INTO v_last;
    END IF;
    IF NOT FOUND THEN
        RETURN 'refused';
    END IF;
    IF p_last_task IS NULL OR (p_unless_running
        AND EXISTS (SELECT FROM stepwell.live_tasks l WHERE l.task_id = v_last))
    THEN
        RETURN 'changed';
    END IF;
    UPDATE stepwell.schedules s SET last_task = p_last_task WHERE s.name = p_name;
    RETURN 'spawns';
END $$;
