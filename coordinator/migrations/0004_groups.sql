-- Replication groups; how often a machine's applications are made consistent; and what a point's cut records say beyond the first version's fields: JSON of the record's
-- `more` (mark of a group cut, freeze of applications), so that group points are found among the points.

ALTER TABLE points ADD COLUMN more TEXT;

ALTER TABLE policies ADD COLUMN application_interval_ms BIGINT NOT NULL DEFAULT 0;
ALTER TABLE policies ADD COLUMN application_strict BIGINT NOT NULL DEFAULT 0;

CREATE TABLE groups (
    id BYTEA PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    interval_ms BIGINT NOT NULL,
    wait_ms_max BIGINT NOT NULL,
    application_interval_ms BIGINT NOT NULL,
    created_at BIGINT NOT NULL
);

CREATE TABLE group_members (
    machine BYTEA PRIMARY KEY REFERENCES machines (id),
    group_id BYTEA NOT NULL REFERENCES groups (id) ON DELETE CASCADE,
    joined_at BIGINT NOT NULL
);
CREATE INDEX group_members_by_group ON group_members (group_id);

CREATE TABLE voided_group_cuts (
    cut BYTEA PRIMARY KEY,
    group_id BYTEA NOT NULL REFERENCES groups (id) ON DELETE CASCADE,
    at BIGINT NOT NULL,
    machine BYTEA,
    reason TEXT NOT NULL
);
CREATE INDEX voided_group_cuts_by_group ON voided_group_cuts (group_id, at);
