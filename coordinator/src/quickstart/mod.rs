//! Quickstart: the whole path on this machine, shown with the programs' own commands.
//!
//! Owns the scenery (a disk, a writer, two processes) and the check of what came out. Uses only what any user has: the
//! `holdfast` command and the programs beside it.

pub mod history;
pub mod nbd_reader;
pub mod scenery;
