//! Enrolment tokens: the text that an operator carries from the coordinator to a new machine.
//!
//! Owns the text form and the hash under which the coordinator keeps a token. Does not know who may make or redeem one.
//! Invariant: the secret is shown only by [`EnrolToken::to_text`]; debug output never has it.
//! Format: `hf1.SECRET.FINGERPRINT.CHECK`, all hexadecimal: 32 bytes of secret, the SHA-256 of the coordinator's CA
//! certificate (DER), and the first 4 bytes of the SHA-256 of everything before the last dot. The check tells a
//! mistyped token from a wrong one.

use std::{fmt, str::FromStr};

use ring::digest::{SHA256, digest};
use thiserror::Error;

/// First part of every token; names the version of the form.
const PREFIX: &str = "hf1";

/// Bytes of the check.
const CHECK_BYTES: usize = 4;

/// SHA-256 of a certificate's DER bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub [u8; 32]);

/// What the coordinator keeps of a token: the SHA-256 of its secret. The secret has 256 random bits, so no salt and
/// no slow hash are needed.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TokenHash(pub [u8; 32]);

/// A one-time enrolment token.
#[derive(Clone, PartialEq, Eq)]
pub struct EnrolToken {
    /// What proves the right to enrol.
    pub secret: [u8; 32],
    /// The coordinator's CA.
    pub authority: Fingerprint,
}

/// Why a text is not a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum TokenError {
    /// It does not have the form of a token.
    #[error("this is not an enrolment token: it must look like hf1.<64 digits>.<64 digits>.<8 digits>")]
    Form,
    /// It was made by a newer version.
    #[error("this enrolment token has a form that this agent does not know: upgrade the agent")]
    Newer,
    /// The check does not match.
    #[error("the enrolment token is mistyped or incomplete: copy it again from where it was created")]
    Mistyped,
}

impl Fingerprint {
    /// The fingerprint of a certificate.
    #[must_use]
    pub fn of(certificate_der: &[u8]) -> Self {
        Self(sha256(certificate_der))
    }
}

impl TokenHash {
    /// The hash of a token's secret.
    #[must_use]
    pub fn of(secret: &[u8; 32]) -> Self {
        Self(sha256(secret))
    }
}

impl EnrolToken {
    /// The text for the operator. The only place where the secret is shown.
    #[must_use]
    pub fn to_text(&self) -> String {
        let body = format!("{PREFIX}.{}.{}", hex(&self.secret), hex(&self.authority.0));
        let check = check(&body);
        format!("{body}.{check}")
    }

    /// What the coordinator keeps of it.
    #[must_use]
    pub fn hash(&self) -> TokenHash {
        TokenHash::of(&self.secret)
    }
}

impl FromStr for EnrolToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        let (body, given) = text.rsplit_once('.').ok_or(TokenError::Form)?;
        let mut parts = body.split('.');
        let prefix = parts.next().ok_or(TokenError::Form)?;
        if prefix != PREFIX {
            let newer = prefix.strip_prefix("hf").is_some_and(|version| version.parse::<u32>().is_ok());
            return Err(if newer { TokenError::Newer } else { TokenError::Form });
        }
        if given != check(body) {
            return Err(TokenError::Mistyped);
        }
        let (Some(secret), Some(authority), None) = (parts.next(), parts.next(), parts.next()) else {
            return Err(TokenError::Form);
        };
        let secret = unhex(secret).ok_or(TokenError::Form)?;
        let authority = unhex(authority).ok_or(TokenError::Form)?;
        Ok(Self { secret, authority: Fingerprint(authority) })
    }
}

impl fmt::Debug for EnrolToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EnrolToken").field("authority", &self.authority).finish_non_exhaustive()
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

fn check(body: &str) -> String {
    hex(sha256(body.as_bytes()).get(..CHECK_BYTES).unwrap_or_default())
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, bytes).as_ref());
    hash
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 64 || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests;
