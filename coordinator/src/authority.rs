//! The coordinator's own certificate authority.
//!
//! Owns the CA's key and certificate, the coordinator's own certificate, and what is written into machines'
//! certificates. Does not know the catalog: whoever calls records what was signed.
//! Invariant: nothing of a request but its public key enters a certificate. The CA's key file is readable by its owner only.
//! Files: `authority.key` and `authority.crt` in one folder, PEM.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use holdfast_common::{
    clock::{Clock, Timestamp},
    durable,
    entropy::Entropy,
    ids::MachineId,
    tls::{self, COORDINATOR_NAME, MachineKey, TlsError},
    token::{EnrolToken, Fingerprint, OperatorToken},
};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData as _, SanType,
    SerialNumber, date_time_ymd,
};
use rustls::{
    pki_types::{CertificateDer, pem::PemObject as _},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use thiserror::Error;

use crate::ingest::port::{CertificateRecord, CertificateSerial};

/// How long a machine's certificate is valid, unless set otherwise. Agents renew at two thirds; a machine that was
/// off for longer must enrol again.
pub const MACHINE_LIFE_DEFAULT: Duration = Duration::from_hours(30 * 24);

/// How long the coordinator's own certificate is valid; it is made anew at two thirds, without anybody noticing.
const COORDINATOR_LIFE: Duration = Duration::from_hours(30 * 24);

/// How long the CA is valid.
const AUTHORITY_LIFE: Duration = Duration::from_hours(30 * 365 * 24);

/// How far certificates reach back, for peers whose clocks are behind.
const CLOCK_SLACK: Duration = Duration::from_hours(1);

/// Largest certificate request that is looked at, in bytes (an Ed25519 request has about 200).
const REQUEST_BYTES_MAX: usize = 4096;

const KEY_FILE: &str = "authority.key";
const CERTIFICATE_FILE: &str = "authority.crt";

/// Why the CA cannot work.
#[derive(Debug, Error)]
pub enum AuthorityError {
    /// A file cannot be read or written.
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
    /// Others can read the key.
    #[error(
        "{path} can be read by others than its owner (mode {mode:o}): if nobody can have copied it, run chmod 600 {path}"
    )]
    Exposed {
        /// The key file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// The certificate is there but its key is not.
    #[error(
        "{path} is missing although {CERTIFICATE_FILE} exists: restore it from a backup. Without it no agent can connect; removing both files makes a new CA, and every machine must then be enrolled again"
    )]
    KeyMissing {
        /// The key file.
        path: PathBuf,
    },
    /// The key is there, and the certificate that others have seen is not.
    #[error(
        "{path} is missing: restore it from a backup, or from an agent (`authority` in its identity.json is this certificate, DER in hexadecimal). Another one would be another CA: no agent and no operator would connect any more"
    )]
    CertificateMissing {
        /// The certificate's file.
        path: PathBuf,
    },
    /// A file does not hold what it should.
    #[error("{path} cannot be used: {reason}. Restore it from a backup")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The agent's request is not acceptable.
    #[error("the certificate request is not acceptable: {0}")]
    Request(String),
    /// A certificate cannot be signed.
    #[error("a certificate cannot be signed")]
    Sign(#[source] rcgen::Error),
    /// TLS refuses.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// A certificate that was signed for a machine.
#[derive(Clone, Debug)]
pub struct SignedCertificate {
    /// The certificate, DER.
    pub der: Vec<u8>,
    /// What to record of it, before it is handed out.
    pub record: CertificateRecord,
}

/// The CA.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    machine_life: Duration,
    own: Mutex<Option<OwnCertificate>>,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
}

/// The coordinator's certificate in use. Its key is never written anywhere.
#[derive(Debug)]
struct OwnCertificate {
    key: Arc<CertifiedKey>,
    renew_at: Timestamp,
}

impl Authority {
    /// Opens the CA in `folder`, or makes it if there is none. Blocking.
    ///
    /// # Errors
    /// Files are missing, exposed or damaged; the text says what to do.
    pub fn open(
        folder: &Path,
        machine_life: Duration,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
    ) -> Result<Self, AuthorityError> {
        let (key_path, certificate_path) = (folder.join(KEY_FILE), folder.join(CERTIFICATE_FILE));
        let key = match (key_path.exists(), certificate_path.exists()) {
            (true, _) => read_key(&key_path)?,
            (false, true) => return Err(AuthorityError::KeyMissing { path: key_path }),
            (false, false) => create_key(&key_path, entropy.as_ref())?,
        };
        if !certificate_path.exists() {
            // The key alone is what a crash between the two writes leaves; nobody has seen a certificate of it.
            create_certificate(&certificate_path, &key, clock.as_ref(), entropy.as_ref())?;
        }
        let certificate = read_certificate(&certificate_path, &key)?;
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(AuthorityError::Sign)?;
        Ok(Self { issuer, certificate, machine_life, own: Mutex::new(None), clock, entropy })
    }

