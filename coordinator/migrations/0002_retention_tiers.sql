-- What is kept of points that are older than the time in which every point is kept: a JSON list, see RetentionTier.
ALTER TABLE policies ADD COLUMN retention_tiers TEXT NOT NULL DEFAULT '[]';
