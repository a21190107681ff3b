-- Tasks whose work is being undone before they end.

ALTER TABLE stepwell_tasks ADD COLUMN compensating INTEGER NOT NULL DEFAULT 0;
