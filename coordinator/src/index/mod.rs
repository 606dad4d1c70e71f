//! Which frame holds which block.
