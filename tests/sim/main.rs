//! Seeded simulations of the state machines, together and under faults.

mod groups;
mod retention;
mod transport;
