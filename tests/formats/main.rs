//! Formats on disk and on the wire: golden bytes, old files, newer versions.

mod files;
mod fixtures;
mod kinds;
mod mutations;
mod promises;
mod wire;
