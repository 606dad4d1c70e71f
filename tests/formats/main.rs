//! Formats on disk and on the wire: golden bytes, old files, newer versions.

mod mutations;
