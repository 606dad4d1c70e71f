//! Seeded simulations of the state machines, together and under faults.

mod groups;
mod transport;
