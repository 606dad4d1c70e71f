-- The catalog, first version. Only what SQLite and PostgreSQL both run: BIGINT, TEXT, BYTEA. Ids are the 16 bytes of
-- a UUID, times are microseconds since 1970 UTC, truth values are 0 and 1, lists are JSON text.

CREATE TABLE machines (
    id BYTEA PRIMARY KEY,
    name TEXT NOT NULL,
    state TEXT NOT NULL,
    enrolled_at BIGINT NOT NULL,
    last_seen_at BIGINT,
    agent_version TEXT NOT NULL,
    inventory TEXT
);

CREATE TABLE certificates (
    serial BYTEA PRIMARY KEY,
    machine BYTEA NOT NULL REFERENCES machines (id),
    issued_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    revoked_at BIGINT
);
CREATE INDEX certificates_by_machine ON certificates (machine);

CREATE TABLE tokens (
    hash BYTEA PRIMARY KEY,
    label TEXT NOT NULL,
    machine BYTEA,
    created_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    used_at BIGINT,
    used_by BYTEA
);

CREATE TABLE disks (
    id BYTEA PRIMARY KEY,
    machine BYTEA NOT NULL REFERENCES machines (id),
    path TEXT NOT NULL,
    wwid TEXT,
    serial TEXT,
    table_id TEXT,
    backing_file TEXT,
    bus_path TEXT,
    size_bytes BIGINT NOT NULL,
    generation BIGINT NOT NULL,
    protected_at BIGINT NOT NULL,
    unprotected_at BIGINT
);
CREATE INDEX disks_by_machine ON disks (machine);

CREATE TABLE generations (
    disk BYTEA NOT NULL REFERENCES disks (id),
    number BIGINT NOT NULL,
    reason TEXT NOT NULL,
    at BIGINT NOT NULL,
    PRIMARY KEY (disk, number)
);

CREATE TABLE policies (
    machine BYTEA PRIMARY KEY REFERENCES machines (id),
    interval_ms BIGINT NOT NULL,
    retention_seconds BIGINT NOT NULL,
    hold_ms_max BIGINT NOT NULL,
    send_bytes_per_second_max BIGINT NOT NULL,
    scan_bytes_per_second_max BIGINT NOT NULL
);

CREATE TABLE points (
    id BYTEA PRIMARY KEY,
    machine BYTEA NOT NULL REFERENCES machines (id),
    state TEXT NOT NULL,
    void_reason TEXT,
    cut_at BIGINT NOT NULL,
    durable_at BIGINT NOT NULL,
    rpo_us BIGINT NOT NULL,
    method TEXT NOT NULL,
    consistency TEXT NOT NULL,
    hold_us BIGINT NOT NULL,
    request BIGINT,
    notes TEXT NOT NULL
);
CREATE INDEX points_by_machine ON points (machine, durable_at);

CREATE TABLE point_disks (
    point BYTEA NOT NULL REFERENCES points (id) ON DELETE CASCADE,
    disk BYTEA NOT NULL REFERENCES disks (id),
    generation BIGINT NOT NULL,
    sequence BIGINT NOT NULL,
    stored_bytes BIGINT NOT NULL,
    PRIMARY KEY (point, disk)
);

CREATE TABLE voided_cuts (
    machine BYTEA NOT NULL REFERENCES machines (id),
    at BIGINT NOT NULL,
    request BIGINT,
    reason TEXT NOT NULL,
    PRIMARY KEY (machine, at)
);

CREATE TABLE leases (
    point BYTEA NOT NULL REFERENCES points (id),
    holder TEXT NOT NULL,
    since BIGINT NOT NULL,
    PRIMARY KEY (point, holder)
);

CREATE TABLE job_events (
    job BYTEA NOT NULL,
    number BIGINT NOT NULL,
    at BIGINT NOT NULL,
    body TEXT NOT NULL,
    PRIMARY KEY (job, number)
);

CREATE TABLE audit (
    id BYTEA PRIMARY KEY,
    at BIGINT NOT NULL,
    who TEXT NOT NULL,
    what TEXT NOT NULL,
    subject TEXT NOT NULL,
    detail TEXT NOT NULL
);
