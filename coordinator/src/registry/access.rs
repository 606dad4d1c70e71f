//! Operators that use the interface over the network: who they are and what they may do.
//!
//! Owns the rules of their tokens, and what is written into the audit for others. Does not know HTTP.
//! Invariant: a secret is never kept, only its hash; a token that is revoked or has expired proves nothing from that
//! moment on. Names are never ambiguous in the audit: one is given again only when its old token is worth nothing.
//! Limit: [`OPERATORS_MAX`] names, [`OPERATOR_LIFE_MAX`] of a token's life.

use std::{fmt, time::Duration};

use holdfast_common::token::TokenHash;
use thiserror::Error;

use super::{Registry, RegistryError};
use crate::catalog::{
    Change,
    record::{OperatorRecord, Role},
};

/// Life of an operator's token if nothing is said.
pub const OPERATOR_LIFE_DEFAULT: Duration = Duration::from_hours(24 * 90);
/// Longest life of an operator's token (five years).
pub const OPERATOR_LIFE_MAX: Duration = Duration::from_hours(24 * 365 * 5);
/// Most operators, those included that were revoked.
pub const OPERATORS_MAX: usize = 1_000;
/// Longest name, in bytes.
const NAME_BYTES_MAX: usize = 64;

/// An operator to be recorded.
#[derive(Clone, Debug)]
pub struct NewOperator {
    /// Its name.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// Hash of its secret.
    pub hash: TokenHash,
    /// How long the token may be used.
    pub life: Duration,
}

/// Why a token proves nothing.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Denied {
    /// Nobody has it.
    #[error("the token is not known here")]
    Unknown,
    /// It was revoked.
    #[error("the token of {name} was revoked")]
    Revoked {
        /// Whose it was.
        name: String,
    },
    /// Its time is over.
    #[error("the token of {name} has expired")]
    Expired {
        /// Whose it was.
        name: String,
    },
}

impl Registry {
    /// All operators, by name.
    #[must_use]
    pub fn operators(&self) -> Vec<OperatorRecord> {
        self.state().operators.values().cloned().collect()
    }

    /// Whose token this is. Takes the same time whichever of the hashes fits, and how far.
    ///
    /// # Errors
    /// It is nobody's, or worth nothing any more.
    pub fn authenticate(&self, given: TokenHash) -> Result<OperatorRecord, Denied> {
        // Equality of these hashes is of constant time.
        let given = blake3::Hash::from_bytes(given.0);
        let mut found = None;
        for operator in self.state().operators.values() {
            if blake3::Hash::from_bytes(operator.hash) == given {
                found = Some(operator.clone());
            }
        }
        let operator = found.ok_or(Denied::Unknown)?;
        if operator.revoked_at.is_some() {
            return Err(Denied::Revoked { name: operator.name });
        }
        if operator.expires_at <= self.now() {
            return Err(Denied::Expired { name: operator.name });
        }
        Ok(operator)
    }

    /// Records an operator. A name whose token was revoked or has expired may be given again.
    ///
    /// # Errors
    /// The name is in use or unsuitable, the life is out of bounds, or the catalog or the store fails.
    pub async fn create_operator(
        &self,
        who: &str,
        new: NewOperator,
    ) -> Result<OperatorRecord, RegistryError> {
        check(&new)?;
        let _one_at_a_time = self.changing.lock().await;
        let now = self.now();
        let (known, count) = {
            let state = self.state();
            (state.operators.get(&new.name).cloned(), state.operators.len())
        };
        if known.as_ref().is_some_and(|known| known.revoked_at.is_none() && known.expires_at > now) {
            return Err(RegistryError::OperatorExists { name: new.name });
        }
        if known.is_none() && count >= OPERATORS_MAX {
            return Err(RegistryError::Setting(format!("there are {OPERATORS_MAX} operators already")));
        }
        let record = OperatorRecord {
            name: new.name,
            role: new.role,
            hash: new.hash.0,
            created_at: now,
            expires_at: now.plus(new.life),
            revoked_at: None,
        };
        let detail = format!("{} for {} s", record.role.text(), new.life.as_secs());
        let audit = self.audit(who, "operator create", &record.name, detail);
        self.commit(vec![Change::PutOperator(record.clone()), audit]).await?;
        self.describe_operators().await?;
        Ok(record)
    }

    /// Makes an operator's token worthless, from the next request on.
    ///
    /// # Errors
    /// There is no such operator, or the catalog or the store fails.
    pub async fn revoke_operator(&self, who: &str, name: &str) -> Result<OperatorRecord, RegistryError> {
        let _one_at_a_time = self.changing.lock().await;
        let known = self.state().operators.get(name).cloned();
        let known =
            known.ok_or_else(|| RegistryError::OperatorUnknown { name: name.chars().take(80).collect() })?;
        if known.revoked_at.is_some() {
            return Ok(known);
        }
        let record = OperatorRecord { revoked_at: Some(self.now()), ..known };
        let audit = self.audit(who, "operator revoke", &record.name, "");
        self.commit(vec![Change::PutOperator(record.clone()), audit]).await?;
        self.describe_operators().await?;
        Ok(record)
    }

    /// Writes an entry into the audit, for acts that change nothing here. Durable when it returns: what must not happen
    /// unrecorded is done after it.
    ///
    /// # Errors
    /// The catalog fails.
    pub async fn record_act(
        &self,
        who: &str,
        what: &str,
        subject: impl fmt::Display,
        detail: impl fmt::Display,
    ) -> Result<(), RegistryError> {
        let entry = self.audit(who, what, subject, detail);
        Ok(self.catalog.apply(vec![entry]).await?)
    }
}

fn check(new: &NewOperator) -> Result<(), RegistryError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-@".contains(c);
    if new.name.is_empty() || new.name.len() > NAME_BYTES_MAX || !new.name.chars().all(plain) {
        let text = format!(
            "an operator's name has 1 to {NAME_BYTES_MAX} letters, digits and . _ - @; give it another one"
        );
        return Err(RegistryError::Setting(text));
    }
    if new.life.is_zero() || new.life > OPERATOR_LIFE_MAX {
        let text = format!("a life of {} s is out of range; use 1s to 1825d", new.life.as_secs());
        return Err(RegistryError::Setting(text));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
