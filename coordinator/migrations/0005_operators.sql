-- Operators, and thresholds of health.

-- Operators that may use the interface over the network. The secret itself is never kept.

CREATE TABLE operators (
    name TEXT PRIMARY KEY,
    role TEXT NOT NULL,
    hash BYTEA NOT NULL,
    created_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    revoked_at BIGINT
);

-- When a machine's state is worth a warning: JSON text.
CREATE TABLE thresholds (
    machine BYTEA PRIMARY KEY REFERENCES machines (id),
    body TEXT NOT NULL
);
