-- What came of a point's witness (blocks that the agent hashed while writes were held): JSON of `WitnessRecord`; NULL if it has none.
ALTER TABLE points ADD COLUMN witness TEXT;
