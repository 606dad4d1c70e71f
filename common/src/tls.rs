//! TLS: what both ends must agree on.
