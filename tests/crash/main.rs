//! Tests by breaking: kill -9, torn writes, damage.

mod faults;
mod kill;
mod reclaim;
mod store;
mod update;
