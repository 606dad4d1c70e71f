//! Small records in JSON files that are replaced as a whole.
//!
//! Owns how they are read: what it means that there is no file, and that a newer program wrote one. Does not know what they say, nor
//! what becomes of whoever cannot read one.

use std::{fs, io, path::Path};

use serde::de::DeserializeOwned;

/// Reads a file; none if there is none.
///
/// # Errors
/// It cannot be read, or is no such record.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        read => read.and_then(|bytes| serde_json::from_slice(&bytes).map(Some).map_err(io::Error::other)),
    }
}

/// Reads a record that says its version, of which this program knows those up to `known`.
///
/// # Errors
/// It is no such record, or a newer program wrote it; for people.
pub(crate) fn parse<T: DeserializeOwned>(
    bytes: &[u8],
    known: u32,
    version: impl Fn(&T) -> u32,
) -> Result<T, String> {
    let record = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let version = version(&record);
    if version > known {
        return Err(format!("it has version {version}, this program knows {known}"));
    }
    Ok(record)
}
