-- Ages of a group's newest point that are worth a warning and critical, in milliseconds; 0 and 0: by the group's interval.
ALTER TABLE groups ADD COLUMN lag_warning_ms INTEGER NOT NULL DEFAULT 0;
ALTER TABLE groups ADD COLUMN lag_critical_ms INTEGER NOT NULL DEFAULT 0;
