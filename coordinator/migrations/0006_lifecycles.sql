-- Where a machine stands between its two sites: JSON text, see registry/lifecycle.rs. A machine without a row is protected.
CREATE TABLE lifecycles (
    machine BYTEA PRIMARY KEY REFERENCES machines (id),
    body TEXT NOT NULL
);
