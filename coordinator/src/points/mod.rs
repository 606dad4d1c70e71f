//! Points: where recovery points lie, and what a disk looked like at each.

pub mod assembler;
pub mod catalog;
pub mod retention;
pub mod selection;
pub mod view;