    /// Whether all of a CA that has been in use is there: what [`Self::open`] makes again in its place is another CA.
    ///
    /// # Errors
    /// [`AuthorityError::CertificateMissing`].
    pub fn check_whole(folder: &Path) -> Result<(), AuthorityError> {
        let path = folder.join(CERTIFICATE_FILE);
        if path.exists() { Ok(()) } else { Err(AuthorityError::CertificateMissing { path }) }
    }

    /// What agents pin.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.certificate)
    }

    /// The CA's certificate, DER.
    #[must_use]
    pub fn certificate_der(&self) -> &[u8] {
        &self.certificate
    }

    /// A key for another purpose, which is named by `context` (written once in the code, never built at run time). It is
    /// the same as long as the CA is, and tells nothing about the CA's own key.
    #[must_use]
    pub fn derived_key(&self, context: &'static str) -> [u8; 32] {
        blake3::derive_key(context, &self.issuer.key().serialize_der())
    }

    /// A new enrolment token. The caller stores its hash and when it expires, then shows the text once.
    #[must_use]
    pub fn new_token(&self) -> EnrolToken {
        EnrolToken { secret: self.new_secret(), authority: self.fingerprint() }
    }

    /// A new token of an operator. The caller stores its hash, then shows the text once.
    #[must_use]
    pub fn new_operator_token(&self) -> OperatorToken {
        OperatorToken { secret: self.new_secret(), authority: self.fingerprint() }
    }

    fn new_secret(&self) -> [u8; 32] {
        let mut secret = [0; 32];
        self.entropy.fill(&mut secret);
        secret
    }

    /// Signs a machine's certificate for the public key in the request.
    ///
    /// # Errors
    /// [`AuthorityError::Request`] if the request is malformed or not signed by its own key.
    pub fn sign_machine(
        &self,
        machine: MachineId,
        request_der: &[u8],
    ) -> Result<SignedCertificate, AuthorityError> {
        if request_der.len() > REQUEST_BYTES_MAX {
            return Err(AuthorityError::Request(format!("it has {} bytes", request_der.len())));
        }
        let request = CertificateSigningRequestParams::from_der(&request_der.into())
            .map_err(|error| AuthorityError::Request(error.to_string()))?;
        let serial = self.new_serial();
        let now = self.clock.wall();
        let not_after = whole_second(now.plus(self.machine_life));
        let not_before = earlier(now, CLOCK_SLACK);
        let mut params = validity(not_before, not_after);
        params.serial_number = Some(SerialNumber::from_slice(&serial.0));
        params.distinguished_name = name(&format!("Holdfast machine {machine}"));
        let uri = tls::machine_uri(machine).try_into().map_err(AuthorityError::Sign)?;
        params.subject_alt_names = vec![SanType::URI(uri)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let certificate =
            params.signed_by(&request.public_key, &self.issuer).map_err(AuthorityError::Sign)?;
        let record = CertificateRecord { serial, not_before, not_after };
        Ok(SignedCertificate { der: certificate.der().to_vec(), record })
    }

    /// TLS settings of the endpoint that agents connect to.
    ///
    /// # Errors
    /// The CA's certificate is unusable.
    pub fn server_config(self: &Arc<Self>) -> Result<rustls::ServerConfig, AuthorityError> {
        let resolver = Arc::new(OwnResolver(Arc::clone(self)));
        // Fail here and not at the first connection if no certificate can be made.
        self.own_certificate()?;
        Ok(tls::server(Arc::clone(&self.clock), &self.certificate, resolver)?)
    }

    /// TLS settings of the endpoint that operators connect to.
    ///
    /// # Errors
    /// No certificate can be made.
    pub fn operator_server_config(self: &Arc<Self>) -> Result<rustls::ServerConfig, AuthorityError> {
        self.own_certificate()?;
        Ok(tls::operator_server(Arc::clone(&self.clock), Arc::new(OwnResolver(Arc::clone(self))))?)
    }

    /// The coordinator's certificate, made anew when two thirds of its life are over.
    fn own_certificate(&self) -> Result<Arc<CertifiedKey>, AuthorityError> {
        let now = self.clock.wall();
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = own.as_ref().filter(|own| now < own.renew_at) {
            return Ok(Arc::clone(&own.key));
        }
        let key = self.make_own(now)?;
        *own = Some(OwnCertificate { key: Arc::clone(&key), renew_at: now.plus(COORDINATOR_LIFE * 2 / 3) });
        Ok(key)
    }

    fn make_own(&self, now: Timestamp) -> Result<Arc<CertifiedKey>, AuthorityError> {
        let key = MachineKey::generate(self.entropy.as_ref())?;
        let mut params = validity(earlier(now, CLOCK_SLACK), now.plus(COORDINATOR_LIFE));
        params.serial_number = Some(SerialNumber::from_slice(&self.new_serial().0));
        params.distinguished_name = name("Holdfast coordinator");
        let dns = COORDINATOR_NAME.try_into().map_err(AuthorityError::Sign)?;
        params.subject_alt_names = vec![SanType::DnsName(dns)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let private = key.private_der();
        let certificate = params.signed_by(&key.into_pair(), &self.issuer).map_err(AuthorityError::Sign)?;
        let chain = vec![certificate.der().clone(), self.certificate.clone()];
        let certified = CertifiedKey::from_der(chain, private, &tls::provider()).map_err(TlsError::Setup)?;
        Ok(Arc::new(certified))
    }

    fn new_serial(&self) -> CertificateSerial {
        let mut serial = [0; 16];
        self.entropy.fill(&mut serial);
        // DER integers are signed and have no leading zero byte: keep the form unique.
        serial[0] = serial[0] & 0x7f | 0x40;
        CertificateSerial(serial)
    }
}

/// Hands the coordinator's certificate to each handshake.
#[derive(Debug)]
struct OwnResolver(Arc<Authority>);

impl ResolvesServerCert for OwnResolver {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        match self.0.own_certificate() {
            Ok(key) => Some(key),
            Err(error) => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "no certificate for this coordinator"
                );
                None
            }
        }
    }
}

