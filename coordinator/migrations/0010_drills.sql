-- When a machine is drilled and what proves that it boots, as JSON.
ALTER TABLE policies ADD COLUMN drill TEXT NOT NULL DEFAULT '{}';
