//! The agent's identity: key, certificate, the coordinator's CA, and where the coordinator is.
//!
//! Owns the file and the moment of renewal. Does not know connections.
//! Invariant: one file holds everything and is replaced as a whole, so an agent is enrolled or not, never half.
//! Format: JSON with a version, bytes in hexadecimal; mode 0600. An unknown version is refused.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use holdfast_common::{
    clock::Timestamp,
    durable,
    ids::MachineId,
    tls::{MachineKey, PeerIdentity, TlsError, public_key},
};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The file's name in the state folder.
const FILE: &str = "identity.json";

/// Version of the file. History: 1, first.
const VERSION: u32 = 1;

/// Who this agent is, and whom it trusts.
#[derive(Clone)]
pub struct Identity {
    /// The machine.
    pub machine: MachineId,
    /// Host and port of the coordinator.
    pub coordinator: String,
    /// The private key, PKCS#8.
    pub key: Vec<u8>,
    /// The certificate, DER.
    pub certificate: Vec<u8>,
    /// The coordinator's CA, DER.
    pub authority: Vec<u8>,
}

/// The state folder's identity file.
#[derive(Clone, Debug)]
pub struct IdentityStore {
    path: PathBuf,
}

/// Why the identity cannot be used.
#[derive(Debug, Error)]
pub enum IdentityError {
    /// There is none.
    #[error("this machine is not enrolled ({path} does not exist): run holdfast-agent enroll")]
    NotEnrolled {
        /// The file.
        path: PathBuf,
    },
    /// The file cannot be read or written.
    #[error("{operation} {path} failed")]
    File {
        /// What was tried.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The file is not what it should be.
    #[error("{path} cannot be used: {reason}. Restore it, or enrol this machine again")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A certificate does not fit.
    #[error("the coordinator's certificate for this machine is not acceptable: {0}")]
    Certificate(&'static str),
    /// Keys or certificates cannot be read.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    version: u32,
    machine: MachineId,
    coordinator: String,
    key: String,
    certificate: String,
    authority: String,
}

impl Identity {
    /// Puts an identity together and checks that its parts belong together.
    ///
    /// # Errors
    /// [`IdentityError::Certificate`] or [`IdentityError::Tls`].
    pub fn new(
        machine: MachineId,
        coordinator: String,
        key: &MachineKey,
        certificate: Vec<u8>,
        authority: Vec<u8>,
    ) -> Result<Self, IdentityError> {
        let identity = Self { machine, coordinator, key: key.pkcs8().to_vec(), certificate, authority };
        identity.check()?;
        Ok(identity)
    }

    /// The same identity with a renewed certificate.
    ///
    /// # Errors
    /// The certificate is not for this machine and key.
    pub fn renewed(&self, key: &MachineKey, certificate: Vec<u8>) -> Result<Self, IdentityError> {
        let authority = self.authority.clone();
        Self::new(self.machine, self.coordinator.clone(), key, certificate, authority)
    }

    /// When to ask for a new certificate: after two thirds of this one's life.
    ///
    /// # Errors
    /// The certificate cannot be read.
    pub fn renew_at(&self) -> Result<Timestamp, IdentityError> {
        let holder = PeerIdentity::of(&self.certificate)?;
        let life: Duration = holder.not_after.since(holder.not_before);
        Ok(holder.not_before.plus(life * 2 / 3))
    }

    fn check(&self) -> Result<(), IdentityError> {
        let holder = PeerIdentity::of(&self.certificate)?;
        if holder.machine != self.machine {
            return Err(IdentityError::Certificate("it is for another machine"));
        }
        let key = MachineKey::from_pkcs8(&self.key)?;
        if public_key(&self.certificate)? != key.public() {
            return Err(IdentityError::Certificate("it is for another key"));
        }
        Ok(())
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Identity");
        out.field("machine", &self.machine).field("coordinator", &self.coordinator).finish_non_exhaustive()
    }
}

impl IdentityStore {
    /// The identity file in this state folder.
    #[must_use]
    pub fn new(state: &Path) -> Self {
        Self { path: state.join(FILE) }
    }

    /// Whether there is an identity.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.path.exists()
    }

    /// Reads the identity.
    ///
    /// # Errors
    /// There is none, or it is damaged.
    pub fn load(&self) -> Result<Identity, IdentityError> {
        let text = fs::read(&self.path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => IdentityError::NotEnrolled { path: self.path.clone() },
            _ => self.file("reading", source),
        })?;
        let stored: Stored =
            serde_json::from_slice(&text).map_err(|error| self.damaged(error.to_string()))?;
        if stored.version != VERSION {
            return Err(
                self.damaged(format!("it has version {}, this agent knows {VERSION}", stored.version))
            );
        }
        let bytes = |field: &'static str, text: &str| {
            unhex(text).ok_or_else(|| self.damaged(format!("its {field} is not hexadecimal")))
        };
        let identity = Identity {
            machine: stored.machine,
            coordinator: stored.coordinator,
            key: bytes("key", &stored.key)?,
            certificate: bytes("certificate", &stored.certificate)?,
            authority: bytes("authority", &stored.authority)?,
        };
        identity.check().map_err(|error| self.damaged(error.to_string()))?;
        Ok(identity)
    }

    /// Writes the identity, whole and durably.
    ///
    /// # Errors
    /// The state folder cannot be written; what was there is still there.
    pub fn store(&self, identity: &Identity) -> Result<(), IdentityError> {
        let stored = Stored {
            version: VERSION,
            machine: identity.machine,
            coordinator: identity.coordinator.clone(),
            key: hex(&identity.key),
            certificate: hex(&identity.certificate),
            authority: hex(&identity.authority),
        };
        let text = serde_json::to_vec_pretty(&stored).map_err(|error| self.file("writing", error.into()))?;
        if let Some(folder) = self.path.parent() {
            durable::create_folder(folder).map_err(|source| self.file("creating the folder of", source))?;
        }
        durable::replace(&self.path, &text, durable::MODE_SECRET)
            .map_err(|source| self.file("writing", source))
    }

    fn file(&self, operation: &'static str, source: io::Error) -> IdentityError {
        IdentityError::File { operation, path: self.path.clone(), source }
    }

    fn damaged(&self, reason: String) -> IdentityError {
        IdentityError::Damaged { path: self.path.clone(), reason }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let pairs = text.as_bytes().chunks(2);
    pairs.map(|pair| Some(digit(pair.first()?)? << 4 | digit(pair.get(1)?)?)).collect()
}
