-- Recovery plans, as their files were applied.
CREATE TABLE plans (
    name TEXT PRIMARY KEY,
    body TEXT NOT NULL,
    changed_at BIGINT NOT NULL,
    changed_by TEXT NOT NULL
);
