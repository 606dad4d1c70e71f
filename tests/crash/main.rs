//! Tests by breaking: kill -9, torn writes, damage.

mod faults;
mod kill;
mod power;
mod reclaim;
mod store;
mod update;
