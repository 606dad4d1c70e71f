//! Points: where recovery points lie, and what a disk looked like at each.

pub mod selection;
pub mod view;
