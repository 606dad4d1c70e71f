//! What is kept of the operators beside the catalog, so that nobody's token is lost, or comes back, with its database.
//!
//! Owns the persisted form: JSON, one file, replaced whole at every change. A reader refuses newer versions and ignores
//! fields that it does not know. Invariant: no secret is in it, only hashes. Version history: 1, first.

use holdfast_common::clock::Timestamp;
use serde::{Deserialize, Serialize};

use crate::catalog::{
    Change,
    record::{OperatorRecord, Role},
};
use crate::json_record;

/// Version that this program writes.
const VERSION: u32 = 1;

/// All operators, those included that were revoked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperatorsRecord {
    version: u32,
    operators: Vec<DescribedOperator>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct DescribedOperator {
    name: String,
    /// Text of [`Role`].
    role: String,
    /// Hash of the token's secret, in hexadecimal digits.
    hash: String,
    created_at: Timestamp,
    expires_at: Timestamp,
    revoked_at: Option<Timestamp>,
}

impl OperatorsRecord {
    /// The record of these operators.
    #[must_use]
    pub fn new(operators: &[OperatorRecord]) -> Self {
        let operators = operators.iter().map(|operator| DescribedOperator {
            name: operator.name.clone(),
            role: operator.role.text().to_owned(),
            hash: blake3::Hash::from_bytes(operator.hash).to_hex().to_string(),
            created_at: operator.created_at,
            expires_at: operator.expires_at,
            revoked_at: operator.revoked_at,
        });
        Self { version: VERSION, operators: operators.collect() }
    }

    /// Reads a file's content.
    ///
    /// # Errors
    /// It is no record of operators, or a newer version wrote it.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        json_record::parse(bytes, VERSION, |record: &Self| record.version)
    }

    /// What brings a catalog to what is recorded, and the names of operators that this program cannot make sense of.
    #[must_use]
    pub fn changes(&self) -> (Vec<Change>, Vec<String>) {
        let (mut changes, mut strange) = (Vec::new(), Vec::new());
        for operator in &self.operators {
            match operator.record() {
                Some(record) => changes.push(Change::PutOperator(record)),
                None => strange.push(operator.name.clone()),
            }
        }
        (changes, strange)
    }
}

impl DescribedOperator {
    fn record(&self) -> Option<OperatorRecord> {
        Some(OperatorRecord {
            name: self.name.clone(),
            role: Role::parse(&self.role)?,
            hash: *blake3::Hash::from_hex(&self.hash).ok()?.as_bytes(),
            created_at: self.created_at,
            expires_at: self.expires_at,
            revoked_at: self.revoked_at,
        })
    }
}

#[cfg(test)]
mod tests;
