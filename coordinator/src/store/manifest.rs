//! What is recorded of a disk beside its log, so that the catalog can be rebuilt from the store.
//!
//! Owns the manifest file. Invariant: a manifest that opens passed its digest; fields are only ever appended, with a new
//! version.
//!
//! ```text
//! offset size  field
//!   0     4    magic "HDSK"
//!   4     4    version, 1
//!   8    32    BLAKE3 of the record
//!  40     -    record: DiskManifest as bincode
//! ```
//! A reader refuses newer versions. History: 1, first.

use std::path::Path;

use serde::{Deserialize, Serialize};

use holdfast_common::{
    codec, durable,
    ids::{DiskId, MachineId},
};

use super::error::StoreError;

const MAGIC: [u8; 4] = *b"HDSK";
const VERSION: u32 = 1;
const PREFIX_BYTES: usize = 40;

/// What a disk is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskManifest {
    /// The disk.
    pub disk: DiskId,
    /// The machine it belongs to.
    pub machine: MachineId,
    /// Size in bytes; need not be a multiple of the block size.
    pub size_bytes: u64,
}

impl DiskManifest {
    /// Writes the manifest, whole or not at all.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn store(&self, path: &Path) -> Result<(), StoreError> {
        let bytes = self.to_bytes().map_err(|error| StoreError::manifest(path, &error.to_string()))?;
        durable::replace(path, &bytes, durable::MODE_PRIVATE)
            .map_err(|error| StoreError::io("writing", path, error))
    }

    /// Reads a manifest.
    ///
    /// # Errors
    /// It is missing, damaged, or newer.
    pub fn load(path: &Path) -> Result<Self, StoreError> {
        let bytes = std::fs::read(path).map_err(|error| StoreError::io("reading", path, error))?;
        Self::parse(&bytes).map_err(|reason| StoreError::manifest(path, &reason))
    }

    /// The bytes of the file.
    fn to_bytes(&self) -> Result<Vec<u8>, codec::CodecError> {
        let record = codec::encode(self)?;
        let mut bytes = Vec::with_capacity(PREFIX_BYTES + record.len());
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(blake3::hash(&record).as_bytes());
        bytes.extend_from_slice(&record);
        Ok(bytes)
    }

    /// Reads the bytes of the file.
    ///
    /// # Errors
    /// What is wrong with them, for people.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let (prefix, record) = bytes.split_at_checked(PREFIX_BYTES).ok_or("it is cut short")?;
        let version = prefix.get(4..8).and_then(|four| four.try_into().ok()).map_or(0, u32::from_le_bytes);
        if prefix.get(..4) != Some(MAGIC.as_slice()) {
            return Err("it is not a manifest".to_owned());
        }
        if version != VERSION {
            return Err(format!("it has version {version}, this program knows {VERSION}"));
        }
        if prefix.get(8..) != Some(blake3::hash(record).as_bytes().as_slice()) {
            return Err("its digest does not match".to_owned());
        }
        codec::decode(record).map_err(|error| error.to_string())
    }
}
