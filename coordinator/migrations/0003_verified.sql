-- When all data that a point needs was read and found good for the first time; NULL until then.
ALTER TABLE points ADD COLUMN verified_at BIGINT;
