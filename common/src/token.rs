//! Tokens: texts that people carry from the coordinator, to enrol a new machine or to identify themselves.
//!
//! Owns the text form and the hash under which the coordinator keeps a token. Does not know who may make or redeem one.
//! Invariant: the secret is shown only by `to_text` (and an operator's by what the operator's program sends); debug
//! output never has it.
//! Format: `KIND.SECRET.FINGERPRINT.CHECK`, all but the kind hexadecimal: `hf1` for enrolment or `hfo1` for an
//! operator, 32 bytes of secret, the SHA-256 of the coordinator's CA certificate (DER), and the first 4 bytes of the
//! SHA-256 of everything before the last dot. The check tells a mistyped token from a wrong one.

use std::{fmt, str::FromStr};

use ring::digest::{SHA256, digest};
use thiserror::Error;

/// First part of a token for enrolment; names the version of the form.
const ENROL: &str = "hf1";

/// First part of an operator's token.
const OPERATOR: &str = "hfo1";

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

/// An operator's token: proves who asks, again and again, until it expires or is revoked.
#[derive(Clone, PartialEq, Eq)]
pub struct OperatorToken {
    /// What proves who the operator is.
    pub secret: [u8; 32],
    /// The coordinator's CA.
    pub authority: Fingerprint,
}

/// Why a text is not a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum TokenError {
    /// It does not have the form of a token.
    #[error("this is no such token: it must look like {0}.<64 digits>.<64 digits>.<8 digits>")]
    Form(&'static str),
    /// It is a token for something else.
    #[error(
        "this token is for something else: machines enrol with one of `holdfast token create` (hf1...), operators log \
         in with one of `holdfast operator create` (hfo1...)"
    )]
    Purpose,
    /// It was made by a newer version.
    #[error("this token has a form that this program does not know: upgrade it")]
    Newer,
    /// The check does not match.
    #[error("the token is mistyped or incomplete: copy it again from where it was created")]
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
        write(ENROL, &self.secret, self.authority)
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
        let (secret, authority) = read(ENROL, text)?;
        Ok(Self { secret, authority })
    }
}

impl OperatorToken {
    /// The text for the operator, and what the operator's program sends to prove who it is.
    #[must_use]
    pub fn to_text(&self) -> String {
        write(OPERATOR, &self.secret, self.authority)
    }

    /// What the coordinator keeps of it.
    #[must_use]
    pub fn hash(&self) -> TokenHash {
        TokenHash::of(&self.secret)
    }
}

impl FromStr for OperatorToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let (secret, authority) = read(OPERATOR, text)?;
        Ok(Self { secret, authority })
    }
}

fn write(kind: &str, secret: &[u8; 32], authority: Fingerprint) -> String {
    let body = format!("{kind}.{}.{}", hex(secret), hex(&authority.0));
    let check = check(&body);
    format!("{body}.{check}")
}

fn read(kind: &'static str, text: &str) -> Result<([u8; 32], Fingerprint), TokenError> {
    let form = TokenError::Form(kind);
    let (body, given) = text.trim().rsplit_once('.').ok_or(form)?;
    let mut parts = body.split('.');
    let prefix = parts.next().ok_or(form)?;
    if prefix != kind {
        let version = prefix.strip_prefix("hfo").or_else(|| prefix.strip_prefix("hf"));
        return Err(match prefix {
            ENROL | OPERATOR => TokenError::Purpose,
            _ if version.is_some_and(|version| version.parse::<u32>().is_ok()) => TokenError::Newer,
            _ => form,
        });
    }
    if given != check(body) {
        return Err(TokenError::Mistyped);
    }
    let (Some(secret), Some(authority), None) = (parts.next(), parts.next(), parts.next()) else {
        return Err(form);
    };
    Ok((unhex(secret).ok_or(form)?, Fingerprint(unhex(authority).ok_or(form)?)))
}

impl fmt::Debug for EnrolToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EnrolToken").field("authority", &self.authority).finish_non_exhaustive()
    }
}

impl fmt::Debug for OperatorToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OperatorToken").field("authority", &self.authority).finish_non_exhaustive()
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
