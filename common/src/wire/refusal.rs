//! Refusals: closed numbers that a peer can act on, with a text for people.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A refusal as it is sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// What the peer should act on. Numbers unknown to this version are kept as they are.
    pub code: RefusalCode,
    /// What happened and what to do, for people.
    pub text: String,
}

/// Why something is refused. The numbers are the protocol: never reused, only appended. Also used as QUIC
/// application close codes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RefusalCode(pub u32);

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $value:expr, $text:expr;)*) => {
        impl RefusalCode {
            $($(#[$doc])* pub const $name: Self = Self($value);)*

            /// Short name of the code.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                    _ => "unknown refusal",
                }
            }
        }
    };
}

codes! {
    /// Not a refusal: the peer shuts down in order.
    CLOSING = 0, "closing";
    /// The peers share no protocol version. The older one must be upgraded.
    VERSION = 1, "no common protocol version";
    /// The peer's message breaks the protocol. Reconnecting may help, the same bytes will not.
    PROTOCOL = 2, "protocol violation";
    /// The certificate was revoked or the machine removed. Enrol again.
    REVOKED = 3, "certificate revoked";
    /// The certificate is not for this disk or machine.
    UNAUTHORIZED = 4, "not authorized";
    /// The enrolment token is unknown, used or expired. Ask the operator for a new one.
    TOKEN = 5, "token not valid";
    /// The frame's generation is not the disk's: another line of history has taken over. Stop sending.
    FENCED = 6, "generation is fenced off";
    /// A frame does not follow the last one. Reconnect and resume.
    SEQUENCE = 7, "sequence does not follow";
    /// A frame arrived damaged. Reconnect and resume.
    DAMAGED = 8, "frame damaged on the way";
    /// A newer connection of the same agent took over.
    SUPERSEDED = 9, "superseded by a newer connection";
    /// The coordinator cannot store more (disk full or failing). Try again later.
    STORAGE = 10, "storage not available";
    /// The peer is busy or starting. Try again later.
    BUSY = 11, "busy";
    /// A limit of the protocol was exceeded.
    LIMIT = 12, "limit exceeded";
}

impl Refusal {
    /// A refusal with its text.
    #[must_use]
    pub fn new(code: RefusalCode, text: impl Into<String>) -> Self {
        Self { code, text: text.into() }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}): {}", self.code.name(), self.code.0, self.text)
    }
}

impl std::error::Error for Refusal {}

impl fmt::Debug for RefusalCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name(), self.0)
    }
}
