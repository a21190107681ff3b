-- What a worker does, and whether it is to stop.

ALTER TABLE stepwell_workers ADD COLUMN queues TEXT NOT NULL DEFAULT '[]';
ALTER TABLE stepwell_workers ADD COLUMN concurrency INTEGER NOT NULL DEFAULT 0;
ALTER TABLE stepwell_workers ADD COLUMN code_version TEXT;
ALTER TABLE stepwell_workers ADD COLUMN state TEXT NOT NULL DEFAULT 'active';
ALTER TABLE stepwell_workers ADD COLUMN registered_at INTEGER NOT NULL DEFAULT 0;