fn read_key(path: &Path) -> Result<KeyPair, AuthorityError> {
    let file = |operation| move |source| AuthorityError::File { operation, path: path.to_owned(), source };
    let mode = fs::metadata(path).map_err(file("looking at"))?.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(AuthorityError::Exposed { path: path.to_owned(), mode });
    }
    let text = fs::read_to_string(path).map_err(file("reading"))?;
    KeyPair::from_pem(&text)
        .map_err(|error| AuthorityError::Damaged { path: path.to_owned(), reason: error.to_string() })
}

fn create_key(path: &Path, entropy: &dyn Entropy) -> Result<KeyPair, AuthorityError> {
    let pair = MachineKey::generate(entropy)?.into_pair();
    durable::replace(path, pair.serialize_pem().as_bytes(), durable::MODE_SECRET)
        .map_err(|source| AuthorityError::File { operation: "writing", path: path.to_owned(), source })?;
    Ok(pair)
}

fn create_certificate(
    path: &Path,
    key: &KeyPair,
    clock: &dyn Clock,
    entropy: &dyn Entropy,
) -> Result<(), AuthorityError> {
    let now = clock.wall();
    let mut params = validity(earlier(now, CLOCK_SLACK), now.plus(AUTHORITY_LIFE));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name = name(&format!("Holdfast CA {:016x}", entropy.next_u64()));
    let certificate = params.self_signed(key).map_err(AuthorityError::Sign)?;
    durable::replace(path, certificate.pem().as_bytes(), durable::MODE_PRIVATE)
        .map_err(|source| AuthorityError::File { operation: "writing", path: path.to_owned(), source })
}

fn read_certificate(path: &Path, key: &KeyPair) -> Result<CertificateDer<'static>, AuthorityError> {
    let damaged = |reason: String| AuthorityError::Damaged { path: path.to_owned(), reason };
    let text = fs::read(path).map_err(|source| AuthorityError::File {
        operation: "reading",
        path: path.to_owned(),
        source,
    })?;
    let certificate = CertificateDer::from_pem_slice(&text).map_err(|error| damaged(error.to_string()))?;
    let public = tls::public_key(&certificate).map_err(|error| damaged(error.to_string()))?;
    if public != key.der_bytes() {
        return Err(damaged(format!("it does not belong to {KEY_FILE}")));
    }
    // Others know it byte by byte, and not all of its bytes are looked at when it is used.
    tls::check_self_signed(&certificate).map_err(|error| damaged(error.to_string()))?;
    Ok(certificate)
}

fn name(common: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common);
    name
}

fn validity(not_before: Timestamp, not_after: Timestamp) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.not_before = date_time_ymd(1970, 1, 1) + not_before.since(Timestamp(0));
    params.not_after = date_time_ymd(1970, 1, 1) + not_after.since(Timestamp(0));
    params
}

fn earlier(at: Timestamp, by: Duration) -> Timestamp {
    whole_second(Timestamp(at.0.saturating_sub(i64::try_from(by.as_micros()).unwrap_or(0)).max(0)))
}

/// Certificates know whole seconds only; what is recorded must be what they say.
const fn whole_second(at: Timestamp) -> Timestamp {
    Timestamp(at.0 - at.0 % 1_000_000)
}

#[cfg(test)]
mod tests;
